# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# An image that one guest writes is refused to a second one, and xl says why; the first guest notices nothing.
path=$(image mine 16M)
guest_create g1 "$(disk xvda "$path")" || fail "xl create g1: $(cat "$state/g1.xl")"
if guest_create g2 "$(disk xvda "$path")"; then
  fail "a second guest got the same image for writing"
fi
grep -q "$path" "$state/g2.xl" || fail "xl create does not name the image: $(cat "$state/g2.xl")"
guest_must g1 'echo mine | dd of=/dev/xvda bs=512 count=1 conv=sync,fsync 2>/dev/null'
expect "what g1 wrote" "$(head -c 4 "$path")" mine
saw "refused: $(grep "$path" "$state/g2.xl" | tail -n 1)"
