# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest's disk is served by another guest: vbdkit and `xl devd` in a driver domain, a qcow2 image that dom0 does not have.
# driver-domain:WAY: given to libxl in another way than by script.
# shows: disk of a driver domain with `xl devd`
# on request
# limit: 900 s
only vbdkit
by "${1:-script}"
driver_domain
in_drv() { guest_must drv ". /lab/dom0/lib.sh; $1"; }
drv_disk() { echo "backend=drv,$(format_disk "$@")"; }
in_drv 'vbdkit create --size 32M qcow2:/images/a.qcow2'
guest_create g1 "$(drv_disk xvda qcow2 /images/a.qcow2)" || fail "xl create: $(cat "$state/g1.xl")"
node=$(back_path g1 xvda)
expect "the disk's backend" "${node%/vbd*}" "/local/domain/$(domid drv)/backend"
expect "instances in the driver domain" "$(in_drv instance_count)" 1
echo 'format: qcow2' # its instance is in drv's log
expect "instances in dom0, of the driver domain's own disks" "$(instance_count)" 2
sum=$(guest_must g1 'head -c 9000000 /dev/urandom >/f && dd if=/f of=/dev/xvda bs=64k conv=fsync 2>/dev/null && sha256sum </f')
expect "what the guest reads again" \
  "$(guest_must g1 'echo 3 >/proc/sys/vm/drop_caches; head -c 9000000 /dev/xvda | sha256sum')" "$sum"

in_drv 'vbdkit create --size 16M raw:/images/b.img'
xl block-attach g1 "$(drv_disk xvdb raw /images/b.img)" >"$state/attach" 2>&1 || fail "block-attach: $(cat "$state/attach")"
guest_must g1 'for i in $(seq 200); do [ -b /dev/xvdb ] && break; sleep 0.1; done; echo hello | dd of=/dev/xvdb conv=sync,fsync' >/dev/null 2>&1
expect "the second image's first bytes" "$(in_drv 'head -c 5 /images/b.img')" hello
detach g1 xvdb
expect "instances in the driver domain after a detach" "$(in_drv instance_count)" 1

xl destroy g1 2>"$state/destroy" || fail "xl destroy: $(cat "$state/destroy")"
in_drv 'until_true 20 eval "[ \$(instance_count) = 0 ]"' >/dev/null
! xenstore-ls -f "/local/domain/$(domid drv)/backend" 2>/dev/null | grep -E '/vbd3?/[0-9]+/[0-9]+ ' || fail "left in xenstore"
in_drv 'vbdkit check qcow2:/images/a.qcow2' >/dev/null
expect "what is in the image" "$(in_drv 'vbdkit convert qcow2:/images/a.qcow2 raw:/images/a.img >/dev/null 2>&1 && head -c 9000000 /images/a.img | sha256sum')" "$sum"
in_drv sync >/dev/null # what xl waits for is then no flush of all that drv ever wrote
xl destroy drv 2>"$state/destroy" || fail "xl destroy drv: $(cat "$state/destroy")"
saw "$(versions): a qcow2 image in a driver domain was written, read, found whole there; attach, detach, destroy leave nothing"
