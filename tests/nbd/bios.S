# SPDX-License-Identifier: LGPL-2.1-or-later
# A boot sector for bios.sh: copies the sectors 1 to 127 to 1024 and after, by the BIOS's calls 42h and 43h, and ends QEMU
# with status 3 (all went well) or 5.
.code16
.globl _start
_start:
  xor %ax, %ax
  mov %ax, %ds
  mov %ax, %ss
  mov $0x7c00, %sp
  mov $packet, %si
  mov $0x42, %ah # read; the BIOS has left the disk's number in dl
  int $0x13
  jc failed
  movw $1024, packet + 8
  mov $0x4300, %ax # write
  int $0x13
  jc failed
  mov $1, %ax
  jmp end
failed:
  mov $2, %ax
end:
  mov $0x501, %dx # isa-debug-exit: status 2 * ax + 1
  out %ax, %dx
halt:
  hlt
  jmp halt

packet: # disk address packet: its size, sectors, offset and segment of the buffer, first sector
  .byte 16, 0
  .word 127, 0, 0x1000
  .quad 1
.org 510
.word 0xaa55
