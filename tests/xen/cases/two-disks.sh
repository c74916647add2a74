# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest with two disks: each has its own content, and writing both at once mixes nothing up.
first=$(image first 16M) second=$(image second 24M)
guest_create g1 --fio "$(disk xvda "$first")" "$(disk xvdb "$second")" || fail "xl create: $(cat "$state/g1.xl")"
expect "sectors of both" "$(guest_must g1 'cat /sys/block/xvda/size /sys/block/xvdb/size' | tr '\n' ' ')" "32768 49152 "
[ "$backend" = blkback ] || expect "instances" "$(instance_count)" 2
guest_must g1 'for d in a b; do (yes disk-$d | dd of=/dev/xvd$d bs=64k count=128 iflag=fullblock oflag=direct \
conv=fsync 2>/tmp/$d; echo $? >/tmp/rc$d) & done; wait 
[ "$(cat /tmp/rca)$(cat /tmp/rcb)" = 00 ]' 120
for d in a b; do
  [ $d = a ] && path=$first || path=$second
  expect "first 8 MiB of xvd$d in its file" "$(head -c 8388608 "$path" | sha256sum)" \
    "$(set +o pipefail; yes disk-$d | head -c 8388608 | sha256sum)"
done
saw "16 and 24 MiB disks written at once, each file has its own 8 MiB"
