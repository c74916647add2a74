#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# vbdkit serve as a program: readiness, signals, sockets of the dead and the living, exit codes.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need nbdinfo python3 qemu-io socat

truncate -s 16M "$scratch/disk"

serve stopped "raw:$scratch/disk"
[ "$(stat -c %a "$scratch/stopped.sock")" = 600 ] || fail "the socket's mode is not 0600"
"$NBDLOAD" --socket "$scratch/stopped.sock" --rw randwrite --seconds 60 >/dev/null 2>&1 &
load=$!
written() { [ "$(du -k "$scratch/disk" | cut -f1)" -gt 1024 ]; }
eventually written
stop "$server"
wait "$load" && fail "the client did not notice that the server stopped"
[ ! -e "$scratch/stopped.sock" ] || fail "the socket's file is left"
ok "SIGTERM under load: exit 0, nothing left"

serve interrupted "raw:$scratch/disk"
kill -INT "$server"
wait "$server" || fail "SIGINT: status $?"
ok "SIGINT as well"

serve killed "raw:$scratch/disk"
kill -KILL "$server"
wait "$server" && fail "killed, and no failure"
[ -S "$scratch/killed.sock" ] || fail "a killed server cleaned up?"
serve killed "raw:$scratch/disk"
[ "$(nbdinfo --size "$(uri killed)")" = 16777216 ] || fail "no service on the dead server's socket"
ok "a dead server's socket is replaced"

# fails STATUS PATTERN ARG...
fails() {
  local status=$1 pattern=$2 got=0
  shift 2
  timeout 20 "$VBDKIT" "$@" >"$scratch/out" 2>"$scratch/err" || got=$?
  [ "$got" = "$status" ] || fail "vbdkit $*: status $got, expected $status: $(cat "$scratch/err")"
  grep -qF -- "$pattern" "$scratch/err" || fail "vbdkit $*: '$pattern' is not in: $(cat "$scratch/err")"
}
fails 1 'another server listens there' serve ram,size=1M --nbd "unix:$scratch/killed.sock"
fails 1 "$scratch/disk" serve "raw:$scratch/disk" --nbd "unix:$scratch/second.sock"
[ ! -e "$scratch/second.sock" ] || fail "a server that did not start left a socket"
stop "$server"
ok "neither a living server's socket nor its image is taken"

fails 1 'No such file or directory' serve "raw:$scratch/none" --nbd "unix:$scratch/s"
fails 1 'nonsense' serve nonsense:x --nbd "unix:$scratch/s"
fails 2 'which disk?' serve --nbd "unix:$scratch/s"
fails 2 'where?' serve ram,size=1M
fails 2 'only unix:PATH' serve ram,size=1M --nbd tcp:10809
fails 2 'unrecognised option' serve ram,size=1M --frobnicate
fails 2 'is no command' frobnicate
ok "errors name what is wrong; 1 for failures, 2 for usage"

"$VBDKIT" --version | grep -q '^vbdkit [0-9]' || fail "--version"
"$VBDKIT" --help | grep -q serve || fail "--help"
"$VBDKIT" serve --help | grep -q -- --read-only || fail "serve --help"
"$VBDKIT" drivers | grep -q '^raw ' || fail "drivers"
"$VBDKIT" drivers --json | python3 -c '
import json, sys
names = [d["name"] for d in json.load(sys.stdin)]
assert "raw" in names and "throttle" in names, names' || fail "drivers --json"
ok "--version, --help, drivers"

# systemd's protocol: one datagram.
socat -u "UNIX-RECV:$scratch/notify" "CREATE:$scratch/notified" &
receiver=$!
eventually test -S "$scratch/notify"
NOTIFY_SOCKET=$scratch/notify serve notified ram,size=1M
eventually test -s "$scratch/notified"
[ "$(cat "$scratch/notified")" = READY=1 ] || fail "sd_notify: $(cat "$scratch/notified")"
kill "$receiver"
stop "$server"
ok "READY=1 to systemd"

for engine in io_uring libaio sync; do
  serve "engine-$engine" "raw:$scratch/disk" --engine "$engine"
  grep -q "($engine)" "$scratch/engine-$engine.log" || fail "engine $engine: $(cat "$scratch/engine-$engine.log")"
  "$NBDLOAD" --socket "$scratch/engine-$engine.sock" --ios 2000 --rw randwrite >/dev/null
  "$NBDLOAD" --socket "$scratch/engine-$engine.sock" --ios 2000 >/dev/null
  stop "$server"
done
ok "every engine serves"

# LimitFSIZE= of a unit: the write fails, the server does not.
truncate -s 1M "$scratch/limited"
for engine in io_uring libaio sync; do
  (
    ulimit -f 512 # KiB
    serve "limit-$engine" "raw,direct=off:$scratch/limited" --engine "$engine"
    for offset in 0 900k; do
      qemu-io -f raw -c "write $offset 4k" "nbd+unix:///?socket=$scratch/limit-$engine.sock" >>"$scratch/limit.out" 2>&1 || true
    done
    stop "$server"
  )
  [ "$(grep -c 'wrote 4096' "$scratch/limit.out")" = 1 ] || fail "$engine: $(cat "$scratch/limit.out")"
  grep -q 'write failed' "$scratch/limit.out" || fail "$engine: $(cat "$scratch/limit.out")"
  rm "$scratch/limit.out"
done
ok "a limit of file sizes ends writes, not the server"
