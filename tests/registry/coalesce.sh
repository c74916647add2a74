#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An image is merged on one host while guests on another read and write what stands on it: they are
# asked, over what stands in for ssh here, and have the same content at any time. Who cannot be asked
# stops it, by name; who comes meanwhile is let in where that does no harm.
# shellcheck source=tests/registry/lib.sh
. "$(dirname "$0")/lib.sh"
need cmp nbdcopy python3

# The other host has the storage at another place.
there=$scratch/there
ln -s "$share" "$there"
add_host a
add_host b
sed -i "s|^share = san .*|share = san $there|" "$run/b.conf"
start_etcd
start_registryd a
start_registryd b

fake_ssh

# disk HOST [-r] SPEC: serves it; when this returns, all hosts know.
disk() {
  local uuid
  uuid=$(activate_on "$@")
  await_key "/vbdkit/instances/$uuid" PUT 1
  echo "$uuid"
}
writes=0
# guest_writes HOST INSTANCE MODEL KIB
guest_writes() {
  writes=$((writes % 255 + 1))
  qemu-io -f raw -c "write -P $writes ${4}k 64k" "$(nbd_of "$1" "$2")" >io 2>&1 ||
    fail "a guest cannot write: $(cat io)"
  qemu-io -f raw -c "write -P $writes ${4}k 64k" "$3" >/dev/null
}
guest_reads() {
  rm -f guest.raw
  nbdcopy "$(nbd_of "$1" "$2")" guest.raw
  cmp -s guest.raw "$3" || fail "$4: the guest on host $1 reads something else"
}
chain_on() { record_on "$1" "$2" | jq -c '[.chain[].path | sub(".*/"; "")]'; }
expect_chain() {
  local got
  got=$(chain_on "$1" "$2")
  [ "$got" = "$3" ] || fail "the chain on host $1 is $got, expected $3"
}

# images FORMAT NAME...: a base, an image to be merged, what stands on it, and what each has to read as.
images() {
  local f=$1 name
  shift
  rm -rf "${share:?}/$f"
  mkdir "$share/$f"
  vbdkit convert raw:base.raw "$f:$share/$f/base.$f" >/dev/null
  vbdkit create --parent "$f:$share/$f/base.$f" --size 8M "$f:$share/$f/mid.$f" >/dev/null
  vbdkit convert -n raw:mid.raw "$f:$share/$f/mid.$f" >/dev/null
  for name in "$@"; do
    vbdkit create --parent "$f:$share/$f/mid.$f" "$f:$share/$f/$name.$f" >/dev/null
    cp mid.raw "model-$name"
  done
}
claim_of() { echo "/vbdkit/images/san/i$(stat -c %i "$1")/$2"; }

pattern base.raw $((4 << 20))
pattern mid.raw $((8 << 20))
for f in qcow2 vhd; do
  d=$share/$f
  far=$there/$f
  images "$f" a b inner late off
  vbdkit create --parent "$f:$d/inner.$f" "$f:$d/c.$f" >/dev/null
  a=$(disk a "$f:$d/a.$f")
  b=$(disk b "$f:$far/b.$f")
  c=$(disk b "$f:$far/c.$f")
  for at in 0 64 1000 3000 4096 8000; do
    guest_writes a "$a" model-a "$at"
    guest_writes b "$b" model-b "$((at + 64))"
  done

  # Somebody who cannot be asked; nothing has happened then.
  before=$(sha256sum "$d/base.$f" "$d/mid.$f")
  claim=$(claim_of "$d/mid.$f" b/vbdkit-1)
  etcdctl put "$claim" '{"mode":"read","path":"/there/mid","pid":1,"start-time":1}' >/dev/null
  refused_on a "mid.$f is in use on host b by vbdkit-1 \(read, /there/mid\): no instance" \
    coalesce "$f:$d/mid.$f"
  etcdctl del "$claim" >/dev/null
  hook x-vbdkit-yield-lock 'echo "no route to host" >&2; exit 255'
  refused_on a "instance [-0-9a-f]+ on host b: no route to host" coalesce "$f:$d/mid.$f"
  [ "$(sha256sum "$d/base.$f" "$d/mid.$f")" = "$before" ] || fail "it has written"
  ok "$f: who cannot be asked stops a coalesce before it begins"

  # Others come meanwhile: with the image between they are welcome, else they are told to wait.
  : >ssh.log
  : >came.log
  hook x-vbdkit-relink "qemu-io -f raw -c 'write -P 77 1536k 64k' '$(nbd_of b "$b")'"
  qemu-io -f raw -c 'write -P 77 1536k 64k' model-b >/dev/null
  hook x-vbdkit-yield-lock "
    on b vbdkit activate --backend '$BACKEND' '$f:$far/late.$f' >'$scratch/late.uuid'
    ! on b vbdkit activate --backend '$BACKEND' -r '$f:$far/base.$f' 2>>'$scratch/came.log'
    ! on b vbdkit create --parent '$f:$far/base.$f' '$f:$far/no.$f' 2>>'$scratch/came.log'
    ! on b vbdkit coalesce '$f:$far/mid.$f' 2>>'$scratch/came.log'"
  on a vbdkit coalesce "$f:$d/mid.$f" >out 2>err || fail "$(cat err out ssh.log came.log)"
  grep -q "the content is in .*base.$f; images put on it: 5" out || fail "$(cat out)"
  [ "$(grep -c "base.$f .* is in use on host a by vbdkit-[0-9]* (merge" came.log)" = 2 ] ||
    fail "who came meanwhile was told: $(cat came.log)"
  late=$(cat late.uuid)
  [ ! -e "$d/mid.$f" ] || fail "the image is there still"
  expect_chain a "$a" "[\"a.$f\",\"base.$f\"]"
  expect_chain b "$b" "[\"b.$f\",\"base.$f\"]"
  expect_chain b "$c" "[\"c.$f\",\"inner.$f\",\"base.$f\"]"
  expect_chain b "$late" "[\"late.$f\",\"base.$f\"]"
  grep -q "^b .*'x-vbdkit-relink'.*$far/mid" ssh.log || fail "asked: $(cat ssh.log)"
  guest_writes b "$b" model-b 2000
  guest_writes a "$a" model-a 2500
  guest_reads a "$a" model-a "after a coalesce"
  guest_reads b "$b" model-b "after a coalesce"
  guest_reads b "$c" mid.raw "after a coalesce"
  guest_reads b "$late" mid.raw "after a coalesce"
  on a vbdkit deactivate "$a"
  for uuid in "$b" "$c" "$late"; do on b vbdkit deactivate "$uuid"; done
  for name in a b inner late off; do
    vbdkit compare "raw:model-$name" "$f:$d/$name.$f" >out || fail "$name: $(cat out)"
    vbdkit check "$f:$d/$name.$f" >out || fail "$name: $(cat out)"
  done
  vbdkit check "$f:$d/base.$f" >out || fail "$(cat out)"
  ok "$f: an image is merged while guests of another host stand on it"

  # Somebody who comes late and cannot be asked keeps his image, and what is left to do is done later.
  images "$f" a b
  b=$(disk b -r "$f:$far/b.$f")
  claim=$(claim_of "$d/mid.$f" b/vbdkit-1)
  hook x-vbdkit-refresh \
    "etcdctl put '$claim' '{\"mode\":\"read\",\"path\":\"/mid\",\"pid\":1,\"start-time\":1}'"
  refused_on a "mid.$f is in use on host b by vbdkit-1" coalesce "$f:$d/mid.$f"
  guest_reads b "$b" model-b "before its image is removed"
  vbdkit compare "raw:model-a" "$f:$d/a.$f" >out || fail "$(cat out)"
  etcdctl del "$claim" >/dev/null
  on a vbdkit gc "$d" >out 2>err || fail "$(cat err)"
  [ ! -e "$d/mid.$f" ] || fail "the image is there still"
  guest_reads b "$b" model-b "when its image was removed"
  on b vbdkit deactivate "$b"
  ok "$f: who comes late and cannot be asked keeps what he has open"

  # Whoever merges is killed; the other host goes on with it, and asks the first one's guest.
  for killed_at in x-vbdkit-yield-lock x-vbdkit-relink x-vbdkit-refresh; do
    images "$f" a b c
    a=$(disk a "$f:$d/a.$f")
    b=$(disk b "$f:$far/b.$f")
    c=$(disk b -r "$f:$far/c.$f")
    guest_writes a "$a" model-a 512
    from=$(revision)
    # shellcheck disable=SC2016 # for the shell that runs it
    hook "$killed_at" 'echo $PPID >killed; kill -9 $PPID; exit 1'
    if on a vbdkit coalesce "$f:$d/mid.$f" >out 2>err; then fail "$killed_at: nobody was killed"; fi
    await_key "$(claim_of "$d/base.$f" "a/vbdkit-$(cat killed)")" DELETE "$from"
    guest_writes b "$b" model-b 640
    guest_reads a "$a" model-a "killed at $killed_at"
    guest_reads b "$b" model-b "killed at $killed_at"
    : >ssh.log
    on b vbdkit coalesce "$f:$far/mid.$f" >out 2>err || fail "after $killed_at: $(cat err)"
    grep -q "^a .*x-vbdkit-re" ssh.log || fail "after $killed_at nobody on host a was asked"
    [ ! -e "$d/mid.$f" ] || fail "the image is there still"
    guest_reads a "$a" model-a "ended after $killed_at"
    guest_reads b "$b" model-b "ended after $killed_at"
    guest_reads b "$c" model-c "ended after $killed_at"
    on a vbdkit deactivate "$a"
    for uuid in "$b" "$c"; do on b vbdkit deactivate "$uuid"; done
    vbdkit check "$f:$d/base.$f" >out || [ $? = 3 ] || fail "$(cat out)"
  done
  ok "$f: what one host was killed in, the other ends"
done
