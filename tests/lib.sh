# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What every test script says and needs; sourced by the lib.sh of each folder.

fail() {
  printf '%s: FAILED: %s\n' "${0##*/}" "$*" >&2
  exit 1
}
ok() { printf '%s: ok: %s\n' "${0##*/}" "$*"; }

# Exit status 77 is "skipped" for automake.
need() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || {
      echo "$tool is not installed"
      exit 77
    }
  done
}
