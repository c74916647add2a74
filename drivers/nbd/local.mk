# SPDX-License-Identifier: LGPL-2.1-or-later
AM_CPPFLAGS += $(LIBNBD_CFLAGS)
libdrivers_la_SOURCES += \
  drivers/nbd/command.h \
  drivers/nbd/connection.cc \
  drivers/nbd/connection.h \
  drivers/nbd/driver.cc \
  drivers/nbd/libnbd.cc \
  drivers/nbd/libnbd.h \
  drivers/nbd/nbd_node.cc \
  drivers/nbd/nbd_node.h \
  drivers/nbd/reconnect.cc

if HAVE_GTEST
check_PROGRAMS += drivers/nbd/nbd_test
TESTS += drivers/nbd/nbd_test
drivers_nbd_nbd_test_SOURCES = \
  drivers/allocation_count.cc \
  drivers/allocation_count.h \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/nbd/conformance_test.cc \
  drivers/nbd/reconnect_test.cc \
  drivers/nbd/test_server.cc \
  drivers/nbd/test_server.h
drivers_nbd_nbd_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_nbd_nbd_test_LDADD = libdrivers.la $(GTEST_LIBS)
endif
