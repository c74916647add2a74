# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/vhd/bitmap_cache.cc \
  drivers/vhd/bitmap_cache.h \
  drivers/vhd/block_map.cc \
  drivers/vhd/block_map.h \
  drivers/vhd/check.cc \
  drivers/vhd/check.h \
  drivers/vhd/create.cc \
  drivers/vhd/create.h \
  drivers/vhd/image_format.cc \
  drivers/vhd/layout.cc \
  drivers/vhd/layout.h \
  drivers/vhd/locator.cc \
  drivers/vhd/locator.h \
  drivers/vhd/metadata.cc \
  drivers/vhd/metadata.h \
  drivers/vhd/open.cc \
  drivers/vhd/open.h \
  drivers/vhd/read_layer.cc \
  drivers/vhd/read_layer.h \
  drivers/vhd/table_cache.cc \
  drivers/vhd/table_cache.h \
  drivers/vhd/vhd.cc \
  drivers/vhd/write_layer.cc \
  drivers/vhd/write_layer.h \
  drivers/vhd/write_layer_flush.cc

if HAVE_GTEST
check_PROGRAMS += drivers/vhd/vhd_test
TESTS += drivers/vhd/vhd_test
drivers_vhd_vhd_test_SOURCES = \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/fault_filter.h \
  drivers/vhd/chain_test.cc \
  drivers/vhd/conformance_test.cc \
  drivers/vhd/interchange_test.cc \
  drivers/vhd/layout_test.cc \
  drivers/vhd/test_disk.h \
  drivers/vhd/test_image.h
drivers_vhd_vhd_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_vhd_vhd_test_LDADD = libcrashreplay.la libdrivers.la $(GTEST_LIBS)

check_PROGRAMS += drivers/vhd/vhd_crash_test
TESTS += drivers/vhd/vhd_crash_test
drivers_vhd_vhd_crash_test_SOURCES = \
  drivers/vhd/crash_test.cc \
  drivers/vhd/test_image.h
drivers_vhd_vhd_crash_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_vhd_vhd_crash_test_LDADD = libcrashreplay.la libdrivers.la $(GTEST_LIBS)
endif
