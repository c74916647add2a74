# SPDX-License-Identifier: LGPL-2.1-or-later
noinst_LTLIBRARIES += libhotplug.la
libhotplug_la_SOURCES = \
  hotplug/daemon.cc \
  hotplug/daemon.h \
  hotplug/daemon_client.cc \
  hotplug/daemon_client.h \
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
  hotplug/sharing.h \
  hotplug/xentop_view.cc \
  hotplug/xentop_view.h
libhotplug_la_LIBADD = libregistry.la libblkif.la libcontrol.la libdrivers.la libruntimedir.la libxenhandles.la \
  libio.la libbase.la

sbin_PROGRAMS += vbdkitd
vbdkitd_SOURCES = hotplug/main.cc
vbdkitd_CPPFLAGS = $(AM_CPPFLAGS) -DVBDKIT_LIBEXECDIR='"$(pkglibexecdir)"' $(SYSTEMD_CFLAGS)
vbdkitd_LDADD = libhotplug.la $(SYSTEMD_LIBS)

# ---- script and units ----
hotplug_subst = sed -e 's|@sbindir[@]|$(sbindir)|g' -e 's|@sysconfdir[@]|$(sysconfdir)|g'
xenscriptdir = @xenscriptdir@
xenscript_SCRIPTS = hotplug/block-vbdkit
hotplug/block-vbdkit: $(srcdir)/hotplug/block-vbdkit.in Makefile
	$(AM_V_GEN)$(MKDIR_P) hotplug && $(hotplug_subst) $(srcdir)/hotplug/block-vbdkit.in >$@.tmp && \
	chmod +x $@.tmp && mv $@.tmp $@

systemdsystemunitdir = @systemdsystemunitdir@
systemdsystemunit_DATA = hotplug/vbdkitd.service
hotplug/vbdkitd.service: $(srcdir)/hotplug/vbdkitd.service.in Makefile
	$(AM_V_GEN)$(MKDIR_P) hotplug && $(hotplug_subst) $(srcdir)/hotplug/vbdkitd.service.in >$@.tmp && \
	mv $@.tmp $@

# Both are called vbdkit.conf where they are installed.
tmpfilesdir = $(prefix)/lib/tmpfiles.d
tmpfiles_DATA = hotplug/tmpfiles/vbdkit.conf
hotplug/tmpfiles/vbdkit.conf: $(srcdir)/hotplug/vbdkit.tmpfiles
	$(AM_V_GEN)$(MKDIR_P) hotplug/tmpfiles && cp $(srcdir)/hotplug/vbdkit.tmpfiles $@

sysusersdir = $(prefix)/lib/sysusers.d
sysusers_DATA = hotplug/sysusers/vbdkit.conf
hotplug/sysusers/vbdkit.conf: $(srcdir)/hotplug/vbdkit.sysusers
	$(AM_V_GEN)$(MKDIR_P) hotplug/sysusers && cp $(srcdir)/hotplug/vbdkit.sysusers $@

pkgsysconfdir = $(sysconfdir)/vbdkit
dist_pkgsysconf_DATA = hotplug/vbdkitd.conf

EXTRA_DIST += \
  hotplug/block-vbdkit.in \
  hotplug/vbdkit.sysusers \
  hotplug/vbdkit.tmpfiles \
  hotplug/vbdkitd.service.in
CLEANFILES += \
  hotplug/block-vbdkit \
  hotplug/sysusers/vbdkit.conf \
  hotplug/tmpfiles/vbdkit.conf \
  hotplug/vbdkitd.service

# ---- tests ----
if HAVE_GTEST
check_PROGRAMS += hotplug/hotplug_test
TESTS += hotplug/hotplug_test
hotplug_hotplug_test_SOURCES = \
  backend/registry_config_test.cc \
  backend/runtime_dir_test.cc \
  hotplug/kernel_claim_test.cc \
  hotplug/params_test.cc \
  hotplug/sharing_test.cc
hotplug_hotplug_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
hotplug_hotplug_test_LDADD = libhotplug.la $(GTEST_LIBS)

hotplug_simtests = \
  tests/sim/hotplug_activate_test \
  tests/sim/hotplug_attach_test \
  tests/sim/hotplug_failure_test \
  tests/sim/hotplug_sharing_test
check_PROGRAMS += $(hotplug_simtests)
TESTS += $(hotplug_simtests)
hotplug_simtest_ldadd = tests/sim/libsimguest.la libcontrol.la libruntimedir.la libio.la libbase.la \
  $(GTEST_LIBS)
hotplug_simtest_deps = vbdkit vbdkitd vbdkit-backend hotplug/block-vbdkit

tests_sim_hotplug_activate_test_SOURCES = tests/sim/hotplug_activate_test.cc tests/sim/hotplug_fixture.h
tests_sim_hotplug_activate_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
tests_sim_hotplug_activate_test_LDADD = $(hotplug_simtest_ldadd)
EXTRA_tests_sim_hotplug_activate_test_DEPENDENCIES = $(hotplug_simtest_deps)

tests_sim_hotplug_attach_test_SOURCES = tests/sim/hotplug_attach_test.cc tests/sim/hotplug_fixture.h
tests_sim_hotplug_attach_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
tests_sim_hotplug_attach_test_LDADD = $(hotplug_simtest_ldadd)
EXTRA_tests_sim_hotplug_attach_test_DEPENDENCIES = $(hotplug_simtest_deps)

tests_sim_hotplug_failure_test_SOURCES = tests/sim/hotplug_failure_test.cc tests/sim/hotplug_fixture.h
tests_sim_hotplug_failure_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
tests_sim_hotplug_failure_test_LDADD = $(hotplug_simtest_ldadd)
EXTRA_tests_sim_hotplug_failure_test_DEPENDENCIES = $(hotplug_simtest_deps)

tests_sim_hotplug_sharing_test_SOURCES = tests/sim/hotplug_sharing_test.cc tests/sim/hotplug_fixture.h
tests_sim_hotplug_sharing_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
tests_sim_hotplug_sharing_test_LDADD = $(hotplug_simtest_ldadd)
EXTRA_tests_sim_hotplug_sharing_test_DEPENDENCIES = $(hotplug_simtest_deps)
endif
