#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# vbdkit snapshot --group: all or none, of one moment, whoever is killed in between: the command, or
# one of the instances. Two disks are in use, of different formats, and one image is not.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need jq python3 qemu-io strace

uri() { echo "nbd+unix:///?socket=$(record "$1" | jq -r .nbd)"; }
spec_of() { case $1 in a) echo vhd:cut/a.vhd ;; *) echo "qcow2:cut/$1.qcow2" ;; esac }
file_of() { spec_of "$1" | sed 's/.*://'; }
then_of() { file_of "$1" | sed 's/\./-then./'; }

writes=0
# guest_writes DISK INSTANCE KIB
guest_writes() {
  writes=$((writes + 1))
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) ${3}k 64k" -c flush "$(uri "$2")" >io 2>&1 ||
    fail "a guest cannot write: $(cat io)"
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) ${3}k 64k" "cut/model-$1" >io
}
pattern base.raw $((1 << 20))
mkdir first
for disk in a b c; do
  vbdkit convert raw:base.raw "$(spec_of "$disk" | sed 's/cut/first/')"
  cp base.raw "first/model-$disk"
done
declare -A guests
# Both guests have written, and nothing more until they are asked to.
begin() {
  local disk
  rm -rf cut
  cp -r first cut
  for disk in a b; do
    guests[$disk]=$(activate "$(spec_of "$disk")")
    guest_writes "$disk" "${guests[$disk]}" 64
  done
  for disk in a b c; do cp "cut/model-$disk" "cut/then-$disk"; done
}
# The group as a command line, in `group`; disks stand still for at most MS.
group_of() {
  group=(snapshot --longest-pause "$1" "$(spec_of a)" "$(then_of a)")
  group+=(--group "$(spec_of b)=$(then_of b)" --group "$(spec_of c)=$(then_of c)")
}
# Of all or of none; says which. All that was interrupted has been ended.
verdict() {
  local disk there=0
  for disk in a b c; do
    [ ! -e "$(then_of "$disk")" ] || there=$((there + 1))
  done
  case $there in
    0) echo none ;;
    3) echo taken ;;
    *) fail "$1: $there of the three were taken: $(ls cut)" ;;
  esac
}
alive() { vbdkit list --json "$1" 2>/dev/null | jq -e '.[0].alive' >alive.out; }
# complete WHERE [VERDICT]: guests go on, nothing is left, and all is what it must be.
complete() {
  local disk got
  for disk in a b; do
    # One that was killed is started again, by whoever needs it.
    alive "${guests[$disk]}" || guests[$disk]=$(activate "$(spec_of "$disk")") ||
      fail "$1: $disk does not start again"
    guest_writes "$disk" "${guests[$disk]}" 256
  done
  for disk in a b; do
    vbdkit deactivate "${guests[$disk]}"
    ! alive "${guests[$disk]}" || fail "$1: $disk does not end"
  done
  vbdkit gc cut >out 2>err || fail "$1: gc: $(cat err)"
  [ -z "$(find cut -name '*.vbdkit-*')" ] || fail "$1: left: $(ls cut)"
  got=$(verdict "$1")
  [ "${2:-$got}" = "$got" ] || fail "$1: it should be $2, and is $got"
  for disk in a b c; do
    vbdkit compare "raw:cut/model-$disk" "$(spec_of "$disk")" >out 2>err ||
      fail "$1: the guest of $disk reads something else: $(cat out err)"
    [ "$got" = none ] ||
      vbdkit compare "raw:cut/then-$disk" "$(spec_of "$disk" | sed 's/\./-then./')" >out 2>err ||
      fail "$1: $disk was snapshotted at another moment: $(cat out err)"
  done
}

group_of 5000
begin
vbdkit "${group[@]}"
complete "a group" taken
begin
touch "$(then_of c)"
refused 1 'of the group none was taken: .*File exists' "${group[@]}"
rm "$(then_of c)"
complete "one that cannot be" none
begin
refused 1 'of the group none was taken: .*under way' "${group[@]}" --group "$(spec_of a)=cut/a-2.vhd"
complete "a disk that is named twice" none
refused 2 'expected SPEC=NAME' "${group[@]}" --group "$(spec_of b)"
ok "all disks of a group, or none"

# Two guests write the same numbers, one after the other: each in a no later than in b.
begin
python3 - "$(uri "${guests[a]}")" "$(uri "${guests[b]}")" writing <<'PYTHON' &
import os, subprocess, sys
def client(uri):
    io = subprocess.Popen(["qemu-io", "-f", "raw", uri], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True)
    def write(number):
        io.stdin.write(f"write -P {number % 250 + 1} 0 512\n")
        io.stdin.flush()
        while "wrote" not in io.stdout.readline():
            pass
    return write
a, b = client(sys.argv[1]), client(sys.argv[2])
number = 0
while number < 2 or os.path.exists(sys.argv[3]):
    a(number)
    b(number)
    number += 1
    if number == 2:
        open(sys.argv[3], "w").close()
PYTHON
writer=$!
until [ -e writing ]; do kill -0 "$writer"; done
for ((i = 1; i <= 8; i++)); do
  vbdkit snapshot --longest-pause 20000 "$(spec_of a)" "cut/a-$i.vhd" \
    --group "$(spec_of b)=cut/b-$i.qcow2"
done
rm writing
wait "$writer" || fail "the guests"
for ((i = 1; i <= 8; i++)); do
  vbdkit convert "vhd:cut/a-$i.vhd" raw:a.raw
  vbdkit convert "qcow2:cut/b-$i.qcow2" raw:b.raw
  ahead=$(($(od -An -tu1 -N1 a.raw) - $(od -An -tu1 -N1 b.raw)))
  [ "$(((ahead + 250) % 250))" -le 1 ] || fail "snapshot $i: a is $ahead ahead of b"
  rm a.raw b.raw
done
for disk in a b; do vbdkit deactivate "${guests[$disk]}"; done
ok "disks in use, at one moment"

# The command is killed in each of its calls, one after the other.
kills=0
for call in sendto rename unlink; do
  for ((n = 1, again = 0; ; n++)); do
    group_of 1500
    begin
    status=0
    strace -qq -o strace.log -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" \
      "$VBDKIT" "${group[@]}" >out 2>err || status=$?
    case $status in
      0) complete "$call $n" taken ;;
      1) # The machine is so slow that a disk did not wait.
        grep -q 'could wait no longer' err || fail "$call $n: $(cat err)"
        complete "$call $n, given up" none
        [ $((again += 1)) -lt 5 ] || fail "$call $n: never in time"
        n=$((n - 1))
        continue
        ;;
      137)
        kills=$((kills + 1))
        complete "the command killed at $call $n"
        ;;
      *) fail "$call $n: status $status: $(cat err)" ;;
    esac
    [ "$status" = 137 ] || break
  done
done
[ "$kills" -ge 12 ] || fail "only $kills kills: is strace at work?"
ok "the command is killed at $kills points"

# traced INSTANCE OPTION...: strace on the instance, in `tracer`.
traced() {
  local pid
  pid=$(record "$1" | jq .pid)
  rm -f strace.log
  strace -qq -o strace.log -p "$pid" "${@:2}" 2>/dev/null &
  tracer=$!
  until grep -qE 'TracerPid:[[:space:]]+[1-9]' "/proc/$pid/status"; do kill -0 "$tracer"; done
}

# An instance is killed: in the thread that makes and exchanges files, in front of its answers, and
# where it removes its record, when all has been decided.
kills=0
for at in -f:rename:1 -f:rename:2 -f:rename:3 -f:link:1 -f:fsync:4 -q:sendto:3 -q:sendto:4 -q:sendto:5 \
  member:unlink:1; do
  IFS=: read -r how call n <<<"$at"
  group_of 20000
  begin
  if [ "$how" = member ]; then how="-fP$PWD/$(file_of b).vbdkit-member"; fi
  traced "${guests[b]}" "$how" -e "trace=$call" -e "inject=$call:signal=KILL:when=$n"
  status=0
  vbdkit "${group[@]}" >out 2>err || status=$?
  # Where it was not killed, this ends the tracing.
  kill -KILL "$tracer" 2>/dev/null || true
  wait "$tracer" || true
  alive "${guests[b]}" || kills=$((kills + 1))
  case $status in
    0) complete "the instance killed at $at" taken ;;
    1) complete "the instance killed at $at" none ;;
    *) fail "$at: status $status: $(cat err)" ;;
  esac
done
[ "$kills" = 9 ] || fail "only $kills kills"
ok "an instance is killed at $kills points"

# An instance is stopped when it has its files. The other disk stands still, until it can wait no
# longer; then nobody takes snapshots any more, whatever the first one says when it goes on.
group_of 1000
begin
traced "${guests[b]}" -q -e trace=sendto -e inject=sendto:signal=STOP:when=3
"$VBDKIT" "${group[@]}" >out1 2>err1 &
command=$!
until grep -q 'stopped by SIGSTOP' strace.log; do
  kill -0 "$command" || fail "the command has ended: $(cat out1 err1)"
done
# Its answer comes when the disk goes on.
guest_writes a "${guests[a]}" 512
until [ -z "$(find cut -name '*.vbdkit-group')" ]; do
  kill -0 "$command" || fail "the command has ended: $(cat out1 err1)"
done
pid=$(record "${guests[b]}" | jq .pid)
kill -KILL "$tracer"
until grep -qE 'TracerPid:[[:space:]]+0' "/proc/$pid/status"; do :; done
kill -CONT "$pid"
status=0
wait "$command" || status=$?
[ "$status" = 1 ] || fail "status $status: $(cat err1)"
grep -qE 'none was taken: .*(could wait no longer|given up)' err1 || fail "$(cat err1)"
complete "a disk that could wait no longer" none
ok "a disk that stands still for too long goes on, and none is taken"
