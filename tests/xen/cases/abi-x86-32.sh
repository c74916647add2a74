# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest with a 32-bit kernel, whose ring has another layout (protocol x86_32-abi), reads and writes right.
[ -f /lab/vmlinux32 ] || skip "the lab has no 32-bit kernel"
path=$(image narrow 16M)
fill "$path" 16
sum=$(sha256sum <"$path")
guest_create g1 --32-bit --memory 256 "$(disk xvda "$path")" || fail "xl create: $(cat "$state/g1.xl")"
expect "the guest's machine" "$(guest_must g1 'uname -m')" i686
expect "protocol in xenstore" "$(xenstore-read "$(front_path g1 xvda)/protocol")" x86_32-abi
expect "checksum that the guest reads" "$(guest_must g1 'sha256sum </dev/xvda')" "$sum"
sum=$(guest_must g1 'head -c 4194304 /dev/urandom | tee /dev/xvda | sha256sum; sync')
expect "checksum of the 4 MiB it wrote, read in dom0" "$(head -c 4194304 "$path" | sha256sum)" "$sum"
saw "x86_32-abi, 16 MiB read and 4 MiB written right"
