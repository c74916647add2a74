# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Two guests read one image read-only: one instance serves both, and it outlives the first of them. By script, or
# shared-readonly:plugin.
[ -z "${1:-}" ] || by "$1"
path=$(image golden 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
if [ "${1:-}" = plugin ]; then golden=$(plugin_disk xvda raw "$path" r); else golden=$(disk xvda "$path" r); fi
guest_create g1 "$golden" || fail "xl create g1: $(cat "$state/g1.xl")"
guest_create g2 "$golden" || fail "xl create g2: $(cat "$state/g2.xl")"
[ "$backend" = blkback ] || expect "instances for two guests" "$(instance_count)" 1
for g in g1 g2; do
  expect "checksum that $g reads" "$(guest_must $g 'sha256sum </dev/xvda')" "$sum"
done
xl destroy g1
expect "checksum that g2 reads after g1 is gone" \
  "$(guest_must g2 'echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/xvda')" "$sum"
[ "$backend" = blkback ] || expect "instances after g1 is gone" "$(instance_count)" 1
saw "both read the right checksum$([ "$backend" = blkback ] || echo ' from one instance'), g2 also after g1 was destroyed"
