# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# xl destroy of a guest that keeps its disk busy: no zombie, no grant still mapped, no xenstore node, no instance.
# shows: `xl destroy`
path=$(image load 64M)
# Slow, so that the disk is busy at the moment of the destroy as well.
case $backend in
  vbdkit) busy=$(image_disk xvda "throttle:iops=20|raw:$path") ;;
  *) busy=$(disk xvda "$path") ;;
esac
guest_create g1 --fio --vcpus 2 "$busy" || fail "xl create: $(cat "$state/g1.xl")"
id=$(domid g1)
guest_must g1 'fio --name=load --filename=/dev/xvda --rw=randrw --bsrange=4k-128k --size=64M --direct=1 --numjobs=2 \
--ioengine=libaio --iodepth=32 --time_based --runtime=300 >/tmp/load 2>&1 &'
flying=$(guest_must g1 'for i in $(seq 300); do v=$(awk "{print \$9}" /sys/block/xvda/stat)
[ "$v" -ge 32 ] && echo "$v" && exit; sleep 0.1; done; exit 1')
xl destroy g1 2>"$state/destroy" || fail "xl destroy: $(cat "$state/destroy")"
until_true 15 eval "! xl list | awk 'NR > 1 {print \$2}' | grep -x $id >&2" || fail "zombie: $(xl list | tail -n +2)"
xl dmesg -c >/dev/null
xl debug-keys g
xl dmesg >"$state/grants"
grep -q 'gnttab_usage_print_all' "$state/grants" || fail "Xen printed no grant table"
! grep -E "^\(XEN\) +grant-table for remote d$id\b" "$state/grants" || fail "d$id's grants are still in use"
! xenstore-ls -f | grep -E "/vbd/($id/|.*frontend-id = \"$id\")" || fail "nodes of d$id are still in xenstore"
[ "$backend" = blkback ] || until_true 15 eval '[ "$(instance_count)" = 0 ]' || fail "the instance still runs"
saw "destroyed with $flying requests in flight: no zombie, no grant in use, no node, no instance"
