# SPDX-License-Identifier: LGPL-2.1-or-later
libdrivers_la_SOURCES += \
  drivers/chain/chain_node.cc \
  drivers/chain/chain_node.h \
  drivers/chain/chain_steps.cc \
  drivers/chain/chain_steps.h \
  drivers/chain/formats.cc \
  drivers/chain/image_file.cc \
  drivers/chain/image_file.h \
  drivers/chain/layer.h \
  drivers/chain/live_chain.cc \
  drivers/chain/live_chain.h \
  drivers/chain/open_chain.cc \
  drivers/chain/open_chain.h \
  drivers/chain/raw_layer.cc \
  drivers/chain/raw_layer.h \
  drivers/chain/window_builder.cc \
  drivers/chain/window_builder.h \
  drivers/chain/window_map.cc \
  drivers/chain/window_map.h

if HAVE_GTEST
check_LTLIBRARIES += libcrashreplay.la
libcrashreplay_la_SOURCES = \
  drivers/crash_replay.cc \
  drivers/crash_replay.h \
  drivers/disk_log.cc \
  drivers/disk_log.h
libcrashreplay_la_LIBADD = libdrivers.la

check_PROGRAMS += drivers/chain/chain_test
TESTS += drivers/chain/chain_test
drivers_chain_chain_test_SOURCES = \
  drivers/chain/chain_node_test.cc \
  drivers/chain/image_file_test.cc \
  drivers/chain/window_map_test.cc
drivers_chain_chain_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
drivers_chain_chain_test_LDADD = libcrashreplay.la libdrivers.la $(GTEST_LIBS)
endif
