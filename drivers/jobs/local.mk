# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/jobs/compare_job.cc \
  drivers/jobs/compare_job.h \
  drivers/jobs/copy_job.cc \
  drivers/jobs/copy_job.h \
  drivers/jobs/extent_cursor.cc \
  drivers/jobs/extent_cursor.h \
  drivers/jobs/job.h \
  drivers/jobs/job_buffer.h \
  drivers/jobs/map_job.cc \
  drivers/jobs/map_job.h
