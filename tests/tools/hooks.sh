#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Storage hooks: who is told what, and what a bad hook can do.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need jq qemu-io

RUNNER=${VBDKIT%/vbdkit}/vbdkit-hooks
mkdir hooks
# hook NAME: an executable with standard input as its text.
hook() {
  cat >"hooks/$1"
  chmod 755 "hooks/$1"
}
# start UUID SPEC: an instance with hooks; its process is $pid.
start() {
  mkdir -p "$VBDKIT_RUNTIME_DIR/instances"
  "$BACKEND" --spec "$2" --uuid "$1" --runtime-dir "$VBDKIT_RUNTIME_DIR/instances/$1" \
    --hooks-dir "$PWD/hooks" --hook-runner "$RUNNER" --hook-timeout 1 2>"$1.log" &
  pid=$!
}
# The hooks of an instance are done when their runner, a process of its own, has ended.
runner_of() { pgrep -f "^$RUNNER $PWD/hooks $VBDKIT_RUNTIME_DIR/instances/$1 "; }

vbdkit create --size 8M raw:a.img
mkfifo told
hook 20-tell <<SH
#!/bin/bash
echo "\$1 \$(jq -r '[.uuid, .state, (.consumers | length), (.chain[0].path | sub(".*/"; ""))] | join(" ")')" >>"$PWD/events"
[ "\$1" != register ] || echo >"$PWD/told"
SH
hook 10-first <<SH
#!/bin/bash
echo "first \$1" >>"$PWD/events"
SH
hook ignored~ <<<'#!/bin/false'
hook 30-open <<SH
#!/bin/bash
echo wrong >>"$PWD/events"
SH
chmod 777 hooks/30-open

start one "raw:$PWD/a.img"
read -r _ <told
runner=$(runner_of one)
hold one
# Of what changes while hooks run only the last is told; so this is waited for.
for ((i = 0; i < 600; i++)); do
  ! grep -q '^change one running 1 a.img$' events || break
  sleep 0.05
done
grep -q '^change one running 1 a.img$' events || fail "no change was told: $(cat events)"
release
kill "$pid"
wait "$pid"
tail --pid="$runner" -f /dev/null
head -2 events >out
diff - out <<'TXT' || fail "register: $(cat events)"
first register
register one running 0 a.img
TXT
[ "$(tail -1 events | cut -d' ' -f1-2)" = 'unregister one' ] || fail "unregister: $(cat events)"
grep -q 'wrong' events && fail "a hook that others may write to was run"
grep -q '30-open: others may write to it' one.log || fail "log: $(cat one.log)"
ok "register, change and unregister, in the order of the hooks' names"

rm events
start two "raw:$PWD/a.img"
read -r _ <told
runner=$(runner_of two)
kill -9 "$pid"
wait "$pid" || true
tail --pid="$runner" -f /dev/null
[ "$(tail -1 events | cut -d' ' -f1-2)" = 'unregister two' ] || fail "killed: $(cat events)"
ok "of one that was killed, its end is told too"

# One that hangs, one that fails, one that chatters: the disk does not wait for them.
rm -f events hooks/*
hook 10-hang <<SH
#!/bin/bash
[ "\$1" != register ] || echo >"$PWD/told"
sleep 1000 &
wait
SH
hook 20-fail <<'SH'
#!/bin/bash
yes chatter | head -1000
exit 3
SH
start three "raw:$PWD/a.img"
read -r _ <told
qemu-io -f raw -c 'write -P 120 0 64k' -c flush \
  "nbd+unix:///?socket=$VBDKIT_RUNTIME_DIR/instances/three/nbd.sock" >out
runner=$(runner_of three)
kill "$pid"
wait "$pid"
tail --pid="$runner" -f /dev/null
grep -q 'hook 10-hang: killed: it took longer than' three.log || fail "log: $(cat three.log)"
grep -q 'hook 20-fail: register: status 3' three.log || fail "log: $(cat three.log)"
[ "$(grep -c chatter three.log)" -lt 100 ] || fail "chatter in the log"
[ "$(head -c 65536 a.img | tr -d x | wc -c)" = 0 ] || fail "what was written is lost"
ok "hooks that hang, fail or chatter delay no disk"
