# SPDX-License-Identifier: LGPL-2.1-or-later
# The real-Xen lab is scripts only.
EXTRA_DIST += \
  tests/xen/.shellcheckrc \
  tests/xen/README.md \
  tests/xen/cases/attach-detach.sh \
  tests/xen/cases/blkback-loaded.sh \
  tests/xen/cases/boot-block-device.sh \
  tests/xen/cases/boot-qcow2-chain.sh \
  tests/xen/cases/boot-raw-file.sh \
  tests/xen/cases/boot-vhd-chain.sh \
  tests/xen/cases/clones-coalesce.sh \
  tests/xen/cases/destroy-under-load.sh \
  tests/xen/cases/detach-busy.sh \
  tests/xen/cases/detach-force.sh \
  tests/xen/cases/discard.sh \
  tests/xen/cases/fio-verify.sh \
  tests/xen/cases/flush.sh \
  tests/xen/cases/idle-memory.sh \
  tests/xen/cases/missing-image.sh \
  tests/xen/cases/multi-queue.sh \
  tests/xen/cases/ordinary-user.sh \
  tests/xen/cases/plugin-boot-qcow2.sh \
  tests/xen/cases/plugin-refused.sh \
  tests/xen/cases/plugin-save-restore.sh \
  tests/xen/cases/pvh.sh \
  tests/xen/cases/read-only.sh \
  tests/xen/cases/reboot.sh \
  tests/xen/cases/second-writer.sh \
  tests/xen/cases/shared-readonly.sh \
  tests/xen/cases/storage-first.sh \
  tests/xen/cases/two-disks.sh \
  tests/xen/cases/xentop.sh \
  tests/xen/demo \
  tests/xen/dom0/after-case \
  tests/xen/dom0/agent \
  tests/xen/dom0/case \
  tests/xen/dom0/demo \
  tests/xen/dom0/init \
  tests/xen/dom0/initramfs-init \
  tests/xen/dom0/lib.sh \
  tests/xen/guest/init \
  tests/xen/initramfs \
  tests/xen/lab \
  tests/xen/run \
  tests/xen/vm.py
