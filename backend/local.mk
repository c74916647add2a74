# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libscheduler.la
libscheduler_la_SOURCES = \
  backend/overlap_filter.h \
  backend/remote_sink.cc \
  backend/remote_sink.h \
  backend/request_sink.h \
  backend/scheduler.cc \
  backend/scheduler.h
libscheduler_la_LIBADD = libio.la

if HAVE_GTEST
check_PROGRAMS += backend/remote_sink_test backend/scheduler_test
TESTS += backend/remote_sink_test backend/scheduler_test
backend_remote_sink_test_SOURCES = backend/remote_sink_test.cc
backend_remote_sink_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_remote_sink_test_LDADD = libscheduler.la $(GTEST_LIBS)
backend_scheduler_test_SOURCES = \
  backend/manual_reactor.h \
  backend/scheduler_test.cc
backend_scheduler_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_scheduler_test_LDADD = libscheduler.la $(GTEST_LIBS)
endif

include backend/xen/local.mk
include backend/blkif/local.mk
include backend/nbd/local.mk
include backend/control/local.mk
include backend/jobs/local.mk

noinst_LTLIBRARIES += liblivegraph.la
liblivegraph_la_SOURCES = \
  backend/beside.h \
  backend/live_graph.cc \
  backend/live_graph.h
liblivegraph_la_LIBADD = libscheduler.la libdrivers.la

if HAVE_GTEST
check_PROGRAMS += backend/live_chain_test backend/live_graph_test
TESTS += backend/live_chain_test backend/live_graph_test
backend_live_chain_test_SOURCES = \
  backend/live_chain_test.cc \
  drivers/vhd/test_image.h
backend_live_chain_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_live_chain_test_LDADD = liblivegraph.la $(GTEST_LIBS)
backend_live_graph_test_SOURCES = backend/live_graph_test.cc
backend_live_graph_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_live_graph_test_LDADD = liblivegraph.la $(GTEST_LIBS)
endif

# What is common to the instance, the daemon and the command line.
noinst_LTLIBRARIES += libruntimedir.la
libruntimedir_la_SOURCES = \
  backend/launch.cc \
  backend/launch.h \
  backend/lease_page.cc \
  backend/lease_page.h \
  backend/registry_config.cc \
  backend/registry_config.h \
  backend/registry_index.cc \
  backend/registry_index.h \
  backend/runtime_dir.cc \
  backend/runtime_dir.h
libruntimedir_la_LIBADD = libbase.la

# For whoever opens images that other hosts can reach too.
noinst_LTLIBRARIES += libimageclaims.la
libimageclaims_la_SOURCES = \
  backend/claimed_open.cc \
  backend/claimed_open.h \
  backend/image_claims.cc \
  backend/image_claims.h
libimageclaims_la_LIBADD = libcontrol.la libdrivers.la libruntimedir.la libio.la libbase.la

pkglibexec_PROGRAMS += vbdkit-backend
vbdkit_backend_CPPFLAGS = $(AM_CPPFLAGS) -DVBDKIT_LIBEXECDIR='"$(pkglibexecdir)"'
vbdkit_backend_SOURCES = \
  backend/hook_link.cc \
  backend/hook_link.h \
  backend/disk_settings.cc \
  backend/disk_settings.h \
  backend/group_commands.cc \
  backend/group_commands.h \
  backend/instance.cc \
  backend/instance.h \
  backend/instance_claims.cc \
  backend/instance_commands.cc \
  backend/instance_lifetime.cc \
  backend/instance_record.cc \
  backend/live_commands.cc \
  backend/live_commands.h \
  backend/main.cc \
  backend/queue_thread.cc \
  backend/queue_thread.h
vbdkit_backend_LDFLAGS = $(AM_LDFLAGS) $(BACKEND_LDFLAGS)
vbdkit_backend_LDADD = libjobs.la libimageclaims.la libblkif.la libnbdserver.la libcontrol.la liblivegraph.la libdrivers.la libscheduler.la \
  libruntimedir.la libxenhandles.la libio.la libbase.la
