# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# fstrim in a guest makes its image smaller on the host, raw or qcow2; then the image grows while the guest has the disk, and
# xl takes the disk away. By plugin; fstrim-grow:WAY in another way.
# shows: `fstrim` shrinks the image
# shows: `vbdkit grow` while the guest has the disk
# way: plugin
# on request
# limit: 1800 s
only vbdkit
by "${1:-plugin}"
guest_create g1 || fail "xl create: $(cat "$state/g1.xl")"
used() { du -k "$1" | cut -f1; }
told=''
for format in raw qcow2; do
  path=$images/trim.$format
  rm -f "$path"
  vbdkit create --size 32M "$format:$path"
  attach_disk g1 xvdb "$(format_disk xvdb "$format" "$path")"
  guest_must g1 '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount -t ext4 /dev/xvdb /root && yes big | head -c 12000000 >/root/big &&
    head -c 1000000 /dev/urandom >/root/kept && sha256sum </root/kept >/tmp/sum && sync' 600 >/dev/null
  full=$(used "$path")
  # A qcow2 gives space back with the next flush, when nothing on disk points there any more.
  guest_must g1 'rm /root/big && sync && /bin/fstrim /root && echo flushed >/root/after && sync' 600
  # Clusters that hold file system structures stay, whatever else was in them.
  trimmed=$(used "$path")
  [ $((full - trimmed)) -gt 10000 ] || fail "$format: $full KiB before fstrim, $trimmed after"
  vbdkit grow g1:xvdb 40M || fail "vbdkit grow: status $?"
  expect "sectors that the guest sees at once" "$(guest_must g1 'cat /sys/block/xvdb/size')" 81920
  guest_must g1 'umount /root && mount -t ext4 /dev/xvdb /root && [ "$(sha256sum </root/kept)" = "$(cat /tmp/sum)" ]; s=$?; umount /root; exit $s'
  guest_must g1 'echo last | dd of=/dev/xvdb seek=81919 conv=sync,fsync 2>/dev/null'
  detach g1 xvdb
  vbdkit check "$format:$path" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
  vbdkit convert "$format:$path" "raw:$images/flat.img"
  expect "the last sector's first bytes" "$(tail -c 512 "$images/flat.img" | head -c 4)" last
  told+="$format $full KiB, after fstrim $trimmed; "
  rm -f "$path" "$images/flat.img"
done
expect "instances" "$(instance_count)" 0
saw "${told}each grown from 32 to 40 MiB under the guest"
