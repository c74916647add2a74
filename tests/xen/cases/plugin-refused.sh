# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What a plugin finds wrong, and a plugin that crashes or hangs, is told by xl create before there is a domain.
only vbdkit
patched_libxl
refused() { # refused DISK WORD…: xl create fails, with all these words in what it prints, and has made no domain
  local disk=$1
  shift
  ! guest_create g1 "$disk" || fail "xl create took $disk"
  printed g1 "$@"
  ! grep -q 'cannot make domain\|unable to destroy domain' "$state/g1.xl" || fail "there was a domain: $(cat "$state/g1.xl")"
}
vbdkit create --size 1M "qcow2:$images/base.qcow2"
vbdkit create --parent "qcow2:$images/base.qcow2" "qcow2:$images/leaf.qcow2"
rm "$images/base.qcow2"
refused "$(plugin_disk xvda qcow2 "$images/leaf.qcow2")" \
  "Disk xvda: plugin vbdkit: qcow2: open $images/leaf.qcow2: its parent is missing" "$images/base.qcow2"
told=$(grep -F 'its parent is missing' "$state/g1.xl" | tail -n 1)
refused "$(plugin_disk xvda raw "$images/none.img")" "plugin vbdkit: " "$images/none.img: No such file or directory"
refused "$(plugin_disk xvda vmdk "$images/leaf.qcow2")" "format 'vmdk' is unknown to it" 'known: raw, qcow2, vhd'
refused "$(plugin_disk xvda raw /dev/null rw absent)" 'plugin absent: there is no such plugin'
refused "$(plugin_disk xvda odd validate=crash r test)" 'Disk xvda: plugin test failed in validate' 'Aborted'
refused "$(plugin_disk xvda odd validate=exit r test)" 'plugin test ended without an answer'
refused "$(plugin_disk xvda odd validate=hang r test)" 'plugin test: no answer to validate within 40 seconds'
! grep -q vbd3 <(xenstore-ls -f /local/domain/0/backend 2>&1) || fail "a disk is left in xenstore"
xl list >/dev/null
saw "xl create says: ${told##*libxl: }; a crashing and a hanging plugin are errors too"
