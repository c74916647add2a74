#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Snapshots and coalesces beneath running instances: what guests read and write meanwhile, who is
# refused, and a coalesce that is killed at each step that others see.
# shellcheck source=tests/tools/instances-lib.sh
. "$(dirname "$0")/instances-lib.sh"
need cmp jq nbdcopy python3 qemu-io strace

uri() { echo "nbd+unix:///?socket=$(record "$1" | jq -r .nbd)"; }

# guest_writes INSTANCE MODEL KIB: 64 KiB there, and in the model of the disk.
writes=0
guest_writes() {
  writes=$((writes + 1))
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) ${3}k 64k" "$(uri "$1")" >io 2>&1 ||
    fail "a guest cannot write: $(cat io)"
  qemu-io -f raw -c "write -P $((writes % 255 + 1)) ${3}k 64k" "$2" >/dev/null
}
guest_reads() {
  rm -f guest.raw
  nbdcopy "$(uri "$1")" guest.raw
  cmp -s guest.raw "$2" || fail "$3: the guest reads something else"
}
end() { vbdkit deactivate "$1"; }
chain_of() { record "$1" | jq -c '[.chain[].path | sub(".*/"; "")]'; }

pattern base.raw $((4 << 20))
for format in qcow2 vhd; do
  mkdir "$format"
  vbdkit convert raw:base.raw "$format:$format/base.$format"
  cp base.raw "$format/model"
  vbdkit create --parent "$format:$format/base.$format" "$format:$format/mid.$format"
  guest=$(activate "$format:$format/mid.$format")
  for at in 64 640 704 2048 3000; do guest_writes "$guest" "$format/model" "$at"; done

  # The image keeps its name, and the guest its instance.
  vbdkit snapshot "$format:$format/mid.$format" "$format/before.$format"
  [ "$(chain_of "$guest")" = "[\"mid.$format\",\"before.$format\",\"base.$format\"]" ] ||
    fail "after a snapshot the chain is $(chain_of "$guest")"
  cp "$format/model" "$format/model-before"
  guest_writes "$guest" "$format/model" 100
  guest_reads "$guest" "$format/model" "after a snapshot"
  refused 1 'before.* File exists' snapshot "$format:$format/mid.$format" "$format/before.$format"
  refused 1 'is not in the directory' snapshot "$format:$format/mid.$format" "before.$format"
  guest_writes "$guest" "$format/model" 200
  guest_reads "$guest" "$format/model" "after a snapshot that was refused"
  vbdkit compare "raw:$format/model-before" "$format:$format/before.$format" >out || fail "$(cat out)"
  end "$guest"
  vbdkit compare "raw:$format/model" "$format:$format/mid.$format" >out || fail "$(cat out)"
  rm "$format/model-before"
done
ok "a snapshot of a disk in use keeps its name and its content"

# Between the new file's name and its use: an instance is stopped there, and a second snapshot of the
# same disk finds a file that no instance has, on an image that one writes.
for format in qcow2 vhd; do
  guest=$(activate "$format:$format/mid.$format")
  pid=$(record "$guest" | jq .pid)
  before=$(stat -c %i "$format/mid.$format")
  # The second one of the thread that makes the files: the directory's, after the exchange of names.
  strace -f -qq -o strace.log -p "$pid" -e trace=fsync -e inject=fsync:signal=STOP:when=2 2>/dev/null &
  tracer=$!
  until grep -qE 'TracerPid:[[:space:]]+[1-9]' "/proc/$pid/status"; do kill -0 "$tracer"; done
  "$VBDKIT" snapshot "$format:$format/mid.$format" "$format/first.$format" >out1 2>&1 &
  first=$!
  until grep -q 'stopped by SIGSTOP' strace.log; do
    kill -0 "$first" || fail "the first snapshot has ended: $(cat out1)"
  done
  [ "$(stat -c %i "$format/mid.$format")" != "$before" ] || fail "it was stopped too early"
  refused 1 'in use by' snapshot "$format:$format/mid.$format" "$format/second.$format"
  [ ! -e "$format/second.$format" ] || fail "a snapshot was refused, and is there"
  kill -KILL "$tracer"
  until grep -qE 'TracerPid:[[:space:]]+0' "/proc/$pid/status"; do :; done
  kill -CONT "$pid"
  wait "$first" || fail "the first snapshot: $(cat out1)"
  guest_reads "$guest" "$format/model" "after two snapshots at once"
  end "$guest"
  vbdkit coalesce "$format:$format/first.$format" >out
done
ok "two snapshots of a disk at the same moment"

# A reader is stopped between opening a file and locking it; meanwhile a snapshot gives the name to
# another one, which is written. What is read is what has the name then.
for format in qcow2 vhd; do
  mkdir "race-$format"
  image=$PWD/race-$format/a.$format
  vbdkit create --size 1M "$format:$image"
  rm -f strace.log
  strace -f -qq -o strace.log -P "$image" -e trace=fcntl -e inject=fcntl:signal=STOP:when=1 \
    "$VBDKIT" convert "$format:$image" raw:race.raw >out1 2>err1 &
  tracer=$!
  until grep -q 'stopped by SIGSTOP' strace.log 2>/dev/null; do
    kill -0 "$tracer" || fail "it was not stopped: $(cat err1)"
  done
  ! grep -q SETLK strace.log || fail "it was stopped too late"
  pid=$(awk 'NR == 1 { print $1 }' strace.log)
  vbdkit snapshot "$format:$image" "race-$format/before.$format"
  guest=$(activate "$format:$image")
  qemu-io -f raw -c 'write -q -P 7 64k 4k' "$(uri "$guest")" || fail "a guest cannot write"
  end "$guest"
  kill -CONT "$pid"
  wait "$tracer" || fail "status $?: $(cat err1)"
  qemu-io -f raw -r -c 'read -q -P 0 0 64k' -c 'read -q -P 7 64k 4k' race.raw >out1 2>&1 || fail "$(cat out1)"
  ! grep -q failed out1 || fail "what was read is not what the image has now: $(cat out1)"
  rm -r "race-$format"
  rm race.raw
done
ok "an image whose name goes to another file while it is opened"

mkdir group
vbdkit create --size 1M vhd:group/a.vhd
vbdkit create --size 1M qcow2:group/b.qcow2
a=$(activate vhd:group/a.vhd)
b=$(activate qcow2:group/b.qcow2)
vbdkit snapshot vhd:group/a.vhd group/a-then.vhd --group qcow2:group/b.qcow2=group/b-then.qcow2
[ "$(chain_of "$a")$(chain_of "$b")" = '["a.vhd","a-then.vhd"]["b.qcow2","b-then.qcow2"]' ] ||
  fail "a group: $(chain_of "$a")$(chain_of "$b")"
refused 1 'none was taken: .*File exists' snapshot vhd:group/a.vhd group/a-2.vhd \
  --group qcow2:group/b.qcow2=group/b-then.qcow2
[ ! -e group/a-2.vhd ] || fail "of a group that was refused one was taken"
for disk in "$a" "$b"; do
  [ "$(record "$disk" | jq -r .state)" = running ] || fail "a disk of a group still waits"
  end "$disk"
done
refused 2 'expected SPEC=NAME' snapshot vhd:group/a.vhd group/x.vhd --group qcow2:group/b.qcow2
ok "a group of disks is snapshotted at one moment"

# base - before - mid, and another disk on before.
for format in qcow2 vhd; do
  vbdkit create --parent "$format:$format/before.$format" "$format:$format/other.$format"
  guest=$(activate "$format:$format/mid.$format")
  other=$(activate --read-only "$format:$format/other.$format")
  mkdir "$format/away"
  vbdkit create --parent "$format:$format/base.$format" "$format:$format/away/brother.$format"
  brother=$(activate "$format:$format/away/brother.$format")
  refused 1 'reads the parent .* through .*brother' coalesce "$format:$format/before.$format"
  end "$brother"
  rm -r "$format/away"
  refused 1 'as its disk|in use' coalesce "$format:$format/mid.$format"
  # Whoever is not registered is met by his lock.
  mkfifo "$format/fifo"
  "$VBDKIT" serve --read-only "$format:$format/other.$format" --nbd "unix:$PWD/nbd.sock" \
    --ready-fd 9 9>"$format/fifo" 2>serve.log &
  server=$!
  read -r _ <"$format/fifo" || fail "serve: $(cat serve.log)"
  rm "$format/fifo"
  refused 1 'in use by process [0-9]+ \(vbdkit' coalesce "$format:$format/before.$format"
  kill "$server"
  wait "$server"
  guest_writes "$guest" "$format/model" 300
  guest_reads "$guest" "$format/model" "after refusals"
  vbdkit compare "$format:$format/other.$format" "$format:$format/before.$format" >out || fail "$(cat out)"
  [ ! -e "$format/before.$format.coalesce" ] || fail "a refused coalesce left a journal"
  end "$guest"
  end "$other"
done
ok "refused where somebody else stands on the parent, or uses it and is not registered"

# complete DIR FORMAT GUEST OTHER
complete() {
  [ -z "$(find "$1" -name 'before*')" ] || fail "left: $(find "$1")"
  [ "$(chain_of "$3")" = "[\"mid.$2\",\"base.$2\"]" ] || fail "the chain is $(chain_of "$3")"
  [ "$(chain_of "$4")" = "[\"other.$2\",\"base.$2\"]" ] || fail "the chain is $(chain_of "$4")"
  guest_writes "$3" "$1/model" 400
  guest_reads "$3" "$1/model" "after the coalesce"
  guest_reads "$4" "$1/model-other" "after the coalesce, another guest"
}

kills=0
for format in qcow2 vhd; do
  vbdkit convert "$format:$format/other.$format" "raw:$format/model-other"
  for call in none rename sendto unlink; do
    for ((n = 1; ; n++)); do
      cp -r "$format" cut
      guest=$(activate "$format:cut/mid.$format")
      other=$(activate --read-only "$format:cut/other.$format")
      status=0
      if [ "$call" = none ]; then
        vbdkit coalesce "$format:cut/before.$format" >out
        grep -q 'images put on it: 2' out || fail "$(cat out)"
      else
        strace -f -qq -o strace.log -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" \
          "$VBDKIT" coalesce --engine sync "$format:cut/before.$format" >out 2>err || status=$?
      fi
      [ "$status" = 0 ] || [ "$status" = 137 ] || fail "$call $n: status $status: $(cat err)"
      if [ "$status" = 137 ]; then
        kills=$((kills + 1))
        guest_writes "$guest" cut/model 500
        guest_reads "$guest" cut/model "killed at $call $n"
        vbdkit coalesce "$format:cut/before.$format" >out 2>err ||
          fail "killed at $call $n, it does not go on: $(cat err)"
      fi
      complete cut "$format" "$guest" "$other"
      end "$guest"
      end "$other"
      for image in base mid other; do
        case $(status_of check "$format:cut/$image.$format") in
          0 | 3) ;;
          *) fail "check of $image: $(cat out err)" ;;
        esac
      done
      vbdkit compare raw:cut/model "$format:cut/mid.$format" >out || fail "$call $n: $(cat out)"
      rm -r cut
      [ "$status" = 137 ] || break
    done
  done
done
[ "$kills" -ge 20 ] || fail "only $kills kills: is strace at work?"
ok "a coalesce beneath guests that write; killed at $kills points, it was ended by the next"

mkdir gc
vbdkit create --size 1M qcow2:gc/base.qcow2
vbdkit create --parent qcow2:gc/base.qcow2 qcow2:gc/mid.qcow2
vbdkit create --parent qcow2:gc/mid.qcow2 qcow2:gc/leaf.qcow2
touch gc/leaf.qcow2.vbdkit-new
vbdkit gc --dry-run --inner --json gc >out
expect_json '[.[] | [.step, (.path | sub(".*/"; ""))]]' '[["remove","leaf.qcow2.vbdkit-new"],["coalesce","mid.qcow2"]]'
guest=$(activate qcow2:gc/leaf.qcow2)
touch gc/mid.qcow2.coalesce.new # a journal that was never finished; a guest reads its image
refused 1 'leaf.qcow2: in use by' gc gc
[ ! -e gc/mid.qcow2.coalesce.new ] || fail "gc left what nobody works on: $(ls gc)"
[ -e gc/leaf.qcow2.vbdkit-new ] || fail "gc removed what somebody may be making"
[ -e gc/mid.qcow2 ] || fail "gc merged an image that nobody named"
strace -f -qq -o strace.log -e trace=rename -e inject=rename:signal=KILL:when=2 \
  "$VBDKIT" coalesce qcow2:gc/mid.qcow2 >out 2>&1 || true
[ -e gc/mid.qcow2.coalesce ] || fail "no journal: $(ls gc)"
vbdkit gc gc >out 2>err || grep -q 'in use by' err || fail "$(cat err)"
grep -q '^finish gc/mid.qcow2 ' out || fail "gc: $(cat out err)"
end "$guest"
vbdkit gc --json gc >out
expect_json '[.[] | [.step, .done]]' '[["remove",true]]'
[ "$(ls gc)" = $'base.qcow2\nleaf.qcow2' ] || fail "gc left: $(ls gc)"
ok "gc ends what was interrupted, and removes what was left"

mkdir hidden
vbdkit create --size 1M vhd:hidden/old.vhd
# As a storage manager marks what only its children need: a byte of the footer, at the file's end and its beginning.
python3 - hidden/old.vhd <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as image:
    for place in ((-512, 2), (0, 0)):
        image.seek(*place)
        footer = bytearray(image.read(512))
        footer[85] = 1
        footer[64:68] = bytes(4)
        footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
        image.seek(*place)
        image.write(footer)
PYTHON
vbdkit create --parent vhd:hidden/old.vhd vhd:hidden/disk-of-guest-7
vbdkit gc --json hidden >out
expect_json '.' '[]'
rm hidden/disk-of-guest-7
vbdkit gc --json hidden >out
expect_json '[.[] | [.step, .done]]' '[["remove",true]]'
[ -z "$(ls hidden)" ] || fail "gc left: $(ls hidden)"
ok "gc removes a hidden image on which nothing stands, whatever that is called"
