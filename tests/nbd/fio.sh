#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# fio's nbd engine writes and verifies: many in flight, sizes mixed, over a file.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need fio jq

truncate -s 64M "$scratch/disk"
for direct in on off; do
  serve "disk-$direct" "raw,direct=$direct:$scratch/disk"
  # Two jobs on two connections, each with half of the disk.
  fio --verify_state_save=0 --output-format=json --output="$scratch/fio.json" --ioengine=nbd \
    --uri="$(uri "disk-$direct")" --name=verify --numjobs=2 --size=32m --offset_increment=32m \
    --rw=randwrite --bssplit=512/10:4k/60:64k/20:256k/10 --iodepth=32 --verify=crc32c \
    --verify_fatal=1 --do_verify=1 --fsync=64 >/dev/null
  errors=$(jq '[.jobs[].error] | add' "$scratch/fio.json")
  reads=$(jq '[.jobs[].read.io_bytes] | add' "$scratch/fio.json")
  [ "$errors" = 0 ] || fail "fio: error $errors"
  [ "$reads" = $((64 << 20)) ] || fail "fio verified $reads bytes, not all"
  ok "fio verified 64 MiB, direct=$direct"
  stop "$server"
done
