# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# For the NBD tests: a scratch directory, `vbdkit serve` in the background, checks that say what they
# saw. Sourced by each script; runs in the build directory, whose vbdkit is under test.
set -euo pipefail
# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

VBDKIT=${VBDKIT:-$PWD/vbdkit}
NBDLOAD=${NBDLOAD:-$PWD/tests/bench/nbdload}
scratch=$(mktemp -d "$PWD/nbd-test.XXXXXX")
servers=()

clean_up() {
  local pid
  for pid in "${servers[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap clean_up EXIT

# serve NAME ARG...: starts a server on $scratch/NAME.sock and returns when clients can connect; its
# pid is in $server. Its messages are in $scratch/NAME.log.
serve() {
  local name=$1
  shift
  mkfifo "$scratch/$name.ready"
  "$VBDKIT" serve "$@" --nbd "unix:$scratch/$name.sock" --ready-fd 9 \
    9>"$scratch/$name.ready" 2>"$scratch/$name.log" &
  server=$!
  servers+=("$server")
  # The read ends with the newline, or with the death of the server.
  local line
  read -r line <"$scratch/$name.ready" || {
    cat "$scratch/$name.log" >&2
    fail "vbdkit serve $* did not start"
  }
  [ -z "$line" ]
  rm "$scratch/$name.ready"
}

uri() { printf 'nbd+unix:///%s?socket=%s/%s.sock' "${2:-}" "$scratch" "$1"; }

# stop PID: SIGTERM must end it with success.
stop() {
  kill -TERM "$1"
  wait "$1" || fail "the server ended with status $?"
}

# eventually COMMAND...: polls where there is no event to wait for; the deadline ends a failed test.
eventually() {
  local deadline=$((SECONDS + 30))
  until "$@" 2>/dev/null; do
    ((SECONDS < deadline)) || fail "never came true: $*"
    sleep 0.02
  done
}

random_file() { head -c "$2" /dev/urandom >"$1"; }
