# SPDX-License-Identifier: LGPL-2.1-or-later
# libFuzzer targets: ./dev fuzz builds and runs them, each beside its seeds in NAME-corpus (both
# qcow2 targets share theirs). By hand: ./configure --enable-fuzzers CXX=clang++, which instruments
# everything.
FUZZ_TARGETS = \
  tests/fuzz/nbd_fuzz \
  tests/fuzz/qcow2_disk_fuzz \
  tests/fuzz/qcow2_fuzz \
  tests/fuzz/spec_fuzz \
  tests/fuzz/vhd_disk_fuzz \
  tests/fuzz/vhd_fuzz
FUZZ_LINK = $(AM_LDFLAGS) -fsanitize=fuzzer

.PHONY: fuzz-programs
fuzz-programs: $(FUZZ_TARGETS)

if FUZZERS
noinst_PROGRAMS += $(FUZZ_TARGETS)

tests_fuzz_nbd_fuzz_SOURCES = \
  backend/nbd/negotiation.cc \
  backend/nbd/protocol.cc \
  tests/fuzz/nbd_fuzz.cc
tests_fuzz_nbd_fuzz_CXXFLAGS = $(AM_CXXFLAGS)
tests_fuzz_nbd_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_nbd_fuzz_LDADD = libbase.la

tests_fuzz_qcow2_fuzz_SOURCES = tests/fuzz/qcow2_fuzz.cc
tests_fuzz_qcow2_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_qcow2_fuzz_LDADD = libdrivers.la

tests_fuzz_qcow2_disk_fuzz_SOURCES = \
  tests/fuzz/disk_in_use.h \
  tests/fuzz/qcow2_disk_fuzz.cc
tests_fuzz_qcow2_disk_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_qcow2_disk_fuzz_LDADD = libdrivers.la

tests_fuzz_spec_fuzz_SOURCES = tests/fuzz/spec_fuzz.cc
tests_fuzz_spec_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_spec_fuzz_LDADD = libdrivers.la

tests_fuzz_vhd_fuzz_SOURCES = tests/fuzz/vhd_fuzz.cc
tests_fuzz_vhd_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_vhd_fuzz_LDADD = libdrivers.la

tests_fuzz_vhd_disk_fuzz_SOURCES = \
  tests/fuzz/disk_in_use.h \
  tests/fuzz/vhd_disk_fuzz.cc
tests_fuzz_vhd_disk_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_vhd_disk_fuzz_LDADD = libdrivers.la
endif
EXTRA_DIST += \
  tests/fuzz/nbd-corpus/export-name \
  tests/fuzz/nbd-corpus/go \
  tests/fuzz/nbd-corpus/huge-option \
  tests/fuzz/nbd-corpus/options \
  tests/fuzz/qcow2-corpus/backing \
  tests/fuzz/qcow2-corpus/compressed \
  tests/fuzz/qcow2-corpus/data \
  tests/fuzz/qcow2-corpus/snapshots \
  tests/fuzz/qcow2-corpus/version2 \
  tests/fuzz/spec-corpus/huge-number \
  tests/fuzz/spec-corpus/json \
  tests/fuzz/spec-corpus/memory \
  tests/fuzz/spec-corpus/text \
  tests/fuzz/vhd-corpus/differencing \
  tests/fuzz/vhd-corpus/dynamic \
  tests/fuzz/vhd-corpus/fixed \
  tests/fuzz/vhd-corpus/locator-beyond-end
