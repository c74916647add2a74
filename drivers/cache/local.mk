# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/cache/cache_filter.cc \
  drivers/cache/cache_filter.h \
  drivers/cache/page_store.cc \
  drivers/cache/page_store.h

if HAVE_GTEST
check_PROGRAMS += drivers/cache/cache_test
TESTS += drivers/cache/cache_test
drivers_cache_cache_test_SOURCES = \
  drivers/allocation_count.cc \
  drivers/allocation_count.h \
  drivers/cache/cache_test.cc \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/fault_filter.h
drivers_cache_cache_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_cache_cache_test_LDADD = libdrivers.la $(GTEST_LIBS)
endif
