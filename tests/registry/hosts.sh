#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Two hosts, one etcd: who may have an image, finding what runs elsewhere, and what happens when a
# lease is not renewed, or has ended.
# shellcheck source=tests/registry/lib.sh
. "$(dirname "$0")/lib.sh"
vbdkit create --size 64M "qcow2:$share/base.qcow2" >/dev/null
for name in a b; do
  vbdkit create --parent "qcow2:$share/base.qcow2" "qcow2:$share/$name.qcow2" >/dev/null
done
vbdkit create --size 16M raw:own.img >/dev/null

# Before there is a registryd, and before it has etcd.
add_host a
add_host b
refused_on a 'is on shared storage, but vbdkit-registryd does not answer' \
  activate --backend "$BACKEND" "qcow2:$share/a.qcow2"
own=$(activate_on a raw:own.img)
on a vbdkit deactivate "$own"
start_etcd
start_registryd a
a_pid=$registryd_pid
start_registryd b
b_pid=$registryd_pid
ok "images of one's own need no registry, shared ones do"

a=$(activate_on a "qcow2:$share/a.qcow2")
b=$(activate_on b "qcow2:$share/b.qcow2")
refused_on b "a.qcow2 \(san/i[0-9]+\) is in use on host a by $a \(write" \
  activate --backend "$BACKEND" "qcow2:$share/a.qcow2"
refused_on b 'base.qcow2 .* is in use on host a' activate --backend "$BACKEND" "qcow2:$share/base.qcow2"
ln "$share/a.qcow2" "$share/other-name.qcow2"
refused_on b "is in use on host a by $a" activate --backend "$BACKEND" \
  "qcow2:$share/other-name.qcow2"
refused_on b "is in use on host a by $a" resize "qcow2:$share/a.qcow2" 128M
refused_on b "is in use on host a by $a" check --repair "qcow2:$share/a.qcow2"
refused_on b "is in use on host a by $a" snapshot "qcow2:$share/a.qcow2" "$share/no.qcow2"
refused_on b "is in use on host a by $a" clone "qcow2:$share/a.qcow2" "qcow2:$share/no.qcow2"
refused_on b "is in use on host a by $a" create --parent "qcow2:$share/a.qcow2" "qcow2:$share/no.qcow2"
touch "$share/a.qcow2.vbdkit-new"
refused_on b "is in use on host a by $a" gc "$share"
[ -e "$share/a.qcow2.vbdkit-new" ] || fail "gc removed what another host may be making"
rm "$share/a.qcow2.vbdkit-new"
[ ! -e "$share/no.qcow2" ] || fail "something was made"
ok "two writers on two hosts: the second is told who is the first"

await_key "/vbdkit/instances/$a" PUT 1
await_key "/vbdkit/instances/$b" PUT 1
on b vbdkit list --all-hosts --json >out
expect_json 'map([."registry-host", .uuid]) | sort' "$(jq -cn --arg a "$a" --arg b "$b" \
  '[["a",$a],["b",$b]]')"
for name in "$a" "${a:0:8}" "$share/a.qcow2" "qcow2:$share/a.qcow2"; do
  on b vbdkit list --all-hosts --json "$name" >out
  expect_json 'map([."registry-host", .uuid])' "[[\"a\",\"$a\"]]"
done
refused_on b "runs on host a as $a: vbdkit --host a" list "$share/a.qcow2"
mkdir bin
printf '#!/bin/sh\necho "$@" >%s/ssh-was\n' "$scratch" >bin/ssh
chmod +x bin/ssh
PATH=$PWD/bin:$PATH on b vbdkit --host "@$share/a.qcow2" pause "$share/a.qcow2"
grep -q "^-- a vbdkit 'pause'" ssh-was || fail "ssh was called with: $(cat ssh-was)"
ok "what runs on another host is found, by UUID and image, and reached there"

# A snapshot: the former leaf may be read by all from then on, the new one by nobody else.
on a vbdkit snapshot "qcow2:$share/a.qcow2" "$share/snap.qcow2" >/dev/null
vbdkit create --parent "qcow2:$share/snap.qcow2" "qcow2:$share/c.qcow2" >/dev/null
refused_on b "is in use on host a by $a" activate --backend "$BACKEND" "qcow2:$share/a.qcow2"
c=$(activate_on b "qcow2:$share/c.qcow2")
ok "a live snapshot's parent can be shared, its leaf cannot"

# A group's new leaves likewise, in use or not; and a stream gives up what its disk stood on.
for name in d e; do
  vbdkit create --parent "qcow2:$share/base.qcow2" "qcow2:$share/$name.qcow2" >/dev/null
done
d=$(activate_on a "qcow2:$share/d.qcow2")
on a vbdkit snapshot "qcow2:$share/d.qcow2" "$share/d-then.qcow2" \
  --group "qcow2:$share/e.qcow2=$share/e-then.qcow2"
refused_on b "is in use on host a by $d \(write" activate --backend "$BACKEND" \
  "qcow2:$share/d.qcow2"
e=$(activate_on b "qcow2:$share/e.qcow2")
on b vbdkit deactivate "$e"
refused_on b "is in use on host a by $d \(read" check --repair "qcow2:$share/d-then.qcow2"
from=$(($(revision) + 1))
on a vbdkit stream "qcow2:$share/d.qcow2" >/dev/null
await_key "/vbdkit/images/san/i$(stat -c %i "$share/d-then.qcow2")/a/$d" DELETE "$from"
on b vbdkit check --repair "qcow2:$share/d-then.qcow2" >/dev/null
on a vbdkit deactivate "$d"
rm "$share"/[de].qcow2 "$share"/[de]-then.qcow2
ok "a group's new leaves are claimed, and what a stream needs no more is free"

# A coalesce writes to what others read (coalesce.sh), but not to what they write, nor beneath those
# who do not read it through the image.
refused_on a 'base.qcow2 is also that of .*b.qcow2' coalesce "qcow2:$share/snap.qcow2"
on b vbdkit deactivate "$c"
on b vbdkit deactivate "$b"
ends=$(activate_on b -r "qcow2:$share/base.qcow2")
mv "$share/b.qcow2" "$share/c.qcow2" .
await_key "/vbdkit/instances/$ends" PUT 1
refused_on a "instance $ends on host b has .*base.qcow2 as its disk" \
  coalesce "qcow2:$share/snap.qcow2"
on b vbdkit deactivate "$ends"
mv b.qcow2 c.qcow2 "$share"
rm "$share/b.qcow2" "$share/c.qcow2"
qemu-io -f raw -c 'write -P 5 0 1M' "$(nbd_of a "$a")" >/dev/null
on a vbdkit coalesce "qcow2:$share/snap.qcow2" >/dev/null
qemu-io -f raw -c 'read -P 5 0 1M' "$(nbd_of a "$a")" | grep -q 'read 1048576' || fail "data lost"
ok "coalesce refuses while another host reads by another way, and goes on when nobody does"

# An end, orderly or not, lets others in.
on a vbdkit deactivate "$a"
a=$(activate_on b "qcow2:$share/a.qcow2")
image=$(etcdctl get --prefix --keys-only /vbdkit/images/ | grep "/b/$a\$" | head -1)
from=$(($(revision) + 1))
kill -9 "$(record_on b "$a" | jq .pid)"
await_key "$image" DELETE "$from"
a=$(activate_on a "qcow2:$share/a.qcow2")
ok "what an instance had is free when it has ended, however that came"

# registryd does not renew the lease for a while: the disk holds, and goes on.
listen a "$a"
kill -STOP "$a_pid"
await_state holding
qemu-io -f raw -c 'write -P 9 1M 1M' "$(nbd_of a "$a")" >io.out 2>&1 &
writer=$!
kill -CONT "$a_pid"
await_state running
wait "$writer"
grep -q 'wrote 1048576' io.out || fail "the write that was held: $(cat io.out)"
ok "a lease that is not renewed: requests wait, and are done when it is there again"

# A registryd that is killed and comes back is no break at all.
kill -9 "$a_pid"
wait "$a_pid" || true
refused_on a 'vbdkit-registryd does not answer' activate --backend "$BACKEND" \
  "qcow2:$share/other-name.qcow2"
start_registryd a
a_pid=$registryd_pid
qemu-io -f raw -c 'write -P 4 2M 64k' "$(nbd_of a "$a")" | grep -q 'wrote 65536' || fail "no write"
refused_on b "is in use on host a by $a" activate --backend "$BACKEND" "qcow2:$share/a.qcow2"
ok "registryd is started anew: the claims are known again"

# etcd away: what runs holds in time, what is to start says why not; and back.
kill -9 "$etcd_pid"
wait "$etcd_pid" || true
await_state holding
refused_on a 'lease is not certain' snapshot "qcow2:$share/a.qcow2" "$share/no.qcow2"
refused_on a 'registry: .*etcd: ' activate --backend "$BACKEND" "qcow2:$share/base.qcow2"
own=$(activate_on a raw:own.img)
on a vbdkit deactivate "$own"
start_etcd
await_state running
qemu-io -f raw -c 'write -P 6 3M 64k' "$(nbd_of a "$a")" | grep -q 'wrote 65536' || fail "no write"
ok "etcd away and back: disks hold and go on, images of one's own do not care"

# A host that is gone: its records go with its lease, its images may be taken, and when it is back
# it must not touch them any more. Its instance is stopped meanwhile: it cannot know.
pid=$(record_on a "$a" | jq .pid)
from=$(($(revision) + 1))
qemu-io -f raw -c 'write -P 1 8M 64k' "$(nbd_of a "$a")" >/dev/null
uri=$(nbd_of a "$a")
kill -STOP "$a_pid" "$pid"
qemu-io -f raw -c 'write -P 255 8M 64k' "$uri" >late.out 2>&1 &
late=$!
await_key "/vbdkit/instances/$a" DELETE "$from"
await_key /vbdkit/hosts/a DELETE "$from"
# On this machine the stopped process still has its lock, which another machine would not see.
b=$(activate_on b "qcow2,locking=off:$share/a.qcow2")
qemu-io -f raw -c 'read -P 1 8M 64k' -c 'write -P 2 8M 64k' "$(nbd_of b "$b")" | grep -q 'wrote 65536'
on b vbdkit deactivate "$b"
kill -CONT "$pid"
kill -CONT "$a_pid"
await_state taken
wait "$late" || true
grep -q 'Input/output error' late.out || fail "the late write: $(cat late.out)"
kill "$pid"
tail --pid="$pid" -f /dev/null
qemu-io -f qcow2 -c 'read -P 2 8M 64k' "$share/a.qcow2" | grep -q 'read 65536' ||
  fail "the host that was gone has written"
qemu-img check -q "$share/a.qcow2" || fail "the image is damaged"
ok "a host that was gone finds its image taken, and does not touch it"

kill "$a_pid" "$b_pid"
wait "$a_pid" "$b_pid" || fail "registryd did not end well: $(tail -3 a.log b.log)"
