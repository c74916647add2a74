# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libscheduler.la
libscheduler_la_SOURCES = \
  backend/overlap_filter.h \
  backend/request_sink.h \
  backend/scheduler.cc \
  backend/scheduler.h
libscheduler_la_LIBADD = libio.la

if HAVE_GTEST
check_PROGRAMS += backend/scheduler_test
TESTS += backend/scheduler_test
backend_scheduler_test_SOURCES = backend/scheduler_test.cc
backend_scheduler_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_scheduler_test_LDADD = libscheduler.la $(GTEST_LIBS)
endif

include backend/xen/local.mk
include backend/blkif/local.mk
include backend/nbd/local.mk
include backend/control/local.mk
