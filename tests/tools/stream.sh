#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# vbdkit stream: parents pulled into an image, by the instance that has it open and without one; what
# a killed instance leaves, and how the next one goes on.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need cmp jq nbdcopy python3 qemu-img qemu-io

uri() { echo "nbd+unix:///?socket=$(record "$1" | jq -r .nbd)"; }
chain_of() { record "$1" | jq -c '[.chain[].path | sub(".*/"; "")]'; }
qemu_name() { [ "$1" = vhd ] && echo vpc || echo "$1"; }

# make_chain DIR FORMAT: base - middle - leaf, and what the leaf reads as in DIR/model.
make_chain() {
  mkdir "$1"
  vbdkit convert raw:base.raw "$2:$1/base.$2"
  vbdkit create --parent "$2:$1/base.$2" "$2:$1/middle.$2"
  vbdkit create --parent "$2:$1/middle.$2" "$2:$1/leaf.$2"
  cp base.raw "$1/model"
}
# writes INSTANCE MODEL PATTERN KIB...: 64 KiB each, there and in the model.
writes() {
  local instance=$1 model=$2 with=$3 at
  shift 3
  for at; do
    qemu-io -f raw -c "write -P $with ${at}k 64k" -c flush "$(uri "$instance")" >io 2>&1 ||
      fail "a guest cannot write: $(cat io)"
    qemu-io -f raw -c "write -P $with ${at}k 64k" "$model" >io
  done
}
reads() {
  rm -f guest.raw
  nbdcopy "$(uri "$1")" guest.raw
  cmp -s guest.raw "$2" || fail "$3: the guest reads something else"
}
# stands_alone DIR FORMAT: also for QEMU, and without the files of its parents.
stands_alone() {
  rm "$1/base.$2" "$1/middle.$2"
  vbdkit info --json "$2:$1/leaf.$2" >out
  expect_json '.parent' null
  [ "$(status_of check "$2:$1/leaf.$2")" = 0 ] || fail "check: $(cat out err)"
  same "$1/leaf.$2" "$(qemu_name "$2")" "$1/model" raw
}

pattern base.raw $((6 << 20))
for format in qcow2 vhd; do
  make_chain "$format" "$format"
  refused 1 'base.*: .*nowhere is not beneath' stream --base "$format/nowhere" "$format:$format/leaf.$format"
  refused 2 'no instance runs' stream --no-wait "$format:$format/leaf.$format"
  vbdkit stream "$format:$format/leaf.$format"
  vbdkit stream "$format:$format/leaf.$format"
  stands_alone "$format" "$format"
done
refused 2 'has no parents' stream raw:base.raw
ok "an image that nobody uses"

for format in qcow2 vhd; do
  make_chain "live-$format" "$format"
  leaf=$format:live-$format/leaf.$format
  model=live-$format/model
  guest=$(activate "$leaf")
  writes "$guest" "$model" 17 0 640 4000
  vbdkit stream --speed 64K --no-wait "$leaf"
  refused 1 "Job 'disk' \(stream\) runs on this disk; wait for its end or cancel it" stream "$leaf"
  refused 1 'runs on this disk' snapshot "$leaf" "live-$format/s.$format"
  writes "$guest" "$model" 34 100 3000
  reads "$guest" "$model" "in the middle of it"
  vbdkit jobs --speed disk=0 "$guest"
  vbdkit jobs --wait "$guest"
  [ "$(chain_of "$guest")" = "[\"leaf.$format\"]" ] || fail "the chain is $(chain_of "$guest")"
  # Nobody has the parents any more.
  for parent in base middle; do
    vbdkit resize "$format:live-$format/$parent.$format" +0 >out 2>err || grep -q 'parent' err ||
      fail "$parent: $(cat err)"
  done
  writes "$guest" "$model" 51 200 5000
  reads "$guest" "$model" "after it"
  vbdkit deactivate "$guest"
  stands_alone "live-$format" "$format"
done
ok "a disk in use"

for format in qcow2 vhd; do
  make_chain "based-$format" "$format"
  guest=$(activate "$format:based-$format/middle.$format")
  writes "$guest" "based-$format/model" 68 300 1000
  vbdkit deactivate "$guest"
  leaf=$format:based-$format/leaf.$format
  guest=$(activate "$leaf")
  vbdkit stream --base "based-$format/base.$format" "$leaf"
  [ "$(chain_of "$guest")" = "[\"leaf.$format\",\"base.$format\"]" ] ||
    fail "the chain is $(chain_of "$guest")"
  rm "based-$format/middle.$format"
  reads "$guest" "based-$format/model" "above its base"
  vbdkit deactivate "$guest"
  vbdkit compare "raw:based-$format/model" "$leaf" >out || fail "$(cat out)"
done
ok "with a base that stays"

# Killed while it copies: what was flushed is there, and the next one needs not copy it all again.
for format in qcow2 vhd; do
  make_chain "cut-$format" "$format"
  leaf=$format:cut-$format/leaf.$format
  guest=$(activate "$leaf")
  vbdkit stream --speed 64K --no-wait "$leaf"
  writes "$guest" "cut-$format/model" 85 128 2048
  pid=$(record "$guest" | jq .pid)
  kill -9 "$pid"
  tail --pid="$pid" -f /dev/null
  vbdkit compare "raw:cut-$format/model" "$leaf" >out || fail "after a kill: $(cat out)"
  guest=$(activate "$leaf")
  vbdkit stream "$leaf"
  reads "$guest" "cut-$format/model" "after the next one"
  vbdkit deactivate "$guest"
  stands_alone "cut-$format" "$format"
done
ok "an instance that is killed loses nothing"

qemu-img create -q -f qcow2 base.qcow2 1M
qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 snapshots.qcow2
qemu-img snapshot -c one snapshots.qcow2
refused 1 'internal snapshots, which stand on its parents too' stream qcow2:snapshots.qcow2
ok "refused where internal snapshots stand on the parents too"
