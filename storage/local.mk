# SPDX-License-Identifier: LGPL-2.1-or-later
bin_PROGRAMS += vbdkit
vbdkit_SOURCES = \
  storage/command.h \
  storage/list_drivers.cc \
  storage/main.cc \
  storage/readiness.cc \
  storage/readiness.h \
  storage/serve.cc
vbdkit_LDADD = \
  libnbdserver.la \
  libscheduler.la \
  libdrivers.la \
  libio.la \
  libbase.la \
  -lboost_program_options
