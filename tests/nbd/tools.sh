#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# libnbd's tools: nbdinfo in all its forms, nbdcopy both ways.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need nbdinfo nbdcopy jq

truncate -s 64M "$scratch/disk"
serve disk "raw:$scratch/disk" --export-name disk --description 'a disk'

json=$(nbdinfo --json "$(uri disk disk)")
expect() {
  local got
  got=$(jq -c "$1" <<<"$json")
  [ "$got" = "$2" ] || fail "nbdinfo --json: $1 is $got, expected $2"
}
expect .protocol '"newstyle-fixed"'
expect .structured true
expect '.exports[0]["export-name"]' '"disk"'
expect '.exports[0]["export-size"]' 67108864
expect '.exports[0].contexts' '["base:allocation"]'
expect '.exports[0].is_read_only' false
expect '.exports[0].block_size_minimum' 512
expect '.exports[0].block_size_preferred' 4096
expect '.exports[0].block_size_maximum' 33554432
for can in cache df fast_zero flush fua multi_conn trim zero; do
  expect ".exports[0].can_$can" true
done
ok "nbdinfo --json"

json=$(nbdinfo --list --json "$(uri disk)")
expect '.exports[0]["export-name"]' '"disk"'
expect '.exports[0].description' '"a disk"'
ok "nbdinfo --list"

# Data with holes between, there and back.
random_file "$scratch/data" $((3 << 20))
truncate -s 64M "$scratch/image"
dd if="$scratch/data" of="$scratch/image" bs=1M seek=5 conv=notrunc status=none
dd if="$scratch/data" of="$scratch/image" bs=1M seek=40 conv=notrunc status=none
nbdcopy --connections=4 "$scratch/image" "$(uri disk disk)"
cmp "$scratch/image" "$scratch/disk" || fail "nbdcopy to the server changed the data"
nbdcopy --connections=4 "$(uri disk disk)" "$scratch/back"
cmp "$scratch/image" "$scratch/back" || fail "nbdcopy from the server changed the data"
nbdcopy --synchronous --request-size=33554432 "$(uri disk)" "$scratch/back2"
cmp "$scratch/image" "$scratch/back2" || fail "synchronous nbdcopy changed the data"
ok "nbdcopy there and back, 4 connections, and synchronous with 32 MiB requests"

map=$(nbdinfo --map --json "$(uri disk)" | jq -c '[.[] | [.offset, .length, .type]]')
[ "$map" = '[[0,5242880,3],[5242880,3145728,0],[8388608,33554432,3],[41943040,3145728,0],[45088768,22020096,3]]' ] ||
  fail "nbdinfo --map: $map"
ok "nbdinfo --map finds the holes"

if nbdinfo --size "$(uri disk other)" 2>"$scratch/err"; then fail "an unknown export was accepted"; fi
grep -q "no export named 'other'" "$scratch/err" || fail "the error for an unknown export: $(cat "$scratch/err")"
ok "an unknown export is refused by name"
stop "$server"
