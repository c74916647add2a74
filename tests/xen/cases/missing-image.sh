# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What xl create prints about an image that is missing, a directory, or a wrong spec names it and says what is wrong.
only vbdkit
refused() { # refused SPEC WORD…: xl create fails, with all these words in what it prints
  local spec=$1 word
  shift
  if guest_create g1 "format=raw,vdev=xvda,access=rw,script=block-vbdkit,target=$spec"; then
    fail "xl create took $spec"
  fi
  for word; do
    grep -qF "$word" "$state/g1.xl" || fail "$spec: xl create says nothing of '$word': $(cat "$state/g1.xl")"
  done
  gone g1 || fail "g1 is left behind"
}
mkdir -p "$images/directory"
refused "raw:$images/missing.img" "$images/missing.img" 'No such file or directory'
told=$(grep -F "$images/missing.img" "$state/g1.xl" | tail -n 1)
refused "raw:$images/directory" "$images/directory"
refused "nonsense:$images/a.img" nonsense
rmdir "$images/directory"
saw "xl create says: $told"
