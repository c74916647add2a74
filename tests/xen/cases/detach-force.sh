# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# block-detach -f takes a mounted, busy disk away for good, and the guest survives. By script, or detach-force:plugin.
# shows: `xl block-detach` of a busy disk, also forced
[ -z "${1:-}" ] || by "$1"
guest_create g1 --fio || fail "xl create: $(cat "$state/g1.xl")"
path=$(image busy 32M)
if [ -n "${1:-}" ]; then attach_disk g1 xvdb "$(format_disk xvdb raw "$path")"; else attach g1 xvdb "$path"; fi
node=$(back_path g1 xvdb)
guest_must g1 'fio --name=load --filename=/dev/xvdb --rw=randrw --bs=4k --size=32M --direct=1 --ioengine=libaio \
--iodepth=16 --time_based --runtime=300 >/tmp/load 2>&1 &'
guest_must g1 'for i in $(seq 100); do [ "$(awk "{print \$5}" /sys/block/xvdb/stat)" -gt 20 ] && exit; sleep 0.1; done
exit 1'
xl block-detach g1 xvdb -f >"$state/detach" 2>&1 || fail "xl block-detach -f: $(cat "$state/detach")"
! xenstore-exists "$node" || fail "$node is still in xenstore"
[ "$backend" = blkback ] || until_true 20 eval '[ "$(instance_count)" = 0 ]' || fail "the instance still runs"
expect "what the guest answers afterwards" "$(guest_must g1 'echo alive')" alive
saw "busy disk gone, no node, no instance; the guest lives"
