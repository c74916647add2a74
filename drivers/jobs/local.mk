# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/jobs/coalesce_job.cc \
  drivers/jobs/coalesce_job.h \
  drivers/jobs/coalesce_journal.cc \
  drivers/jobs/coalesce_journal.h \
  drivers/jobs/chunk_bitmap.h \
  drivers/jobs/coalesce_live.cc \
  drivers/jobs/coalesce_users.h \
  drivers/jobs/compare_job.cc \
  drivers/jobs/compare_job.h \
  drivers/jobs/copy_job.cc \
  drivers/jobs/copy_job.h \
  drivers/jobs/extent_cursor.cc \
  drivers/jobs/extent_cursor.h \
  drivers/jobs/job.h \
  drivers/jobs/job_buffer.h \
  drivers/jobs/map_job.cc \
  drivers/jobs/map_job.h \
  drivers/jobs/mirror_filter.cc \
  drivers/jobs/mirror_filter.h

if HAVE_GTEST
check_PROGRAMS += drivers/jobs/jobs_test
TESTS += drivers/jobs/jobs_test
drivers_jobs_jobs_test_SOURCES = \
  drivers/fault_filter.h \
  drivers/jobs/coalesce_test.cc \
  drivers/jobs/jobs_test.cc \
  drivers/vhd/test_disk.h \
  drivers/vhd/test_image.h
drivers_jobs_jobs_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_jobs_jobs_test_LDADD = libdrivers.la $(GTEST_LIBS)
endif
