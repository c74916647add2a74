# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What dom0 and a driver domain have in common when they start: file systems, devices, Xen's modules, and vbdkit.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm /run/{xen,xenstored,lock,lab} /var/log/xen/console
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# Without /dev/stdin Xen's own block script waits for its lock for ever.
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
ip link set lo up
modprobe -a xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs
mount -t xenfs xenfs /proc/xen

# dom0 starts with xen-blkback kept off; the cases that want it load it with --ignore-install.
echo 'install xen-blkback /bin/false' >/etc/modprobe.d/vbdkit.conf
cp -a /lab/root/. /
