#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# create, info and check: chains that qemu-img and libvhdi read, exit codes on damaged images, errors
# that name each step, images in use.
# shellcheck source=tests/tools/lib.sh
. "$(dirname "$0")/lib.sh"
need jq python3 qemu-img qemu-io qemu-nbd vhdiinfo

vbdkit create --size 64M qcow2:base.qcow2
qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null
mkdir sub
vbdkit create --parent qcow2:base.qcow2 qcow2:sub/mid.qcow2
vbdkit create --parent "qcow2:$PWD/sub/mid.qcow2" --size 80M -o cluster_size=32K qcow2:leaf.qcow2
qemu-img info --output=json --backing-chain leaf.qcow2 >out
expect_json '[.[]["virtual-size"]]' '[83886080,67108864,67108864]'
expect_json '.[1]["backing-filename"]' '"../base.qcow2"'
expect_json '.[0]["backing-filename"]' "\"$scratch/sub/mid.qcow2\""
qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 0 1M 79M' leaf.qcow2 >/dev/null
for image in base.qcow2 sub/mid.qcow2 leaf.qcow2; do qemu-img check -q "$image"; done
vbdkit info --chain --json leaf.qcow2 >out
expect_json '[.chain[] | [.path, .format, .size, .cluster]]' \
  "[[\"leaf.qcow2\",\"qcow2\",83886080,32768],[\"$scratch/sub/mid.qcow2\",\"qcow2\",67108864,65536],[\"$scratch/sub/../base.qcow2\",\"qcow2\",67108864,65536]]"
ok "a qcow2 chain, as qemu-img sees it"

vbdkit create --size 64M vhd:base.vhd
vbdkit create --parent vhd:base.vhd vhd:sub/mid.vhd
vbdkit create --parent vhd:sub/mid.vhd -o block_size=512K vhd:leaf.vhd
id_of() { vhdiinfo "$1" | sed -n "s/.*$2.*: //p"; }
[ "$(id_of leaf.vhd 'Parent identifier')" = "$(id_of sub/mid.vhd '\tIdentifier')" ] ||
  fail "vhdiinfo: $(vhdiinfo leaf.vhd)"
[ "$(id_of sub/mid.vhd 'Parent filename')" = base.vhd ] || fail "vhdiinfo: $(vhdiinfo sub/mid.vhd)"
vbdkit info --json -c leaf.vhd >out
expect_json '[.chain[] | [.path, .subformat, .cluster]]' \
  '[["leaf.vhd","differencing",524288],["./sub/mid.vhd","differencing",2097152],["./sub/../base.vhd","dynamic",2097152]]'
[ "$(jq -r '.chain[0].uuid' out)" = "$(id_of leaf.vhd '\tIdentifier')" ] || fail "the UUID"
vbdkit create --size 8M raw:base.raw
vbdkit create --parent raw:base.raw qcow2:over-raw.qcow2
[ "$(qemu-img info --output=json over-raw.qcow2 | jq -r '.["backing-filename-format"]')" = raw ] ||
  fail "the backing format"
ok "a VHD chain, as libvhdi sees it"

refused 2 'how large' create qcow2:x.qcow2
refused 2 'is not a size' create --size big qcow2:x.qcow2
refused 2 'filters' create --size 1M 'throttle:iops=1|raw:x.raw'
refused 2 'known: cluster_size' create --size 1M -o colour=red qcow2:x.qcow2
refused 2 'expected on or off' create --size 1M -o batmap=maybe vhd:x.vhd
refused 1 'the parent of a VHD is' create --parent qcow2:base.qcow2 vhd:x.vhd
refused 1 'No such file' create --parent qcow2:gone.qcow2 qcow2:x.qcow2
refused 1 'has no parent' create --size 1M --parent raw:base.raw raw:x.raw
refused 1 'File exists' create --size 1M vhd:base.vhd
for file in x.*; do [ ! -e "$file" ] || fail "a create that failed left $file"; done
refused 2 'say so' info base
refused 2 'unknown driver' check base.qcow2
ok "create refuses what makes no sense"

# A parent that is gone, and one that was replaced.
mv base.qcow2 away.qcow2
refused 1 'open leaf.qcow2, its parent .*/sub/mid.qcow2: its parent is missing; looked for .*/sub/../base.qcow2' info -c leaf.qcow2
refused 1 'open leaf.qcow2, its parent .*/sub/mid.qcow2: its parent is missing' map qcow2:leaf.qcow2
refused 1 'parent is missing' info -c --json leaf.qcow2
expect_json '[(.chain | length), .error.kind]' '[2,"not-found"]'
ln -s leaf.qcow2 base.qcow2
refused 1 'open leaf.qcow2, its parent .*mid.qcow2, its parent .*base.qcow2: the chain is a loop' info -c leaf.qcow2
rm base.qcow2
mv away.qcow2 base.qcow2
mv base.vhd away.vhd
vbdkit create --size 64M vhd:base.vhd
refused 1 'open leaf.vhd, its parent ./sub/mid.vhd, its parent .*base.vhd: it is not the parent its child was made on' info -c leaf.vhd
rm base.vhd
refused 1 'its parent is missing; looked for ./sub/../base.vhd' info -c leaf.vhd
mv away.vhd base.vhd
ok "a missing, looping or wrong parent is told with each step"

# A leak: a cluster that is counted and not used.
cp leaf.qcow2 leak.qcow2
qemu-io -c 'write 0 64k' leak.qcow2 >/dev/null
python3 - leak.qcow2 <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(40); l1 = struct.unpack(">Q", f.read(8))[0]
    f.seek(l1); f.write(bytes(8))
PY
[ "$(status_of check --json qcow2:leak.qcow2)" = 3 ] || fail "a leak: $(cat out err)"
expect_json '[.result, .errors, .remains > 0, .leaked > 0]' '["remains",0,true,true]'
[ "$(status_of check --repair qcow2:leak.qcow2)" = 0 ] || fail "a leak is left: $(cat out err)"
[ "$(status_of check qcow2:leak.qcow2)" = 0 ] || fail "it comes back: $(cat out err)"
qemu-img check -q leak.qcow2
# Corruption: used, and not counted.
cp base.qcow2 bad.qcow2
python3 - bad.qcow2 <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(48); table = struct.unpack(">Q", f.read(8))[0]
    f.seek(table); block = struct.unpack(">Q", f.read(8))[0]
    f.seek(block + 2 * 5); f.write(bytes(2))
PY
[ "$(status_of check --json qcow2:bad.qcow2)" = 4 ] || fail "corruption: $(cat out err)"
expect_json '[.result, .errors > 0]' '["errors",true]'
[ "$(status_of check --repair qcow2:bad.qcow2)" = 0 ] || fail "corruption is left: $(cat out err)"
qemu-img check -q bad.qcow2
ok "qcow2: exit codes, and repair that qemu-img confirms"

cp base.vhd torn.vhd
dd if=/dev/zero of=torn.vhd bs=512 count=1 conv=notrunc status=none
[ "$(status_of check --json vhd:torn.vhd)" = 3 ] || fail "a footer's copy: $(cat out err)"
[ "$(status_of check --repair vhd:torn.vhd)" = 0 ] || fail "it is left: $(cat out err)"
cmp base.vhd torn.vhd
cp base.vhd bad.vhd
qemu-io -f vpc -c 'write 0 64k' -c 'write 10M 64k' bad.vhd >/dev/null
python3 - bad.vhd <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(512 + 16); table = struct.unpack(">Q", f.read(8))[0]
    f.seek(table); first = f.read(4)
    f.seek(table + 5 * 4); f.write(first)
PY
[ "$(status_of check vhd:bad.vhd)" = 4 ] || fail "blocks that overlap: $(cat out err)"
grep -q 'blocks 0 and 5 overlap' out || fail "$(cat out)"
head -c 1000 /dev/urandom >noise.vhd
refused 1 'noise.vhd' check vhd:noise.vhd
[ "$(status_of check raw:base.raw)" = 0 ] || fail "raw: $(cat out err)"
ok "VHD: exit codes and repair"

# In use by QEMU.
qemu-nbd --fork --pid-file="$PWD/nbd.pid" -f qcow2 -k "$PWD/nbd.sock" leaf.qcow2
refused 1 "lock leaf.qcow2: in use by process [0-9]+ \(qemu-nbd\)" check qcow2:leaf.qcow2
refused 1 'in use by' check --repair qcow2:leaf.qcow2
refused 1 'in use by' convert qcow2:leaf.qcow2 raw:x.raw
refused 1 'in use by' convert -n raw:base.raw qcow2:leaf.qcow2
[ "$(status_of info leaf.qcow2)" = 0 ] || fail "info of an image in use: $(cat err)"
pid=$(cat nbd.pid)
kill "$pid"
tail --pid="$pid" -f /dev/null
[ "$(status_of check qcow2:leaf.qcow2)" = 0 ] || fail "after the user is gone: $(cat out err)"
ok "an image in use is not changed, and the error says by whom"
