#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# coalesce: contents before and after, refusals, and a SIGKILL at every system call that writes:
# what stands on the image reads the same at any time, and the next run ends what was begun.
# shellcheck source=tests/tools/lib.sh
. "$(dirname "$0")/lib.sh"
need jq python3 qemu-img qemu-io strace

# A base, the image to be merged, two children on it (one in another directory), a grandchild.
make_chain() {
  local format=$1
  mkdir -p "$format/other"
  (
    cd "$format"
    vbdkit convert raw:../base.raw "$format:base.$format"
    vbdkit create --parent "$format:base.$format" "$format:mid.$format"
    vbdkit convert -n --sparse 0 raw:../mid.raw "$format:mid.$format"
    vbdkit resize "$format:mid.$format" 5M
    vbdkit create --parent "$format:mid.$format" "$format:child.$format"
    vbdkit create --parent "$format:mid.$format" --size 6M "$format:other/child.$format"
    vbdkit create --parent "$format:child.$format" "$format:leaf.$format"
  )
}

pattern base.raw $((4 << 20))
pattern mid.raw $((4 << 20))
dd if=base.raw of=mid.raw bs=64K skip=9 seek=9 count=20 conv=notrunc status=none
for format in qcow2 vhd; do make_chain "$format"; done
# Zeroes that hide what the parent holds.
qemu-io -c 'write -z 512k 256k' qcow2/mid.qcow2 >/dev/null
cp mid.raw mid-qcow2.raw
dd if=/dev/zero of=mid-qcow2.raw bs=1K seek=512 count=256 conv=notrunc status=none
cp mid.raw mid-vhd.raw
truncate -s 5M mid-qcow2.raw mid-vhd.raw

# reads_right DIR FORMAT: everybody who stands on the image.
reads_right() {
  local image
  for image in child leaf other/child; do
    vbdkit compare "raw:mid-$2.raw" "$2:$1/$image.$2" >out 2>err ||
      fail "$1/$image.$2 reads otherwise: $(cat out err)"
  done
}

# merged DIR FORMAT [REMAINS]: all is done. What was killed may have left space that is lost, and
# REMAINS is 3 then (check's status).
merged() {
  local image status
  reads_right "$1" "$2"
  [ -z "$(find "$1" -name 'mid*')" ] || fail "left: $(find "$1")"
  vbdkit info --chain --json "$1/leaf.$2" >out
  expect_json '[.chain[].path | sub(".*/"; "")]' "[\"leaf.$2\",\"child.$2\",\"base.$2\"]"
  for image in base child leaf other/child; do
    status=$(status_of check "$2:$1/$image.$2")
    [ "$status" = 0 ] || [ "$status" = "${3:-0}" ] || fail "check of $1/$image.$2: $(cat out err)"
  done
}

for format in qcow2 vhd; do
  reads_right "$format" "$format"
  cp -r "$format" whole
  vbdkit coalesce -d whole/other "$format:whole/mid.$format" >out
  grep -q 'the content is in .*base.*images put on it: 2' out || fail "$(cat out)"
  merged whole "$format"
  # A leaf keeps its name, and is one image less.
  vbdkit coalesce --keep "$format:whole/leaf.$format" >out
  [ -e "whole/child.$format" ] || fail "--keep: $(ls whole)"
  vbdkit coalesce "$format:whole/leaf.$format" >out
  [ ! -e "whole/child.$format" ] || fail "a leaf: $(ls whole)"
  vbdkit compare "raw:mid-$format.raw" "$format:whole/leaf.$format" >out
  vbdkit info --chain --json "whole/leaf.$format" >out
  expect_json '[.chain[].path | sub(".*/"; "")]' "[\"leaf.$format\",\"base.$format\"]"
  rm -rf whole
done
ok "an image is merged, and all that stood on it stands on its parent"

vbdkit create --parent qcow2:qcow2/base.qcow2 qcow2:qcow2/brother.qcow2
refused 1 'is also that of .*brother.qcow2' coalesce qcow2:qcow2/mid.qcow2
rm qcow2/brother.qcow2
# Nor does a name that says nothing, or something else, hide who stands on the image or on its parent.
for format in qcow2 vhd; do
  for name in brother brother.img; do
    for parent in base mid; do
      vbdkit create --parent "$format:$format/$parent.$format" "$format:$format/$name"
      refused 1 "$name reads as an image that stands on .*$parent.$format" coalesce "$format:$format/mid.$format"
      rm "$format/$name"
    done
    vbdkit create --parent "$format:$format/leaf.$format" "$format:$format/$name"
    refused 1 "$name reads as an image" resize "$format:$format/leaf.$format" 1G
    rm "$format/$name"
  done
done
refused 2 'has no parent' coalesce qcow2:qcow2/base.qcow2
refused 2 'no parents' coalesce raw:base.raw
mkfifo fifo
"$VBDKIT" serve --read-only qcow2:qcow2/leaf.qcow2 --nbd "unix:$PWD/nbd.sock" --ready-fd 9 9>fifo 2>serve.log &
server=$!
read -r _ <fifo
refused 1 'in use by process [0-9]+ \(vbdkit\)' coalesce -d qcow2/other qcow2:qcow2/mid.qcow2
kill "$server"
wait "$server"
[ ! -e qcow2/mid.qcow2.coalesce ] || fail "a refused coalesce left a journal"
reads_right qcow2 qcow2
ok "refused where somebody else stands on the parent, or uses one of them"

kills=0
for format in qcow2 vhd; do
  for call in pwrite64 pwritev2 fdatasync fsync ftruncate fallocate rename unlink; do
    for ((n = 1; ; n++)); do
      rm -rf cut
      cp -r "$format" cut
      status=0
      strace -f -qq -o strace.log -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" \
        "$VBDKIT" coalesce --engine sync -d cut/other "$format:cut/mid.$format" >out 2>err || status=$?
      [ "$status" != 0 ] || break
      [ "$status" = 137 ] || fail "$call $n: status $status: $(cat out err)"
      kills=$((kills + 1))
      reads_right cut "$format"
      vbdkit coalesce -d cut/other "$format:cut/mid.$format" >out 2>err ||
        fail "killed at $call $n, it does not go on: $(cat err)"
      merged cut "$format" 3
    done
  done
done
for call in fdatasync fsync rename unlink; do
  for ((n = 1; ; n++)); do
    rm -rf cut
    cp -r vhd cut
    status=0
    strace -f -qq -o strace.log -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" \
      "$VBDKIT" coalesce --engine sync vhd:cut/leaf.vhd >out 2>err || status=$?
    [ "$status" != 0 ] || break
    kills=$((kills + 1))
    vbdkit compare raw:mid-vhd.raw vhd:cut/leaf.vhd >out || fail "leaf, $call $n: $(cat out)"
    if [ -e cut/leaf.vhd.coalesce ] || [ -e cut/child.vhd ]; then
      vbdkit coalesce vhd:cut/leaf.vhd >out 2>err || fail "leaf, $call $n: $(cat err)"
    fi
    vbdkit compare raw:mid-vhd.raw vhd:cut/leaf.vhd >out || fail "leaf, $call $n: $(cat out)"
    [ -z "$(find cut -name 'child.vhd' -not -path '*other*' -o -name '*.coalesce*')" ] ||
      fail "leaf, $call $n left: $(find cut)"
  done
done
# An image that was on its way into its parent gets content from above: its way begins anew, or has
# to be ended before.
mkdir above
for format in qcow2 vhd; do
  for when in 2 3 4; do
    rm -f above/*
    vbdkit convert raw:base.raw "$format:above/base.$format"
    vbdkit create --parent "$format:above/base.$format" "$format:above/a.$format"
    vbdkit convert -n raw:mid.raw "$format:above/a.$format"
    vbdkit create --parent "$format:above/a.$format" "$format:above/b.$format"
    vbdkit convert -n raw:base.raw "$format:above/b.$format"
    vbdkit create --parent "$format:above/b.$format" "$format:above/c.$format"
    strace -f -qq -o strace.log -e trace=rename -e "inject=rename:signal=KILL:when=$when" \
      "$VBDKIT" coalesce --engine sync "$format:above/a.$format" >out 2>&1 || true
    [ -e "above/a.$format.coalesce" ] || fail "from above, $when: no journal"
    if [ "$when" = 4 ]; then
      refused 1 'is also that of .*/a\.|is being merged into' coalesce "$format:above/b.$format"
    else
      vbdkit coalesce "$format:above/b.$format" >out
    fi
    vbdkit compare raw:base.raw "$format:above/c.$format" >out || fail "from above, $when: $(cat out)"
    [ ! -e "above/a.$format" ] || vbdkit coalesce "$format:above/a.$format" >out
    vbdkit compare raw:base.raw "$format:above/c.$format" >out || fail "from above, $when: $(cat out)"
  done
done
ok "what was copied of an image is forgotten when that gets other content"

# Two merges that were interrupted, one above the other. The one that has put images on its parent
# already is ended first; what the other has copied is copied again into another parent.
for format in qcow2 vhd; do
  for when in 2 4; do
    rm -rf cut
    cp -r "$format" cut
    vbdkit create --parent "$format:cut/leaf.$format" "$format:cut/guest.$format"
    strace -f -qq -o strace.log -e trace=rename -e "inject=rename:signal=KILL:when=$when" \
      "$VBDKIT" coalesce --engine sync "$format:cut/leaf.$format" >out 2>&1 || true
    [ -e "cut/leaf.$format.coalesce" ] || fail "two merges, $when: no journal"
    if [ "$when" = 4 ]; then
      refused 1 'leaf.* is being merged into .*child.*; that has to be ended first' \
        coalesce "$format:cut/child.$format"
      vbdkit coalesce "$format:cut/leaf.$format" >out
    fi
    vbdkit coalesce "$format:cut/child.$format" >out
    [ "$when" = 4 ] || vbdkit coalesce -d cut/other "$format:cut/leaf.$format" >out 2>err ||
      grep -q 'is also that of' err || fail "two merges, $when: $(cat err)"
    vbdkit compare "raw:mid-$format.raw" "$format:cut/guest.$format" >out || fail "two merges: $(cat out)"
    [ -z "$(find cut -name 'child.*' -not -path '*other*')" ] || fail "two merges, $when: $(find cut)"
  done
done
ok "a merge that was interrupted, and its parent's own"

[ "$kills" -ge 40 ] || fail "only $kills kills: is strace at work?"
ok "killed at $kills points, nothing was lost, and the next run ended it"
