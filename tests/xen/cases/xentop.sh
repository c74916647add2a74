# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# xentop shows the requests and sectors of the disk: as many as the guest says that it sent.
path=$(image top 16M)
guest_create g1 "$(disk xvda "$path")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 'dd if=/dev/xvda of=/dev/null bs=32k count=100 iflag=direct 2>/dev/null &&
dd if=/dev/zero of=/dev/xvda bs=32k count=50 oflag=direct 2>/dev/null'
read -r reads _ read_sectors _ writes _ written_sectors _ < <(guest_must g1 'cat /sys/block/xvda/stat')
xentop -b -f -x -i 1 >"$state/xentop"
# Where the kernel made a device of its own for the disk, xentop also has a line without numbers.
line=$(grep -E 'VBD .*51712 .*RD: +[0-9]' "$state/xentop") || fail "xentop shows no numbers: $(cat "$state/xentop")"
number() { sed -E "s/.*$1: *([0-9]+).*/\1/" <<<"$line"; }
expect "RD" "$(number RD)" "$reads"
expect "WR" "$(number WR)" "$writes"
expect "RSECT" "$(number RSECT)" "$read_sectors"
expect "WSECT" "$(number WSECT)" "$written_sectors"
saw "xentop: ${line//  / }"
