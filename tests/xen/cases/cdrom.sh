# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A CD image for a PV guest, with stock libxl and through the plugin: the guest reads it and cannot write it.
# shows: CD image
# way: script, plugin
only vbdkit
path=$(image cd 8M)
fill "$path" 8
sum=$(sha256sum <"$path")
# A guest of its own: the stock libxl cannot read what the patched one has recorded of a guest.
guest_create g1 || fail "xl create: $(cat "$state/g1.xl")"
cd_is_right() { # cd_is_right DISK
  attach_disk g1 xvdc "$1"
  expect "device-type" "$(xenstore-read "$(back_path g1 xvdc)/device-type")" cdrom
  # VDISK_CDROM, VDISK_READONLY of xen/io/blkif.h
  expect "info, CD and read-only bits" $(($(xenstore-read "$(back_path g1 xvdc)/info") & 5)) 5
  expect "checksum that the guest reads" "$(guest_must g1 'sha256sum </dev/xvdc')" "$sum"
  guest_must g1 'blockdev --setrw /dev/xvdc' >/dev/null
  ! guest g1 'echo x | dd of=/dev/xvdc bs=4096 count=1 conv=sync,fsync oflag=direct' >"$state/write" 2>&1 ||
    fail "a write succeeded"
  detach g1 xvdc
}
cd_is_right "devtype=cdrom,format=raw,vdev=xvdc,access=ro,script=block-vbdkit,target=raw:$path"
patched_libxl
cd_is_right "devtype=cdrom,$(plugin_disk xvdc raw "$path" ro)"
expect "checksum of the file" "$(sha256sum <"$path")" "$sum"
saw "8 MiB read as a CD, a write refused; by script and by plugin"
