# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A file system made by the guest keeps its files across a reboot from inside and an `xl reboot`.
# shows: `xl reboot`
path=$(image data 64M)
guest_create g1 "$(disk xvda "$path")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 '/sbin/mke2fs -q -t ext4 /dev/xvda && mount /dev/xvda /root && cd /root && mkdir d &&
  for i in $(seq 20); do head -c $((i * 40000)) /dev/urandom >d/$i; done && sha256sum d/* >sums' 120 >/dev/null
check='mount -t ext4 /dev/xvda /root && cd /root && sha256sum -c sums | grep -c ": OK$"'
first=$(domid g1)
mark_console g1
guest_send g1 'cd / && umount /root && reboot -f'
guest_ready g1
expect "files with the right checksum after the guest's own reboot" "$(guest_must g1 "$check")" 20
second=$(domid g1)
[ "$first" != "$second" ] || fail "g1 still is domain $first: it did not reboot"
guest_must g1 'cd / && umount /root'
mark_console g1
xl reboot -w g1 >"$state/reboot" 2>&1 || fail "xl reboot: $(cat "$state/reboot")"
guest_ready g1
[ "$(domid g1)" != "$second" ] || fail "g1 still is domain $second: it did not reboot"
expect "files with the right checksum after xl reboot" "$(guest_must g1 "$check")" 20
guest_must g1 'cd / && umount /root && /sbin/e2fsck -fn /dev/xvda' >/dev/null
saw "20 files right after both reboots, as domains $first, $second, $(domid g1); e2fsck finds nothing"
