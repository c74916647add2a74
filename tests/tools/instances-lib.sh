# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# For the tests of running instances: a runtime directory of their own, and an end for all that a
# test leaves running.
# shellcheck source=tests/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BACKEND=${BACKEND:-${VBDKIT%/vbdkit}/vbdkit-backend}
export VBDKIT_RUNTIME_DIR=$scratch/run
mkdir -m 700 "$VBDKIT_RUNTIME_DIR"

# Sockets have short names.
[ "${#VBDKIT_RUNTIME_DIR}" -le 50 ] || {
  VBDKIT_RUNTIME_DIR=$(mktemp -d /tmp/vbdkit-run.XXXXXX)
}

end_all() {
  local file pid
  for file in "$VBDKIT_RUNTIME_DIR"/instances/*/pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    # Only what is an instance still.
    [ "$(readlink "/proc/$pid/exe")" != "$(readlink -f "$BACKEND")" ] || kill -9 "$pid" || true
  done
  rm -rf "$VBDKIT_RUNTIME_DIR" "$scratch"
}
trap end_all EXIT

activate() { vbdkit activate --backend "$BACKEND" "$@"; }

# record UUID: its registry record.
record() { vbdkit list --json "$1" | jq '.[0]'; }

# hold INSTANCE: an NBD client that stays until `release`.
hold() {
  local socket line
  socket=$(jq -r .nbd <(record "$1"))
  coproc client { qemu-io -f raw "nbd+unix:///?socket=$socket"; }
  echo 'read 0 512' >&"${client[1]}"
  while read -r line <&"${client[0]}"; do
    [[ $line != *'read 512/512'* ]] || return 0
  done
  fail "qemu-io cannot read from $1"
}
release() {
  # shellcheck disable=SC2154 # coproc sets it
  local pid=$client_PID
  echo quit >&"${client[1]}"
  wait "$pid"
}
