# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest whose root is a raw file boots; it sees the file's size; what it writes is in the file.
# shows: root file system on an image or a chain
path=$(root_image root 64M)
guest_create g1 --append lab.root=/dev/xvda "$(disk xvda "$path")" || fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
sectors=$(guest_must g1 'cat /sys/block/xvda/size')
expect "sectors of xvda" "$sectors" $((64 * 2048))
sum=$(guest_must g1 'head -c 5000000 /dev/urandom >/data && sync && sha256sum </data')
shut_down g1
e2fsck -fn "$path" >"$state/fsck" 2>&1 || [ $? -lt 4 ] || fail "e2fsck: $(cat "$state/fsck")"
expect "checksum of /data read from the file in dom0" "$(debugfs -R 'cat /data' "$path" 2>/dev/null | sha256sum)" "$sum"
saw "root on $sectors sectors of xvda, 5 MB it wrote found in the file"
