# SPDX-License-Identifier: LGPL-2.1-or-later
check_PROGRAMS += tests/bench/nbdload tests/bench/pageload
tests_bench_nbdload_SOURCES = tests/bench/nbdload.cc
tests_bench_nbdload_LDADD = libnbdserver.la libbase.la
tests_bench_pageload_SOURCES = tests/bench/pageload.cc
tests_bench_pageload_LDADD = libbase.la

nbdtests = \
  tests/nbd/bios.sh \
  tests/nbd/dirty_bitmap.sh \
  tests/nbd/fio.sh \
  tests/nbd/leaf_commit.sh \
  tests/nbd/qemu.sh \
  tests/nbd/serve.sh \
  tests/nbd/settings.sh \
  tests/nbd/syscalls.sh \
  tests/nbd/tools.sh
TESTS += $(nbdtests)
EXTRA_DIST += $(nbdtests) tests/nbd/bios.S tests/nbd/lib.sh
