#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A word to a running disk: pause, resume, drain, refresh, grow, throttle, and its jobs.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need cmp jq nbdinfo qemu-io socat

vbdkit create --size 8M raw:a.img
a=$(activate raw:a.img)
uri="nbd+unix:///?socket=$(jq -r .nbd <(record "$a"))"
state() { record "$a" | jq -r .state; }

vbdkit pause --timeout 600 a.img
[ "$(state)" = paused ] || fail "after a pause: $(state)"
vbdkit resume a.img
[ "$(state)" = running ] || fail "after resume: $(state)"
vbdkit resume a.img
# A read waits for the end of the pause, which comes by itself.
vbdkit pause --timeout 0.2 a.img
qemu-io -f raw -c 'read 0 4k' "$uri" | grep -q 'read 4096/4096' || fail "no read after a pause"
[ "$(state)" = running ] || fail "after its deadline: $(state)"
refused 2 'from 0.001 to 3600' pause --timeout 0 a.img
vbdkit drain a.img
[ "$(state)" = running ] || fail "after drain: $(state)"
ok "pause, with a deadline; resume; drain"

vbdkit grow a.img +8M
[ "$(nbdinfo --size "$uri")" = $((16 << 20)) ] || fail "grown to $(nbdinfo --size "$uri")"
vbdkit list --json a.img >out
expect_json '.[0]."virtual-size"' $((16 << 20))
vbdkit grow a.img 20M
[ "$(stat -c %s a.img)" = $((20 << 20)) ] || fail "the file has $(stat -c %s a.img) bytes"
refused 1 'does not shrink' grow a.img 1M
refused 2 'is not a size' grow a.img large
ok "grow: clients see the new size"

vbdkit throttle a.img >out
[ "$(grep -c none out)" = 6 ] || fail "limits before there are any: $(cat out)"
vbdkit throttle --iops 5000 --bps-write 10M/50M a.img
vbdkit throttle --json a.img >out
expect_json '[.iops, ."bps-write", .bps]' '[5000,10485760,0]'
vbdkit throttle --off a.img
vbdkit throttle --json a.img >out
expect_json '[.iops, ."bps-write", .bps]' '[0,0,0]'
refused 2 'takes all limits away' throttle --off --iops 1 a.img
refused 1 'iops_max' throttle --iops 100/50 a.img
ok "throttle: shown, set, taken away"

qemu-io -f raw -c 'write -P 5 0 20M' "$uri" >/dev/null
# start COMMAND: a job, as any QMP client starts one.
start() {
  printf '%s\n' '{"execute":"qmp_capabilities"}' "$1" |
    socat -t 10 - "UNIX-CONNECT:$(jq -r .qmp <(record "$a"))" >answer
  ! grep '"error"' answer || fail "start: $(cat answer)"
}
vbdkit jobs --json >out
expect_json length 0
start "$(jq -cn --arg t "$PWD/copy.img" '{execute: "drive-mirror", arguments: {"job-id": "copy",
  device: "disk", target: $t, format: "raw", sync: "full", speed: 65536}}')"
vbdkit jobs --json a.img >out
expect_json '.[0] | [.id, .type, .speed]' '["copy","mirror",65536]'
vbdkit jobs >out
grep -q '^[0-9a-f]\{8\}  copy  *mirror' out || fail "jobs: $(cat out)"
vbdkit jobs --speed copy=0 a.img
vbdkit jobs --wait --job copy a.img
vbdkit jobs --json a.img >out
expect_json '.[0].ready' true
vbdkit jobs --cancel copy a.img
vbdkit jobs --wait a.img
vbdkit jobs --json a.img >out
expect_json length 0
cmp a.img copy.img || fail "the copy is another"
refused 1 'No active block job' jobs --cancel copy a.img
refused 2 'of which instance' jobs --cancel copy
refused 1 'no job other' jobs --wait --job other a.img
ok "jobs: shown, sped up, waited for, cancelled"

# With the driver, tests/xen has a case.
[ -e /sys/block/nbd0 ] || refused 1 "NBD driver is not there" attach a.img
refused 1 'is attached to no device' detach a.img
refused 1 'was not attached by vbdkit' detach /dev/nbd0
vbdkit deactivate a.img
ok "attach and detach say what is missing"

# Parents that were put together without its knowledge: the chain is read anew beneath a client.
vbdkit convert raw:a.img qcow2:base.qcow2
vbdkit create --parent qcow2:base.qcow2 qcow2:leaf.qcow2
b=$(activate qcow2:leaf.qcow2)
vbdkit refresh leaf.qcow2
qemu-io -f raw -c 'read -P 5 0 20M' "nbd+unix:///?socket=$(jq -r .nbd <(record "$b"))" >out
grep -q 'read 20971520' out || fail "after refresh: $(cat out)"
refused 1 'no instance' refresh gone
vbdkit deactivate leaf.qcow2
ok "refresh"
