# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# xentop shows the requests and sectors of the disk: as many as the guest says that it sent.
path=$(image top 16M)
guest_create g1 "$(disk xvda "$path")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 'dd if=/dev/xvda of=/dev/null bs=32k count=100 iflag=direct 2>/dev/null &&
dd if=/dev/zero of=/dev/xvda bs=32k count=50 oflag=direct 2>/dev/null'
read -r reads _ read_sectors _ writes _ written_sectors _ < <(guest_must g1 'cat /sys/block/xvda/stat')
until_true 60 read_xentop || fail "xentop shows no numbers: $(cat "$state/xentop")"
number() { sed -E "s/.*$1: *([0-9]+).*/\1/" <<<"$xentop_line"; }
expect "RD" "$(number RD)" "$reads"
expect "WR" "$(number WR)" "$writes"
expect "RSECT" "$(number RSECT)" "$read_sectors"
expect "WSECT" "$(number WSECT)" "$written_sectors"
saw "xentop: ${xentop_line//  / }"
