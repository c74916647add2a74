#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The example of a storage manager does what it says.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need jq nbdinfo python3 qemu-io qemu-img

example=$(cd "$OLDPWD" && readlink -f "$(dirname "$0")/../../docs/examples/storage-manager.sh")
mkdir bin disks
ln -s "$VBDKIT" bin/vbdkit
export PATH=$PWD/bin:$PATH ACTIVATE_OPTIONS="--backend $BACKEND"

# Each call writes another 64 KiB, and says where.
cat >client <<SH
#!/bin/bash
n=\$(cat "$PWD/calls" 2>/dev/null || echo 0)
echo \$((n + 1)) >"$PWD/calls"
exec qemu-io -f raw -c "write -P \$((n + 1)) \$((n * 64))k 64k" "\$1"
SH
chmod +x client
pattern golden.raw $((4 << 20))
vbdkit convert raw:golden.raw qcow2:golden.qcow2
"$example" demo disks "qcow2:$PWD/golden.qcow2" "$PWD/client" >out 2>err || fail "$(cat out err)"
grep -q '^vdev=xvda,format=raw,script=block-vbdkit,target=qcow2:.*/guest1.qcow2$' out || fail "$(cat out)"
left=$(find disks -type f -printf '%f\n' | sort | tr '\n' ' ')
[ "$left" = 'guest1.qcow2 guest1@monday.qcow2 ' ] || fail "left are $left"

# Two calls after the first snapshot, one before it; the fourth went to the other disk.
cp golden.raw model
dd if=<(tr '\0' '\1' </dev/zero) of=model bs=64K count=1 iflag=fullblock conv=notrunc status=none
dd if=<(tr '\0' '\2' </dev/zero) of=model bs=64K count=1 seek=1 iflag=fullblock conv=notrunc status=none
# Tuesday's content is Monday's now: the two were merged.
vbdkit compare raw:model "qcow2:disks/guest1@monday.qcow2" >out || fail "Monday: $(cat out)"
dd if=<(tr '\0' '\3' </dev/zero) of=model bs=64K count=1 seek=2 iflag=fullblock conv=notrunc status=none
vbdkit compare raw:model qcow2:disks/guest1.qcow2 >out || fail "guest1: $(cat out)"
qemu-img check -q disks/guest1.qcow2
qemu-img compare -q -F raw disks/guest1.qcow2 model
ok "provision, start, snapshot, clone, coalesce beneath two disks in use, stop"
