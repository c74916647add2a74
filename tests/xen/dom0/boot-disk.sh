# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A disk that a boot loader finds all on, sourced by the cases that want one: a partition with kernel, initramfs and
# grub.cfg for pygrub. In the lab that has GRUB it boots by itself, too: GRUB is in its first sectors, and writes to the
# disk through the BIOS: the variable `writer` of its environment block, the partition's file /boot/grub/grubenv.
grub=/usr/lib/grub/i386-pc
grub_modules=(biosdisk part_msdos ext2 normal linux loadenv serial terminal echo)
grub_writer=GRUB-through-the-BIOS

le32() { # le32 NUMBER: as printf's escapes
  printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $((($1 >> 8) & 255)) $((($1 >> 16) & 255)) $((($1 >> 24) & 255))
}

boot_disk() { # boot_disk NAME MEBIBYTES [WORDS for the kernel]: prints the path of a raw file
  local path tree sectors=$((($2 - 1) * 2048)) start=2048 first='' last=''
  path=$(image "$1" "$2M")
  tree=$(mktemp -d)
  mkdir -p "$tree/boot/grub"
  cp /lab/vmlinuz "$tree/boot/"
  gzip -9 </lab/guest.img >"$tree/boot/guest.img" # a BIOS reads slowly
  if [ -d "$grub" ]; then
    grub-editenv "$tree/boot/grub/grubenv" create
    first=$'serial --unit=0\nterminal_output serial' last="echo loading; set writer=$grub_writer; save_env writer"
  fi
  cat >"$tree/boot/grub/grub.cfg" <<END
$first
set timeout=0
set default=0
menuentry 'guest' {
  $last
  linux /boot/vmlinuz $guest_words ${3:-}
  initrd /boot/guest.img
}
END
  mke2fs -q -F -t ext4 -d "$tree" -E offset=$((start * 512)) "$path" "$(($2 - 1))M" || fail "mke2fs $path"
  rm -rf "$tree"
  if [ -d "$grub" ]; then
    # GRUB's first sector finds the rest right behind it; the partition table lies between its code and its signature.
    grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$state/core.img" "${grub_modules[@]}" || fail "grub-mkimage: status $?"
    dd if=$grub/boot.img of="$path" bs=446 count=1 conv=notrunc status=none
    dd if="$state/core.img" of="$path" bs=512 seek=1 conv=notrunc status=none
  fi
  # shellcheck disable=SC2059 # escapes
  printf "\\x80\\xfe\\xff\\xff\\x83\\xfe\\xff\\xff$(le32 $start)$(le32 "$sectors")" |
    dd of="$path" bs=1 seek=446 conv=notrunc status=none
  printf '\x55\xaa' | dd of="$path" bs=1 seek=510 conv=notrunc status=none
  echo "$path"
}
