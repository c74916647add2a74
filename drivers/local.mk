# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libdrivers.la
libdrivers_la_SOURCES = \
  drivers/delay.cc \
  drivers/dirty_bitmap.h \
  drivers/drivers.h \
  drivers/file_lock.cc \
  drivers/file_lock.h \
  drivers/file_probe.cc \
  drivers/file_probe.h \
  drivers/group_snapshot.cc \
  drivers/group_snapshot.h \
  drivers/image_forest.cc \
  drivers/image_forest.h \
  drivers/image_snapshot.cc \
  drivers/image_snapshot.h \
  drivers/image_format.cc \
  drivers/image_format.h \
  drivers/iov.h \
  drivers/journal_text.cc \
  drivers/journal_text.h \
  drivers/log_filter.cc \
  drivers/log_filter.h \
  drivers/memory_leaf.cc \
  drivers/memory_leaf.h \
  drivers/node.h \
  drivers/null.cc \
  drivers/options.cc \
  drivers/options.h \
  drivers/patience.h \
  drivers/ram.cc \
  drivers/raw.cc \
  drivers/raw_bounce.cc \
  drivers/raw_bounce.h \
  drivers/raw_file.cc \
  drivers/raw_file.h \
  drivers/raw_image.cc \
  drivers/registry.cc \
  drivers/registry.h \
  drivers/request_pool.h \
  drivers/request_queue.h \
  drivers/spec.cc \
  drivers/spec.h \
  drivers/spec_json.cc \
  drivers/stored_image.h \
  drivers/throttle.cc \
  drivers/throttle.h \
  drivers/token_bucket.h
libdrivers_la_LIBADD = libio.la libbase.la

if HAVE_GTEST
check_PROGRAMS += drivers/drivers_test
TESTS += drivers/drivers_test
drivers_drivers_test_SOURCES = \
  drivers/allocation_count.cc \
  drivers/allocation_count.h \
  drivers/capricious_reactor.h \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/conformance_test.cc \
  drivers/delay_test.cc \
  drivers/fault_filter.h \
  drivers/group_snapshot_test.cc \
  drivers/log_filter_test.cc \
  drivers/loop_device.h \
  drivers/raw_test.cc \
  drivers/spec_test.cc \
  drivers/throttle_test.cc
drivers_drivers_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_drivers_test_LDADD = libdrivers.la $(GTEST_LIBS)

check_PROGRAMS += drivers/hostile_test
TESTS += drivers/hostile_test
drivers_hostile_test_SOURCES = drivers/hostile_test.cc
drivers_hostile_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_hostile_test_LDADD = libdrivers.la $(GTEST_LIBS)
endif

include drivers/cache/local.mk
include drivers/cbt/local.mk
include drivers/chain/local.mk
include drivers/jobs/local.mk
include drivers/nbd/local.mk
include drivers/qcow2/local.mk
include drivers/vhd/local.mk
