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
endif
