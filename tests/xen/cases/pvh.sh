# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A PVH guest, with hardware page tables instead of Xen's own: the same disk, the same bytes.
# shows: root file system on an image or a chain
path=$(root_image root 64M)
guest_create g1 --type pvh --memory 256 --append lab.root=/dev/xvda "$(disk xvda "$path")" ||
  fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
sum=$(guest_must g1 'head -c 3000000 /dev/urandom >/data && sync && sha256sum </data')
shut_down g1
expect "checksum of /data read from the file in dom0" "$(debugfs -R 'cat /data' "$path" 2>/dev/null | sha256sum)" "$sum"
saw "root on xvda, 3 MB it wrote found in the file"
