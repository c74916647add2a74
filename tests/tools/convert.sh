#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# convert, compare and map: contents byte by byte against qemu-img, in both directions; holes stay
# holes; what fails leaves nothing behind.
# shellcheck source=tests/tools/lib.sh
. "$(dirname "$0")/lib.sh"
need jq python3 qemu-img

# A size that is no multiple of any cluster.
size=$(((37 << 20) + 3 * 512))
pattern src.raw "$size"

vbdkit convert raw:src.raw raw:copy.raw
cmp src.raw copy.raw
vbdkit convert raw:src.raw qcow2:copy.qcow2
same src.raw raw copy.qcow2 qcow2
qemu-img check -q copy.qcow2
vbdkit convert -o cluster_size=4K -o extended_l2=off raw:src.raw qcow2:small.qcow2
same src.raw raw small.qcow2 qcow2
vbdkit convert -o extended_l2=on raw:src.raw qcow2:sub.qcow2
same src.raw raw sub.qcow2 qcow2
vbdkit convert raw:src.raw vhd:copy.vhd
same src.raw raw copy.vhd vpc
vbdkit convert -o block_size=512K -o batmap=off raw:src.raw vhd:small.vhd
same src.raw raw small.vhd vpc
vbdkit convert -o subformat=fixed raw:src.raw vhd:fixed.vhd
same src.raw raw fixed.vhd vpc
for image in qcow2:copy.qcow2 qcow2:small.qcow2 vhd:copy.vhd vhd:small.vhd vhd:fixed.vhd; do
  [ "$(status_of check "$image")" = 0 ] || fail "check of $image: $(cat out err)"
done
ok "raw to qcow2 and VHD, read by qemu-img"

qemu-img convert -O qcow2 src.raw theirs.qcow2
qemu-img convert -c -O qcow2 src.raw compressed.qcow2
qemu-img convert -O vpc -o force_size=on src.raw theirs.vhd
for image in qcow2:theirs.qcow2 qcow2:compressed.qcow2 vhd:theirs.vhd; do
  rm -f back.raw
  vbdkit convert "$image" raw:back.raw
  cmp src.raw back.raw
done
vbdkit convert vhd:theirs.vhd qcow2:through.qcow2
vbdkit convert qcow2:through.qcow2 vhd:through.vhd
vbdkit convert vhd:through.vhd raw:through.raw
cmp src.raw through.raw
ok "qemu-img's images to raw, and through qcow2 and VHD to raw"

for engine in sync libaio io_uring; do
  rm -f engine.qcow2
  status=$(status_of convert --engine "$engine" raw:src.raw qcow2:engine.qcow2)
  if [ "$status" != 0 ] && [ "$engine" != sync ]; then continue; fi
  same src.raw raw engine.qcow2 qcow2
done
ok "every I/O engine"

# A hole must not be read, nor become data.
truncate -s 8G sparse.raw
head -c 1M src.raw | dd of=sparse.raw bs=1M seek=5000 conv=notrunc status=none
vbdkit convert raw:sparse.raw qcow2:sparse.qcow2
vbdkit convert raw:sparse.raw vhd:sparse.vhd
vbdkit convert raw:sparse.raw raw:sparse2.raw
for image in sparse.qcow2 sparse.vhd sparse2.raw; do
  used=$(($(stat -c %b "$image") * 512))
  [ "$used" -lt $((8 << 20)) ] || fail "$image takes $used bytes"
done
same sparse.raw raw sparse.qcow2 qcow2
# Zeroes that were written do not become data either, but with --sparse 0 they do.
head -c 8M /dev/zero >zeroes.raw
vbdkit convert raw:zeroes.raw qcow2:zeroes.qcow2
vbdkit map --json qcow2:zeroes.qcow2 >out
expect_json '[.[].kind]' '["absent"]'
vbdkit convert --sparse 0 raw:zeroes.raw qcow2:written.qcow2
vbdkit map --json qcow2:written.qcow2 >out
expect_json '[.[] | [.kind, .length]]' '[["data",8388608]]'
ok "holes and zeroes take no space"

# Into an image that is there: what it held goes.
qemu-img create -q -f qcow2 old.qcow2 "$size"
qemu-io -c "write -P 0x5a 0 $size" old.qcow2 >/dev/null
vbdkit convert --no-create raw:src.raw qcow2:old.qcow2
same src.raw raw old.qcow2 qcow2
vbdkit convert -n raw:src.raw vhd:theirs.vhd
same src.raw raw theirs.vhd vpc
truncate -s 1M tiny.raw
refused 1 'needs' convert -n raw:src.raw raw:tiny.raw
ok "into images that are there"

refused 1 'File exists' convert raw:src.raw qcow2:copy.qcow2
same src.raw raw copy.qcow2 qcow2
refused 2 'unknown option' convert -o nothing=1 raw:src.raw qcow2:none.qcow2
refused 2 'unknown driver' convert src.raw qcow2:none.qcow2
refused 1 'No such file' convert raw:gone.raw qcow2:none.qcow2
# The source's cluster lies outside its file: an I/O error in the middle of the copying.
cp theirs.qcow2 damaged.qcow2
truncate -s $((8 << 20)) damaged.qcow2
refused 1 'read qcow2:damaged.qcow2|damaged' convert qcow2:damaged.qcow2 raw:none.raw
for file in none.qcow2 none.raw; do
  [ ! -e "$file" ] || fail "a convert that failed left $file"
done
ok "what fails leaves nothing behind and destroys nothing"

# Slow enough that the bar is seen; a pipe never sees one.
slow='throttle:bps=30M,bps-burst=1M|raw:src.raw'
python3 -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$VBDKIT" convert "$slow" raw:slow.raw >bar
grep -q 'convert .*% \[##*\.*\] .* of 37 MiB' bar || fail "no progress on a terminal: $(cat bar)"
cmp src.raw slow.raw
rm slow.raw
[ -z "$(vbdkit convert "$slow" raw:slow.raw 2>&1)" ] || fail "progress without a terminal"
rm slow.raw
"$VBDKIT" convert 'throttle:bps=1M|raw:src.raw' raw:slow.raw 2>err &
pid=$!
until [ -e slow.raw ]; do
  kill -0 "$pid" || fail "$(cat err)"
  sleep 0.02
done
kill -TERM "$pid"
status=0
wait "$pid" || status=$?
[ "$status" = 1 ] || fail "SIGTERM: status $status: $(cat err)"
grep -q 'interrupted' err || fail "SIGTERM: $(cat err)"
[ ! -e slow.raw ] || fail "an interrupted convert left its file"
ok "progress on a terminal only; an interrupted convert leaves nothing"

[ "$(status_of compare raw:src.raw vhd:copy.vhd)" = 0 ] || fail "compare: $(cat out err)"
cp copy.qcow2 changed.qcow2
qemu-io -c "write -P 0x77 $((20 << 20)) 512" changed.qcow2 >/dev/null
qemu-io -c "write -P 0x78 $((30 << 20)) 512" changed.qcow2 >/dev/null
at=$(cmp src.raw <(qemu-img dd -f qcow2 -O raw if=changed.qcow2 of=changed.raw bs=1M && cat changed.raw) |
  sed 's/.*byte \([0-9]*\),.*/\1/') || true
[ "$(status_of compare --json raw:src.raw qcow2:changed.qcow2)" = 3 ] || fail "a change was not seen"
expect_json '[.identical, .offset]' "[false,$((at - 1))]"
cp src.raw longer.raw
truncate -s +1M longer.raw
[ "$(status_of compare raw:src.raw raw:longer.raw)" = 0 ] || fail "zeroes at the end are a difference"
[ "$(status_of compare --strict raw:longer.raw raw:src.raw)" = 3 ] || fail "--strict"
printf x | dd of=longer.raw bs=1 seek=$((size + 4096)) conv=notrunc status=none
[ "$(status_of compare --json raw:src.raw raw:longer.raw)" = 3 ] || fail "data at the end"
expect_json .offset $((size + 4096))
refused 1 'No such file' compare raw:src.raw raw:gone.raw
ok "compare finds the first difference"

# The map of a chain against qemu-img's.
qemu-img create -q -f qcow2 -b theirs.qcow2 -F qcow2 mid.qcow2
qemu-io -c 'write -P 1 3M 200k' -c 'write -z 5M 1M' mid.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 leaf.qcow2
qemu-io -c 'write -P 2 3100k 64k' -c 'write -P 2 20M 70000' leaf.qcow2 >/dev/null
# One line per sector that holds data: disk offset, depth, file offset.
sectors() {
  # shellcheck disable=SC2016
  jq -r '.[] | . as $run | select($run.data) | range(0; $run.length; 512) |
    [$run.start + ., $run.depth, $run.offset + .] | @tsv'
}
qemu-img map --output=json leaf.qcow2 | sectors >theirs.map
vbdkit map --json qcow2:leaf.qcow2 |
  jq '[.[] | {start: .offset, length, data: (.kind == "data"), depth, offset: .["file-offset"]}]' |
  sectors >ours.map
[ -s ours.map ] || fail "an empty map"
cmp theirs.map ours.map || fail "map: $(diff theirs.map ours.map | head)"
vbdkit map qcow2:leaf.qcow2 | grep -q ' data .* 2 .*theirs.qcow2' || fail "map as text"
refused 2 'filters' map 'throttle:iops=1|raw:src.raw'
ok "map of a chain says what qemu-img map says"
