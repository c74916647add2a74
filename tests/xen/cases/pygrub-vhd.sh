# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# pygrub reads kernel and initramfs of a PV guest out of a chain of VHD images: libxl attaches the disk to dom0 for it and
# detaches it before the guest has it.
# shows: pygrub, from a chain
# limit: 900 s
only vbdkit
# shellcheck source=tests/xen/dom0/boot-disk.sh
. /lab/dom0/boot-disk.sh
modprobe xen-blkfront
path=$(boot_disk boot 64 lab.from=grub.cfg)
leaf=$(image_chain vhd 3 "$path")
rm -f "$path"
guest_create g1 --boot pygrub "$(image_disk xvda "vhd:$leaf")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 'grep -qw lab.from=grub.cfg /proc/cmdline' || fail "the guest's kernel was not started by grub.cfg"
! [ -e /dev/xvda ] || fail "dom0 still has the disk"
expect "instances" "$(instance_count)" 1
guest_must g1 'mount -t ext4 /dev/xvda1 /root && echo here >/root/file && umount /root'
shut_down g1
vbdkit check "vhd:$leaf" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
saw "kernel, initramfs and command line from the top of 3 VHDs; the disk left dom0 before the guest had it"
