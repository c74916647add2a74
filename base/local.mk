# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libbase.la
libbase_la_SOURCES = \
  base/buffer_pool.cc \
  base/buffer_pool.h \
  base/code_pages.cc \
  base/code_pages.h \
  base/command_line.cc \
  base/command_line.h \
  base/fd.cc \
  base/fd.h \
  base/log.cc \
  base/log.h \
  base/process.cc \
  base/process.h \
  base/result.cc \
  base/result.h \
  base/signals.cc \
  base/signals.h \
  base/units.h \
  base/uuid.cc \
  base/uuid.h

if HAVE_GTEST
check_PROGRAMS += base/base_test
TESTS += base/base_test
base_base_test_SOURCES = \
  base/buffer_pool_test.cc \
  base/code_pages_test.cc \
  base/command_line_test.cc \
  base/log_test.cc \
  base/result_test.cc
base_base_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
base_base_test_LDADD = libbase.la $(GTEST_LIBS)
endif
