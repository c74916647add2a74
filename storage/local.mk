# SPDX-License-Identifier: LGPL-2.1-or-later
bin_PROGRAMS += vbdkit
vbdkit_SOURCES = \
  storage/arguments.cc \
  storage/arguments.h \
  storage/check.cc \
  storage/coalesce.cc \
  storage/command.h \
  storage/compare.cc \
  storage/convert.cc \
  storage/create.cc \
  storage/forest_drawing.cc \
  storage/forest_drawing.h \
  storage/image_options.cc \
  storage/image_options.h \
  storage/info.cc \
  storage/job_runner.cc \
  storage/job_runner.h \
  storage/list_drivers.cc \
  storage/main.cc \
  storage/map.cc \
  storage/progress.cc \
  storage/progress.h \
  storage/readiness.cc \
  storage/readiness.h \
  storage/resize.cc \
  storage/serve.cc \
  storage/snapshot.cc \
  storage/snapshot.h \
  storage/terminal.cc \
  storage/terminal.h \
  storage/termination.cc \
  storage/termination.h \
  storage/tree.cc
vbdkit_LDADD = \
  libnbdserver.la \
  libscheduler.la \
  libdrivers.la \
  libio.la \
  libbase.la \
  -lboost_program_options
