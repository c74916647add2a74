#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Three hosts, each with a network namespace and a member of etcd. One is cut off from the others,
# but not from the storage, while it writes, and in the middle of a coalesce: it must have stopped
# before another host gets its images, and stay away from them for ever.
# shellcheck source=tests/registry/lib.sh
. "$(dirname "$0")/lib.sh"
need python3 strace nbdinfo

ip netns add "vbdkit-$$-0" 2>/dev/null || {
  echo "no named network namespace can be made here"
  exit 77
}
leave() {
  local name
  end_all
  for name in "vbdkit-$$-0" "${netns[@]}"; do ip netns del "$name" || true; done
}
trap leave EXIT

ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
cluster=
for n in 1 2 3; do cluster+="${cluster:+,}h$n=http://10.77.0.$n:2380"; done
for n in 1 2 3; do
  ns=vbdkit-$$-$n
  ip netns add "$ns"
  netns[h$n]=$ns
  ip link add "port$n" type veth peer name eth0 netns "$ns"
  ip link set "port$n" master br0 up
  ip -n "$ns" addr add "10.77.0.$n/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" link set lo up
  add_host "h$n" "http://10.77.0.$n:2379"
  ip netns exec "$ns" etcd --name "h$n" --data-dir "$etcd_dir/h$n" \
    --listen-client-urls "http://10.77.0.$n:2379" --advertise-client-urls "http://10.77.0.$n:2379" \
    --listen-peer-urls "http://10.77.0.$n:2380" --initial-advertise-peer-urls "http://10.77.0.$n:2380" \
    --initial-cluster "$cluster" >"$scratch/etcd-$n.log" 2>&1 &
  started $!
done
export ETCDCTL_ENDPOINTS=http://10.77.0.2:2379,http://10.77.0.3:2379
etcdctl --dial-timeout=60s --command-timeout=60s get ready >/dev/null 2>&1 ||
  fail "etcd does not start: $(tail -3 "$scratch"/etcd-*.log)"
for n in 1 2 3; do start_registryd "h$n"; done
ok "three hosts, three members"

cut() { ip link set "port$1" down; }
join() { ip link set "port$1" up; }
boottime() { python3 -c 'import time; print(time.clock_gettime_ns(time.CLOCK_BOOTTIME))'; }

# ---- one that writes ----
vbdkit create --size 64M "vhd:$share/disk.vhd" >/dev/null
disk=$(activate_on h1 "vhd:$share/disk.vhd")
await_key "/vbdkit/instances/$disk" PUT 1
# Writes numbers durably (FUA), one after the other, and says of each when it was done; ends with the
# first error.
cat >writer.py <<'PY'
import struct, sys, time
import socket
# A client of NBD's newstyle handshake, no more than this needs.
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def take(n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
take(18)
s.sendall(struct.pack(">I", 3))
name = sys.argv[2].encode()
s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
take(10)
number = 0
while True:
    number += 1
    data = struct.pack("<Q", number) * 512
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 1, 1, number, number % 1024 * 4096, 4096) + data)
    magic, error, handle = struct.unpack(">IIQ", take(16))
    if error:
        print("error", error, flush=True)
        break
    print(number, time.clock_gettime_ns(time.CLOCK_BOOTTIME), flush=True)
PY
socket=$(on h1 vbdkit list --json "$disk" | jq -r '.[0].nbd')
exec {writes}< <(exec timeout 300 python3 writer.py "$socket" "$disk" | tee writes.log)
for _ in {1..100}; do read -r line <&"$writes"; done
listen h1 "$disk"
from=$(($(revision) + 1))
cut 1
# All that it writes, up to the last.
cat <&"$writes" >/dev/null &
drain=$!
await_key /vbdkit/hosts/h1 DELETE "$from"
begin=$(boottime)
other=$(activate_on h2 "vhd,locking=off:$share/disk.vhd")
read -r number last < <(grep -v error writes.log | tail -1)
[ "$number" -gt 100 ] || fail "it stopped before it was cut off"
[ "$last" -lt "$begin" ] || fail "written at $last, taken at $begin"
printf 'the last write ended %d ms before another host took the image\n' $(((begin - last) / 1000000)) >&2
cat >verify.py <<'PY'
import struct, sys
# The last 1024 numbers, each in its place.
last = int(sys.argv[2])
with open(sys.argv[1], "rb") as f:
    for number in range(max(1, last - 1023), last + 1):
        f.seek(number % 1024 * 4096)
        block = f.read(4096)
        at = {struct.unpack("<Q", block[i:i + 8])[0] for i in range(0, 4096, 8)}
        # One that was not acknowledged may be there.
        assert at == {number} or (number == last - 1023 and at == {last + 1}), (number, at)
PY
qemu-img convert -f raw -O raw "$(nbd_of h2 "$other")" seen.img
python3 verify.py seen.img "$number"
qemu-io -f raw -c 'write -P 170 0 16M' "$(nbd_of h2 "$other")" | grep -q 'wrote 16777216'
ok "cut off under writes: it stopped in time, and the other has all that was acknowledged"

join 1
await_state taken
wait "$drain" || true
tail -1 writes.log | grep -q '^error' || fail "the writer saw: $(tail -1 writes.log)"
qemu-io -f raw -c 'read -P 170 0 16M' "$(nbd_of h2 "$other")" | grep -q 'read 16777216' ||
  fail "the host that was cut off has written"
on h2 vbdkit deactivate "$other"
kill "$(record_on h1 "$disk" | jq .pid)"
await_key /vbdkit/hosts/h1 PUT "$from"
ok "back again: its instance finds the image taken, and its guest gets an error"

# ---- one that merges ----
fake_ssh
# make_chain: and in expected.img, what the leaf reads as.
make_chain() {
  rm -f "$share"/*.qcow2
  vbdkit create --size 256M "qcow2:$share/base.qcow2" >/dev/null
  vbdkit create --parent "qcow2:$share/base.qcow2" "qcow2:$share/middle.qcow2" >/dev/null
  qemu-io -f qcow2 -c 'write -P 1 0 48M' "$share/base.qcow2" >/dev/null
  qemu-io -f qcow2 -c 'write -P 2 32M 20M' "$share/middle.qcow2" >/dev/null
  vbdkit create --parent "qcow2:$share/middle.qcow2" "qcow2:$share/leaf.qcow2" >/dev/null
  qemu-io -f qcow2 -c 'write -P 3 46M 4M' "$share/leaf.qcow2" >/dev/null
  qemu-img convert -O raw "$share/leaf.qcow2" expected.img
}
# cut_off_in_a_coalesce: host h1 begins it, and its lease has ended when this returns.
cut_off_in_a_coalesce() {
  local line calls
  from=$(($(revision) + 1))
  rm -f calls
  mkfifo calls
  # So slow that it cannot come to its end meanwhile.
  command_on h1 vbdkit coalesce "qcow2:$share/middle.qcow2"
  strace -f -qq -o calls -e trace=io_uring_enter,io_submit,pwrite64,pwritev2,rename,renameat2 \
    -e inject=io_uring_enter,io_submit,pwrite64,pwritev2:delay_enter=300000 \
    "${command[@]}" >coalesce.out 2>coalesce.err &
  coalesce=$!
  started "$coalesce"
  exec {calls}<calls
  # Its journal is there: what it had to ask others is behind it.
  while read -r line <&"$calls" && [[ $line != *'.coalesce"'* ]]; do :; done
  cat <&"$calls" >/dev/null &
  exec {calls}<&-
  cut 1
  await_key /vbdkit/hosts/h1 DELETE "$from"
  kill -0 "$coalesce" || fail "the coalesce has ended: $(cat coalesce.err)"
}
h2_reads_right() {
  qemu-img compare -q -f raw -F raw "$(nbd_of h2 "$leaf")" expected.img || fail "h2 reads other data"
}

# Another host's guest reads what is merged beneath it: neither is in the other's way.
make_chain
cut_off_in_a_coalesce
leaf=$(activate_on h2 "qcow2,locking=off:$share/leaf.qcow2")
await_key "/vbdkit/instances/$leaf" PUT "$from"
h2_reads_right
join 1
wait "$coalesce" || fail "coalesce: $(cat coalesce.err)"
grep -q "^h2 .*x-vbdkit-refresh\|^h2 .*x-vbdkit-relink" ssh.log || fail "nobody was asked on h2"
[ ! -e "$share/middle.qcow2" ] || fail "the image is there still"
h2_reads_right
[ "$(record_on h2 "$leaf" | jq '.chain | length')" = 2 ] || fail "$(record_on h2 "$leaf")"
on h2 vbdkit deactivate "$leaf"
qemu-img check -q "$share/base.qcow2" || fail "the base is damaged"
ok "cut off in the middle of a coalesce: it goes on, and asks who has come meanwhile"

# Another host takes what is being written.
make_chain
cut_off_in_a_coalesce
writer=$(activate_on h2 "qcow2,locking=off:$share/base.qcow2")
on h2 vbdkit deactivate "$writer"
leaf=$(activate_on h2 "qcow2,locking=off:$share/leaf.qcow2")
before=$(sha256sum "$share/base.qcow2" "$share/middle.qcow2")
h2_reads_right
join 1
status=0
wait "$coalesce" || status=$?
[ "$status" = 1 ] || fail "coalesce ended with $status: $(cat coalesce.out coalesce.err)"
grep -q 'another host has taken' coalesce.err || fail "coalesce said: $(cat coalesce.err)"
[ "$(sha256sum "$share/base.qcow2" "$share/middle.qcow2")" = "$before" ] ||
  fail "the coalesce has written after it lost the images"
h2_reads_right
on h2 vbdkit deactivate "$leaf"
ok "cut off in the middle of a coalesce: another host takes an image, and it is not written again"

on h3 vbdkit coalesce "qcow2:$share/middle.qcow2" >/dev/null
[ ! -e "$share/middle.qcow2" ] || fail "the image is there still"
qemu-img compare -q -f qcow2 -F raw "$share/leaf.qcow2" expected.img || fail "data lost"
qemu-img check -q "$share/base.qcow2" || fail "the base is damaged"
ok "a third host brings it to its end"
