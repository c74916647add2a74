# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# libvirt starts a guest, reboots, saves, restores and ends it; its disk is one of ours, given by libvirt's hook (docs/examples).
# libvirt's own words for a disk do not lead to us: what it says then is in the log.
# shows: libvirt, the disk from its hook: create, reboot, save, restore, destroy
# lab: libvirt
# limit: 900 s
only vbdkit
virsh() { command virsh -q -c xen:///system "$@"; }
prepare_libvirt() { # once: what its packages' scripts would have made, and the hook
  ! [ -e /etc/libvirt/hooks/libxl ] || return 0
  echo libvirt-qemu:x:64055:64055::/:/bin/false >>/etc/passwd
  printf '%s\n' libvirt-qemu:x:64055: kvm:x:64056: >>/etc/group
  # TCG's processors have no VME, which all that libvirt knows are said to have.
  sed -i "/<feature name='vme'\/>/d" /usr/share/libvirt/cpu_map/x86_*.xml
  mkdir -p /etc/libvirt/hooks /run/libvirt /var/log/libvirt
  install /usr/share/doc/vbdkit/examples/libvirt-hook.sh /etc/libvirt/hooks/libxl
}
start_libvirtd() {
  printf '%s\n' 'unix_sock_group = "root"' 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' \
    "log_outputs = \"2:file:$state/libvirtd.log\"" >"$state/libvirtd.conf"
  setsid libvirtd -f "$state/libvirtd.conf" </dev/null >"$state/libvirtd.out" 2>&1 &
  libvirtd=$!
  trap 'kill $libvirtd 2>/dev/null; wait $libvirtd || :; cat "$state"/libvirtd.{out,log} /var/log/libvirt/libxl/*.log' EXIT
  until_true 180 eval 'virsh uri >/dev/null 2>&1 || ! kill -0 $libvirtd 2>/dev/null' || fail "libvirtd does not answer"
  virsh uri >/dev/null || fail "libvirtd ended"
}
domain() { # domain METADATA DEVICES: prints a guest's XML
  cat <<END
<domain type='xen'>
  <name>g1</name>
  <metadata>$1</metadata>
  <memory unit='MiB'>160</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpv'>linux</type>
    <kernel>/lab/vmlinux</kernel>
    <initrd>/lab/guest.img</initrd>
    <cmdline>$guest_words lab.root=/dev/xvda</cmdline>
  </os>
  <on_reboot>restart</on_reboot>
  <devices>
    $2
    <console type='pty'><target type='xen'/></console>
  </devices>
</domain>
END
}
prepare_libvirt
start_libvirtd
raw=$(root_image root 64M)
domain '' "<disk type='file'><driver name='tap' type='raw'/><source file='raw:$raw'/><target dev='xvda' bus='xen'/></disk>" >"$state/tap.xml"
! virsh create "$state/tap.xml" || fail "libvirt has a <disk> that leads to us: say so in docs/admin.md"
path=$images/a.qcow2
vbdkit convert "raw:$raw" "qcow2:$path"
domain "<vbdkit:disks xmlns:vbdkit='urn:vbdkit:disks'><vbdkit:disk>$(image_disk xvda "qcow2:$path")</vbdkit:disk></vbdkit:disks>" '' >"$state/g1.xml"
echo 'kind: pv'
mark_console g1
virsh create "$state/g1.xml" || fail "virsh create: status $?"
guest_ready g1
expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
sum=$(guest_must g1 'head -c 3000000 /dev/urandom >/data && sync && sha256sum </data')
first=$(domid g1)
mark_console g1
virsh reboot g1 || fail "virsh reboot: status $?"
guest_ready g1
second=$(domid g1)
[ "$first" != "$second" ] || fail "g1 still is domain $first: it did not reboot"
expect "what the guest reads after virsh reboot" "$(guest_must g1 'sha256sum </data')" "$sum"
virsh save g1 "$images/g1.save" || fail "virsh save: status $?"
until_true 30 is_clean || fail "left behind by virsh save: $(left_behind)"
mark_console g1
# Paused, for the hook comes after the start: the guest shall find its disk when it wakes up.
virsh restore --paused "$images/g1.save" || fail "virsh restore: status $?"
echo "/local/domain/$(domid g1)" >"$state/g1.path"
virsh resume g1 || fail "virsh resume: status $?"
expect "what the guest reads after virsh restore" "$(guest_must g1 'echo 3 >/proc/sys/vm/drop_caches; sha256sum </data')" "$sum"
guest_must g1 'echo after >/after && sync'
expect "instances" "$(instance_count)" 1
virsh destroy g1 || fail "virsh destroy: status $?"
until_true 30 is_clean || fail "left behind: $(left_behind)"
vbdkit check "qcow2:$path" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
saw "root on qcow2 by libvirt's hook; domain $first became $second by virsh reboot, and was saved and restored, same bytes; virsh destroy left nothing"
