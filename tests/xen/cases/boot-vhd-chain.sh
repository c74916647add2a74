# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A guest boots from a VHD with 29 parents, writes, reboots and finds what it wrote.
# shows: root file system on an image or a chain
# limit: 900 s
only vbdkit
boot_from_chain vhd 30
