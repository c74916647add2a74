# SPDX-License-Identifier: LGPL-2.1-or-later
# libFuzzer targets: ./configure --enable-fuzzers CXX=clang++; then
#   tests/fuzz/NAME_fuzz -max_total_time=60 CORPUS_DIR
# Each compiles what it fuzzes itself, so that it is instrumented.
FUZZ_COMPILE = $(AM_CXXFLAGS) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
FUZZ_LINK = $(AM_LDFLAGS) -fsanitize=fuzzer,address,undefined

if FUZZERS
noinst_PROGRAMS += tests/fuzz/nbd_fuzz
tests_fuzz_nbd_fuzz_SOURCES = \
  backend/nbd/negotiation.cc \
  backend/nbd/protocol.cc \
  tests/fuzz/nbd_fuzz.cc
tests_fuzz_nbd_fuzz_CXXFLAGS = $(FUZZ_COMPILE)
tests_fuzz_nbd_fuzz_LDFLAGS = $(FUZZ_LINK)

noinst_PROGRAMS += tests/fuzz/qcow2_fuzz
tests_fuzz_qcow2_fuzz_SOURCES = \
  drivers/chain/image_file.cc \
  drivers/qcow2/check.cc \
  drivers/qcow2/decompress.cc \
  drivers/qcow2/geometry.cc \
  drivers/qcow2/info.cc \
  drivers/qcow2/layout.cc \
  drivers/qcow2/metadata_file.cc \
  drivers/qcow2/reference_map.cc \
  tests/fuzz/qcow2_fuzz.cc
tests_fuzz_qcow2_fuzz_CXXFLAGS = $(FUZZ_COMPILE)
tests_fuzz_qcow2_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_qcow2_fuzz_LDADD = libdrivers.la

noinst_PROGRAMS += tests/fuzz/spec_fuzz
tests_fuzz_spec_fuzz_SOURCES = \
  drivers/options.cc \
  drivers/spec.cc \
  drivers/spec_json.cc \
  tests/fuzz/spec_fuzz.cc
tests_fuzz_spec_fuzz_CXXFLAGS = $(FUZZ_COMPILE)
tests_fuzz_spec_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_spec_fuzz_LDADD = libdrivers.la

noinst_PROGRAMS += tests/fuzz/vhd_fuzz
tests_fuzz_vhd_fuzz_SOURCES = \
  drivers/vhd/layout.cc \
  drivers/vhd/locator.cc \
  tests/fuzz/vhd_fuzz.cc
tests_fuzz_vhd_fuzz_CXXFLAGS = $(FUZZ_COMPILE)
tests_fuzz_vhd_fuzz_LDFLAGS = $(FUZZ_LINK)
tests_fuzz_vhd_fuzz_LDADD = libbase.la
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
  tests/fuzz/spec-corpus/json \
  tests/fuzz/spec-corpus/memory \
  tests/fuzz/spec-corpus/text \
  tests/fuzz/vhd-corpus/differencing \
  tests/fuzz/vhd-corpus/dynamic \
  tests/fuzz/vhd-corpus/fixed
