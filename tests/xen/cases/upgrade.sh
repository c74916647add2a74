# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# The package is upgraded under a guest that writes: programs are replaced, vbdkitd ends as systemd ends it and a new one
# starts, with the rights that its unit leaves it. The disk goes on in the same process, and the new daemon detaches it.
# shows: package upgraded under a guest that writes
# on request
only vbdkit
shared_guest
blkfront shared
path=$(image upgraded 32M)
attach shared xvdb "$path"
pid=$(instances)
guest_must shared 'rm -f /v /stop; (while [ ! -e /stop ]; do fio --name=v --filename=/dev/xvdb --rw=randwrite --bsrange=4k-64k \
--size=8M --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 >/v 2>&1 || break; done
echo "status $?" >>/v) &'
written() { guest_must shared 'awk "{print \$7}" /sys/block/xvdb/stat'; }
more_than() { [ "$(written)" -gt "$1" ]; }
until_true 60 more_than 0 || fail "the guest does not write"

grep -qx KillMode=process /usr/lib/systemd/system/vbdkitd.service || fail "the unit would end the instances too"
for program in /usr/sbin/vbdkitd /usr/libexec/vbdkit/*; do # as dpkg does: another file in its place
  cp -p "$program" "$program.new"
  mv "$program.new" "$program"
done
stop_vbdkitd
[[ $(readlink "/proc/$pid/exe") == *'(deleted)' ]] || fail "the instance does not run the old program"
dropped=$(sed -n 's/^CapabilityBoundingSet=~//p' /usr/lib/systemd/system/vbdkitd.service | tr 'A-Z ' 'a-z,')
dropped=${dropped//cap_/-}
# shellcheck disable=SC2034  # start_vbdkitd reads it
vbdkitd_command=(setpriv --no-new-privs --bounding-set "$dropped" vbdkitd)
start_vbdkitd
# shellcheck disable=SC2034
vbdkitd_command=(vbdkitd)
expect "the instance" "$(instances)" "$pid"
before=$(written)
until_true 60 more_than "$before" || fail "the guest's disk stands still"
vbdkit list shared:xvdb >/dev/null || fail "vbdkit list does not know the disk"

second=$(image second 16M)
fill "$second" 16
attach shared xvdc "$second"
expect "checksum of a disk that the new daemon serves" "$(guest_must shared 'sha256sum </dev/xvdc')" "$(sha256sum <"$second")"
detach shared xvdc
guest_must shared 'touch /stop; for i in $(seq 600); do grep -q ^status /v && break; sleep 0.1; done
grep -q "^status 0" /v || { cat /v; exit 1; }'
detach shared xvdb
until_true 20 eval '[ "$(instance_count)" = 0 ]' || fail "the new daemon does not end the old instance"
stop_vbdkitd
start_vbdkitd
saw "programs replaced, vbdkitd restarted: process $pid went on under fio with verify, and ended with its disk"
