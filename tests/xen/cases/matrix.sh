# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# matrix:WAY:KIND (tests/xen/matrix): a guest of this kind has a disk of each format, given to libxl in this way; it reads
# them whole, writes to them, gets one more and loses it. What it wrote is in the images.
# on request
# limit: 900 s
only vbdkit
by "$1"
kind=$2
formats=(raw vhd qcow2)
vdevs=(xvda xvdb xvdc xvdd)
raw=$(image matrix 8M)
fill "$raw" 8
sum=$(sha256sum <"$raw")
disks=()
for i in "${!formats[@]}"; do
  format=${formats[i]}
  path=$images/m.$format
  vbdkit convert "raw:$raw" "$format:$path" || fail "vbdkit convert to $format: status $?"
  disks+=("$(format_disk "${vdevs[i]}" "$format" "$path")")
done
guest_create g1 --type "$kind" "${disks[@]}" || fail "xl create: $(cat "$state/g1.xl")"
expect "instances" "$(instance_count)" "${#formats[@]}"
for i in "${!formats[@]}"; do
  vdev=${vdevs[i]}
  expect "checksum of what the guest reads from ${formats[i]}" "$(guest_must g1 "sha256sum </dev/$vdev")" "$sum"
  guest_must g1 "echo ${formats[i]} | dd of=/dev/$vdev bs=4096 seek=5 conv=sync,fsync 2>/dev/null"
done
xl block-attach g1 "$(format_disk xvdd raw "$raw")" >"$state/attach" 2>&1 || fail "block-attach: $(cat "$state/attach")"
guest_must g1 'for i in $(seq 200); do [ -b /dev/xvdd ] && exit 0; sleep 0.1; done; exit 1'
expect "checksum of the disk that was attached" "$(guest_must g1 'sha256sum </dev/xvdd')" "$sum"
detach g1 xvdd
shut_down g1
for format in "${formats[@]}"; do
  rm -f "$raw"
  vbdkit convert "$format:$images/m.$format" "raw:$raw" || fail "vbdkit convert from $format: status $?"
  expect "what the guest wrote to $format" "$(dd if="$raw" bs=4096 skip=5 count=1 status=none | tr -d '\0')" "$format"
done
saw "${formats[*]}"
