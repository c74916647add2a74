# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/qcow2/async.h \
  drivers/qcow2/check.cc \
  drivers/qcow2/check.h \
  drivers/qcow2/cluster_clear.cc \
  drivers/qcow2/cluster_locks.h \
  drivers/qcow2/cluster_writer.cc \
  drivers/qcow2/cluster_writer.h \
  drivers/qcow2/compressed_reader.cc \
  drivers/qcow2/compressed_reader.h \
  drivers/qcow2/create.cc \
  drivers/qcow2/create.h \
  drivers/qcow2/decompress.cc \
  drivers/qcow2/decompress.h \
  drivers/qcow2/driver.cc \
  drivers/qcow2/flusher.cc \
  drivers/qcow2/flusher.h \
  drivers/qcow2/free_space.cc \
  drivers/qcow2/free_space.h \
  drivers/qcow2/geometry.cc \
  drivers/qcow2/geometry.h \
  drivers/qcow2/image.cc \
  drivers/qcow2/image.h \
  drivers/qcow2/image_format.cc \
  drivers/qcow2/info.cc \
  drivers/qcow2/info.h \
  drivers/qcow2/layout.cc \
  drivers/qcow2/layout.h \
  drivers/qcow2/metadata_file.cc \
  drivers/qcow2/metadata_file.h \
  drivers/qcow2/qcow2_layer.cc \
  drivers/qcow2/qcow2_layer.h \
  drivers/qcow2/rebase.cc \
  drivers/qcow2/rebase.h \
  drivers/qcow2/reference_map.cc \
  drivers/qcow2/reference_map.h \
  drivers/qcow2/refcounts.cc \
  drivers/qcow2/refcounts.h \
  drivers/qcow2/slice_cache.cc \
  drivers/qcow2/slice_cache.h \
  drivers/qcow2/tables.cc \
  drivers/qcow2/tables.h
libdrivers_la_LIBADD += $(ZLIB_LIBS) $(ZSTD_LIBS)

if HAVE_GTEST
check_LTLIBRARIES += libqcow2test.la
libqcow2test_la_SOURCES = \
  drivers/qcow2/test_disk.cc \
  drivers/qcow2/test_disk.h
libqcow2test_la_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
libqcow2test_la_LIBADD = libdrivers.la

check_PROGRAMS += \
  drivers/qcow2/qcow2_conformance_test \
  drivers/qcow2/qcow2_crash_test \
  drivers/qcow2/qcow2_interchange_test \
  drivers/qcow2/qcow2_layout_test
TESTS += \
  drivers/qcow2/qcow2_conformance_test \
  drivers/qcow2/qcow2_crash_test \
  drivers/qcow2/qcow2_interchange_test \
  drivers/qcow2/qcow2_layout_test
drivers_qcow2_qcow2_conformance_test_SOURCES = \
  drivers/allocation_count.cc \
  drivers/allocation_count.h \
  drivers/conformance.cc \
  drivers/conformance.h \
  drivers/fault_filter.h \
  drivers/qcow2/conformance_test.cc
drivers_qcow2_qcow2_conformance_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_qcow2_qcow2_conformance_test_LDADD = libdrivers.la $(GTEST_LIBS)
drivers_qcow2_qcow2_crash_test_SOURCES = drivers/qcow2/crash_test.cc
drivers_qcow2_qcow2_crash_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_qcow2_qcow2_crash_test_LDADD = libqcow2test.la libcrashreplay.la $(GTEST_LIBS)
drivers_qcow2_qcow2_interchange_test_SOURCES = drivers/qcow2/interchange_test.cc
drivers_qcow2_qcow2_interchange_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_qcow2_qcow2_interchange_test_LDADD = libqcow2test.la $(GTEST_LIBS)
drivers_qcow2_qcow2_layout_test_SOURCES = drivers/qcow2/layout_test.cc
drivers_qcow2_qcow2_layout_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_qcow2_qcow2_layout_test_LDADD = libqcow2test.la $(GTEST_LIBS)
endif
