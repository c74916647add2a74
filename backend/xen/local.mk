# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libxenhandles.la
libxenhandles_la_SOURCES = \
  backend/xen/event_channels.cc \
  backend/xen/event_channels.h \
  backend/xen/grant_table.cc \
  backend/xen/grant_table.h \
  backend/xen/headers.h \
  backend/xen/xenstore.cc \
  backend/xen/xenstore.h
libxenhandles_la_CPPFLAGS = $(AM_CPPFLAGS) $(XENSTORE_CFLAGS) $(XENEVTCHN_CFLAGS) $(XENGNTTAB_CFLAGS)
libxenhandles_la_LIBADD = libio.la $(XENSTORE_LIBS) $(XENEVTCHN_LIBS) $(XENGNTTAB_LIBS)
