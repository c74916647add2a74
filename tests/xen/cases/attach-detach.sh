# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# xl block-attach and block-detach on a running guest, three times over; after each nothing is left of the disk.
# shows: `xl block-attach` and `-detach`
shared_guest
blkfront shared
path=$(image hot 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
for round in 1 2 3; do
  attach shared xvdb "$path"
  expect "checksum of all that the guest reads, round $round" "$(guest_must shared 'sha256sum </dev/xvdb')" "$sum"
  node=$(back_path shared xvdb)
  detach shared xvdb
  guest_must shared '! [ -e /sys/block/xvdb ]'
  ! xenstore-exists "$node" || fail "$node is still in xenstore after the detach"
  [ "$backend" = blkback ] || expect "instances after the detach" "$(instance_count)" 0
done
saw "3 times attached, read whole with the right checksum, detached; no node, no instance left"
