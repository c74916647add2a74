#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Running instances: how they are started without Xen, found, looked at and ended.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need jq python3 qemu-io socat strace

vbdkit create --size 64M vhd:base.vhd
vbdkit create --parent vhd:base.vhd vhd:a.vhd
vbdkit create --parent vhd:base.vhd qcow2:b.qcow2
vbdkit list >out
[ "$(wc -l <out)" = 1 ] || fail "instances before there are any: $(cat out)"

a=$(vbdkit activate --backend "$BACKEND" vhd:a.vhd)
b=$(activate qcow2:b.qcow2)
[ "$(activate vhd:a.vhd)" = "$a" ] || fail "activate twice made another instance"
refused 1 'is in use already, as' activate --backend "$BACKEND" 'throttle:iops=2000|vhd:a.vhd'
refused 1 'gone.vhd: No such file' activate --backend "$BACKEND" vhd:gone.vhd
refused 1 'in use by process' activate --backend "$BACKEND" vhd:base.vhd
refused 2 "'nosuch' is no driver|unknown driver" activate --backend "$BACKEND" nosuch:a.vhd
ok "activate: once for each image; why it cannot"

vbdkit list --json >out
expect_json 'map(select(.alive)) | length' 2
expect_json "map(select(.uuid == \"$a\")) | .[0] | [.state, .managed, (.chain | map(.path | sub(\".*/\"; \"\")))]" \
  '["running",false,["a.vhd","base.vhd"]]'
[ "$(jq -r ".[] | select(.uuid == \"$a\") | .chain[0].inode" out)" = "$(stat -c %i a.vhd)" ] ||
  fail "the record's inode: $(cat out)"
for name in "$a" "${a:0:8}" a.vhd ./a.vhd "$PWD/a.vhd" vhd:a.vhd; do
  vbdkit list --json "$name" >out
  expect_json '.[0].uuid' "\"$a\""
done
ln -s a.vhd link
ln a.vhd hard
for name in link hard; do
  vbdkit list --json "./$name" >out
  expect_json '.[0].uuid' "\"$a\""
done
refused 1 'is a parent of what is running:' list base.vhd
refused 1 'no instance has ./err open' list ./err
refused 1 'no instance serves xvda of domain 5' list 5:xvda
refused 2 'is no disk of a guest' list 5:nosuch
refused 1 'no instance zzzz runs here' list zzzz
vbdkit tree >out
diff - <(sed -E "s/\[[0-9a-f]{8} /[/; s|$PWD/||" out) <<'TXT' || fail "tree of what is running"
base.vhd  vhd, 64 MiB
├── a.vhd  vhd, 64 MiB  [running]
└── b.qcow2  qcow2, 64 MiB  [running]
TXT
vbdkit tree --json >out
expect_json '.[0].children | map(.instances[0])' "$(jq -cn --arg a "$a" --arg b "$b" '
  [$a, $b]')"
ok "found by UUID, by image under any name, drawn with their parents"

uri="nbd+unix:///?socket=$(jq -r '.nbd' <(record "$a"))"
qemu-io -f raw -c 'write -P 7 0 1M' -c 'read -P 7 512k 64k' "$uri" >out
vbdkit stats --json a.vhd >out
expect_json '.[0].io | [.reads > 0, ."bytes-read", ."bytes-written"]' '[true,65536,1048576]'
expect_json '.[0].instance.uuid' "\"$a\""
vbdkit stats >out
grep -q '1 MiB' out || fail "stats: $(cat out)"
vbdkit top --once --json --interval 0.05 >out
expect_json "map(select(.uuid == \"$a\")) | .[0].io.\"bytes-written\"" 1048576
vbdkit top --once --interval 0.05 >out
[ "$(wc -l <out)" = 3 ] || fail "top --once: $(cat out)"
refused 2 'no terminal' top
ok "stats and top say what was done"

# The signal surface: any QMP client, hostile ones included.
qmp=$(jq -r .qmp <(record "$a"))
[ "$(stat -c %a "$qmp")" = 600 ] || fail "qmp.sock has mode $(stat -c %a "$qmp")"
socat -t 5 - "UNIX-CONNECT:$qmp" >out <<'QMP'
{"execute":"qmp_capabilities"}
{"execute":"query-block","id":7}
{"execute":"no-such-command"}
{"execute":"query-status","arguments":{"x":1}}
nonsense
{"execute":"query-status"}
QMP
[ "$(wc -l <out)" = 7 ] || fail "QMP through socat: $(cat out)"
jq -se '.[0].QMP and .[2].id == 7 and .[2].return[0].inserted.image."virtual-size" == 67108864 and
  .[3].error.class == "CommandNotFound" and .[4].error and .[5].error and .[6].return.running' \
  out >jq.out || fail "QMP through socat: $(cat out)"
# One that sends no end, and one that asks for ever and never reads: nobody waits for them.
head -c 40M /dev/zero | tr '\0' '[' >huge
socat -u OPEN:huge "UNIX-CONNECT:$qmp" 2>err || true
{
  echo '{"execute":"qmp_capabilities"}'
  yes '{"execute":"query-block"}'
} | socat -u STDIN "UNIX-CONNECT:$qmp" 2>/dev/null &
deaf=$!
for _ in {1..50}; do
  vbdkit stats --json a.vhd >out
  expect_json '.[0].uuid' "\"$a\""
done
rss=$(awk '$1 == "VmRSS:" { print $2 }' "/proc/$(jq .pid <(record "$a"))/status")
[ "$rss" -lt 65536 ] || fail "the instance has $rss KiB for clients that misbehave"
kill "$deaf"
wait "$deaf" || true
ok "QMP through socat; clients that misbehave"

# An end waits for who still uses the disk.
hold "$b"
refused 1 'has not ended within 0 s' deactivate --wait 0 "$b"
vbdkit list --json "$b" >out
expect_json '.[0] | [.managed, .consumers]' '[true,[{"clients":1,"type":"nbd"}]]'
pid=$(jq .pid <(record "$b"))
release
tail --pid="$pid" -f /dev/null
refused 1 'no instance' list b.qcow2
vbdkit deactivate a.vhd
refused 1 'no instance has' list a.vhd
left=$(find "$VBDKIT_RUNTIME_DIR" -mindepth 2)
[ -z "$left" ] || fail "left behind: $left"
qemu-io -f vpc -c 'read -P 7 0 1M' a.vhd | grep -q 'read 1048576' || fail "what was written is lost"
ok "deactivate: at once, or with the last user; nothing is left"

# What was killed never looks alive.
a=$(activate vhd:a.vhd)
pid=$(jq .pid <(record "$a"))
kill -9 "$pid"
tail --pid="$pid" -f /dev/null
refused 1 "instance $a is dead" list "$a"
refused 1 'no instance has' list a.vhd
vbdkit list >out
grep -q "^${a:0:8} *dead" out || fail "list of the dead: $(cat out)"
[ "$(vbdkit tree)" = "" ] || fail "the dead in the tree"
# Another one takes the image, and the dead one's remains do not matter.
c=$(activate vhd:a.vhd)
vbdkit list --json a.vhd >out
expect_json '.[0].uuid' "\"$c\""
vbdkit deactivate a.vhd
ok "one that was killed is dead to all"

# Among 10,000: as many files are opened as among one.
python3 - "$VBDKIT_RUNTIME_DIR" <<'PY'
import json, os, sys
run = sys.argv[1]
for n in range(10000):
    d = f"{run}/instances/{n:08x}-0000-4000-8000-000000000000"
    os.mkdir(d)
    open(d + "/pid", "w").close()
    with open(d + "/record.json", "w") as f:
        json.dump({"pid": 1, "start-time": 1, "chain": []}, f)
PY
a=$(activate vhd:a.vhd)
opens() {
  strace -f -qq -e trace=open,openat,getdents64 -o trace "$VBDKIT" "$@" >out
  expect_json '.[0].uuid' "\"$a\""
  grep -c "$VBDKIT_RUNTIME_DIR" trace
}
for name in a.vhd "$a"; do
  n=$(opens list --json "$name")
  [ "$n" -le 6 ] || fail "finding $name among 10,000 opened $n files: $(grep run/ trace | head -20)"
done
vbdkit deactivate "$a"
ok "finding one among 10,000 reads its record alone"
