# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libnbdserver.la
libnbdserver_la_SOURCES = \
  backend/nbd/buffer_pool.cc \
  backend/nbd/buffer_pool.h \
  backend/nbd/commands.cc \
  backend/nbd/connection.cc \
  backend/nbd/connection.h \
  backend/nbd/negotiation.cc \
  backend/nbd/negotiation.h \
  backend/nbd/protocol.cc \
  backend/nbd/protocol.h \
  backend/nbd/server.cc \
  backend/nbd/server.h \
  backend/nbd/slot.h \
  backend/nbd/unix_listener.cc \
  backend/nbd/unix_listener.h
libnbdserver_la_LIBADD = libscheduler.la
