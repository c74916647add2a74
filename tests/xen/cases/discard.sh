# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# blkdiscard in the guest gives the file's blocks back to dom0's file system, and only those.
# shows: discard gives space back
shared_guest
blkfront shared
path=$(image holes 16M)
fill "$path" 16
sync "$path"
before=$(stat -c %b "$path")
attach shared xvdb "$path"
guest_must shared '[ "$(cat /sys/block/xvdb/queue/discard_max_bytes)" -gt 0 ]' || fail "the guest sees no discard"
guest_must shared '/sbin/blkdiscard -o 4194304 -l 8388608 /dev/xvdb'
detach shared xvdb
sync "$path"
after=$(stat -c %b "$path")
expect "blocks given back, of 512 bytes" $((before - after)) 16384
expect "checksum of the discarded part" "$(dd if="$path" bs=1M skip=4 count=8 status=none | sha256sum)" \
  "$(head -c 8388608 /dev/zero | sha256sum)"
whole=$(image whole 16M)
fill "$whole" 16
cmp -n 4194304 "$path" "$whole" || fail "the first 4 MiB changed"
cmp -i 12582912 "$path" "$whole" || fail "the last 4 MiB changed"
saw "$before blocks before, $after after; 8 MiB read as zeroes, the rest as before"
