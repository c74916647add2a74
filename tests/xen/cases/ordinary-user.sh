# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# An instance that becomes "nobody" once everything is open: the image is root's alone, grants are mapped and events
# bound without rights, the guest comes back after a reboot of its disk driver (detach, attach), nothing is left.
only vbdkit
stop_vbdkitd
# shellcheck disable=SC2034  # start_vbdkitd reads it
vbdkitd_options=(--backend-arg --user --backend-arg nobody)
start_vbdkitd
shared_guest
path=$(image user 16M)
chmod 600 "$path"
attach shared xvdb "$path"
pid=$(xenstore-read "$(back_path shared xvdb)/kthread-pid")
expect "who the instance is" "$(stat -c %U "/proc/$pid")" nobody
expect "its rights" "$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$pid/status")" 0000000000000000
sum=$(guest_must shared 'head -c 3000000 /dev/urandom >/f; dd if=/f of=/dev/xvdb bs=64k conv=fsync 2>/dev/null; sha256sum </f')
expect "what is in the file" "$(head -c 3000000 "$path" | sha256sum)" "$sum"
detach shared xvdb
until_true 20 eval '[ "$(instance_count)" = 0 ]' || fail "the instance still runs"
[ -z "$(ls -A /run/vbdkit/instances)" ] || fail "left: $(ls /run/vbdkit/instances/*)"
stop_vbdkitd
# shellcheck disable=SC2034
vbdkitd_options=()
start_vbdkitd
saw "3 MB written through an instance that ran as nobody without any capability"
