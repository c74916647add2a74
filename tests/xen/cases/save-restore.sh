# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest is saved and restored: the disk works on, and the plugin's name is in what was saved. By plugin; save-restore:WAY in
# another way.
# shows: `xl save` and `restore`
# way: plugin
# limit: 900 s
only vbdkit
by "${1:-plugin}"
path=$(image saved 16M)
guest_create g1 "$(format_disk xvda raw "$path")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 'echo before | dd of=/dev/xvda conv=sync,fsync' >/dev/null 2>&1
xl save g1 "$images/g1.save" >"$state/save" 2>&1 || fail "xl save: $(cat "$state/save")"
gone g1 || fail "g1 is still there"
expect "the file's first bytes" "$(head -c 6 "$path")" before
expect "instances while the guest is away" "$(instance_count)" 0
mark_console g1
xl restore "$images/g1.save" >"$state/restore" 2>&1 || fail "xl restore: $(cat "$state/restore")"
echo "/local/domain/$(domid g1)" >"$state/g1.path"
[ "$way" != plugin ] || [[ $(xl list -l g1) == *'"backend_plugin": "vbdkit"'* ]] || fail "the plugin's name is lost"
expect "what the guest reads" "$(guest_must g1 'dd if=/dev/xvda bs=6 count=1 iflag=direct,fullblock bs=512 2>/dev/null | head -c 6')" before
guest_must g1 'echo after | dd of=/dev/xvda conv=sync,fsync' >/dev/null 2>&1
expect "the file's first bytes" "$(head -c 5 "$path")" after
shut_down g1
saw "saved, restored; what was written before and after is in the file"
