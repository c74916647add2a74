# SPDX-License-Identifier: LGPL-2.1-or-later
dist_man_MANS += \
  docs/man/block-vbdkit.8 \
  docs/man/vbdkit-backend.8 \
  docs/man/vbdkit-convert.1 \
  docs/man/vbdkit-hooks.8 \
  docs/man/vbdkit-image.1 \
  docs/man/vbdkit-instance.1 \
  docs/man/vbdkit-libxl.7 \
  docs/man/vbdkit-registryd.8 \
  docs/man/vbdkit-serve.1 \
  docs/man/vbdkit-spec.7 \
  docs/man/vbdkit.1 \
  docs/man/vbdkitd.8

examplesdir = $(docdir)/examples
dist_examples_DATA = docs/examples/guest.cfg
dist_examples_SCRIPTS = docs/examples/libvirt-hook.sh docs/examples/storage-manager.sh

EXTRA_DIST += \
  docs/admin.md \
  docs/driver-author.md \
  docs/packager.md \
  docs/performance.md \
  docs/storage-manager.md
