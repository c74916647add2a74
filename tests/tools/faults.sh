#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What befalls jobs on disks in use: a full file system, a target that goes away, an instance that is
# killed while it writes headers. Guests go on, nothing is lost, and the next run ends or undoes it.
# (ARCHITECTURE.md, "Faults and where they are shown", has the other tests of the kind.)
[ -n "${VBDKIT_FAULTS_OWN_MOUNTS:-}" ] || ! unshare -m true 2>/dev/null ||
  exec env VBDKIT_FAULTS_OWN_MOUNTS=1 unshare -m "$0" "$@"
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need cmp jq nbdcopy python3 qemu-io strace unshare
[ -n "${VBDKIT_FAULTS_OWN_MOUNTS:-}" ] || {
  echo "no mounts of one's own here"
  exit 77
}

uri() { echo "nbd+unix:///?socket=$(record "$1" | jq -r .nbd)"; }
chain_of() { record "$1" | jq -c '[.chain[].path | sub(".*/"; "")]'; }

# qmp INSTANCE EVENT COMMAND ARGUMENTS [EVENT COMMAND ARGUMENTS]...: each command, and then the data
# of the event it leads to, in the file `event`; an error is in there likewise. "shell" runs its
# argument.
qmp() {
  local socket
  socket=$(record "$1" | jq -r .qmp)
  python3 - "$socket" "${@:2}" >event <<'PYTHON'
import json, socket, subprocess, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
lines = peer.makefile("rw")
def ask(command, arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    seen = []
    while True:
        answer = json.loads(lines.readline())
        if "event" in answer:
            seen.append(answer)
        elif "QMP" not in answer:
            return answer, seen
ask("qmp_capabilities", {})
steps = sys.argv[2:]
for wanted, command, arguments in zip(*[iter(steps)] * 3):
    if command == "shell":
        subprocess.run(arguments, shell=True, check=True)
        answer, seen = {}, []
    else:
        answer, seen = ask(command, json.loads(arguments))
    if "error" in answer:
        print(json.dumps({"error": answer["error"]["desc"]}))
        break
    while wanted != "none":
        event = seen.pop(0) if seen else json.loads(lines.readline())
        if event.get("event") == wanted:
            print(json.dumps(event["data"]))
            break
PYTHON
}
expect_error() {
  jq -sr 'last.error' event | grep -qE "$1" || fail "$2: expected '$1', got $(cat event)"
}
expect_completed() { [ "$(jq -sr 'last.error' event)" = null ] || fail "$1: $(cat event)"; }

# Where the leaf holds something already, so that no space is needed.
writes=0
guest_writes() {
  writes=$((writes + 1))
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) 128k 64k" -c flush "$(uri "$guest")" >io 2>&1 ||
    fail "a guest cannot write: $(cat io)"
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) 128k 64k" model >io
}
guest_goes_on() {
  guest_writes
  rm -f guest.raw
  nbdcopy "$(uri "$guest")" guest.raw
  cmp -s guest.raw model || fail "$1: the guest reads something else"
}

# base - mid - leaf in DIR, a guest on the leaf, what that reads in `model`.
make_chain() {
  local dir=$1 image
  mkdir -p "$dir"
  vbdkit convert raw:base.raw "$format:$dir/base.$format"
  vbdkit create --parent "$format:$dir/base.$format" "$format:$dir/mid.$format"
  cp base.raw model
  guest=$(activate "$format:$dir/mid.$format")
  for image in "$(uri "$guest")" model; do
    qemu-io -f raw -c "write -P 7 0 256k" -c "write -P 7 768k 512k" -c "write -P 7 1536k 256k" \
      "$image" >io
  done
  vbdkit deactivate "$guest"
  vbdkit create --parent "$format:$dir/mid.$format" "$format:$dir/leaf.$format"
  leaf=$format:$dir/leaf.$format
  guest=$(activate "$leaf")
  guest_writes
  files=$(ls "$dir")
}
end() {
  vbdkit deactivate "$guest"
  vbdkit compare raw:model "$leaf" >out || fail "$1: $(cat out)"
  case $(status_of check "$leaf") in
    0 | 3) ;;
    *) fail "$1: check: $(cat out err)" ;;
  esac
}

pattern base.raw $((2 << 20))
mkdir full
trap 'umount -l "$scratch/full"; end_all' EXIT
mount -t tmpfs -o size=16M none full
fill() { ! head -c 64M /dev/zero 2>err >full/filler || fail "it is not full"; }

for format in qcow2 vhd; do
  make_chain full
  fill
  for group in "" "--group=$format:beside.$format=beside-then.$format"; do
    [ -z "$group" ] || vbdkit create --size 1M "$format:beside.$format"
    # shellcheck disable=SC2086 # one word, or none
    refused 1 'No space left' snapshot $group "$leaf" "full/then.$format"
    guest_goes_on "snapshot $group"
    rm full/filler
    [ "$(ls full)" = "$files" ] || fail "snapshot $group left $(ls full)"
    fill
  done
  [ "$(ls beside*)" = "beside.$format" ] || fail "of a group one was taken: $(ls)"
  rm full/filler "beside.$format"
  vbdkit snapshot "$leaf" "full/then.$format"
  guest_goes_on "a snapshot, with space"
  end "a snapshot"
  rm full/*

  make_chain full
  fill
  refused 1 'No space left' coalesce "$format:full/mid.$format"
  guest_goes_on "a coalesce"
  rm full/filler
  vbdkit coalesce "$format:full/mid.$format" >out
  [ "$(chain_of "$guest")" = "[\"leaf.$format\",\"base.$format\"]" ] || fail "coalesce: $(chain_of "$guest")"
  guest_goes_on "a coalesce that was ended"
  end "a coalesce"
  rm full/*

  make_chain full
  vbdkit deactivate "$guest"
  fill
  refused 1 'No space left' coalesce "$format:full/mid.$format"
  vbdkit compare raw:model "$leaf" >out || fail "without a guest: $(cat out)"
  rm full/filler
  vbdkit coalesce "$format:full/mid.$format" >out
  guest=$(activate "$leaf")
  end "a coalesce without a guest"
  rm full/*

  make_chain full
  # What the leaf holds is not in its parent yet.
  for image in "$(uri "$guest")" model; do
    qemu-io -f raw -c 'write -P 9 320k 192k' -c 'write -P 9 1856k 192k' "$image" >io
  done
  fill
  qmp "$guest" BLOCK_JOB_COMPLETED block-commit '{"base":"'"$PWD/full/mid.$format"'"}'
  expect_error 'No space left' "commit"
  guest_goes_on "a commit"
  rm full/filler
  qmp "$guest" BLOCK_JOB_READY block-commit '{"base":"'"$PWD/full/mid.$format"'"}' \
    BLOCK_JOB_COMPLETED block-job-complete '{"device":"disk"}'
  expect_completed "commit"
  guest_goes_on "a commit that was ended"
  end "a commit"
  rm full/*

  make_chain full
  fill
  qmp "$guest" BLOCK_JOB_COMPLETED block-stream '{}'
  expect_error 'No space left' "stream"
  guest_goes_on "a stream"
  rm full/filler
  qmp "$guest" BLOCK_JOB_COMPLETED block-stream '{}'
  expect_completed "stream"
  guest_goes_on "a stream that was ended"
  end "a stream"
  rm full/*

  make_chain disk
  fill
  for job in mirror backup; do
    qmp "$guest" BLOCK_JOB_COMPLETED "drive-$job" \
      '{"target":"'"$PWD/full/to.$format"'","format":"'"$format"'","sync":"full"}'
    expect_error 'No space left' "$job"
    guest_goes_on "$job"
  done
  rm full/*
  end "mirror and backup"
  rm -r disk
done
ok "a full disk ends a job and no guest's request; with space the next one comes to its end"

# A server is gone in the middle of it.
format=qcow2
make_chain disk
truncate -s 2M target.raw
serve_target() {
  rm -f ready
  mkfifo ready
  "$VBDKIT" serve raw:target.raw --nbd "unix:$PWD/target.sock" --ready-fd 9 9>ready 2>serve.log &
  server=$!
  read -r _ <ready || fail "serve: $(cat serve.log)"
}
for job in mirror backup; do
  # One waits as long as is said, the other as long as jobs wait where nothing is said.
  case $job in mirror) patience= ;; backup) patience=,reconnect-timeout=1 ;; esac
  target='"target":"nbd+unix'$patience':///?socket='$PWD'/target.sock"'
  serve_target
  qmp "$guest" none "blockdev-$job" "{$target,\"sync\":\"full\",\"speed\":65536}" \
    none shell "kill -KILL $server" \
    BLOCK_JOB_COMPLETED block-job-set-speed '{"device":"disk","speed":0}'
  expect_error '.' "$job whose server was killed"
  guest_goes_on "$job whose server was killed"
  wait "$server" || true
  serve_target
  if [ "$job" = mirror ]; then
    qmp "$guest" BLOCK_JOB_READY blockdev-mirror "{$target,\"sync\":\"full\"}" \
      BLOCK_JOB_COMPLETED block-job-cancel '{"device":"disk"}'
  else
    qmp "$guest" BLOCK_JOB_COMPLETED blockdev-backup "{$target,\"sync\":\"full\"}"
  fi
  expect_completed "$job"
  kill "$server"
  wait "$server"
  cmp target.raw model || fail "$job: the target is something else"
done
end "lost servers"
rm -r disk
ok "a target that is lost ends mirror and backup, and the next one copies all"

# The instance is killed at each of its writes to the leaf's headers: when a coalesce puts the leaf
# on another parent, when a stream has it stand alone.
kills=0
for format in qcow2 vhd; do
  for job in coalesce stream; do
    for ((n = 1; n < 20; n++)); do
      make_chain cut
      pid=$(record "$guest" | jq .pid)
      strace -f -qq -o strace.log -p "$pid" -P "$PWD/cut/leaf.$format" -e trace=pwrite64 \
        -e "inject=pwrite64:signal=KILL:when=$n" 2>err &
      tracer=$!
      until grep -qE 'TracerPid:[[:space:]]+[1-9]' "/proc/$pid/status"; do kill -0 "$tracer"; done
      mid=$format:cut/mid.$format
      if [ "$job" = coalesce ]; then image=$mid; else image=$leaf; fi
      vbdkit "$job" "$image" >out 2>err || true
      killed=0
      if ! vbdkit list --json "$guest" >out 2>err; then
        killed=1
        guest=$(activate "$leaf") || fail "$job, killed at $n: it does not start again"
      fi
      kill -KILL "$tracer" 2>err || true
      wait "$tracer" || true
      guest_goes_on "$job, killed at $n"
      if [ "$job" = stream ]; then
        vbdkit stream "$leaf" >out 2>err || fail "$job, killed at $n: $(cat err)"
        expected="[\"leaf.$format\"]"
      else
        [ ! -e "cut/mid.$format" ] || vbdkit coalesce "$mid" >out 2>err ||
          fail "$job, killed at $n: it does not go on: $(cat err)"
        vbdkit gc cut >out 2>err || fail "$job, killed at $n: gc: $(cat err)"
        expected="[\"leaf.$format\",\"base.$format\"]"
      fi
      [ "$(chain_of "$guest")" = "$expected" ] ||
        fail "$job, killed at $n: the chain is $(chain_of "$guest")"
      guest_goes_on "$job, killed at $n, and then ended"
      end "$job, killed at $n"
      rm -r cut
      kills=$((kills + killed))
      [ "$killed" = 1 ] || break
    done
  done
done
[ "$kills" -ge 8 ] || fail "only $kills kills: is strace at work?"
ok "killed at $kills writes of headers, nothing was lost, and the next run ended it"
