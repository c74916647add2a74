# SPDX-License-Identifier: LGPL-2.1-or-later
registrytests = \
  tests/registry/coalesce.sh \
  tests/registry/find.sh \
  tests/registry/hosts.sh \
  tests/registry/job_targets.sh \
  tests/registry/partition.sh
TESTS += $(registrytests)
EXTRA_DIST += $(registrytests) tests/registry/lib.sh
