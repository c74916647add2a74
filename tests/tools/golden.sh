#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The images of tests/golden, written long ago by others and by us: each is whole, reads as it did, and still
# does after it was written to.
golden=$(cd "$(dirname "$0")/../golden" && pwd)
# shellcheck source=tests/tools/lib.sh
. "$(dirname "$0")/lib.sh"
need python3 qemu-img sha256sum tar xz

images=0
monday=$(awk '$1 == "qcow2-v3" { print $4 }' "$golden/CONTENT")
while read -r name leaf size sum; do
  rm -rf disk
  mkdir disk
  tar -C disk -xJf "$golden/$name.tar.xz"
  image=${name%%-*}:disk/$leaf
  # What its writer left unfinished is there to be repaired.
  case $name in
    *-dirty)
      [ "$(status_of check "$image")" != 0 ] || fail "$name: check does not see that it was left open"
      vbdkit check --repair "$image" >out
      ;;
  esac
  vbdkit check "$image" >out || fail "$name: check: $(cat out)"
  rm -f read.raw
  vbdkit convert "$image" raw:read.raw
  [ "$(stat -c %s read.raw)" = "$size" ] || fail "$name has $(stat -c %s read.raw) bytes, expected $size"
  [ "$(sha256sum <read.raw | cut -d' ' -f1)" = "$sum" ] || fail "$name reads otherwise than when it was made"
  # Everything anew, with other content.
  pattern new.raw "$size"
  vbdkit convert --no-create raw:new.raw "$image"
  vbdkit compare raw:new.raw "$image" >out || fail "$name: written to, it differs: $(cat out)"
  vbdkit check "$image" >out || fail "$name: written to, check says: $(cat out)"
  [ "${name%%-*}" != qcow2 ] || qemu-img check -q "disk/$leaf" || fail "$name: written to, qemu-img does not like it"
  if [ "$name" = qcow2-internal-snapshot ]; then
    qemu-img snapshot -a monday disk/disk.qcow2
    rm read.raw
    vbdkit convert "$image" raw:read.raw
    [ "$(sha256sum <read.raw | cut -d' ' -f1)" = "$monday" ] || fail "$name: the snapshot inside was written to"
  fi
  images=$((images + 1))
done <"$golden/CONTENT"
[ "$images" = "$(find "$golden" -name '*.tar.xz' | wc -l)" ] || fail "tests/golden has images that CONTENT does not name"
ok "$images golden images read as when they were made, before and after writing"
