# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A disk that the guest has mounted is not torn away by block-detach: xl reports an error, and the files stay readable.
# Once it is unmounted, the detach that was asked for goes through.
shared_guest
blkfront shared
path=$(image busy 32M)
attach shared xvdb "$path"
guest_must shared '/sbin/mke2fs -q -t ext4 /dev/xvdb && mount -t ext4 /dev/xvdb /root && echo kept >/root/f' 120
if xl block-detach shared xvdb >"$state/detach" 2>&1; then
  fail "xl block-detach succeeded on a mounted disk"
fi
guest_must shared 'echo more >>/root/f && sync && echo 3 >/proc/sys/vm/drop_caches'
expect "what the guest reads after the refused detach" "$(guest_must shared 'cat /root/f' | tr '\n' ' ')" "kept more "
node=$(back_path shared xvdb)
guest_must shared 'umount /root'
until_true 20 eval "[ \"\$(xenstore-read $node/state 2>/dev/null || echo 6)\" = 6 ]" ||
  fail "unmounted, but the backend is in state $(xenstore-read "$node/state")"
xl block-detach shared xvdb >"$state/detach" 2>&1 || ! xenstore-exists "$node" ||
  fail "block-detach after the unmount: $(cat "$state/detach")"
expect "the file, read in dom0" "$(debugfs -R 'cat /f' "$path" 2>/dev/null | tr '\n' ' ')" "kept more "
saw "refused while mounted, files intact; detached once unmounted"
