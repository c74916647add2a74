#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The leaf of a running disk is merged into its parent, and the instance is killed at each step that
# changes a name: whatever the leaf's name means then has all that was flushed.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need socat jq qemu-io qemu-img strace

BACKEND=${BACKEND:-$PWD/vbdkit-backend}

# start [COMMAND...]: an instance on $dir/leaf.qcow2, started by that command; its QMP client reads from
# descriptor 7 and writes to $dir/events.
start() {
  "$@" "$BACKEND" --spec "qcow2:$dir/leaf.qcow2" --uuid commit --runtime-dir "$dir/run/i" \
    2>"$dir/backend.log" &
  backend=$!
  servers+=("$backend")
  eventually test -S "$dir/run/i/qmp.sock"
  socat - "UNIX-CONNECT:$dir/run/i/qmp.sock" <"$dir/commands" >"$dir/events" &
  client=$!
  servers+=("$client")
  echo '{"execute": "qmp_capabilities"}' >&7
}
io() { qemu-io -f raw "$@" "nbd+unix:///commit?socket=$dir/run/i/nbd.sock" >"$dir/out"; }

# What the first write, the one during the copy, and the ones beneath have left.
verify() {
  qemu-io -r -c 'read -P 0x11 0 1M' -c 'read -P 0x22 1M 1M' -c 'read -P 0x33 2M 1M' \
    -c 'read -P 0x44 3M 1M' -c 'read -P 0 4M 12M' "$dir/leaf.qcow2" >"$dir/out"
  ! grep -qi 'fail\|error' "$dir/out" || fail "$1: $(cat "$dir/out")"
  qemu-img check -q "$dir/leaf.qcow2" || fail "$1: the image is not sound"
}

# None, or the call and the file at which the instance is killed.
second=leaf.qcow2.vbdkit-merged
for point in none "link $second" "rename middle.qcow2" "unlink $second"; do
  dir=$scratch/${point// /-}
  mkdir -p "$dir/run"
  mkfifo "$dir/commands"
  exec 7<>"$dir/commands"
  qemu-img create -q -f qcow2 "$dir/base.qcow2" 16M
  qemu-io -c 'write -P 0x11 0 4M' "$dir/base.qcow2" >/dev/null
  qemu-img create -q -f qcow2 -F qcow2 -b "$dir/base.qcow2" "$dir/middle.qcow2"
  qemu-io -c 'write -P 0x22 1M 3M' "$dir/middle.qcow2" >/dev/null
  qemu-img create -q -f qcow2 -F qcow2 -b "$dir/middle.qcow2" "$dir/leaf.qcow2"
  if [ "$point" = none ]; then
    start
  else
    start strace -f -o "$dir/trace" -P "$dir/${point#* }" \
      -e "inject=${point% *}:signal=KILL"
  fi
  io -c 'write -P 0x33 2M 1M' -c flush
  echo '{"execute": "block-commit", "arguments": {"device": "disk", "base": "'"$dir/middle.qcow2"'"}}' >&7
  eventually grep -q BLOCK_JOB_READY "$dir/events"
  io -c 'write -P 0x44 3M 1M' -c flush
  echo '{"execute": "block-job-complete", "arguments": {"device": "disk"}}' >&7
  if [ "$point" = none ]; then
    eventually grep -q BLOCK_JOB_COMPLETED "$dir/events"
    ! grep -q '"error"' "$dir/events" || fail "$(cat "$dir/events")"
    [ ! -e "$dir/middle.qcow2" ] || fail "the parent has its name still"
    [ ! -e "$dir/$second" ] || fail "the merged leaf is there still"
    stop "$backend"
  else
    wait "$client" || true
    wait "$backend" 2>/dev/null && fail "$point: the instance lives"
    "$VBDKIT" gc "$dir" >"$dir/out"
    [ ! -e "$dir/$second" ] || fail "$point: $second is left: $(cat "$dir/out")"
  fi
  verify "$point"
  ok "killed at: $point; all that was flushed is there"
done
