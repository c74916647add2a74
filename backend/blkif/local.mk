# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libblkif.la
libblkif_la_SOURCES = \
  backend/blkif/abi.h \
  backend/blkif/bounce_pool.cc \
  backend/blkif/bounce_pool.h \
  backend/blkif/features.cc \
  backend/blkif/features.h \
  backend/blkif/guest_pages.cc \
  backend/blkif/guest_pages.h \
  backend/blkif/negotiation.cc \
  backend/blkif/negotiation.h \
  backend/blkif/persistent_grants.cc \
  backend/blkif/persistent_grants.h \
  backend/blkif/queue.cc \
  backend/blkif/queue.h \
  backend/blkif/ring.h \
  backend/blkif/stats.h \
  backend/blkif/validate.cc \
  backend/blkif/validate.h \
  backend/blkif/vbd.cc \
  backend/blkif/vbd.h \
  backend/blkif/xentop_page.cc \
  backend/blkif/xentop_page.h
libblkif_la_LIBADD = libxenhandles.la

if HAVE_GTEST
check_PROGRAMS += backend/blkif/blkif_test
TESTS += backend/blkif/blkif_test
backend_blkif_blkif_test_SOURCES = \
  backend/blkif/abi_test.cc \
  backend/blkif/bounce_pool_test.cc \
  backend/blkif/ring_test.cc \
  backend/blkif/validate_test.cc
backend_blkif_blkif_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_blkif_blkif_test_LDADD = libblkif.la $(GTEST_LIBS)

# The real program in the simulated Xen.
blkif_simtests = \
  tests/sim/blkif_lifecycle_test \
  tests/sim/blkif_protocol_test \
  tests/sim/blkif_security_test \
  tests/sim/live_chain_test \
  tests/sim/live_job_test \
  tests/sim/live_load_test
check_PROGRAMS += $(blkif_simtests)
TESTS += $(blkif_simtests)
blkif_simtest_cppflags = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
blkif_simtest_ldadd = tests/sim/libsimguest.la libbase.la $(GTEST_LIBS)

tests_sim_blkif_lifecycle_test_SOURCES = \
  tests/sim/blkif_lifecycle_test.cc \
  tests/sim/blkif_test_base.h
tests_sim_blkif_lifecycle_test_CPPFLAGS = $(blkif_simtest_cppflags)
tests_sim_blkif_lifecycle_test_LDADD = $(blkif_simtest_ldadd)

tests_sim_live_chain_test_SOURCES = tests/sim/live_chain_test.cc
tests_sim_live_chain_test_CPPFLAGS = $(blkif_simtest_cppflags)
tests_sim_live_chain_test_LDADD = libcontrol.la $(blkif_simtest_ldadd)
# It runs them.
EXTRA_tests_sim_live_chain_test_DEPENDENCIES = vbdkit vbdkit-backend

tests_sim_live_job_test_SOURCES = \
  tests/sim/blkif_test_base.h \
  tests/sim/live_job_test.cc
tests_sim_live_job_test_CPPFLAGS = $(blkif_simtest_cppflags)
tests_sim_live_job_test_LDADD = libcontrol.la libdrivers.la $(blkif_simtest_ldadd)

tests_sim_live_load_test_SOURCES = \
  tests/sim/live_load_test.cc \
  tests/sim/nbd_writer.cc \
  tests/sim/nbd_writer.h \
  tests/sim/stamped_disk.cc \
  tests/sim/stamped_disk.h
tests_sim_live_load_test_CPPFLAGS = $(blkif_simtest_cppflags) $(LIBNBD_CFLAGS)
tests_sim_live_load_test_LDADD = libregistry.la libcontrol.la $(blkif_simtest_ldadd) $(LIBNBD_LIBS)
EXTRA_tests_sim_live_load_test_DEPENDENCIES = vbdkit vbdkit-backend

tests_sim_blkif_security_test_SOURCES = \
  tests/sim/blkif_security_test.cc \
  tests/sim/blkif_test_base.h
tests_sim_blkif_security_test_CPPFLAGS = $(blkif_simtest_cppflags)
tests_sim_blkif_security_test_LDADD = $(blkif_simtest_ldadd)

tests_sim_blkif_protocol_test_SOURCES = \
  tests/sim/blkif_protocol_test.cc \
  tests/sim/blkif_test_base.h
tests_sim_blkif_protocol_test_CPPFLAGS = $(blkif_simtest_cppflags)
tests_sim_blkif_protocol_test_LDADD = libcontrol.la $(blkif_simtest_ldadd)
endif
