# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libregistryd.la
libregistryd_la_SOURCES = \
  registryd/base64.cc \
  registryd/base64.h \
  registryd/claim_store.cc \
  registryd/claim_store.h \
  registryd/daemon.cc \
  registryd/daemon.h \
  registryd/etcd_client.cc \
  registryd/etcd_client.h \
  registryd/etcd_messages.cc \
  registryd/etcd_messages.h \
  registryd/etcd_worker.h \
  registryd/http_client.cc \
  registryd/http_client.h \
  registryd/lease_keeper.cc \
  registryd/lease_keeper.h \
  registryd/record_publisher.cc \
  registryd/record_publisher.h
libregistryd_la_CPPFLAGS = $(AM_CPPFLAGS) $(CURL_CFLAGS)
libregistryd_la_LIBADD = libregistry.la libcontrol.la libruntimedir.la libio.la libbase.la $(CURL_LIBS)

sbin_PROGRAMS += vbdkit-registryd
vbdkit_registryd_SOURCES = registryd/main.cc
vbdkit_registryd_CPPFLAGS = $(AM_CPPFLAGS) $(CURL_CFLAGS) $(SYSTEMD_CFLAGS)
vbdkit_registryd_LDADD = libregistryd.la $(SYSTEMD_LIBS)

systemdsystemunit_DATA += registryd/vbdkit-registryd.service
registryd/vbdkit-registryd.service: $(srcdir)/registryd/vbdkit-registryd.service.in Makefile
	$(AM_V_GEN)$(MKDIR_P) registryd && \
	$(hotplug_subst) $(srcdir)/registryd/vbdkit-registryd.service.in >$@.tmp && mv $@.tmp $@
EXTRA_DIST += registryd/vbdkit-registryd.service.in
CLEANFILES += registryd/vbdkit-registryd.service

if HAVE_GTEST
check_PROGRAMS += registryd/registryd_test
TESTS += registryd/registryd_test
registryd_registryd_test_SOURCES = \
  registryd/claim_store_test.cc \
  registryd/etcd_messages_test.cc
registryd_registryd_test_CPPFLAGS = $(AM_CPPFLAGS) $(CURL_CFLAGS) $(GTEST_CFLAGS)
registryd_registryd_test_LDADD = libregistryd.la $(GTEST_LIBS)
endif
