# SPDX-License-Identifier: LGPL-2.1-or-later
# The plugin interface belongs to libxl: its header, and for the tests the program in which libxl
# runs plugins, are taken out of the series of patches.
libxl_plugin_patch = xen-patches/4.17/0001-libxl-interface-of-disk-backend-plugins.patch
libxl_plugin_extract = $(SED) -n -e '\|^+++ b/$(1)$$|,\|^diff |{/^+++/d;s/^+//p}'

libxl-plugin/xen/libxl_disk_plugin.h: $(srcdir)/$(libxl_plugin_patch)
	$(AM_V_GEN)$(MKDIR_P) libxl-plugin/xen && \
	$(call libxl_plugin_extract,tools/include/libxl_disk_plugin.h) $(srcdir)/$(libxl_plugin_patch) >$@.tmp && \
	mv $@.tmp $@
libxl-plugin/xen/helper.c: $(srcdir)/$(libxl_plugin_patch)
	$(AM_V_GEN)$(MKDIR_P) libxl-plugin/xen && \
	$(call libxl_plugin_extract,tools/libs/light/libxl_disk_plugin_helper.c) \
	  $(srcdir)/$(libxl_plugin_patch) >$@.tmp && mv $@.tmp $@
CLEANFILES += libxl-plugin/xen/libxl_disk_plugin.h libxl-plugin/xen/helper.c

xenplugindir = @xenplugindir@
xenplugin_LTLIBRARIES = libxl-plugin/vbdkit.la
libxl_plugin_vbdkit_la_SOURCES = libxl-plugin/vbdkit.cc
libxl_plugin_vbdkit_la_CPPFLAGS = $(AM_CPPFLAGS) -Ilibxl-plugin/xen
libxl_plugin_vbdkit_la_CXXFLAGS = $(AM_CXXFLAGS) -fvisibility=hidden
libxl_plugin_vbdkit_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
  -Wl,--gc-sections -Wl,--as-needed -Wl,--exclude-libs,ALL
# libtool would put all of a convenience library into a module; behind its back only what is needed.
libxl_plugin_vbdkit_la_LIBADD = -L.libs -l:libhotplug.a $(URING_LIBS) -laio $(ZLIB_LIBS) $(ZSTD_LIBS)
EXTRA_libxl_plugin_vbdkit_la_DEPENDENCIES = libhotplug.la
$(libxl_plugin_vbdkit_la_OBJECTS): libxl-plugin/xen/libxl_disk_plugin.h

# libxl opens the object itself.
install-data-hook:
	rm -f $(DESTDIR)$(xenplugindir)/vbdkit.la
uninstall-hook:
	rm -f $(DESTDIR)$(xenplugindir)/vbdkit.so

EXTRA_DIST += \
  libxl-plugin/README.md \
  libxl-plugin/test_plugin.c \
  xen-patches/4.17 \
  xen-patches/4.20 \
  xen-patches/README.md \
  xen-patches/apt-suite \
  xen-patches/build-xen

# ---- tests ----
# What only a test wants of a plugin: to crash, to hang, to be silent.
libxl-plugin/test_plugin.so: $(srcdir)/libxl-plugin/test_plugin.c libxl-plugin/xen/libxl_disk_plugin.h
	$(AM_V_CC)$(CC) -Wall -Wextra -Werror -O2 $(SAN_FLAGS) -fPIC -shared -Ilibxl-plugin/xen -o $@ \
	  $(srcdir)/libxl-plugin/test_plugin.c
libxl-plugin/libxl-disk-plugin: libxl-plugin/xen/helper.c libxl-plugin/xen/libxl_disk_plugin.h
	$(AM_V_CC)$(CC) -Wall -Werror -O2 $(SAN_FLAGS) -Ilibxl-plugin/xen -o $@ libxl-plugin/xen/helper.c -ldl
CLEANFILES += libxl-plugin/test_plugin.so libxl-plugin/libxl-disk-plugin

if HAVE_GTEST
check_PROGRAMS += libxl-plugin/plugin_test tests/sim/plugin_test
TESTS += libxl-plugin/plugin_test tests/sim/plugin_test
libxl_plugin_deps = libxl-plugin/libxl-disk-plugin libxl-plugin/test_plugin.so libxl-plugin/vbdkit.la
libxl_plugin_plugin_test_SOURCES = libxl-plugin/plugin_test.cc
libxl_plugin_plugin_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
libxl_plugin_plugin_test_LDADD = libdrivers.la libio.la libbase.la $(GTEST_LIBS)
EXTRA_libxl_plugin_plugin_test_DEPENDENCIES = $(libxl_plugin_deps)

tests_sim_plugin_test_SOURCES = tests/sim/plugin_test.cc tests/sim/hotplug_fixture.h
tests_sim_plugin_test_CPPFLAGS = $(AM_CPPFLAGS) $(GTEST_CFLAGS)
tests_sim_plugin_test_LDADD = $(hotplug_simtest_ldadd)
EXTRA_tests_sim_plugin_test_DEPENDENCIES = $(hotplug_simtest_deps) $(libxl_plugin_deps)
endif
