# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/chain/image_file.cc \
  drivers/chain/image_file.h \
  drivers/chain/layer.h

if HAVE_GTEST
check_LTLIBRARIES += libcrashreplay.la
libcrashreplay_la_SOURCES = \
  drivers/crash_replay.cc \
  drivers/crash_replay.h
libcrashreplay_la_LIBADD = libdrivers.la
endif
