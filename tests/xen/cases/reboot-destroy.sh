# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# xl reboot of a guest with two disks, one of them attached later: both come back with what was written. xl destroy while it
# writes leaves nothing. By plugin; reboot-destroy:WAY in another way.
# shows: `xl reboot`
# shows: `xl destroy`
# way: plugin
# on request
# limit: 900 s
only vbdkit
by "${1:-plugin}"
path=$images/a.qcow2
vbdkit create --size 32M "qcow2:$path"
guest_create g1 "$(format_disk xvda qcow2 "$path")" || fail "xl create: $(cat "$state/g1.xl")"
attach_disk g1 xvdb "$(format_disk xvdb raw "$(image b 16M)")"
guest_must g1 'for d in xvda xvdb; do echo $d | dd of=/dev/$d conv=sync,fsync; done' >/dev/null 2>&1
first=$(domid g1)
mark_console g1
xl reboot -w g1 >"$state/reboot" 2>&1 || fail "xl reboot: $(cat "$state/reboot")"
guest_ready g1
second=$(domid g1)
[ "$first" != "$second" ] || fail "g1 still is domain $first: it did not reboot"
expect "what the guest reads after xl reboot" "$(guest_must g1 'for d in xvda xvdb; do head -n 1 /dev/$d; done')" $'xvda\nxvdb'
expect "instances" "$(instance_count)" 2
guest_must g1 'while :; do dd if=/dev/zero of=/dev/xvda bs=64k seek=1; done >/dev/null 2>&1 & true'
xl destroy g1 2>"$state/destroy" || fail "xl destroy: $(cat "$state/destroy")"
until_true 15 is_clean || fail "left behind: $(left_behind)"
vbdkit check "qcow2:$path" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
saw "domain $first became $second, both disks as they were; destroyed amid writes, nothing left"
