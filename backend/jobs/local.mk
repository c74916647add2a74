# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libjobs.la
libjobs_la_SOURCES = \
  backend/jobs/backup_job.cc \
  backend/jobs/backup_job.h \
  backend/jobs/block_job.cc \
  backend/jobs/block_job.h \
  backend/jobs/commit_job.cc \
  backend/jobs/commit_job.h \
  backend/jobs/copy_pump.cc \
  backend/jobs/copy_pump.h \
  backend/jobs/job_table.cc \
  backend/jobs/job_table.h \
  backend/jobs/mirror_job.cc \
  backend/jobs/mirror_job.h \
  backend/jobs/start_commands.cc \
  backend/jobs/start_commands.h \
  backend/jobs/stream_job.cc \
  backend/jobs/stream_job.h
libjobs_la_LIBADD = liblivegraph.la libcontrol.la libdrivers.la

if HAVE_GTEST
check_PROGRAMS += backend/jobs/commit_crash_test backend/jobs/jobs_test \
  backend/jobs/mirror_filter_test backend/jobs/stream_job_test
TESTS += backend/jobs/commit_crash_test backend/jobs/jobs_test \
  backend/jobs/mirror_filter_test backend/jobs/stream_job_test
backend_jobs_commit_crash_test_SOURCES = \
  backend/jobs/commit_crash_test.cc \
  drivers/crash_files.cc \
  drivers/crash_files.h
backend_jobs_commit_crash_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
# What drivers/crash_files.cc has to hear of.
backend_jobs_commit_crash_test_LDFLAGS = $(AM_LDFLAGS) \
  -Wl,--wrap=pwrite,--wrap=ftruncate,--wrap=fdatasync,--wrap=fsync \
  -Wl,--wrap=link,--wrap=rename,--wrap=unlink
backend_jobs_commit_crash_test_LDADD = libjobs.la libcrashreplay.la $(GTEST_LIBS)
backend_jobs_jobs_test_SOURCES = \
  backend/jobs/job_test_base.h \
  backend/jobs/jobs_test.cc \
  drivers/loop_device.h
backend_jobs_jobs_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_jobs_jobs_test_LDADD = libjobs.la $(GTEST_LIBS)
backend_jobs_mirror_filter_test_SOURCES = \
  backend/jobs/mirror_filter_test.cc \
  backend/manual_reactor.h
backend_jobs_mirror_filter_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_jobs_mirror_filter_test_LDADD = libdrivers.la libscheduler.la $(GTEST_LIBS)
backend_jobs_stream_job_test_SOURCES = \
  backend/jobs/job_test_base.h \
  backend/jobs/stream_job_test.cc
backend_jobs_stream_job_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
backend_jobs_stream_job_test_LDADD = libjobs.la $(GTEST_LIBS)
endif
