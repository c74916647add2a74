# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# With the kernel's xen-blkback loaded, our disk is still ours, and blkback keeps serving a disk of its own beside it.
only vbdkit
load_blkback
trap unload_blkback EXIT
ours=$(image ours 16M) theirs=$(image theirs 16M)
guest_create g1 --fio "$(disk xvda "$ours")" "format=raw,vdev=xvdb,access=rw,target=$theirs" ||
  fail "xl create: $(cat "$state/g1.xl")"
bound() { basename -a /sys/bus/xen-backend/drivers/vbd/vbd-* | tr '\n' ' '; }
expect "devices that blkback drives" "$(bound)" "vbd-$(domid g1)-$(vdev_id xvdb) "
expect "instances" "$(instance_count)" 1
for d in a b; do
  guest_must g1 "fio --name=v --filename=/dev/xvd$d --rw=randwrite --bs=16k --size=4M --direct=1 --ioengine=libaio \
--iodepth=8 --verify=crc32c --verify_fatal=1 --minimal" 120 >/dev/null
done
hot=$(image hot 16M)
attach g1 xvdc "$hot"
expect "devices that blkback drives after a hot-plug" "$(bound)" "vbd-$(domid g1)-$(vdev_id xvdb) "
detach g1 xvdc
saw "xvda by vbdkit, xvdb by blkback, 4 MiB verified on each, xvdc hot-plugged"
xl destroy g1
