#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What a disk is worth among others, at start and live; commands for another host.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need ionice jq

vbdkit create --size 8M raw:a.img
activate --ionice best-effort:6 --threads 2 raw:a.img >out
pid=$(jq .pid <(record a.img))
# every THREADS WHAT: ionice says so of each thread.
every() {
  local tid
  for tid in /proc/"$pid"/task/*; do
    [ "$(ionice -p "${tid##*/}")" = "$1" ] || fail "thread ${tid##*/}: $(ionice -p "${tid##*/}")"
  done
}
every 'best-effort: prio 6'
vbdkit priority --ionice idle a.img
every idle
vbdkit priority --json a.img >out
expect_json .ionice '"idle"'
vbdkit priority --ionice best-effort:1 a.img
every 'best-effort: prio 1'
vbdkit priority a.img >out
grep -q '^best-effort:1 ' out || fail "priority: $(cat out)"
refused 2 'the level is a number from 0 to 7' priority --ionice idle:9 a.img
refused 2 'has no levels' priority --ionice idle:1 a.img
refused 2 'the classes are' priority --ionice urgent a.img
refused 2 'from 1 to 10000' priority --io-weight 0 a.img
ok "I/O priority of every thread, at start and live"

root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
if [ -n "$root" ] && [[ " $(cat "$root/cgroup.controllers") " == *" io "* ]] && [ -w "$root" ]; then
  vbdkit priority --io-weight 300 --cpu-weight 50 a.img
  vbdkit priority --json a.img >out
  expect_json '[."io-weight", ."cpu-weight"]' '[300,50]'
  group=$root$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
  [ "$(cat "$group/io.weight" "$group/cpu.weight" | tr '\n' ' ')" = 'default 300 50 ' ] ||
    fail "weights in $group"
  vbdkit deactivate a.img
  [ ! -e "$group" ] || fail "$group is left"
  ok "weights in a control group of its own"
else
  refused 1 'cgroup v2' priority --io-weight 300 a.img
  vbdkit deactivate a.img
  ok "weights: said why not (no cgroup v2 with its controllers here)"
fi

# In ssh's place: a shell that gets one line, as the one on another host would.
mkdir bin
cat >bin/ssh <<'SH'
#!/bin/bash
[ "$1 $2 $#" = '-- there 3' ] || exit 9
vbdkit() { printf '<%s>' "$@"; }
eval "$3"
SH
chmod +x bin/ssh
# shellcheck disable=SC2016 # nothing may be expanded on the way
PATH=$PWD/bin:$PATH vbdkit --host there create --size "1M; echo" 'raw:/srv/it'\''s $HOME.img' >out </dev/null
# shellcheck disable=SC2016
[ "$(cat out)" = '<create><--size><1M; echo><raw:/srv/it'\''s $HOME.img>' ] || fail "--host: $(cat out)"
refused 2 'which, and what' --host there
ok "--host: the words arrive as they are"
