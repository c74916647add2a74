#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# snapshot, clone, resize and tree.
# shellcheck source=tests/tools/lib.sh
. "$(dirname "$0")/lib.sh"
need jq python3 qemu-img qemu-io qemu-nbd strace

pattern one.raw $((8 << 20))
for format in qcow2 vhd; do
  disk=disk.$format
  vbdkit convert raw:one.raw "$format:$disk"
  chmod 640 "$disk"
  vbdkit snapshot "$format:$disk" "monday.$format"
  [ "$(stat -c %a "$disk")" = 640 ] || fail "$disk has mode $(stat -c %a "$disk")"
  vbdkit compare --strict raw:one.raw "$format:$disk" >out
  vbdkit compare --strict raw:one.raw "$format:monday.$format" >out
  # What is written from now on is not in the snapshot.
  cp one.raw two.raw
  dd if=/dev/urandom of=two.raw bs=64K count=3 seek=20 conv=notrunc status=none
  vbdkit convert --no-create raw:two.raw "$format:$disk"
  vbdkit compare raw:two.raw "$format:$disk" >out
  vbdkit compare raw:one.raw "$format:monday.$format" >out
  vbdkit snapshot "$format:$disk" "tuesday.$format"
  vbdkit info --chain --json "$disk" >out
  expect_json '[.chain[].path | sub(".*/"; "")]' "[\"$disk\",\"tuesday.$format\",\"monday.$format\"]"
  refused 1 'is the parent of ./disk' snapshot "$format:tuesday.$format" "x.$format"
  refused 1 'File exists' snapshot "$format:$disk" "monday.$format"
  refused 2 'not in the directory' snapshot "$format:$disk" "/tmp/x.$format"
  refused 1 'No such file' snapshot "$format:gone.$format" "x.$format"

  vbdkit clone "$format:tuesday.$format" "$format:clone.$format"
  vbdkit compare --strict raw:two.raw "$format:clone.$format" >out
  vbdkit clone --base "base.$format" "$format:$disk" "$format:copy.$format"
  vbdkit convert --no-create raw:one.raw "$format:copy.$format"
  vbdkit compare raw:two.raw "$format:$disk" >out
  vbdkit compare raw:one.raw "$format:copy.$format" >out
  [ "$format" != qcow2 ] || same two.raw raw disk.qcow2 qcow2
done
for image in *.qcow2; do qemu-img check -q "$image"; done
refused 2 'no parents' snapshot raw:one.raw x.raw
vbdkit clone raw:one.raw qcow2:thin.qcow2
vbdkit compare raw:one.raw qcow2:thin.qcow2 >out
ok "snapshots and clones share what they have in common"

# A snapshot that is killed at any step leaves the disk as it was or as it shall be.
for call in linkat link rename fdatasync; do
  for n in 1 2 3; do
    rm -rf killed
    mkdir killed
    cp monday.qcow2 killed/disk.qcow2
    strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" \
      "$VBDKIT" snapshot qcow2:killed/disk.qcow2 killed/old.qcow2 2>err || true
    vbdkit compare --strict raw:one.raw qcow2:killed/disk.qcow2 >out || fail "killed at $call $n"
    if [ "$(jq -r '.parent.path // "none"' <(vbdkit info --json killed/disk.qcow2))" = none ]; then
      vbdkit snapshot qcow2:killed/disk.qcow2 killed/old.qcow2
    fi
    vbdkit compare --strict raw:one.raw qcow2:killed/old.qcow2 >out || fail "killed at $call $n"
    [ "$(find killed -type f | wc -l)" = 2 ] || fail "left behind: $(ls killed)"
  done
done
ok "a snapshot that is killed can be repeated"

for format in qcow2 vhd raw; do
  rm -f "size.$format"
  vbdkit convert raw:one.raw "$format:size.$format"
  vbdkit resize "$format:size.$format" +3M
  vbdkit info --json "size.$format" >out
  expect_json .size $((11 << 20))
  vbdkit compare raw:one.raw "$format:size.$format" >out
  vbdkit resize "$format:size.$format" 3G
  vbdkit info --json "size.$format" >out
  expect_json .size $((3 << 30))
  [ "$(status_of check "$format:size.$format")" = 0 ] || fail "check: $(cat out err)"
  refused 2 'shrink' resize "$format:size.$format" 1M
  vbdkit compare raw:one.raw "$format:size.$format" >out
done
qemu-img check -q size.qcow2
head -c 4M one.raw >head.raw
for format in qcow2 raw; do
  vbdkit resize --shrink "$format:size.$format" 4M
  vbdkit compare --strict raw:head.raw "$format:size.$format" >out
done
refused 1 'smaller' resize --shrink vhd:size.vhd 4M
refused 1 'is the parent of' resize qcow2:monday.qcow2 +1M
refused 2 'is not a size' resize qcow2:size.qcow2 large
qemu-nbd --fork --pid-file="$PWD/nbd.pid" -f qcow2 -k "$PWD/nbd.sock" size.qcow2
refused 1 'in use by process [0-9]+ \(qemu-nbd\)' resize qcow2:size.qcow2 +1M
refused 1 'in use by process [0-9]+ \(qemu-nbd\)' snapshot qcow2:size.qcow2 x.qcow2
pid=$(cat nbd.pid)
kill "$pid"
tail --pid="$pid" -f /dev/null
ok "resize of every format; never of a parent, nor of an image in use"

mkdir forest forest/deep
(
  cd forest
  vbdkit create --size 64M vhd:base.vhd
  vbdkit create --parent vhd:base.vhd vhd:b.vhd
  vbdkit create --parent vhd:base.vhd vhd:a.vhd
  vbdkit create --parent vhd:a.vhd vhd:a1.vhd
  vbdkit create --parent vhd:a1.vhd vhd:a2.vhd
  vbdkit create --size 1M raw:golden.img
  vbdkit create --parent raw:golden.img qcow2:guest.qcow2
  vbdkit create --size 2M qcow2:deep/elsewhere.qcow2
  vbdkit create --parent qcow2:deep/elsewhere.qcow2 qcow2:outside.qcow2
  vbdkit create --size 2M qcow2:lost.qcow2
  vbdkit create --parent qcow2:lost.qcow2 qcow2:orphan.qcow2
  rm lost.qcow2
  vbdkit create --size 2M qcow2:x.qcow2
  vbdkit create --parent qcow2:x.qcow2 qcow2:y.qcow2
  qemu-img rebase -u -F qcow2 -b y.qcow2 x.qcow2
  echo nonsense >noise.vhd
  ln -s a2.vhd link.vhd
)
vbdkit tree forest | sed -E 's/, [^,]* allocated//; s/ +$//' >tree.txt
cat >expected.txt <<'TXT'
base.vhd            vhd, 64 MiB
├── a.vhd           vhd, 64 MiB
│   └── a1.vhd      vhd, 64 MiB
│       └── a2.vhd  vhd, 64 MiB
└── b.vhd           vhd, 64 MiB
deep/elsewhere.qcow2  qcow2, 2 MiB
└── outside.qcow2     qcow2, 2 MiB
golden.img       raw, 1 MiB
└── guest.qcow2  qcow2, 1 MiB
lost.qcow2        qcow2  !! missing
└── orphan.qcow2  qcow2, 2 MiB
noise.vhd  vhd  !! vhd: forest/noise.vhd: too short for a VHD (9 bytes)
x.qcow2      qcow2, 2 MiB  !! its parents form a loop
└── y.qcow2  qcow2, 2 MiB
TXT
# Columns are as wide as the widest name of all.
squeeze() { sed -E 's/([^ │├└─])  +/\1  /' "$1"; }
diff <(squeeze expected.txt) <(squeeze tree.txt) || fail "tree as text"
vbdkit tree --json forest >out
expect_json '[.[] | select(.path | endswith("base.vhd")).children[].path]' \
  '["forest/a.vhd","forest/b.vhd"]'
expect_json '[.. | objects | select(.problem) | .problem | sub(".*: "; "")]' \
  '["missing","too short for a VHD (9 bytes)","its parents form a loop"]'
vbdkit tree --dot forest >out
grep -q '^digraph images {$' out || fail "tree --dot: $(cat out)"
[ "$(grep -c ' -> ' out)" = 8 ] || fail "tree --dot: $(cat out)"
vbdkit tree --svg forest >forest.svg
python3 - forest.svg <<'PY'
import sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
ns = "{http://www.w3.org/2000/svg}"
boxes = [g.find(ns + "rect") for g in root.iter(ns + "g")]
assert len(boxes) == 14, len(boxes)
assert len(list(root.iter(ns + "path"))) == 8
places = {(b.get("x"), b.get("y")) for b in boxes}
assert len(places) == 14, "boxes lie on each other"
for b in boxes:
    assert int(b.get("x")) + int(b.get("width")) <= int(root.get("width"))
    assert int(b.get("y")) + int(b.get("height")) <= int(root.get("height"))
PY
vbdkit tree forest/deep >out
refused 1 'No such file' tree nowhere
refused 2 'exclude' tree --dot --svg forest
ok "tree as text, JSON, graph and picture"
