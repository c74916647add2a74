# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libcontrol.la
libcontrol_la_SOURCES = \
  backend/control/arguments.cc \
  backend/control/arguments.h \
  backend/control/channel.cc \
  backend/control/channel.h \
  backend/control/json.cc \
  backend/control/json.h \
  backend/control/qmp_client.cc \
  backend/control/qmp_client.h \
  backend/control/qmp_link.cc \
  backend/control/qmp_link.h \
  backend/control/qmp_server.cc \
  backend/control/qmp_server.h \
  backend/control/unix_socket.cc \
  backend/control/unix_socket.h
libcontrol_la_LIBADD = libio.la

if HAVE_GTEST
check_PROGRAMS += backend/control/control_test
TESTS += backend/control/control_test
backend_control_control_test_SOURCES = \
  backend/control/json_test.cc \
  backend/control/qmp_test.cc
backend_control_control_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_control_control_test_LDADD = libcontrol.la $(GTEST_LIBS)
endif
