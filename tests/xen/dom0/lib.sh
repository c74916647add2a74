# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What cases are written in; sourced in dom0. Guests, disks, and the words that the runner on the host reads.
#
# $backend says whose disks are tested: vbdkit, or blkback (the kernel's, to know that a case itself is right).
backend=${LAB_BACKEND:-vbdkit}
images=/images
state=/run/lab
console=/var/log/xen/console
vbdkitd_log=/var/log/vbdkitd.log

# --- what the runner reads: these, "kind: pv" for each guest, "format: raw" of disks that dom0's vbdkitd does not see -----

saw() { echo "saw: $*"; }
fail() { # on stderr, so that a case may discard or capture what a helper prints
  echo "fail: $*" >&2
  exit 1
}
skip() { # the case does not apply here; the runner counts and prints it as skipped
  echo "skip: $*"
  exit 77
}
expect() { # expect WHAT ACTUAL EXPECTED
  [ "$2" = "$3" ] || fail "$1: $2, expected $3"
}
only() { [ "$backend" = "$1" ] || skip "only with $1"; }

exec {nothing}<> <(:) # never has anything to read: waits without starting a process, which costs much in emulation
pause() { read -rt 0.2 -u "$nothing" || :; }
until_true() { # until_true SECONDS COMMAND…: polls, for there is no event to wait for
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    pause
  done
}

# --- a libxl with disk plugins ----------------------------------------------------------------------------------------

# patched_libxl: from here to the end of the case, xl and libxl are those of xen-patches/.
patched_libxl() {
  [ -d "$patched" ] || skip "the source of Xen could not be had: no libxl with plugins here"
  touch $state/patched_libxl
  export PATH=$patched/bin:$PATH LD_LIBRARY_PATH=$patched/lib
}
patched=/lab/libxl
[ ! -e $state/patched_libxl ] || patched_libxl
stock_libxl() { rm -f $state/patched_libxl; }

plugin_disk() { # plugin_disk VDEV FORMAT PATH [rw|r] [PLUGIN]
  echo "format=$2,vdev=$1,access=${4:-rw},backendtype=${5:-vbdkit},target=$3"
}

# by WAY: from here on the case gives libxl its disks in this way; by plugin, it has the patched libxl.
by() {
  way=$1
  case $way in
    script) ;;
    tap) [ "$(</lab/xen-version)" != 4.17 ] || skip "libxl of Xen 4.17 runs no script for backendtype=tap" ;;
    plugin) patched_libxl ;;
    *) fail "no such way: $way" ;;
  esac
}
format_disk() { # format_disk VDEV FORMAT PATH: the disk spec for an image, in the case's way
  case $way in
    script) image_disk "$1" "$2:$3" ;;
    tap) tap_disk "$1" "$2:$3" ;;
    plugin) plugin_disk "$@" ;;
  esac
}

# --- the backends ----------------------------------------------------------------------------------------------------

vbdkitd_command=(vbdkitd) vbdkitd_options=() # for a case that wants another daemon
start_vbdkitd() { # where vbdkit is installed
  command -v vbdkitd >/dev/null || return 0
  install -d -m 700 /run/vbdkit /run/vbdkit/instances
  setsid "${vbdkitd_command[@]}" --log-level info "${vbdkitd_options[@]}" >>"$vbdkitd_log" 2>&1 </dev/null &
  echo $! >$state/vbdkitd.pid
}
stop_vbdkitd() {
  [ -f $state/vbdkitd.pid ] || return 0
  local pid
  pid=$(cat $state/vbdkitd.pid)
  kill "$pid" 2>/dev/null || return 0
  until_true 10 eval "! kill -0 $pid 2>/dev/null" || fail "vbdkitd ($pid) ignores SIGTERM"
}
load_blkback() { modprobe loop && modprobe --ignore-install xen-blkback; }
unload_blkback() { ! grep -q ^xen_blkback /proc/modules || rmmod xen-blkback; }

use_backend() { # once, before the first case
  if [ "$backend" = blkback ]; then
    stop_vbdkitd
    load_blkback
  else
    command -v vbdkitd >/dev/null || fail "vbdkit is not installed in this dom0"
  fi
}
versions() { echo "Xen $(xl info | awk '/^xen_version/ {print $3}'), Linux $(uname -r)"; }
instances() { pgrep -x vbdkit-backend || [ $? = 1 ]; }
instance_count() { instances | wc -l; }

# --- disks -----------------------------------------------------------------------------------------------------------

image() { # image NAME SIZE: a fresh sparse raw file; prints its path
  rm -f "$images/$1.img"
  truncate -s "$2" "$images/$1.img"
  echo "$images/$1.img"
}

fill() { # fill PATH MEBIBYTES: a pattern in which every sector differs; the same bytes every time
  { seq -f '%.0f is the number of this line' 1 4000000 || :; } | # dd ends it by closing the pipe
    dd of="$1" bs=1M count="$2" iflag=fullblock conv=notrunc status=none
}

disk() { # disk VDEV PATH [rw|r|w!]: the disk spec of a raw file or block device
  local access=${3:-rw}
  if [ "$backend" = blkback ]; then
    echo "format=raw,vdev=$1,access=$access,target=$2"
  else
    echo "format=raw,vdev=$1,access=$access,script=block-vbdkit,target=raw:$2"
  fi
}

tap_disk() { # tap_disk VDEV SPEC: the same where libxl has backendtype=tap, so that no kernel driver ever sees it
  echo "format=raw,vdev=$1,access=rw,backendtype=tap,script=block-vbdkit,target=$2"
}

image_disk() { # image_disk VDEV SPEC: the disk spec of an image that only vbdkit knows
  echo "format=raw,vdev=$1,access=rw,script=block-vbdkit,target=$2"
}

image_chain() { # image_chain FORMAT DEPTH RAW: a base with the raw file's content, empty images over it; prints the leaf's path
  local leaf=$images/chain-1.$1 level
  rm -f "$images"/chain-*."$1"
  vbdkit convert "raw:$3" "$1:$leaf" >&2 || fail "vbdkit convert $3 $leaf: status $?"
  for ((level = 2; level <= $2; level++)); do
    vbdkit create --parent "$1:$leaf" "$1:$images/chain-$level.$1" || fail "vbdkit create of image $level: status $?"
    leaf=$images/chain-$level.$1
  done
  echo "$leaf"
}

# printed NAME WORD…: what xl printed when it created NAME has all these words.
printed() {
  local name=$1 word
  shift
  for word; do
    grep -qF -e "$word" "$state/$name.xl" || fail "xl says nothing of '$word': $(cat "$state/$name.xl")"
  done
}

# boot_from_chain FORMAT DEPTH: a guest has its root on a chain of images, writes, and finds it again after it rebooted,
# and after another image was put over all of them.
boot_from_chain() {
  local root leaf above sum check='sha256sum </data/1 && cat /data/2'
  root=$(root_image root 64M)
  leaf=$(image_chain "$1" "$2" "$root")
  rm -f "$root"
  guest_create g1 --append lab.root=/dev/xvda "$(image_disk xvda "$1:$leaf")" || fail "xl create: $(cat "$state/g1.xl")"
  expect "the guest's root file system" "$(guest_must g1 'stat -f -c %T /')" ext2/ext3
  sum=$(guest_must g1 'mkdir /data && head -c 5000000 /dev/urandom >/data/1 && echo first >/data/2 && sync && '"$check")
  mark_console g1
  guest_send g1 'sync; reboot -f'
  guest_ready g1
  expect "what the guest wrote, after its reboot" "$(guest_must g1 "$check")" "$sum"
  shut_down g1
  above=$images/chain-above.$1
  vbdkit create --parent "$1:$leaf" "$1:$above" || fail "vbdkit create $above: status $?"
  sum=$(sha256sum <"$leaf")
  guest_create g1 --append lab.root=/dev/xvda "$(image_disk xvda "$1:$above")" || fail "xl create: $(cat "$state/g1.xl")"
  guest_must g1 'echo second >/data/2; sync' >/dev/null
  expect "what the guest wrote over the former leaf" "$(guest_must g1 'cat /data/2')" second
  shut_down g1
  expect "checksum of the former leaf, a parent now" "$(sha256sum <"$leaf")" "$sum"
  vbdkit check "$1:$above" >"$state/check" 2>&1 || fail "vbdkit check: $(cat "$state/check")"
  saw "root on $2 images of format $1, right after a reboot and with one more; the parents did not change"
}

root_image() { # root_image NAME SIZE: an ext4 that a guest can have as its root; prints its path
  local tree path
  path=${3:-$(image "$1" "$2")}
  tree=$(mktemp -d)
  mkdir -p "$tree"/{bin,sbin,proc,sys,dev,tmp,root}
  cp /bin/busybox "$tree/bin/"
  ln -s busybox "$tree/bin/sh"
  cp /lab/guest/init "$tree/init"
  mke2fs -q -F -t ext4 -d "$tree" "$path" || fail "mke2fs $path"
  rm -rf "$tree"
  echo "$path"
}

vdev_id() { # xvda → 51712, the number xenstore knows a disk by
  local letter=${1#xvd}
  echo $((51712 + 16 * ($(printf '%d' "'$letter") - 97)))
}
back_path() { # back_path GUEST VDEV: the disk's directory in xenstore, backend's side
  xenstore-read "/local/domain/$(domid "$1")/device/vbd/$(vdev_id "$2")/backend"
}
front_path() { echo "/local/domain/$(domid "$1")/device/vbd/$(vdev_id "$2")"; }

# --- guests ----------------------------------------------------------------------------------------------------------

domid() { xl domid "$1" 2>/dev/null; }
console_text() { # console_text NAME: sets $text to what the guest printed since it was last created or rebooted
  text=$(<"$console/guest-$1.log") 2>/dev/null || text=
  text=${text:$(<"$state/$1.offset")}
  text=${text//$'\r'/}
}
console_has() {
  local text
  console_text "$1"
  [[ $text == *"$2"* ]]
}
mark_console() {
  stat -c %s "$console/guest-$1.log" >"$state/$1.offset" 2>/dev/null || echo 0 >"$state/$1.offset"
}

# guest_create NAME [--fio] [--memory MIB] [--vcpus N] [--type pv|pvh|hvm] [--append WORDS] [--boot disk|pygrub]
#              [--config LINE] [DISK…]
# `xl create` and wait until the guest listens. What xl printed is in $state/NAME.xl; returns xl's status if it failed.
# --boot: no kernel of ours; an HVM guest's BIOS reads its disk, or pygrub finds one there (see boot-disk.sh).
guest_create() {
  local name=$1 memory=160 vcpus=1 type=pv kernel=/lab/vmlinux ramdisk=guest.img append='' boot='' config='' disks=''
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --fio) ramdisk=guest-fio.img memory=400; shift ;;
      --memory) memory=$2; shift 2 ;;
      --vcpus) vcpus=$2; shift 2 ;;
      --type) type=$2; shift 2 ;;
      --append) append=$2; shift 2 ;;
      --boot) boot=$2; shift 2 ;;
      --config) config=$2; shift 2 ;;
      *) disks+="'$1',"; shift ;;
    esac
  done
  if [ "$type" = hvm ]; then # QEMU loads the kernel, which unpacks itself
    kernel=/lab/vmlinuz
    ((memory >= 256)) || memory=256
  fi
  {
    cat <<END
name = "$name"
type = "$type"
memory = $memory
vcpus = $vcpus
disk = [ $disks ]
$config
END
    case $boot in
      '') printf 'kernel = "%s"\nramdisk = "/lab/%s"\nextra = "%s"\n' "$kernel" "$ramdisk" "$guest_words $append" ;;
      pygrub) printf 'bootloader = "pygrub"\nbootloader_args = [ "-q" ]\n' ;;
    esac
    [ "$type" != hvm ] || printf 'vga = "none"\nvnc = 0\nserial = "file:%s"\n' "$state/$name.serial"
  } >"$state/$name.cfg"
  echo "kind: $type"
  mark_console "$name"
  xl create "$state/$name.cfg" >"$state/$name.xl" 2>&1 || return
  if [ "$type" = hvm ]; then guest_ready "$name" 900; else guest_ready "$name"; fi
}
guest_words='console=hvc0 loglevel=4 rootfstype=ramfs'

guest_ready() { # guest_ready NAME [SECONDS]: waits until the guest says that it listens
  local text
  until_true "${2:-240}" console_has "$1" '@ready ' || {
    console_text "$1"
    fail "guest $1 did not come up: ${text: -500}"
  }
  echo "/local/domain/$(domid "$1")" >"$state/$1.path"
  echo 0 >"$state/$1.seq"
  mark_console "$1" # the numbers of commands begin anew; earlier ones shall not be taken for them
}

guest_alive() { xl list "$1" >/dev/null 2>&1; }
shut_down() { # shut_down NAME: asks the guest to power off, and waits until the domain is gone
  xl shutdown -w "$1" >"$state/$1.xl" 2>&1 || fail "xl shutdown: $(cat "$state/$1.xl")"
  until_true 60 gone "$1" || fail "$1 is still there after its shutdown"
}
gone() { ! guest_alive "$1"; }

guest_send() { # guest_send NAME SCRIPT: has the guest run a shell script, without waiting for it
  local name=$1 seq tty encoded
  seq=$(($(<"$state/$name.seq") + 1))
  echo "$seq" >"$state/$name.seq"
  encoded=$(base64 -w0 <<<"$2")
  [ ${#encoded} -lt 4000 ] || fail "guest script too long for a console line: ${#encoded}"
  tty=$(xenstore-read "$(<"$state/$name.path")/console/tty") || fail "guest $name has no console"
  echo "$seq $encoded" >"$tty"
}

# guest NAME SCRIPT [SECONDS]: runs a shell script in the guest, prints what it printed, returns its exit status.
guest() {
  local name=$1 end=$((SECONDS + ${3:-180})) seq text out rounds=0
  guest_send "$name" "$2"
  seq=$(<"$state/$name.seq")
  until console_text "$name" && [[ $text == *">>$seq "[0-9]*";"* ]]; do
    [ "$SECONDS" -lt "$end" ] || fail "guest $name: no answer in ${3:-180} s to: $2"
    if ((++rounds % 25 == 0)) && ! xenstore-exists "$(<"$state/$name.path")"; then
      fail "guest $name is gone while it ran: $2"
    fi
    pause
  done
  out=${text#*"<<$seq"$'\n'}
  out=${out%">>$seq "*}
  [ -z "$out" ] || echo "${out%$'\n'}"
  text=${text##*">>$seq "}
  return "${text%%;*}"
}

guest_must() { guest "$@" || fail "guest $1: status $? from: $2"; }

# driver_domain: starts a domain that serves other guests' disks, named drv: dom0's own file system once more, vbdkitd and
# `xl devd`. What `guest drv SCRIPT` runs in it has vbdkit and xl; by plugin, the patched one.
driver_domain() {
  guest_create drv --memory 400 --config 'driver_domain = 1' \
    --append "lab.root=/dev/xvda lab.layer=/dev/xvdb lab.init=/lab/dom0/driver-init lab.way=${way:-script}" \
    "$(disk xvda /dev/vdd)" "$(disk xvdb /dev/vde r)" || fail "xl create: $(cat "$state/drv.xl")"
}

shared_guest() { # a diskless guest that cases attach their disks to; started once for many of them
  if guest_alive shared; then
    echo "kind: pv"
  else
    guest_create shared --fio --vcpus 2 || fail "xl create: $(cat $state/shared.xl)"
  fi
}
blkfront() { # blkfront GUEST [PARAMETER=VALUE…]: loads the frontend's driver anew, with these parameters
  local name=$1
  shift
  guest_must "$name" "rmmod xen-blkfront && modprobe xen-blkfront $*" >/dev/null
}
attach() { # attach GUEST VDEV PATH [ACCESS]: block-attach, and wait until the guest has the disk
  attach_disk "$1" "$2" "$(disk "$2" "$3" "${4:-rw}")"
}
attach_disk() { # attach_disk GUEST VDEV DISK: the same with a whole disk spec
  xl block-attach "$1" "$3" || fail "xl block-attach $3: status $?"
  guest_must "$1" "for i in \$(seq 200); do [ \"\$(cat /sys/block/$2/size 2>/dev/null || echo 0)\" -gt 0 ] &&
    [ -b /dev/$2 ] && exit 0; sleep 0.1; done; exit 1"
}
detach() { # detach GUEST VDEV [-f]
  local back front states
  ! xl block-detach "$1" "$2" "${@:3}" || return 0
  # libxl waits 10 s. Was somebody slow, or does it hang, and who?
  back=$(back_path "$1" "$2") front=$(front_path "$1" "$2")
  states="backend $(xenstore-read "$back/state"), frontend $(xenstore-read "$front/state")"
  ! until_true 60 eval '[ "$(xenstore-read "$back/state")" = 6 ]' || states+="; the backend closed a while later"
  fail "xl block-detach $2 failed: $states"
}

# Sets $xentop_line to what xentop prints of the first guest disk xvda. libxenstat hardly waits for the answer of who has the
# numbers, and in emulation it can come too late: so ask again. Where the kernel made a device of its own for the disk,
# xentop also has a line without numbers.
read_xentop() {
  xentop -b -f -x -i 1 >"$state/xentop"
  # shellcheck disable=SC2034 # for the caller
  xentop_line=$(grep -E 'VBD .*51712 .*RD: +[0-9]' "$state/xentop")
}

# --- what must be true when nothing runs any more ---------------------------------------------------------------------

guests() { xl list | awk 'NR > 1 && $1 != "Domain-0" {print $1}'; }
left_behind() { # prints whatever of guests, nodes, grants and instances is still there; nothing if all is clean
  local found
  found=$(xl list | awk 'NR > 1 && $1 != "Domain-0" && $1 != "shared"')
  [ -z "$found" ] || echo "domain: $found"
  found=$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -E '/(vbd3?|qdisk)/[0-9]+/[0-9]+ ')
  [ -z "$found" ] || echo "xenstore: $found"
  found=$(instances | tr '\n' ' ')
  [ -z "$found" ] || echo "instances: $found"
}
is_clean() { [ -z "$(left_behind)" ]; }
