# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/cbt/bitmap_file.cc \
  drivers/cbt/bitmap_file.h \
  drivers/cbt/cbt_filter.cc \
  drivers/cbt/cbt_filter.h \
  drivers/cbt/commit.cc \
  drivers/cbt/superblock.cc \
  drivers/cbt/superblock.h

if HAVE_GTEST
check_PROGRAMS += drivers/cbt/cbt_test
TESTS += drivers/cbt/cbt_test
drivers_cbt_cbt_test_SOURCES = \
  drivers/allocation_count.cc \
  drivers/allocation_count.h \
  drivers/cbt/cbt_test.cc \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/fault_filter.h
drivers_cbt_cbt_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_cbt_cbt_test_LDADD = libdrivers.la $(GTEST_LIBS)
endif
