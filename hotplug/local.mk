# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libhotplug.la
libhotplug_la_SOURCES = \
  hotplug/daemon.cc \
  hotplug/daemon.h \
  hotplug/daemon_control.cc \
  hotplug/daemon_control.h \
  hotplug/device_nodes.cc \
  hotplug/device_nodes.h \
  hotplug/identity.cc \
  hotplug/identity.h \
  hotplug/instance_process.cc \
  hotplug/instance_process.h \
  hotplug/kernel_claim.cc \
  hotplug/kernel_claim.h \
  hotplug/params.cc \
  hotplug/params.h \
  hotplug/sharing.cc \
  hotplug/sharing.h
libhotplug_la_LIBADD = libblkif.la libcontrol.la libdrivers.la libruntimedir.la libxenhandles.la \
  libio.la libbase.la

sbin_PROGRAMS += vbdkitd
vbdkitd_SOURCES = hotplug/main.cc
vbdkitd_CPPFLAGS = $(AM_CPPFLAGS) -DVBDKIT_LIBEXECDIR='"$(pkglibexecdir)"' $(SYSTEMD_CFLAGS)
vbdkitd_LDADD = libhotplug.la $(SYSTEMD_LIBS)
