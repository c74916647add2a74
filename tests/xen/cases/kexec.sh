# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# An HVM guest starts another kernel by kexec while it reads its disk. libxl resets the domain, device model and disks
# (on_soft_reset), the new kernel's blkfront connects, and what the old one wrote is there.
# shows: guest kexec while it reads its disk
# lab: hvm hvm-4.20
# limit: 1800 s
only vbdkit
# shellcheck source=tests/xen/dom0/boot-disk.sh
. /lab/dom0/boot-disk.sh
path=$(boot_disk boot 64)
guest_create g1 --type hvm "$(image_disk sda "raw:$path")" || fail "xl create: $(cat "$state/g1.xl")"
sum=$(guest_must g1 'mount -t ext4 /dev/xvda1 /root && head -c 3000000 /dev/urandom >/root/data && sync && sha256sum </root/data')
guest_must g1 'kexec -c -l /root/boot/vmlinuz --initrd=/root/boot/guest.img --command-line="$(cat /proc/cmdline) lab.kernel=second" &&
  umount /root' 600
first=$(domid g1)
mark_console g1
guest_send g1 'while :; do dd if=/dev/xvda of=/dev/null bs=64k count=64; done >/dev/null 2>&1 & kexec -e'
guest_ready g1 900
expect "domain" "$(domid g1)" "$first"
guest_must g1 'grep -qw lab.kernel=second /proc/cmdline' || fail "the old kernel answers"
expect "what the new kernel reads" "$(guest_must g1 'mount -t ext4 /dev/xvda1 /root && sha256sum </root/data')" "$sum"
guest_must g1 'echo new >/root/new && umount /root'
expect "instances" "$(instance_count)" 1
shut_down g1
dd if="$path" of="$state/partition" bs=1M skip=1 conv=sparse status=none
e2fsck -fn "$state/partition" >"$state/fsck" 2>&1 || fail "e2fsck: $(cat "$state/fsck")"
expect "checksum of what the first kernel wrote" "$(debugfs -R 'cat /data' "$state/partition" 2>/dev/null | sha256sum)" "$sum"
expect "what the second kernel wrote" "$(debugfs -R 'cat /new' "$state/partition" 2>/dev/null)" new
rm -f "$state/partition"
saw "domain $first runs the second kernel; what either wrote is in the image"
