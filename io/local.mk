# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libio.la
libio_la_SOURCES = \
  io/aio_engine.cc \
  io/epoll_reactor.cc \
  io/epoll_reactor.h \
  io/file_engine.h \
  io/gated_reactor.cc \
  io/gated_reactor.h \
  io/reactor.cc \
  io/reactor.h \
  io/reactor_common.cc \
  io/reactor_common.h \
  io/sync_engine.cc \
  io/uring_reactor.cc \
  io/uring_reactor.h
libio_la_CPPFLAGS = $(AM_CPPFLAGS) $(URING_CFLAGS)
libio_la_LIBADD = libbase.la $(URING_LIBS) -laio

if HAVE_GTEST
check_PROGRAMS += io/gated_reactor_test io/reactor_test
TESTS += io/gated_reactor_test io/reactor_test
io_gated_reactor_test_SOURCES = io/gated_reactor_test.cc
io_gated_reactor_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
io_gated_reactor_test_LDADD = libio.la $(GTEST_LIBS)
io_reactor_test_SOURCES = \
  io/reactor_file_test.cc \
  io/reactor_test.cc \
  io/test_reactor.h
io_reactor_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
io_reactor_test_LDADD = libio.la $(GTEST_LIBS)
endif
