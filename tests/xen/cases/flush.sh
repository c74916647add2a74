# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# The guest has a write-back cache and its fsyncs reach the medium: as many flushes on dom0's device as the guest did.
shared_guest
blkfront shared
attach shared xvdb /dev/vdc
expect "the guest's write cache" "$(guest_must shared 'cat /sys/block/xvdb/queue/write_cache')" 'write back'
flushes() { awk '{print $16}' /sys/block/vdc/stat; }
before=$(flushes)
guest_must shared 'for i in $(seq 10); do dd if=/dev/zero of=/dev/xvdb bs=4k count=1 seek=$i conv=fsync 2>/dev/null || exit
done'
during=$(($(flushes) - before))
[ $during -ge 10 ] || fail "10 fsyncs in the guest, $during flushes on dom0's device"
detach shared xvdb
saw "10 fsyncs in the guest, $during flushes on dom0's device"
