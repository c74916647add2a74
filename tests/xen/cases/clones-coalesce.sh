# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Two guests on clones of one image, both under fio with verify: the image that the clones stand on is merged into its
# parent beneath them, one of the disks grows, and neither guest notices but for the size.
# shows: coalesce beneath running guests
# shows: `vbdkit grow` while the guest has the disk
# limit: 900 s
only vbdkit
raw=$(image content 32M)
fill "$raw" 32
rm -f "$images"/{base,middle,one,two}.qcow2
vbdkit create --size 32M "qcow2:$images/base.qcow2"
vbdkit create --parent "qcow2:$images/base.qcow2" "qcow2:$images/middle.qcow2"
vbdkit convert --no-create "raw:$raw" "qcow2:$images/middle.qcow2"
for clone in one two; do vbdkit clone "qcow2:$images/middle.qcow2" "qcow2:$images/$clone.qcow2"; done

job='fio --name=v --filename=/dev/xvda --rw=randwrite --bsrange=4k-64k --offset=16M --size=8M --direct=1 \
--ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --loops=4 --minimal'
for guest in one two; do
  guest_create "$guest" --fio "$(image_disk xvda "qcow2:$images/$guest.qcow2")" ||
    fail "xl create $guest: $(cat "$state/$guest.xl")"
done
for guest in one two; do guest_send "$guest" "$job >/tmp/fio 2>&1; echo \$? >/tmp/status"; done
vbdkit coalesce "qcow2:$images/middle.qcow2" || fail "vbdkit coalesce: status $?"
vbdkit grow two:xvda 48M || fail "vbdkit grow: status $?"

[ ! -e "$images/middle.qcow2" ] || fail "the merged image is still there"
for guest in one two; do
  # The guest's shell comes to this when fio has ended.
  expect "fio's status in $guest" "$(guest "$guest" 'cat /tmp/status' 600)" 0
  expect "what $guest reads of the merged image" \
    "$(guest_must "$guest" 'dd if=/dev/xvda bs=1M count=16 iflag=direct 2>/dev/null | sha256sum')" \
    "$(head -c 16M "$raw" | sha256sum)"
  vbdkit info --chain "$images/$guest.qcow2" >"$state/chain"
  ! grep -q middle "$state/chain" || fail "$guest still stands on what was merged: $(cat "$state/chain")"
done
expect "sectors that two sees" "$(guest_must two 'cat /sys/block/xvda/size')" 98304
for guest in one two; do xl destroy "$guest"; done
until_true 60 eval '[ "$(instance_count)" = 0 ]' || fail "instances are left"
for image in base one two; do vbdkit check "qcow2:$images/$image.qcow2" >"$state/check" || fail "$image: $(cat "$state/check")"; done
saw "merged beneath two guests under fio, one grown to 48 MiB while it wrote; all verified, all images whole"
