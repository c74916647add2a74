# SPDX-License-Identifier: LGPL-2.1-or-later
# For all who look for instances.
noinst_LTLIBRARIES += libregistry.la
libregistry_la_SOURCES = \
  storage/registry.cc \
  storage/registry.h \
  storage/vdev.cc \
  storage/vdev.h
libregistry_la_LIBADD = libcontrol.la libruntimedir.la libbase.la

pkglibexec_PROGRAMS += vbdkit-hooks
vbdkit_hooks_SOURCES = \
  storage/hook_runner.cc \
  storage/hook_runner.h \
  storage/hooks_main.cc
vbdkit_hooks_LDADD = libbase.la

bin_PROGRAMS += vbdkit
vbdkit_CPPFLAGS = $(AM_CPPFLAGS) -DVBDKIT_LIBEXECDIR='"$(pkglibexecdir)"'
vbdkit_SOURCES = \
  storage/activate.cc \
  storage/arguments.cc \
  storage/arguments.h \
  storage/attach.cc \
  storage/check.cc \
  storage/coalesce.cc \
  storage/coalesce.h \
  storage/command.h \
  storage/compare.cc \
  storage/convert.cc \
  storage/create.cc \
  storage/forest_drawing.cc \
  storage/forest_drawing.h \
  storage/gc.cc \
  storage/image_options.cc \
  storage/image_options.h \
  storage/info.cc \
  storage/instance_argument.cc \
  storage/instance_argument.h \
  storage/instance_users.cc \
  storage/instance_users.h \
  storage/instances.cc \
  storage/instances.h \
  storage/job_runner.cc \
  storage/job_runner.h \
  storage/job_wait.cc \
  storage/job_wait.h \
  storage/jobs.cc \
  storage/list.cc \
  storage/list_drivers.cc \
  storage/main.cc \
  storage/map.cc \
  storage/offline_claims.cc \
  storage/offline_claims.h \
  storage/priority.cc \
  storage/priority.h \
  storage/progress.cc \
  storage/progress.h \
  storage/qmp.cc \
  storage/readiness.cc \
  storage/readiness.h \
  storage/remote.cc \
  storage/remote.h \
  storage/resize.cc \
  storage/serve.cc \
  storage/shared_registry.cc \
  storage/shared_registry.h \
  storage/snapshot.cc \
  storage/snapshot.h \
  storage/snapshot_group.cc \
  storage/snapshot_group.h \
  storage/stats.cc \
  storage/stats.h \
  storage/steer.cc \
  storage/stream.cc \
  storage/table.cc \
  storage/table.h \
  storage/terminal.cc \
  storage/terminal.h \
  storage/termination.cc \
  storage/termination.h \
  storage/top.cc \
  storage/tree.cc
vbdkit_LDADD = \
  libimageclaims.la \
  libregistry.la \
  libjobs.la \
  libxenhandles.la \
  libnbdserver.la \
  libscheduler.la \
  libdrivers.la \
  libio.la \
  libbase.la \
  -lboost_program_options

if HAVE_GTEST
check_PROGRAMS += storage/storage_test
TESTS += storage/storage_test
storage_storage_test_SOURCES = \
  storage/registry_test.cc \
  storage/vdev_test.cc
storage_storage_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
storage_storage_test_LDADD = libregistry.la $(GTEST_LIBS)
endif

bashcompletiondir = $(datadir)/bash-completion/completions
bashcompletion_DATA = storage/vbdkit
storage/vbdkit: $(srcdir)/storage/vbdkit.bash-completion
	$(AM_V_GEN)$(MKDIR_P) storage && cp $(srcdir)/storage/vbdkit.bash-completion $@
EXTRA_DIST += storage/vbdkit.bash-completion
CLEANFILES += storage/vbdkit
