# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What an attached disk that nobody uses costs dom0: no more than 1.5 MiB.
only vbdkit
shared_guest
attach shared xvdb "$(image idle 16M)"
# Without its requests: what they transfer through stays mapped and is the guest's own memory.
pid=$(xenstore-read "$(back_path shared xvdb)/kthread-pid")
pss() { sed -n 's/^Pss: *\([0-9]*\) kB/\1/p' "/proc/$pid/smaps_rollup"; }
# It gives back what only the connection needed of the program, a second after it.
until_true 10 eval '[ "$(pss)" -le 1536 ]' ||
  fail "the instance's PSS is $(pss) KiB: $(cat "/proc/$pid/smaps")"
pss=$(pss)
detach shared xvdb
saw "PSS of the idle instance: $pss KiB"
