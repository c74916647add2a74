#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# /etc/libvirt/hooks/libxl: gives guests of libvirt disks that vbdkit serves. libvirt's own <disk> has no word for a script
# or a plugin, so these disks are in the domain's <metadata>, each as `xl block-attach` takes it:
#
#   <metadata>
#     <vbdkit:disks xmlns:vbdkit="urn:vbdkit:disks">
#       <vbdkit:disk>vdev=xvda,format=raw,script=block-vbdkit,target=qcow2:/srv/vm/a.qcow2</vbdkit:disk>
#     </vbdkit:disks>
#   </metadata>
#
# A guest that is restored has to be restored paused: the disks come after the start, and it shall find them when it wakes up.
#
# libvirt calls `libxl NAME OPERATION …` with the domain's XML on standard input; a failed hook ends the start.
set -euo pipefail

disks() { # one a line, of XML as libvirt writes it: an element a line
  sed -n -e 's|^ *<vbdkit:disk>\(.*\)</vbdkit:disk>$|\1|' -e t\ found -e d -e :found -e 's/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g; p'
}

[ "$2" = started ] || exit 0 # libxl itself takes the disks away with the domain
mapfile -t wanted < <(disks)
for disk in "${wanted[@]}"; do
  xl block-attach "$1" "$disk" >&2
done
