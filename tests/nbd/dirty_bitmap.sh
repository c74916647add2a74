#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Changed blocks as others read them: nbdinfo, and qemu-img, whose own name for the context it is.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need nbdinfo qemu-io qemu-img jq

spec="cbt:name=backup,file=$scratch/disk.cbt,granularity=64K|raw:$scratch/disk"
truncate -s 16M "$scratch/disk"

# map: [offset, length, dirty]...
map() {
  nbdinfo --map=qemu:dirty-bitmap:backup --json "$(uri disk)" |
    jq -c '[.[] | [.offset, .length, .type]]'
}
expect_map() {
  local got
  got=$(map)
  [ "$got" = "$1" ] || fail "$2: the map is $got, expected $1"
}

serve disk "$spec"
[ "$(nbdinfo --json "$(uri disk)" | jq -c '.exports[0].contexts')" = \
  '["base:allocation","qemu:dirty-bitmap:backup"]' ] || fail "nbdinfo does not list the context"
expect_map '[[0,16777216,0]]' "a new bitmap"
qemu-io -f raw -c 'write 1M 64k' -c 'discard 4M 128k' -c 'write -z 8388608 512' -c flush \
  "$(uri disk)" >/dev/null
changed='[[0,1048576,0],[1048576,65536,1],[1114112,3080192,0],[4194304,131072,1],[4325376,4063232,0],[8388608,65536,1],[8454144,8323072,0]]'
expect_map "$changed" "after writes"
ok "nbdinfo --map shows what qemu-io changed"

# QEMU shows what is dirty as holes ("data": false) through this option.
dirty=$(qemu-img map --output=json --image-opts \
  "driver=nbd,server.type=unix,server.path=$scratch/disk.sock,x-dirty-bitmap=qemu:dirty-bitmap:backup" |
  jq -c '[.[] | select(.data | not) | [.start, .length]]')
[ "$dirty" = '[[1048576,65536],[4194304,131072],[8388608,65536]]' ] ||
  fail "qemu-img map with x-dirty-bitmap: $dirty"
ok "qemu-img map with x-dirty-bitmap shows the same"

stop "$server"
runs=$("$VBDKIT" map --json --changed backup "$spec" | jq -c '[.[] | [.offset, .length]]')
[ "$runs" = '[[1048576,65536],[4194304,131072],[8388608,65536]]' ] ||
  fail "vbdkit map --changed: $runs"
if "$VBDKIT" map --changed other "$spec" 2>"$scratch/err"; then fail "an unknown bitmap was found"; fi
grep -q "no bitmap 'other'" "$scratch/err" || fail "the error for it: $(cat "$scratch/err")"
ok "vbdkit map --changed shows the same"

serve disk "$spec"
expect_map "$changed" "after a restart"
ok "the bitmap outlives a restart"

kill -KILL "$server"
wait "$server" 2>/dev/null || true
rm -f "$scratch/disk.sock"
serve disk "$spec"
expect_map "$changed" "after a crash"
ok "the bitmap outlives a crash"
stop "$server"
