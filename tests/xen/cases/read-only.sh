# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A read-only disk: the guest knows, its writes and discards fail, the file keeps every byte.
# shows: read-only disk
shared_guest
blkfront shared
path=$(image ro 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
attach shared xvdb "$path" r
expect "ro of the guest's disk" "$(guest_must shared 'cat /sys/block/xvdb/ro')" 1
expect "checksum that the guest reads" "$(guest_must shared 'sha256sum </dev/xvdb')" "$sum"
# The guest's kernel can be told to forget it; then it is the backend that must refuse.
guest_must shared 'blockdev --setrw /dev/xvdb' >/dev/null
! guest shared 'echo x | dd of=/dev/xvdb bs=4096 count=1 conv=sync,fsync oflag=direct' >"$state/write" 2>&1 ||
  fail "a write succeeded"
! guest shared '/sbin/blkdiscard /dev/xvdb' >"$state/discard" 2>&1 || fail "a discard succeeded"
expect "checksum after a write and a discard were refused" "$(sha256sum <"$path")" "$sum"
detach shared xvdb
saw "reads right, write and discard refused ($(grep -o 'error' "$state/write" | head -n 1 || :)), file unchanged"
