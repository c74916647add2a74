# SPDX-License-Identifier: LGPL-2.1-or-later
EXTRA_DIST += \
  tests/bench/benchlib.py \
  tests/bench/chain.py \
  tests/bench/live.py \
  tests/bench/nbd.py \
  tests/bench/run \
  tests/bench/sim.py

.PHONY: bench-programs
bench-programs: vbdkit vbdkit-backend vbdkitd simxen tests/bench/nbdload tests/bench/pageload tests/sim/simfront tests/sim/simxen-run
