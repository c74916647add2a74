# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest whose root is a block device boots and writes to it.
# shows: root file system on an image or a chain
device=/dev/vdc
root_image root - "$device" >/dev/null
guest_create g1 --append lab.root=/dev/xvda "$(disk xvda "$device")" || fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
sectors=$(guest_must g1 'cat /sys/block/xvda/size')
expect "sectors of xvda" "$sectors" "$(cat "/sys/block/${device#/dev/}/size")"
sum=$(guest_must g1 'head -c 5000000 /dev/urandom >/data && sync && sha256sum </data')
shut_down g1
blockdev --flushbufs "$device"
expect "checksum of /data read from the device in dom0" \
  "$(debugfs -R 'cat /data' "$device" 2>/dev/null | sha256sum)" "$sum"
saw "root on $sectors sectors of $device, 5 MB it wrote found there"
