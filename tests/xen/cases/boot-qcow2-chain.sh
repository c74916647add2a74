# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest boots from a qcow2 image with backing files, writes, reboots and finds what it wrote.
# shows: root file system on an image or a chain
# limit: 900 s
only vbdkit
boot_from_chain qcow2 8
