# SPDX-License-Identifier: LGPL-2.1-or-later
toolstests = \
  tests/tools/chains.sh \
  tests/tools/coalesce.sh \
  tests/tools/convert.sh \
  tests/tools/faults.sh \
  tests/tools/golden.sh \
  tests/tools/group.sh \
  tests/tools/hooks.sh \
  tests/tools/images.sh \
  tests/tools/instances.sh \
  tests/tools/live.sh \
  tests/tools/priority.sh \
  tests/tools/steer.sh \
  tests/tools/storage_manager.sh \
  tests/tools/stream.sh
TESTS += $(toolstests)
EXTRA_DIST += $(toolstests) tests/tools/instances-lib.sh tests/tools/lib.sh tests/golden
