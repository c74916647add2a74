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

# What is common to the instance, the daemon and the command line.
noinst_LTLIBRARIES += libruntimedir.la
libruntimedir_la_SOURCES = \
  backend/runtime_dir.cc \
  backend/runtime_dir.h
libruntimedir_la_LIBADD = libbase.la

pkglibexec_PROGRAMS += vbdkit-backend
vbdkit_backend_SOURCES = \
  backend/instance.cc \
  backend/instance.h \
  backend/instance_commands.cc \
  backend/main.cc
vbdkit_backend_LDFLAGS = $(AM_LDFLAGS) $(BACKEND_LDFLAGS)
vbdkit_backend_LDADD = libblkif.la libnbdserver.la libcontrol.la libdrivers.la libscheduler.la \
  libruntimedir.la libxenhandles.la libio.la libbase.la
