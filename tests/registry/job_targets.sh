#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Files that jobs make on a share: claimed before anything is copied to them, free when the job has
# given them up, and never taken from another host.
# shellcheck source=tests/registry/lib.sh
. "$(dirname "$0")/lib.sh"

# qmp UUID COMMAND ARGUMENTS: on host a; its answer.
qmp() {
  local line
  line=$({
    echo '{"execute":"qmp_capabilities"}'
    jq -cn --arg command "$2" --argjson arguments "$3" \
      '{execute: $command, arguments: $arguments, id: "asked"}'
  } | socat -t 60 - "UNIX-CONNECT:$(record_on a "$1" | jq -r .qmp)" | grep '"asked"')
  echo "$line"
}
# begun UUID COMMAND ARGUMENTS, not_begun PATTERN UUID COMMAND ARGUMENTS
begun() {
  local answer
  answer=$(qmp "$@")
  ! grep -q '"error"' <<<"$answer" || fail "$2: $answer"
}
not_begun() {
  local answer pattern=$1
  shift
  answer=$(qmp "$@")
  grep -qE -- "$pattern" <<<"$answer" || fail "$2: said '$answer', expected '$pattern'"
}
# target NAME [JQ]: the arguments of a job that goes there, and more.
target() {
  jq -cn --arg target "$share/$1" "{device: \"disk\", \$target} + ${2:-{\}}"
}
claim_of() { echo "/vbdkit/images/san/i$(stat -c %i "$1")/a/$disk"; }

start_etcd
add_host a
add_host b
start_registryd a
a_pid=$registryd_pid
start_registryd b
b_pid=$registryd_pid
vbdkit create --size 16M raw:own.img >/dev/null
disk=$(activate_on a raw:own.img)
qemu-io -f raw -c 'write -P 7 0 16M' "$(nbd_of a "$disk")" >/dev/null

begun "$disk" drive-backup "$(target slow.img '{sync: "full", format: "raw", speed: 65536}')"
refused_on b "slow.img .* is in use on host a by $disk \(write" activate --backend "$BACKEND" \
  "raw:$share/slow.img"
not_begun 'runs on this disk' "$disk" drive-mirror "$(target second.img '{sync: "full"}')"
[ ! -e "$share/second.img" ] || fail "a job that is refused has made its target"
from=$(($(revision) + 1))
on a vbdkit jobs --cancel disk "$disk"
await_key "$(claim_of "$share/slow.img")" DELETE "$from"
b=$(activate_on b "raw:$share/slow.img")
on b vbdkit deactivate "$b"
ok "a backup's target is claimed while it is written, and free then"

begun "$disk" drive-mirror "$(target moved.qcow2 '{sync: "full", format: "qcow2"}')"
on a vbdkit jobs --wait "$disk"
begun "$disk" block-job-complete '{"device": "disk"}'
on a vbdkit jobs --wait "$disk"
refused_on b "moved.qcow2 .* is in use on host a by $disk \(write" activate --backend "$BACKEND" \
  "qcow2:$share/moved.qcow2"
qemu-io -f raw -c 'read -P 7 0 16M' "$(nbd_of a "$disk")" | grep -q 'read 16777216' ||
  fail "it does not read as it did"
ok "a disk moves to a new file of a share, and has it to itself"

begun "$disk" blockdev-snapshot-sync \
  "{\"device\": \"disk\", \"snapshot-file\": \"$share/leaf.qcow2\", \"format\": \"qcow2\"}"
refused_on b "is in use on host a by $disk \(write" activate --backend "$BACKEND" \
  "qcow2:$share/leaf.qcow2"
qemu-io -f raw -c 'write -P 8 1M 1M' "$(nbd_of a "$disk")" >/dev/null
begun "$disk" drive-mirror "$(target top.qcow2 '{sync: "top", format: "qcow2"}')"
on a vbdkit jobs --wait "$disk"
from=$(($(revision) + 1))
begun "$disk" block-job-complete '{"device": "disk"}'
await_key "$(claim_of "$share/leaf.qcow2")" DELETE "$from"
refused_on b "moved.qcow2 .* is in use on host a by $disk \(read" check --repair \
  "qcow2:$share/moved.qcow2"
on b vbdkit check --repair "qcow2:$share/leaf.qcow2" >/dev/null
qemu-io -f raw -c 'read -P 8 1M 1M' -c 'read -P 7 2M 1M' "$(nbd_of a "$disk")" >out
[ "$(grep -c 'read 1048576' out)" = 2 ] || fail "content: $(cat out)"
ok "snapshots, and a mirror of the top that stands on what is shared"

# Refused with nobody to ask; what was made is not ours to remove, and is named.
on a vbdkit deactivate "$disk"
disk=$(activate_on a raw:own.img)
kill "$a_pid"
wait "$a_pid" || fail "registryd did not end well"
not_begun 'late.img was made, and is left empty: .*registry' "$disk" drive-mirror \
  "$(target late.img '{sync: "full", format: "raw"}')"
start_registryd a
a_pid=$registryd_pid
not_begun 'late.img: File exists' "$disk" drive-mirror "$(target late.img '{sync: "full"}')"
begun "$disk" drive-mirror "$(target late.img '{sync: "full", format: "raw", mode: "existing"}')"
on a vbdkit jobs --wait "$disk"
on a vbdkit jobs --cancel disk "$disk"
on a vbdkit jobs --wait "$disk"
cmp own.img "$share/late.img" || fail "the copy is another"
ok "a target that could not be claimed is left, and said to be there"

# Killed between the two: nobody has it, and whoever comes next may.
kill -STOP "$a_pid"
qmp "$disk" drive-mirror "$(target cut.img '{sync: "full", format: "raw"}')" >/dev/null &
asked=$!
pid=$(record_on a "$disk" | jq .pid)
while [ ! -e "$share/cut.img" ] || [ "$(stat -c %s "$share/cut.img")" = 0 ]; do
  kill -0 "$asked" || fail "the job ended without a target"
done
kill -9 "$pid" "$a_pid" # or what it was asked for would be done yet
wait "$asked" "$a_pid" || true
start_registryd a
a_pid=$registryd_pid
b=$(activate_on b "raw:$share/cut.img")
on b vbdkit deactivate "$b"
disk=$(activate_on a raw:own.img)
not_begun 'cut.img: File exists' "$disk" drive-mirror "$(target cut.img '{sync: "full"}')"
on a vbdkit deactivate "$disk"
ok "one who is killed before the claim leaves a file that is nobody's"

kill "$a_pid" "$b_pid"
wait "$a_pid" "$b_pid" || fail "registryd did not end well: $(tail -3 a.log b.log)"
