# SPDX-License-Identifier: LGPL-2.1-or-later
include tests/sim/local.mk
include tests/nbd/local.mk
include tests/tools/local.mk
include tests/registry/local.mk
include tests/fuzz/local.mk
include tests/bench/local.mk
include tests/xen/local.mk
EXTRA_DIST += tests/lib.sh tests/package/run
