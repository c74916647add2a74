#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A storage manager in small: what it does to a guest's disk while the guest runs, and what it leaves to the domain's
# manager. Each function is one operation; `demo` at the end does them in turn.
#
#   storage-manager.sh provision DIR GOLDEN NAME    a disk for a new guest, sharing what the golden image has
#   storage-manager.sh start DIR NAME               its instance, before any domain is there; prints target= for xl
#   storage-manager.sh snapshot DIR NAME LABEL      keep its present content, and go on
#   storage-manager.sh clone DIR NAME LABEL NEW     another disk that begins with that content
#   storage-manager.sh forget DIR NAME LABEL        a snapshot is not needed any more: merge it into its parent
#   storage-manager.sh stop DIR NAME                when the guest is gone
#   storage-manager.sh remove DIR NAME              and when its disk is not wanted any more
#   storage-manager.sh demo DIR GOLDEN [CLIENT…]    all of it; CLIENT is run with the NBD URI of the disk
#
# ACTIVATE_OPTIONS: for vbdkit activate, such as --user or --ionice.
set -euo pipefail

read -ra activate_options <<<"${ACTIVATE_OPTIONS:-}"
say() { printf '\n== %s\n' "$*"; }

disk() { echo "$1/$2.qcow2"; }
snapshot_of() { echo "$1/$2@$3.qcow2"; }

provision() { # provision DIR GOLDEN NAME
  vbdkit clone "$2" "qcow2:$(disk "$1" "$3")"
}

start() { # start DIR NAME
  vbdkit activate "${activate_options[@]}" "qcow2:$(disk "$1" "$2")" >/dev/null
  echo "vdev=xvda,format=raw,script=block-vbdkit,target=qcow2:$(realpath "$(disk "$1" "$2")")"
}

take_snapshot() { # take_snapshot DIR NAME LABEL
  # The disk keeps its name, so the guest's configuration stays true; the guest waits for milliseconds at most.
  vbdkit snapshot "qcow2:$(disk "$1" "$2")" "$(snapshot_of "$1" "$2" "$3")"
}

clone() { # clone DIR NAME LABEL NEW
  vbdkit clone "qcow2:$(snapshot_of "$1" "$2" "$3")" "qcow2:$(disk "$1" "$4")"
}

forget() { # forget DIR NAME LABEL
  # Refused, with the reason, while another disk stands on the same parent. It may be killed and run again.
  vbdkit coalesce "qcow2:$(snapshot_of "$1" "$2" "$3")"
}

stop() { # stop DIR NAME
  # Ends with its last user, if there still is one.
  vbdkit deactivate --wait 60 "$(disk "$1" "$2")"
}

remove() { # remove DIR NAME
  if vbdkit list "$(disk "$1" "$2")" >/dev/null 2>&1; then
    echo "$(disk "$1" "$2") is in use" >&2
    return 1
  fi
  rm "$(disk "$1" "$2")"
}

uri() { # uri DIR NAME: where an NBD client finds the disk
  vbdkit list --json "$(disk "$1" "$2")" | jq -r '"nbd+unix:///?socket=" + .[0].nbd'
}

demo() { # demo DIR GOLDEN [CLIENT…]
  local dir=$1 golden=$2
  shift 2
  [ $# != 0 ] || set -- nbdinfo
  say "a disk for guest1, which shares all with $golden"
  provision "$dir" "$golden" guest1
  say "its instance; for the guest's configuration:"
  start "$dir" guest1
  "$@" "$(uri "$dir" guest1)"

  say "two snapshots while it is in use"
  take_snapshot "$dir" guest1 monday
  "$@" "$(uri "$dir" guest1)"
  take_snapshot "$dir" guest1 tuesday
  "$@" "$(uri "$dir" guest1)"

  say "a second disk that begins with Tuesday's content, in use too"
  clone "$dir" guest1 tuesday guest2
  start "$dir" guest2
  "$@" "$(uri "$dir" guest2)"
  vbdkit tree

  say "Tuesday's snapshot is merged into Monday's beneath both"
  forget "$dir" guest1 tuesday
  vbdkit tree
  vbdkit stats

  say "the end"
  stop "$dir" guest1
  stop "$dir" guest2
  vbdkit list
  remove "$dir" guest2
}

case ${1:-} in
  provision | start | clone | forget | stop | remove | demo) "$@" ;;
  snapshot)
    shift
    take_snapshot "$@"
    ;;
  *)
    sed -n '3,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
