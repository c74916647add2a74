# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# block-detach of a disk that the guest has mounted and is writing to. Linux's blkfront (since 5.16) gives such a disk
# up at once: the guest lives on, nothing is left of the disk, what was synced is in the file.
# shows: `xl block-detach` of a busy disk, also forced
guest_create g1 || fail "xl create: $(cat "$state/g1.xl")"
path=$(image busy 32M)
attach g1 xvdb "$path"
guest_must g1 '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount -t ext4 /dev/xvdb /root && echo kept >/root/f && sync'
guest_must g1 '(i=0; while dd if=/dev/zero of=/root/load bs=64k count=16 conv=fsync 2>/dev/null; do i=$((i + 1)); echo $i \
>/tmp/written; done) >/dev/null 2>&1 &'
guest_must g1 'for i in $(seq 300); do [ -s /tmp/written ] && exit; sleep 0.1; done; exit 1'
node=$(back_path g1 xvdb)
detach g1 xvdb
! xenstore-exists "$node" || fail "$node is still in xenstore"
[ "$backend" = blkback ] || until_true 20 eval '[ "$(instance_count)" = 0 ]' || fail "the instance still runs"
expect "what the guest answers afterwards" "$(guest_must g1 'echo alive')" alive
e2fsck -fy "$path" >"$state/fsck" 2>&1 || [ $? -lt 4 ] || fail "e2fsck: $(cat "$state/fsck")"
expect "the synced file, read in dom0" "$(debugfs -R 'cat /f' "$path" 2>/dev/null)" kept
saw "gone from under a writer; guest alive, no node or instance left, the synced file is there"
