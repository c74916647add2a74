# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# fio with verify on /dev/xvda, with and without indirect segments and persistent grants. The guest verifies what it
# wrote, then dom0 verifies the file by itself.
# limit: 900 s
shared_guest
job() { echo "fio --name=v --filename=$1 --rw=randwrite --bsrange=4k-256k --size=8M --direct=1 --ioengine=libaio \
--iodepth=8 --verify=crc32c --verify_fatal=1 --minimal ${*:2}"; }
for combination in 'indirect persistent' 'indirect' 'persistent' ''; do
  segments=0 persistent=0
  [[ $combination != *indirect* ]] || segments=32
  [[ $combination != *persistent* ]] || persistent=1
  blkfront shared max_indirect_segments=$segments feature_persistent=$persistent
  path=$(image fio 16M)
  attach shared xvdb "$path"
  expect "feature-persistent of the frontend" \
    "$(xenstore-read "$(front_path shared xvdb)/feature-persistent" 2>/dev/null || echo 0)" "$persistent"
  words=$(guest_must shared 'dmesg | grep "blkfront: xvdb" | tail -n 1')
  [[ $words == *"persistent grants: $( ((persistent)) && echo enabled || echo disabled)"* ]] ||
    fail "blkfront says: $words"
  [[ $words == *"indirect descriptors: $( ((segments)) && echo enabled || echo disabled)"* ]] ||
    fail "blkfront says: $words"
  guest_must shared "$(job /dev/xvdb)" 180 >/dev/null
  detach shared xvdb
  eval "$(job "$path" --verify_only)" >"$state/fio" 2>&1 || fail "in dom0, after '$combination': $(tail -n 5 "$state/fio")"
  expect "bytes that dom0 verified, in KiB" "$(sed -n 's/^3;/3;/p' "$state/fio" | cut -d';' -f6)" 8192
  saw "8 MiB verified by guest and dom0 (${combination:-neither})"
done
