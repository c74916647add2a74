#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# System calls per request, counted by strace over a fixed number of requests. At most one at
# 32 in flight; a server without batching makes five and more.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need strace

ios=20000
truncate -s 64M "$scratch/disk"

# count CASE SPEC NBDLOAD-OPTION...: prints the calls per request; the whole count is in $calls.
count() {
  local name=$1 spec=$2
  shift 2
  serve "$name" "$spec"
  mkfifo "$scratch/$name.strace"
  strace -f -c -o "$scratch/$name.counts" -p "$server" 2>"$scratch/$name.strace" &
  local tracer=$! line
  read -r line <"$scratch/$name.strace" # "Process N attached": from here on everything is counted
  [[ $line = *attached* ]] || fail "strace: $line"
  "$NBDLOAD" --socket "$scratch/$name.sock" --ios "$ios" "$@" >/dev/null
  kill -INT "$tracer"
  wait "$tracer" || true
  calls=$(awk '$NF == "total" { print $(NF - 1) == "total" ? 0 : $4 }' "$scratch/$name.counts")
  [ -n "$calls" ] || fail "no count: $(cat "$scratch/$name.counts")"
  printf '%s: %s: %s system calls for %s requests, %s each\n' "${0##*/}" "$name" "$calls" "$ios" \
    "$(awk "BEGIN { printf \"%.2f\", $calls / $ios }")"
  stop "$server"
}

at_most() {
  [ "$calls" -le $(($2 * ios)) ] || fail "$1: more than $2 system calls per request"
}
at_most_one() { at_most "$1" 1; }

random_file "$scratch/disk" $((64 << 20))
count cached-randread-qd32 "raw,direct=off:$scratch/disk" --rw randread --qd 32
at_most_one cached-randread-qd32
count cached-randwrite-qd32 "raw,direct=off:$scratch/disk" --rw randwrite --qd 32
at_most_one cached-randwrite-qd32
count direct-randread-qd32 "raw:$scratch/disk" --rw randread --qd 32
at_most_one direct-randread-qd32
count direct-randwrite-qd32 "raw:$scratch/disk" --rw randwrite --qd 32
# The file system may give direct writes to worker threads, which finish them one by one; there is
# then as little to batch as at one in flight.
at_most direct-randwrite-qd32 3
count ram-randread-qd32 ram,size=64M --rw randread --qd 32
at_most_one ram-randread-qd32
# For the reader: there is nothing to batch at one in flight.
count cached-randread-qd1 "raw,direct=off:$scratch/disk" --rw randread --qd 1
