#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What can be set on a running disk, by a QMP client not written here: its size, its limits, a pause
# that ends by itself; and a job that moves it while an NBD client is connected.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need socat jq qemu-io qemu-img nbdinfo

BACKEND=${BACKEND:-$PWD/vbdkit-backend}
truncate -s 8M "$scratch/disk"
mkdir "$scratch/run"
"$BACKEND" --spec "raw:$scratch/disk" --uuid settings --runtime-dir "$scratch/run/i" \
  2>"$scratch/backend.log" &
servers+=("$!")
backend=$!
eventually test -S "$scratch/run/i/qmp.sock"
uri="nbd+unix:///settings?socket=$scratch/run/i/nbd.sock"

# qmp COMMAND [ARGUMENTS]: the answer's line.
qmp() {
  local arguments=${2:-{\}}
  jq -cn --arg name "$1" --argjson arguments "$arguments" \
    '{execute: "qmp_capabilities"}, {execute: $name, arguments: $arguments, id: 1}' |
    socat -t 20 - "UNIX-CONNECT:$scratch/run/i/qmp.sock" |
    jq -c --unbuffered 'select(.id == 1)'
}
must() {
  local answer
  answer=$(qmp "$@")
  [ "$(jq 'has("return")' <<<"$answer")" = true ] || fail "$*: $answer"
}

must block_resize '{"device": "disk", "size": 16777216}'
[ "$(nbdinfo --size "$uri")" = 16777216 ] || fail "a new client sees another size"
[ "$(stat -c %s "$scratch/disk")" = 16777216 ] || fail "the file has another size"
qmp block_resize '{"device": "disk", "size": 4096}' | jq -e .error >/dev/null ||
  fail "a disk in use was cut"
ok "a running disk grows and does not shrink"

must block_set_io_throttle '{"device": "disk", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 50000,
  "iops_rd": 0, "iops_wr": 0, "bps_wr_max": 0, "iops_max": 60000, "iops_max_length": 2}'
[ "$(qmp query-block | jq '.return[0].inserted.iops')" = 50000 ] || fail "the limit is not told"
qemu-io -f raw -c 'write -P 7 0 1M' "$uri" >/dev/null
must block_set_io_throttle '{"device": "disk", "iops": 0}'
[ "$(qmp query-block | jq '.return[0].inserted.iops')" = 0 ] || fail "the limit is not lifted"
ok "limits come and go"

qmp block_set_io_throttle '{"device": "disk", "iops_max": 10}' | jq -e .error >/dev/null ||
  fail "a burst without a rate was taken"

# Nobody resumes: the deadline does, and a client that waits gets its answer.
events=$scratch/events
mkfifo "$scratch/commands"
exec 7<>"$scratch/commands"
socat - "UNIX-CONNECT:$scratch/run/i/qmp.sock" <"$scratch/commands" >"$events" &
servers+=("$!")
echo '{"execute": "qmp_capabilities"}' >&7
echo '{"execute": "x-vbdkit-pause", "arguments": {"timeout-ms": 300}, "id": "held"}' >&7
eventually grep -q held "$events"
qemu-io -f raw -c 'read -P 7 0 1M' "$uri" >/dev/null
eventually grep -q X_VBDKIT_RESUMED "$events"
must x-vbdkit-resume
[ "$(qmp query-status | jq -r .return.status)" = running ] || fail "the disk is paused still"
ok "a pause ends at its deadline"

# A job goes on when the one who began it has gone.
qemu-img create -q -f qcow2 "$scratch/moved" 16M
must x-vbdkit-migrate "{\"target\": \"qcow2:$scratch/moved\"}"
moved() { [ "$(qmp query-jobs | jq -c .return)" = '[]' ]; }
eventually moved
qmp query-block | jq -e '.return[0].inserted.file | endswith("|qcow2:'"$scratch"'/moved")' >/dev/null ||
  fail "the disk did not move: $(qmp query-block)"
qemu-io -f raw -c 'read -P 7 0 1M' -c 'write -P 9 1M 1M' "$uri" >"$scratch/out"
! grep -q failed "$scratch/out" || fail "$(cat "$scratch/out")"
stop "$backend"
qemu-img check -q "$scratch/moved"
qemu-io -r -c 'read -P 7 0 1M' -c 'read -P 9 1M 1M' "$scratch/moved" >"$scratch/out"
! grep -q failed "$scratch/out" || fail "$(cat "$scratch/out")"
ok "a disk moves to another format"
