# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# An HVM guest boots from an image of ours: BIOS and GRUB read and write the emulated disk, which is QEMU on our NBD socket;
# the kernel unplugs that and goes on with xen-blkfront, on the same bytes. hvm:WAY:FORMAT gives libxl the disk in one of
# matrix's ways, as an image of that format.
# shows: HVM: BIOS and GRUB boot from it, the kernel unplugs the emulated disk and goes on with the PV one; reboot
# lab: hvm hvm-4.20
# limit: 1800 s
only vbdkit
by "${1:-script}"
format=${2:-raw}
# shellcheck source=tests/xen/dom0/boot-disk.sh
. /lab/dom0/boot-disk.sh
path=$(boot_disk boot 64 lab.boot=first)
leaf=$path
if [ "$format" != raw ]; then
  leaf=$(image_chain "$format" 2 "$path")
  rm -f "$path"
fi
disk=$(format_disk sda "$format" "$leaf") # sda: emulated as SCSI, which this BIOS reads fast
qemu_has_disk() { vbdkit list --json | grep -q '"type": *"nbd"'; }
on_blkfront() { # on_blkfront WORD: the guest was booted with this word by GRUB, by QEMU's disk, and has ours only by now
  local drive
  drive=$(tr '\0' '\n' <"/proc/$(xenstore-read "/local/domain/$(domid g1)/image/device-model-pid")/cmdline" | grep '^file=') ||
    fail "the device model has no disk"
  [[ $drive == file=nbd+unix:///* ]] || fail "the device model's disk is not ours: $drive"
  guest_must g1 "grep -qw lab.boot=$1 /proc/cmdline" || fail "GRUB did not read lab.boot=$1"
  expect "disks and their controllers that the guest has" \
    "$(guest_must g1 'ls /sys/block; cat /sys/bus/pci/devices/*/class | grep 0x0100; true')" xvda
  until_true 20 eval '! qemu_has_disk' || fail "QEMU still has the disk: $(vbdkit list --json)"
  expect "instances" "$(instance_count)" 1
}
guest_create g1 --type hvm --boot disk "$disk" || fail "xl create: $(cat "$state/g1.xl")"
on_blkfront first
guest_must g1 'mount -t ext4 /dev/xvda1 /root'
expect "what GRUB wrote, by the guest's own disk" "$(guest_must g1 'grep writer= /root/boot/grub/grubenv')" "writer=$grub_writer"
sum=$(guest_must g1 'head -c 3000000 /dev/urandom >/root/data && sed -i s/lab.boot=first/lab.boot=second/ /root/boot/grub/grub.cfg &&
  sha256sum </root/data && umount /root')
mark_console g1
guest_send g1 'reboot -f'
guest_ready g1 900
on_blkfront second
expect "what the guest reads after its reboot" "$(guest_must g1 'mount -t ext4 /dev/xvda1 /root && sha256sum </root/data && umount /root')" "$sum"
shut_down g1
if [ "$format" != raw ]; then
  vbdkit check "$format:$leaf" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
  vbdkit convert "$format:$leaf" "raw:$path"
fi
dd if="$path" of="$state/partition" bs=1M skip=1 conv=sparse status=none
e2fsck -fn "$state/partition" >"$state/fsck" 2>&1 || fail "e2fsck: $(cat "$state/fsck")"
expect "checksum of what the guest wrote" "$(debugfs -R 'cat /data' "$state/partition" 2>/dev/null | sha256sum)" "$sum"
rm -f "$state/partition"
saw "BIOS and GRUB read and write $format by QEMU and NBD, the kernel goes on with xvda; twice, each reads what the other wrote"
