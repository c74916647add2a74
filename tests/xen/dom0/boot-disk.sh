# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# A disk that a boot loader finds all on, sourced by the cases that want one: a partition with kernel, initramfs and grub.cfg.

le32() { # le32 NUMBER: as printf's escapes
  printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $((($1 >> 8) & 255)) $((($1 >> 16) & 255)) $((($1 >> 24) & 255))
}

boot_disk() { # boot_disk NAME MEBIBYTES [WORDS for the kernel]: prints the path of a raw file
  local path tree sectors=$((($2 - 1) * 2048)) start=2048
  path=$(image "$1" "$2M")
  tree=$(mktemp -d)
  mkdir -p "$tree/boot/grub"
  cp /lab/vmlinuz /lab/guest.img "$tree/boot/"
  cat >"$tree/boot/grub/grub.cfg" <<END
set timeout=0
set default=0
menuentry 'guest' {
  linux /boot/vmlinuz $guest_words ${3:-}
  initrd /boot/guest.img
}
END
  mke2fs -q -F -t ext4 -d "$tree" -E offset=$((start * 512)) "$path" "$(($2 - 1))M" || fail "mke2fs $path"
  rm -rf "$tree"
  # shellcheck disable=SC2059 # escapes
  printf "\\x80\\xfe\\xff\\xff\\x83\\xfe\\xff\\xff$(le32 $start)$(le32 "$sectors")" |
    dd of="$path" bs=1 seek=446 conv=notrunc status=none
  printf '\x55\xaa' | dd of="$path" bs=1 seek=510 conv=notrunc status=none
  echo "$path"
}
