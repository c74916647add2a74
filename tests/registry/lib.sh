# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# For the tests of the registry that hosts share: a network namespace of their own, in it a real
# etcd, and "hosts", each with a runtime directory and a vbdkit-registryd, that see the same storage.
# Sourced by each script, which needs to be root for the namespace.
if [ -z "${VBDKIT_TEST_NETNS:-}" ]; then
  unshare -n true 2>/dev/null || {
    echo "no network namespace can be made here"
    exit 77
  }
  VBDKIT_TEST_NETNS=1 exec unshare -n "$0" "$@"
fi

# shellcheck source=tests/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"
need etcd etcdctl ip jq qemu-io socat

BACKEND=${VBDKIT%/vbdkit}/vbdkit-backend
REGISTRYD=${VBDKIT%/vbdkit}/vbdkit-registryd
ip link set lo up
run=$(mktemp -d /tmp/vbdkit-reg.XXXXXX) # sockets have short names
# etcd flushes a lot, and what it holds is nobody's.
etcd_dir=$(mktemp -d "$([ -d /dev/shm ] && echo /dev/shm || echo "$run")/vbdkit-etcd.XXXXXX")
lease=5
share=$scratch/share
mkdir "$share"
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=http://127.0.0.1:2379

# started PID: a process that the end of the test ends.
pids=()
started() { pids+=("$1"); }

end_all() {
  local file pid
  for pid in "${pids[@]}"; do
    kill -CONT "$pid" 2>/dev/null || true
    kill -9 "$pid" 2>/dev/null || true
  done
  for file in "$run"/*/instances/*/pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    [ "$(readlink "/proc/$pid/exe")" != "$(readlink -f "$BACKEND")" ] || kill -9 "$pid" || true
  done
  rm -rf "$run" "$etcd_dir" "$scratch"
}
trap end_all EXIT

# start_etcd: one member; returns when it answers.
start_etcd() {
  etcd --data-dir "$etcd_dir/one" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
    >>"$scratch/etcd.log" 2>&1 &
  etcd_pid=$!
  started "$etcd_pid"
  etcdctl --dial-timeout=60s --command-timeout=60s get ready >/dev/null 2>&1 ||
    fail "etcd does not start: $(tail -3 "$scratch/etcd.log")"
}

# add_host NAME [ENDPOINT...]: its configuration.
add_host() {
  local name=$1 endpoint
  shift
  mkdir -m 700 "$run/$name"
  {
    for endpoint in "${@:-http://127.0.0.1:2379}"; do echo "endpoint = $endpoint"; done
    echo "host = $name"
    echo "lease = $lease"
    echo "share = san $share"
  } >"$run/$name.conf"
}

# command_on HOST COMMAND...: in the array `command`, what runs it as that host.
declare -A netns=() # of hosts that have one of their own
command_on() {
  local name=$1
  shift
  [ "$1" != vbdkit ] || set -- "$VBDKIT" "${@:2}"
  command=(env "VBDKIT_RUNTIME_DIR=$run/$name" "VBDKIT_REGISTRY_CONF=$run/$name.conf" "$@")
  [ -z "${netns[$name]:-}" ] || command=(ip netns exec "${netns[$name]}" "${command[@]}")
}
on() {
  local command
  command_on "$@"
  "${command[@]}"
}
activate_on() { on "$1" vbdkit activate --backend "$BACKEND" "${@:2}"; }
record_on() { on "$1" vbdkit list --json "$2" | jq '.[0]'; }

# refused_on HOST PATTERN ARG...: vbdkit there must fail and say so.
refused_on() {
  local name=$1 pattern=$2
  shift 2
  if on "$name" vbdkit "$@" >out 2>err; then fail "$name: vbdkit $*: done, expected '$pattern'"; fi
  grep -qE -- "$pattern" err || fail "$name: vbdkit $*: said '$(cat err)', expected '$pattern'"
}

revision() { etcdctl -w json get none | jq .header.revision; }

# await_key KEY PUT|DELETE FROM: until etcd has seen that since the revision FROM.
await_key() {
  local line events pid
  exec {events}< <(exec timeout 120 etcdctl watch --rev="$3" "$1" 2>&1)
  pid=$!
  while read -r line <&"$events"; do
    [ "$line" != "$2" ] || break
  done
  exec {events}<&-
  kill "$pid" || fail "$1: no $2 came"
}

# start_registryd HOST: returns when its lease is held.
start_registryd() {
  local from command
  from=$(($(revision) + 1))
  command_on "$1" "$REGISTRYD"
  "${command[@]}" >>"$scratch/$1.log" 2>&1 &
  registryd_pid=$!
  started "$registryd_pid"
  await_key "/vbdkit/hosts/$1" PUT "$from"
}

# listen HOST UUID: hears the instance's events. await_state STATE: until it is in that one.
listen() {
  local socket
  heard=("$@")
  socket=$(on "$1" vbdkit list --json "$2" | jq -r '.[0].qmp')
  coproc qmp { exec timeout 300 socat - "UNIX-CONNECT:$socket"; }
  # shellcheck disable=SC2154 # coproc sets it
  started "$qmp_PID"
  echo '{"execute":"qmp_capabilities"}' >&"${qmp[1]}"
}
# A slow machine may have it hold for a moment at any time: what was heard is a reason to look.
await_state() {
  local line
  while [ "$(record_on "${heard[@]}" | jq -r .state)" != "$1" ]; do
    read -r line <&"${qmp[0]}" || fail "the instance ended before it was $1"
  done
}

nbd_of() { echo "nbd+unix:///?socket=$(on "$1" vbdkit list --json "$2" | jq -r '.[0].nbd')"; }

# fake_ssh: from here on, ssh(1) to a host of the test. hook COMMAND TEXT: when the next vbdkit that
# it is to run there has this word, the text is run first; it may use what this file defines.
fake_ssh() {
  mkdir bin hooks
  {
    echo '#!/usr/bin/env bash'
    echo 'set -euo pipefail'
    declare -f on command_on
    declare -p run VBDKIT netns scratch
    cat <<'EOF'
[ "$1 $2 $3" = "-o BatchMode=yes --" ] || { echo "ssh: $*" >&2; exit 255; }
host=$4 words=$5
echo "$host $words" >>"$scratch/ssh.log"
for hook in "$scratch"/hooks/*; do
  case $words in *"'${hook##*/}'"*) . "$hook" ;; esac
done
PATH=${VBDKIT%/vbdkit}:$PATH on "$host" sh -c "$words"
EOF
  } >bin/ssh
  chmod +x bin/ssh
  PATH=$PWD/bin:$PATH
}
# shellcheck disable=SC2016 # for the shell that runs it
hook() { printf 'rm "$hook"\n%s\n' "$2" >"hooks/$1"; }
