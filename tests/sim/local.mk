# SPDX-License-Identifier: LGPL-2.1-or-later
# The simulated Xen. What other people's programs load (the replacement libraries) is built without
# sanitizers: their runtime would have to be in the program itself.
if HAVE_GTEST

simxen_core = \
  tests/sim/connection.cc \
  tests/sim/connection.h \
  tests/sim/event_channels.cc \
  tests/sim/event_channels.h \
  tests/sim/grant_mapper.cc \
  tests/sim/grant_mapper.h \
  tests/sim/grant_table.cc \
  tests/sim/grant_table.h \
  tests/sim/layout.h \
  tests/sim/memory.cc \
  tests/sim/memory.h \
  tests/sim/socket.cc \
  tests/sim/socket.h \
  tests/sim/wire.h \
  tests/sim/xen_abi.h

# ---- replacement libraries ----
check_LTLIBRARIES += tests/sim/libsimxen.la tests/sim/libsimxen-proc.la
tests_sim_libsimxen_la_SOURCES = $(simxen_core) \
  base/fd.cc \
  base/result.cc \
  tests/sim/lib_connection.cc \
  tests/sim/lib_connection.h \
  tests/sim/lib_ctrl.cc \
  tests/sim/lib_evtchn.cc \
  tests/sim/lib_gnttab.cc
nodist_tests_sim_libsimxen_la_SOURCES = tests/sim/stubs.cc
# xenctrl.h needs the GNU dialect.
tests_sim_libsimxen_la_CXXFLAGS = -std=gnu++20 -g $(WARN_CXXFLAGS) -fno-strict-aliasing -pthread \
  -fvisibility=hidden
tests_sim_libsimxen_la_LDFLAGS = -pthread -module -avoid-version -shared -rpath $(pkglibdir) \
  -Wl,--version-script=tests/sim/stubs.map -Wl,-z,defs
EXTRA_tests_sim_libsimxen_la_DEPENDENCIES = tests/sim/stubs.map

tests_sim_libsimxen_proc_la_SOURCES = tests/sim/proc_redirect.cc
tests_sim_libsimxen_proc_la_CXXFLAGS = -g $(WARN_CXXFLAGS) -fvisibility=hidden
tests_sim_libsimxen_proc_la_LDFLAGS = -module -avoid-version -shared -rpath $(pkglibdir)

EXTRA_DIST += tests/sim/gen-stubs tests/sim/README.md
CLEANFILES += tests/sim/stubs.cc tests/sim/stubs.map tests/sim/stubs.sonames
tests/sim/stubs.map tests/sim/stubs.sonames: tests/sim/stubs.cc
	@test -f $@ || { rm -f tests/sim/stubs.cc; $(MAKE) $(AM_MAKEFLAGS) tests/sim/stubs.cc; }
tests/sim/stubs.cc: $(srcdir)/tests/sim/gen-stubs
	$(AM_V_GEN)$(MKDIR_P) tests/sim && $(srcdir)/tests/sim/gen-stubs tests/sim/stubs \
	  `for l in gnttab evtchn foreignmemory devicemodel ctrl; do \
	    $(CXX) -print-file-name=libxen$$l.so; done`

# The directory that goes into LD_LIBRARY_PATH: one library under all their names.
check_DATA = tests/sim/xenlibs/stamp
tests/sim/xenlibs/stamp: tests/sim/libsimxen.la tests/sim/libsimxen-proc.la tests/sim/stubs.sonames
	$(AM_V_GEN)$(MKDIR_P) tests/sim/xenlibs && \
	for name in `cat tests/sim/stubs.sonames`; do \
	  ln -sf ../.libs/libsimxen.so tests/sim/xenlibs/$$name || exit 1; done && \
	ln -sf ../.libs/libsimxen-proc.so tests/sim/xenlibs/libsimxen-proc.so && touch $@
CLEANFILES += tests/sim/xenlibs/*

# What running something in a World needs, short of `make check`.
simxen: tests/sim/xenlibs/stamp tests/sim/simxen-broker$(EXEEXT) tests/sim/simfront$(EXEEXT) \
  tests/sim/simxen-run$(EXEEXT)
# ---- broker ----
check_PROGRAMS += tests/sim/simxen-broker
tests_sim_simxen_broker_SOURCES = $(simxen_core) \
  tests/sim/broker.cc \
  tests/sim/broker.h \
  tests/sim/broker_domains.cc \
  tests/sim/broker_main.cc \
  tests/sim/broker_ports.cc
tests_sim_simxen_broker_CPPFLAGS = $(AM_CPPFLAGS)
tests_sim_simxen_broker_LDADD = libbase.la

# ---- libsimguest: toolstack, guests, frontend, world ----
check_LTLIBRARIES += tests/sim/libsimguest.la
tests_sim_libsimguest_la_SOURCES = $(simxen_core) \
  tests/sim/blkif_abi.h \
  tests/sim/frontend.cc \
  tests/sim/frontend.h \
  tests/sim/guest.cc \
  tests/sim/guest.h \
  tests/sim/io_buffers.cc \
  tests/sim/io_buffers.h \
  tests/sim/latency.h \
  tests/sim/load.cc \
  tests/sim/load.h \
  tests/sim/process.cc \
  tests/sim/process.h \
  tests/sim/ring_queue.cc \
  tests/sim/ring_queue.h \
  tests/sim/store.cc \
  tests/sim/store.h \
  tests/sim/store_dom0.cc \
  tests/sim/store_ring.cc \
  tests/sim/toolstack.cc \
  tests/sim/toolstack.h \
  tests/sim/verified_disk.cc \
  tests/sim/verified_disk.h \
  tests/sim/world.cc \
  tests/sim/world.h \
  tests/sim/world_test_base.h
tests_sim_libsimguest_la_CPPFLAGS = $(AM_CPPFLAGS) $(XENSTORE_CFLAGS) \
  -DSIMXEN_BUILD_DIR='"$(abs_builddir)/tests/sim"'
tests_sim_libsimguest_la_LIBADD = $(XENSTORE_LIBS)

# ---- programs ----
check_PROGRAMS += tests/sim/simfront tests/sim/simxen-run
tests_sim_simfront_SOURCES = tests/sim/simfront.cc
tests_sim_simfront_LDADD = tests/sim/libsimguest.la libbase.la
tests_sim_simxen_run_SOURCES = tests/sim/simxen_run.cc
tests_sim_simxen_run_LDADD = tests/sim/libsimguest.la libbase.la

# ---- tests ----
simtest_cppflags = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
simtest_ldadd = tests/sim/libsimguest.la libbase.la $(GTEST_LIBS)

simtests = \
  tests/sim/backend_events_test \
  tests/sim/qdisk_test \
  tests/sim/ring_queue_test \
  tests/sim/world_test \
  tests/sim/xenlibs_test
check_PROGRAMS += $(simtests)
TESTS += $(simtests)

tests_sim_qdisk_test_SOURCES = tests/sim/qdisk_test.cc
tests_sim_qdisk_test_CPPFLAGS = $(simtest_cppflags)
tests_sim_qdisk_test_LDADD = $(simtest_ldadd)

tests_sim_ring_queue_test_SOURCES = tests/sim/ring_queue_test.cc
tests_sim_ring_queue_test_CPPFLAGS = $(simtest_cppflags)
tests_sim_ring_queue_test_LDADD = $(simtest_ldadd)

tests_sim_world_test_SOURCES = tests/sim/world_test.cc
tests_sim_world_test_CPPFLAGS = $(simtest_cppflags)
tests_sim_world_test_LDADD = $(simtest_ldadd)

tests_sim_backend_events_test_SOURCES = \
  tests/sim/backend_events_test.cc \
  tests/sim/xenlibs_main.cc
tests_sim_backend_events_test_CPPFLAGS = $(simtest_cppflags) $(XENEVTCHN_CFLAGS)
tests_sim_backend_events_test_LDADD = tests/sim/libsimguest.la libxenhandles.la libio.la libbase.la \
  -lgtest -lpthread

tests_sim_xenlibs_test_SOURCES = \
  tests/sim/xenlibs_main.cc \
  tests/sim/xenlibs_test.cc
tests_sim_xenlibs_test_CPPFLAGS = $(simtest_cppflags) $(XENEVTCHN_CFLAGS) $(XENGNTTAB_CFLAGS)
tests_sim_xenlibs_test_LDADD = tests/sim/libsimguest.la libbase.la $(XENEVTCHN_LIBS) \
  $(XENGNTTAB_LIBS) -lgtest -lpthread

endif
