#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# QEMU's NBD client: qemu-img and qemu-io.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io jq

truncate -s 64M "$scratch/disk"
serve disk "raw:$scratch/disk"

io() { qemu-io -f raw "$@" "$(uri disk)" >"$scratch/io" 2>&1 || fail "qemu-io $*: $(cat "$scratch/io")"; }
no_mismatch() { ! grep -qiE 'verification failed|error' "$scratch/io" || fail "qemu-io: $(cat "$scratch/io")"; }

size=$(qemu-img info --output=json -f raw "$(uri disk)" | jq '."virtual-size"')
[ "$size" = 67108864 ] || fail "qemu-img info: size $size"
ok "qemu-img info"

# Patterns at borders, unaligned parts (QEMU does the read-modify-write), FUA, zeroes, discard.
io -c 'write -P 0x11 0 64k' -c 'write -f -P 0x22 64k 4k' -c 'write -P 0x33 1000000 333' \
  -c 'write -P 0x44 60M 4M' -c 'write -z 8k 4k' -c 'write -z -u 16k 8k' -c 'discard 32k 16k' -c flush
no_mismatch
io -c 'read -P 0x11 0 8k' -c 'read -P 0 8k 4k' -c 'read -P 0x11 12k 4k' -c 'read -P 0 16k 8k' \
  -c 'read -P 0x11 24k 8k' -c 'read -P 0 32k 16k' -c 'read -P 0x11 48k 16k' -c 'read -P 0x22 64k 4k' \
  -c 'read -P 0x33 1000000 333' -c 'read -P 0 999424 576' -c 'read -P 0x44 60M 4M'
no_mismatch
ok "qemu-io: write, FUA, zeroes, discard, unaligned, read back"

# The same once more from the file itself; the server has it locked, so from a copy.
cp "$scratch/disk" "$scratch/copy"
qemu-io -r -f raw -c 'read -P 0x11 0 8k' -c 'read -P 0x22 64k 4k' -c 'read -P 0x44 60M 4M' \
  "$scratch/copy" >"$scratch/io"
no_mismatch
ok "the file holds what the client wrote"

io -c 'aio_write -P 0x55 10M 1M' -c 'aio_write -P 0x66 11M 1M' -c 'aio_write -P 0x77 12M 1M' \
  -c aio_flush -c 'aio_read -P 0x55 10M 1M' -c 'aio_read -P 0x66 11M 1M' -c 'aio_read -P 0x77 12M 1M' \
  -c aio_flush
no_mismatch
ok "qemu-io: several in flight"

allocated=$(qemu-img map --output=json -f raw "$(uri disk)" | jq '[.[] | select(.data) | .length] | add')
if [ "$allocated" -lt $((7 << 20)) ] || [ "$allocated" -ge $((16 << 20)) ]; then
  fail "qemu-img map: $allocated bytes of data"
fi
ok "qemu-img map tells data from holes"

random_file "$scratch/data" $((20 << 20))
truncate -s 64M "$scratch/data"
qemu-img convert -n -f raw -O raw "$scratch/data" "$(uri disk)"
qemu-img compare -f raw -F raw "$scratch/data" "$(uri disk)" >/dev/null || fail "qemu-img compare after convert"
qemu-img convert -f raw -O raw "$(uri disk)" "$scratch/back"
cmp "$scratch/data" "$scratch/back" || fail "qemu-img convert from the server"
ok "qemu-img convert there and back, compare"
stop "$server"

serve read-only "raw:$scratch/disk" --read-only
disk=read-only
if qemu-io -f raw -c 'write 0 4k' "$(uri $disk)" >"$scratch/io" 2>&1; then
  fail "a read-only export took a write: $(cat "$scratch/io")"
fi
qemu-io -r -f raw -c 'read 0 4k' "$(uri $disk)" >/dev/null
cmp "$scratch/data" "$scratch/disk" || fail "a read-only export changed"
ok "a read-only export is read-only"
stop "$server"
