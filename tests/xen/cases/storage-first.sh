# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# An image is activated before any guest wants it: dom0 makes a file system on it through the kernel's NBD driver, a
# guest's disk joins the same instance and finds that, and the instance stays until it is deactivated.
only vbdkit
shared_guest
blkfront shared
path=$(image first 64M)
uuid=$(vbdkit activate "raw:$path")
pid=$(instances)
modprobe nbd
device=$(vbdkit attach "$path")
mke2fs -q -F -t ext4 "$device"
mkdir -p /tmp/first
mount -t ext4 "$device" /tmp/first
head -c 5000000 /dev/urandom >/tmp/first/file
sum=$(sha256sum </tmp/first/file)
! vbdkit detach "$device" 2>/tmp/said || fail "a mounted device was detached"
grep -q 'is it mounted' /tmp/said || fail "detach of a mounted device says $(cat /tmp/said)"
umount /tmp/first
vbdkit detach "$uuid"
until_true 10 eval '! [ -e "/sys/block/${device#/dev/}/pid" ]' || fail "$device is still connected"

mount -t cgroup2 none /sys/fs/cgroup
vbdkit priority --io-weight 300 --cpu-weight 50 "$path"
group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
expect "weights of the instance's control group" "$(cat "$group/io.weight" "$group/cpu.weight" | tr '\n' ' ')" \
  'default 300 50 '

attach shared xvdb "$path"
expect "instances" "$(instances)" "$pid"
vbdkit list shared:xvdb >/tmp/said 2>&1 || fail "vbdkit list shared:xvdb: $(cat /tmp/said)"
guest_must shared 'mkdir -p /first && mount -t ext4 /dev/xvdb /first' >/dev/null
expect "the file's checksum in the guest" "$(guest_must shared 'sha256sum </first/file')" "$sum"
guest_must shared 'umount /first' >/dev/null
detach shared xvdb
expect "instances after the disk has gone" "$(instances)" "$pid"
vbdkit deactivate "$path"
expect "instances after deactivate" "$(instance_count)" 0
[ ! -e "$group" ] || fail "$group is left"
umount /sys/fs/cgroup
saw "activated, a file system made through $device, read by a guest, deactivated; weights 300 and 50 in $group"
