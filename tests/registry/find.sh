#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# One instance among 10,000 of many hosts: as many requests and bytes as among few.
# shellcheck source=tests/registry/lib.sh
. "$(dirname "$0")/lib.sh"
need python3
lease=30
add_host a
start_etcd
start_registryd a
vbdkit create --size 16M "qcow2:$share/a.qcow2" >/dev/null
a=$(activate_on a "qcow2:$share/a.qcow2")
await_key "/vbdkit/instances/$a" PUT 1

# cost COMMAND...: requests and bytes that registryd exchanges with etcd for it, beside the lease's.
status() { on a python3 - <<'PY'
import json, os, socket
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["VBDKIT_RUNTIME_DIR"] + "/registry.sock")
f = s.makefile("rw")
f.readline()
for command in "qmp_capabilities", "registry-status":
    f.write(json.dumps({"execute": command}) + "\n")
    f.flush()
    answer = f.readline()
print(answer)
PY
}
received() { status | jq '.return."bytes-received"'; }
find_all() {
  local before
  before=$(received)
  on a vbdkit list --all-hosts --json "$a" >out
  expect_json '.[0].uuid' "\"$a\""
  on a vbdkit list --all-hosts --json "$share/a.qcow2" >out
  expect_json '.[0].uuid' "\"$a\""
  echo $(($(received) - before))
}
few=$(find_all)

# Other hosts', each with its record and its claim.
python3 - "$share" <<'PY'
import base64, json, sys, urllib.request

def b64(text):
    return base64.b64encode(text.encode()).decode()

def call(path, body):
    request = urllib.request.Request("http://127.0.0.1:2379" + path, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))

lease = call("/v3/lease/grant", {"TTL": "600"})["ID"]
for first in range(0, 10000, 50):
    puts = []
    for n in range(first, first + 50):
        uuid = f"{n:08x}-0000-4000-8000-000000000000"
        host = f"host{n % 100}"
        record = {"uuid": uuid, "host": host, "spec": f"raw:/srv/{n}.img", "state": "running",
                  "chain": [{"format": "raw", "path": f"/srv/{n}.img"}] * 4, "consumers": []}
        claim = {"mode": "write", "path": f"/srv/{n}.img"}
        for key, value, bound in [
            (f"instances/{uuid}", {"host": host, "record": record}, lease),
            (f"images/san/i{10**12 + n}/{host}/{uuid}", claim, "0"),
        ]:
            puts.append({"request_put": {"key": b64("/vbdkit/" + key), "lease": bound,
                                         "value": b64(json.dumps(value))}})
    call("/v3/kv/txn", {"success": puts})
for n in range(100):
    call("/v3/kv/put", {"key": b64(f"/vbdkit/hosts/host{n}"), "lease": lease,
                        "value": b64('{"machine":"other"}')})
PY
many=$(find_all)
# The keepalives of the time in between, and the hosts' keys, are in it.
[ "$many" -lt $((few + 60000)) ] || fail "found with $many bytes among 10,000, $few among one"
on a vbdkit list --all-hosts --json >out
expect_json length 10001
refused_on a 'runs on host host1 as 00000001-' list 00000001
status | jq -c .return >&2
for _ in {1..5}; do
  /usr/bin/env bash -c 'TIMEFORMAT="found in %3R s"; time "$@" >/dev/null' - env \
    VBDKIT_RUNTIME_DIR="$run/a" VBDKIT_REGISTRY_CONF="$run/a.conf" "$VBDKIT" list --all-hosts "$a"
done
ok "one among 10,000: $many bytes from etcd for two searches, $few among one"
