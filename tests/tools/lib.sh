# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# For the tests of the image commands: a scratch directory to work in, and checks that say what they
# saw. Sourced by each script; runs in the build directory, whose vbdkit is under test.
set -euo pipefail
# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

VBDKIT=${VBDKIT:-$PWD/vbdkit}
scratch=$(mktemp -d "$PWD/tools-test.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

vbdkit() { "$VBDKIT" "$@"; }

# refused STATUS PATTERN ARG...: vbdkit must end with that status and say so.
refused() {
  local expected=$1 pattern=$2 status=0
  shift 2
  vbdkit "$@" >out 2>err || status=$?
  [ "$status" = "$expected" ] || fail "vbdkit $*: status $status, expected $expected: $(cat err)"
  grep -qE -- "$pattern" err || fail "vbdkit $*: said '$(cat err)', expected '$pattern'"
}

# status_of ARG...: the exit status of vbdkit, whose output is in the file out.
status_of() {
  local status=0
  vbdkit "$@" >out 2>err || status=$?
  echo "$status"
}

# expect_json JQ VALUE: what the file out holds.
expect_json() {
  local got
  got=$(jq -c "$1" out)
  [ "$got" = "$2" ] || fail "$1 is $got, expected $2, in: $(cat out)"
}

# same A FORMAT B FORMAT, as qemu-img sees it.
same() {
  qemu-img compare -q -f "$2" -F "$4" "$1" "$3" || fail "$1 and $3 differ"
}

# pattern FILE SIZE: data, holes and zeroes that are written, in pieces that align with nothing.
pattern() {
  python3 - "$1" "$2" <<'PY'
import random, sys
rng = random.Random(7)
size = int(sys.argv[2])
with open(sys.argv[1], "wb") as f:
    f.truncate(size)
    at = 0
    while at < size:
        n = min(size - at, 512 * rng.randrange(1, 2048))
        kind = rng.randrange(3)
        f.seek(at)
        if kind == 0:
            f.write(rng.randbytes(n))
        elif kind == 1:
            f.write(bytes(n))
        at += n
PY
}
