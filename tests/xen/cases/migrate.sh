# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest migrates live, to the host it is on, while it writes: the receiving side's disk joins the instance that the other
# still has: one machine, one image. No write is lost, and none comes back. A PVH guest: of PV guests Xen learns which pages
# are written by shadow page tables, and Debian's has none. By plugin; migrate:WAY:KIND in another way, another guest.
# shows: `xl migrate` to the same host, while the guest writes
# way: plugin
# on request
# limit: 1800 s
only vbdkit
by "${1:-plugin}"
path=$images/moving.qcow2
vbdkit create --size 32M "qcow2:$path"
guest_create g1 --type "${2:-pvh}" --memory 256 "$(format_disk xvda qcow2 "$path")" || fail "xl create: $(cat "$state/g1.xl")"
first=$(domid g1)
pid=$(instances)
# Round after round of the same blocks, each with its own content.
guest_must g1 'cat >/tmp/writer <<"END"
round=0
while [ ! -e /tmp/stop ]; do
  round=$((round + 1))
  yes "round $round" | dd of=/dev/xvda bs=32k count=32 iflag=fullblock conv=fsync || break
  echo $round >/tmp/round
done
touch /tmp/stopped
END
sh /tmp/writer >/tmp/writer.log 2>&1 & true'
until_true 180 guest g1 '[ -e /tmp/round ]'
before=$(guest_must g1 'cat /tmp/round')
# On the way the domain has another name, and xenconsoled its log.
ln -sf guest-g1.log "$console/guest-g1--incoming.log"
xl migrate -s '' g1 'xl migrate-receive' >"$state/migrate" 2>&1 || {
  ! grep -q 'Failed to enable logdirty' "$state/migrate" || skip "this Xen has no shadow page tables"
  fail "xl migrate: $(cat "$state/migrate")"
}
rm -f "$console/guest-g1--incoming.log"
second=$(domid g1)
[ "$first" != "$second" ] || fail "g1 still is domain $first"
echo "/local/domain/$second" >"$state/g1.path"
after=$(guest_must g1 'cat /tmp/round')
until_true 180 guest g1 "[ \$(cat /tmp/round) -gt $((after + 1)) ]"
guest_must g1 'touch /tmp/stop'
until_true 180 guest g1 '[ -e /tmp/stopped ]'
last=$(guest_must g1 'cat /tmp/round')
expect "the writer's complaints" "$(guest_must g1 'grep -v -e records -e bytes /tmp/writer.log || true')" ''
sum=$(guest_must g1 'echo 3 >/proc/sys/vm/drop_caches; head -c 1048576 /dev/xvda | sha256sum')
expected=$(set +o pipefail; yes "round $last" | dd bs=32k count=32 iflag=fullblock 2>/dev/null | sha256sum)
expect "the last round, as the guest reads it" "$sum" "$expected"
expect "the instance" "$(instances)" "$pid"
expect "domains" "$(guests | grep -v shared)" g1
shut_down g1
until_true 30 eval '[ "$(instance_count)" = 0 ]' || fail "the instance is left"
vbdkit check "qcow2:$path" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
vbdkit convert "qcow2:$path" "raw:$images/flat.img"
expect "the last round, in the image" "$(head -c 1048576 "$images/flat.img" | sha256sum)" "$expected"
saw "domain $first became $second on one instance, amid writes (round $before before, $after after, $last last), all right"
