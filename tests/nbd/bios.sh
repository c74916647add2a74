#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine boots from a disk of ours before any Xen driver is there: SeaBIOS starts the program in the image's first sector,
# which reads and writes through the BIOS, QEMU and our socket. The drives are as libxl words them for HVM guests.
# shellcheck source=tests/nbd/lib.sh
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 as ld

as --32 -o "$scratch/bios.o" "$(dirname "$0")/bios.S"
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o "$scratch/first" "$scratch/bios.o"
random_file "$scratch/content" 65024 # 127 sectors
cat "$scratch/first" "$scratch/content" >"$scratch/master"
truncate -s 8M "$scratch/master"
cp "$scratch/master" "$scratch/expected"
dd if="$scratch/content" of="$scratch/expected" bs=512 seek=1024 conv=notrunc status=none

boots_from() { # boots_from FORMAT ide|ahci
  local spec=$1:$scratch/disk drive status=0
  local machine=(-display none -vga none -nodefaults -m 64 -no-reboot -device "isa-debug-exit,iobase=0x501,iosize=2")
  rm -f "$scratch"/disk*
  "$VBDKIT" convert "raw:$scratch/master" "$1:$scratch/disk"
  serve disk "$spec"
  drive="file=nbd+unix:///?socket=$scratch/disk.sock,format=raw,cache=writeback"
  case $2 in
    ide) machine+=(-drive "$drive,if=ide,index=0,media=disk") ;;
    ahci)
      machine+=(-device "ahci,id=ahci0" -drive "$drive,if=none,id=ahcidisk-0")
      machine+=(-device "ide-hd,bus=ahci0.0,unit=0,drive=ahcidisk-0")
      ;;
  esac
  timeout 300 qemu-system-x86_64 "${machine[@]}" || status=$?
  [ $status = 3 ] || fail "$1, $2: QEMU ended with status $status"
  stop "$server"
  "$VBDKIT" convert "$spec" "raw:$scratch/disk.raw"
  cmp "$scratch/disk.raw" "$scratch/expected" || fail "$1, $2: the image is not what the BIOS should have made of it"
  ok "BIOS, $2 disk: boots from $1, reads and writes"
}
boots_from raw ide
boots_from qcow2 ahci
boots_from vhd ahci
