# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Two vCPUs get two queues, both carry requests, and every byte verifies.
shared_guest
blkfront shared max_queues=2
path=$(image mq 32M)
attach shared xvdb "$path"
expect "queues the frontend took" "$(xenstore-read "$(front_path shared xvdb)/multi-queue-num-queues")" 2
expect "hardware queues in the guest" "$(guest_must shared 'ls /sys/block/xvdb/mq | wc -l')" 2
interrupts() { guest_must shared "awk '/blkif/ {print \$1, \$2 + \$3}' /proc/interrupts"; }
before=$(interrupts)
guest_must shared "fio --filename=/dev/xvdb --rw=randwrite --bs=4k --size=4M --direct=1 --ioengine=libaio --iodepth=8 \
--verify=crc32c --verify_fatal=1 --minimal --name=a --cpus_allowed=0 --name=b --cpus_allowed=1 --offset=16M" 120 >/dev/null
busy=$(paste -d' ' <(echo "$before") <(interrupts) | awk '$4 > $2 {busy++} END {print busy + 0}')
expect "queues that raised interrupts" "$busy" 2
detach shared xvdb
saw "2 queues of 2 vCPUs, both busy, 2 × 4 MiB verified"
