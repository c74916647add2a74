# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libnbdserver.la
libnbdserver_la_SOURCES = \
  backend/nbd/block_status.cc \
  backend/nbd/block_status.h \
  backend/nbd/commands.cc \
  backend/nbd/connection.cc \
  backend/nbd/connection.h \
  backend/nbd/negotiation.cc \
  backend/nbd/negotiation.h \
  backend/nbd/protocol.cc \
  backend/nbd/protocol.h \
  backend/nbd/server.cc \
  backend/nbd/server.h \
  backend/nbd/slot.h \
  backend/nbd/unix_listener.cc \
  backend/nbd/unix_listener.h
libnbdserver_la_LIBADD = libscheduler.la

if HAVE_GTEST
check_PROGRAMS += backend/nbd/nbd_test
TESTS += backend/nbd/nbd_test
backend_nbd_nbd_test_SOURCES = \
  backend/nbd/negotiation_test.cc \
  backend/nbd/protocol_test.cc
backend_nbd_nbd_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_nbd_nbd_test_LDADD = libnbdserver.la $(GTEST_LIBS)

check_PROGRAMS += backend/nbd/server_test
TESTS += backend/nbd/server_test
backend_nbd_server_test_SOURCES = \
  backend/nbd/hostile_test.cc \
  backend/nbd/server_test.cc \
  backend/nbd/test_server.cc \
  backend/nbd/test_server.h
backend_nbd_server_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS) $(LIBNBD_CFLAGS)
backend_nbd_server_test_LDADD = \
  libnbdserver.la \
  libscheduler.la \
  libdrivers.la \
  libio.la \
  libbase.la \
  $(LIBNBD_LIBS) \
  $(GTEST_LIBS)
endif
