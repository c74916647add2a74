# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# backendtype=tap,script=block-vbdkit on a stock Xen of 4.19 or later: a guest boots from a qcow2 image with a backing file
# through backend/vbd3, gets a second disk and loses it; a missing image is named; destroy leaves nothing.
# shows: root file system on an image or a chain
# shows: `xl block-attach` and `-detach`
# shows: `xl destroy`
# way: tap
# lab: 4.20
# limit: 900 s
only vbdkit
root=$(root_image root 64M)
leaf=$(image_chain qcow2 2 "$root")
rm -f "$root"
guest_create g1 --append lab.root=/dev/xvda "$(tap_disk xvda "qcow2:$leaf")" || fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
node=$(back_path g1 xvda)
[[ $node == */backend/vbd3/* ]] || fail "the disk's backend is $node"
expect "what libxl made of the target" "$(xenstore-read "$node/params")" "aio:qcow2:$leaf"
guest_must g1 'head -c 3000000 /dev/urandom >/file && sync && sha256sum </file >/sum && sync' >/dev/null

path=$(image second 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
xl block-attach g1 "$(tap_disk xvdb "raw:$path")" >"$state/attach" 2>&1 || fail "block-attach: $(cat "$state/attach")"
guest_must g1 'for i in $(seq 200); do [ -b /dev/xvdb ] && exit 0; sleep 0.1; done; exit 1'
expect "checksum that the guest reads" "$(guest_must g1 'sha256sum </dev/xvdb')" "$sum"
expect "instances" "$(instance_count)" 2
second=$(back_path g1 xvdb)
detach g1 xvdb
guest_must g1 '! [ -e /sys/block/xvdb ]'
! xenstore-exists "$second" || fail "$second is still in xenstore after the detach"
expect "instances after the detach" "$(instance_count)" 1

! xl block-attach g1 "$(tap_disk xvdc "qcow2:$images/none.qcow2")" >"$state/g1.xl" 2>&1 || fail "attached what is not there"
printed g1 "$images/none.qcow2" 'No such file or directory'
told=$(grep -F "$images/none.qcow2" "$state/g1.xl" | tail -n 1)

xl destroy g1 2>"$state/destroy" || fail "xl destroy: $(cat "$state/destroy")"
until_true 15 is_clean || fail "left behind: $(left_behind)"
vbdkit check "qcow2:$leaf" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
guest_create g1 --append lab.root=/dev/xvda "$(tap_disk xvda "qcow2:$leaf")" || fail "xl create: $(cat "$state/g1.xl")"
guest_must g1 'sha256sum </file | cmp - /sum'
shut_down g1
saw "$(versions): boot from qcow2 through backend/vbd3, attach, detach, destroy leaves nothing; xl says: ${told##*libxl: }"
