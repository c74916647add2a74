# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# backendtype=vbdkit on a libxl with disk plugins: a guest boots from a qcow2 image with a backing file, reboots, gets a
# second disk while it runs, and not one that is not there; JSON tells the plugin and the format.
# shows: root file system on an image or a chain
# shows: `xl block-attach` and `-detach`
# way: plugin
# limit: 900 s
only vbdkit
patched_libxl
root=$(root_image root 64M)
leaf=$(image_chain qcow2 2 "$root")
rm -f "$root"
guest_create g1 --append lab.root=/dev/xvda "$(plugin_disk xvda qcow2 "$leaf")" || fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
node=$(back_path g1 xvda)
[[ $node == */backend/vbd3/* ]] || fail "the disk's backend is $node"
expect "the backend's plugin" "$(xenstore-read "$node/plugin")" vbdkit
[[ $(xenstore-read "$node/physical-device-path") == nbd+unix:///?socket=* ]] || fail "no path for a device model"
config=$(xl list -l g1)
for word in '"backend": "plugin"' '"backend_plugin": "vbdkit"' '"format": "qcow2"' "\"pdev_path\": \"$leaf\""; do
  [[ $config == *"$word"* ]] || fail "xl list -l says nothing of $word: $config"
done
guest_must g1 'echo first >/file && sync' >/dev/null
mark_console g1
guest_send g1 'sync; reboot -f'
guest_ready g1
expect "what the guest wrote, after its reboot" "$(guest_must g1 'cat /file')" first

path=$(image second 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
attach_disk g1 xvdb "$(plugin_disk xvdb raw "$path" r)"
expect "checksum that the guest reads" "$(guest_must g1 'sha256sum </dev/xvdb')" "$sum"
expect "instances" "$(instance_count)" 2
! xl block-attach g1 "$(plugin_disk xvdc qcow2 "$images/none.qcow2")" >"$state/g1.xl" 2>&1 || fail "attached what is not there"
printed g1 "plugin vbdkit: qcow2: open $images/none.qcow2: No such file or directory"
detach g1 xvdb
expect "instances without the second disk" "$(instance_count)" 1
expect "disks of xl block-list" "$(xl block-list g1 | awk 'NR > 1' | wc -l)" 1
shut_down g1
vbdkit check "qcow2:$leaf" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
saw "boot and reboot from qcow2 with a backing file through backend/vbd3; a second disk attached and detached"
