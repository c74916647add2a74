# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest notices of operations on its running disk: the longest I/O, beside the same load without.

One client writes 4 KiB at random, 5000 times a second, one at a time. After half of its time the disk is snapshotted,
refreshed, its leaf is merged into its parent, as fast as that goes and with a limit, or an image beneath the leaf is; or
all is merged but the last switch, which comes then. What the client saw until then is its own measure (longest_before_us;
beyond_us is how much longer the longest I/O was afterwards). vbdkit-backend and qemu-storage-daemon, the same chains, in
turn. Then a snapshot of several disks at one moment, and what control costs: a merge beside cp of as much, a QMP command,
one instance among 10,000, the start of one.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import benchlib
import chain
from nbd import wait_for

PEER = "qsd"
MERGE = "live merge of the whole disk"
MERGE_PEER = "cp"
DEPTHS = [1, 8, 64]
RATE = "5000"
SUBJECTS = ["vbdkit", "qsd"]
OPERATIONS = ["nothing", "snapshot", "refresh", "coalesce", "commit", "commit-limited", "switch", "stream"]
LIMIT = 64 << 20  # bytes a second
ROUND_TRIPS = 2000
INSTANCES = 10000
FINDS = 20
GROUP = 4
GROUP_RATE = "1000"  # of each disk


class Qmp:
    """A connection that has negotiated."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        while self._socket.connect_ex(str(path)) != 0:
            time.sleep(0.001)  # bound, and about to listen
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._events = []
        self._lines.readline()
        self.execute("qmp_capabilities")

    def _receive(self):
        line = self._lines.readline()
        if not line:
            sys.exit("bench: QMP connection lost")
        return json.loads(line)

    def execute(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._lines.write(json.dumps(message) + "\n")
        self._lines.flush()
        while True:
            answer = self._receive()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                sys.exit(f"bench: {command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_event(self, *names):
        while True:
            while self._events:
                event = self._events.pop(0)
                if event["event"] in names:
                    return event
            self._events.append(self._receive())

    def close(self):
        self._lines.close()
        self._socket.close()


class Disk:
    """One subject that serves one leaf, with its control socket."""

    def __init__(self, bench, subject, leaf, runtime):
        self.bench = bench
        self.subject = subject
        self.leaf = leaf
        self.runtime = runtime
        directory = runtime / "instances" / str(uuid.uuid4())
        directory.mkdir(parents=True)
        self.nbd = directory / "nbd.sock"
        self.qmp = directory / "qmp.sock"
        if subject == "vbdkit":
            command = [bench.build / "vbdkit-backend", "--spec", f"qcow2,direct=off:{leaf}", "--uuid", directory.name,
                       "--runtime-dir", directory, "--xentop-dir", directory]
        else:
            command = ["qemu-storage-daemon",
                       "--blockdev", f"driver=file,filename={leaf},aio={bench.aio},node-name=file",
                       "--blockdev", "driver=qcow2,file=file,node-name=disk",
                       "--chardev", f"socket,path={self.qmp},server=on,wait=off,id=qmp", "--monitor", "chardev=qmp",
                       "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
                       "--export", "nbd,id=e,node-name=disk,name=,writable=on"]
        self.process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        wait_for(self.nbd, self.process)
        self.control = Qmp(self.qmp)
        self.where = {"device": "disk"} if subject == "vbdkit" else {"node_name": "disk"}

    def end(self):
        self.control.close()
        self.process.terminate()
        self.process.wait()

    # What is done to the disk; each returns how many seconds it took.

    def nothing(self):
        return None

    def snapshot(self):
        start = time.monotonic()
        new = {} if self.subject == "vbdkit" else {"snapshot_node_name": "snapshot"}
        self.control.execute("blockdev-snapshot-sync", **self.where, snapshot_file=str(self.leaf) + ".snap",
                             format="qcow2", **new)
        return time.monotonic() - start

    def refresh(self):
        start = time.monotonic()
        self.control.execute("x-vbdkit-refresh")
        return time.monotonic() - start

    def begin_commit(self, **limit):
        """The leaf into its parent; it follows what is written then."""
        parent = self.leaf.with_name("live-parent.qcow2")
        self.control.execute("block-commit", device="disk", job_id="commit", base=str(parent), **limit)
        self.control.wait_event("BLOCK_JOB_READY")

    def switch(self):
        start = time.monotonic()
        self.control.execute("block-job-complete", device="commit")
        self.control.wait_event("BLOCK_JOB_COMPLETED")
        return time.monotonic() - start

    def commit(self, **limit):
        start = time.monotonic()
        self.begin_commit(**limit)
        self.switch()
        return time.monotonic() - start

    def commit_limited(self):
        return self.commit(speed=LIMIT)

    def stream(self):
        """All that the parents hold into the leaf, to the end."""
        start = time.monotonic()
        self.control.execute("block-stream", device="disk", job_id="stream")
        self.control.wait_event("BLOCK_JOB_COMPLETED")
        return time.monotonic() - start

    def coalesce(self):
        """The leaf's parent into its own, to the end."""
        start = time.monotonic()
        parent = self.leaf.with_name("live-parent.qcow2")
        if self.subject == "vbdkit":
            subprocess.run([self.bench.build / "vbdkit", "coalesce", "--runtime-dir", self.runtime, f"qcow2:{parent}"],
                           check=True, stdout=subprocess.DEVNULL)
        else:
            base = self.leaf.with_name("live-base.qcow2")
            self.control.execute("block-commit", device="disk", job_id="commit", top=str(parent), base=str(base))
            self.control.wait_event("BLOCK_JOB_COMPLETED")
        return time.monotonic() - start


def operations(subject, depth):
    """Those that this subject has at this depth."""
    without = set() if subject == "vbdkit" else {"refresh"}
    if depth < 3:
        without |= {"coalesce", "commit", "commit-limited", "switch", "stream"}
    return [name for name in OPERATIONS if name not in without]


def new_leaf(bench, images, every=16):
    """A chain as deep as that of the images, whose upper three may be changed. They have one in `every` pieces."""
    parent = images[-4] if len(images) > 3 else None
    for name in ["live-base", "live-parent", "live"][-len(images):]:
        path = bench.create("qcow2", bench.images / f"{name}.qcow2", chain.SIZE_MIB, parent)
        chain.fill(bench, "qcow2", path, range(0, (chain.SIZE_MIB << 20) // chain.PIECE, every))
        parent = path
    return parent


@contextlib.contextmanager
def running(bench, subject, leaf):
    with tempfile.TemporaryDirectory(prefix="live", dir=bench.sockets) as directory:
        disk = Disk(bench, subject, leaf, pathlib.Path(directory))
        try:
            yield disk
        finally:
            disk.end()


def start_load(bench, nbd, rate, *more):
    return subprocess.Popen([str(bench.build / "tests/bench/nbdload"), "--socket", str(nbd), "--rw", "randwrite",
                             "--rate", rate, "--seconds", str(bench.seconds), *more], stdout=subprocess.PIPE, text=True)


def under_load(bench, loads, operation):
    """The clients' reports, and what the operation returned."""
    time.sleep(bench.seconds / 2)
    for load in loads:
        load.send_signal(signal.SIGUSR1)
    took = operation()
    return [json.loads(load.communicate()[0]) for load in loads], took


def measure_one(bench, subject, images, name):
    with running(bench, subject, new_leaf(bench, images)) as disk:
        if name == "switch":
            disk.begin_commit()
        load = start_load(bench, disk.nbd, RATE)
        reports, took = under_load(bench, [load], getattr(disk, name.replace("-", "_")))
    remove_snapshots(bench)
    return reports[0], took


def remove_snapshots(bench):
    for left in bench.images.glob("*.snap"):
        left.unlink()


def add_latencies(bench, case, subject, report, took):
    since, before = report["lat_us"], report["before_us"]
    bench.results.add(case, subject, longest_us=since["max"], longest_before_us=before["max"],
                      beyond_us=max(0, since["max"] - before["max"]), p999_us=since["p999"], p99_us=since["p99"],
                      p99_before_us=before["p99"])
    if took is not None:
        bench.results.add(case, subject, took_ms=took * 1000)


def measure_latencies(bench, depth):
    images = chain.make_chain(bench, "qcow2", depth)
    if depth == 1:
        chain.choose_aio(bench, images[0])
    keys = [(subject, name) for name in OPERATIONS for subject in SUBJECTS if name in operations(subject, depth)]
    print(f"live {depth} …", file=sys.stderr)
    for subject, name in benchlib.alternating(keys, bench.rounds):
        report, took = measure_one(bench, subject, images, name)
        add_latencies(bench, f"live {depth} {name}", subject, report, took)


@contextlib.contextmanager
def our_group(bench, leaves):
    """A process for each disk; its NBD sockets and exports, and what snapshots all of them."""
    with contextlib.ExitStack() as stack:
        runtime = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="live", dir=bench.sockets)))
        disks = [Disk(bench, "vbdkit", leaf, runtime) for leaf in leaves]
        for disk in disks:
            stack.callback(disk.end)
        first, *others = [(f"qcow2:{leaf}", f"{leaf}.snap") for leaf in leaves]
        command = [str(bench.build / "vbdkit"), "snapshot", "--runtime-dir", str(runtime), *first,
                   *(word for spec, name in others for word in ["--group", f"{spec}={name}"])]
        yield ([(disk.nbd, "") for disk in disks],
               lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


@contextlib.contextmanager
def peer_group(bench, leaves):
    """One process for all."""
    with tempfile.TemporaryDirectory(prefix="live", dir=bench.sockets) as directory:
        nbd, qmp = pathlib.Path(directory) / "nbd.sock", pathlib.Path(directory) / "qmp.sock"
        command = ["qemu-storage-daemon", "--chardev", f"socket,path={qmp},server=on,wait=off,id=qmp",
                   "--monitor", "chardev=qmp", "--nbd-server", f"addr.type=unix,addr.path={nbd}"]
        for i, leaf in enumerate(leaves):
            command += ["--blockdev", f"driver=file,filename={leaf},aio={bench.aio},node-name=file{i}",
                        "--blockdev", f"driver=qcow2,file=file{i},node-name=disk{i}",
                        "--export", f"nbd,id=e{i},node-name=disk{i},name=disk{i},writable=on"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(nbd, process)
            control = Qmp(qmp)
            actions = [{"type": "blockdev-snapshot-sync",
                        "data": {"node-name": f"disk{i}", "snapshot-file": f"{leaf}.snap", "format": "qcow2",
                                 "snapshot-node-name": f"snapshot{i}"}} for i, leaf in enumerate(leaves)]
            yield [(nbd, f"disk{i}") for i in range(len(leaves))], lambda: control.execute("transaction", actions=actions)
            control.close()
        finally:
            process.terminate()
            process.wait()


def timed(operation):
    start = time.monotonic()
    operation()
    return time.monotonic() - start


def measure_group(bench):
    """A snapshot of several disks at one moment: what each one's guest notices."""
    print("live group …", file=sys.stderr)
    for subject in benchlib.alternating(SUBJECTS, bench.rounds):
        leaves = [bench.create("qcow2", bench.images / f"group{i}.qcow2", chain.SIZE_MIB) for i in range(GROUP)]
        with (our_group if subject == "vbdkit" else peer_group)(bench, leaves) as (exports, take):
            loads = [start_load(bench, nbd, GROUP_RATE, "--export", name) for nbd, name in exports]
            reports, took = under_load(bench, loads, lambda: timed(take))
        remove_snapshots(bench)
        for i, report in enumerate(reports):
            add_latencies(bench, f"live group of {GROUP}, disk {i}", subject, report, took)


def measure_merge(bench):
    """As much as the disk holds, merged into an empty parent beneath a guest that does nothing; cp of the same file."""
    print("live merge …", file=sys.stderr)
    base = bench.create("qcow2", bench.images / "live-base.qcow2", chain.SIZE_MIB)
    for subject in benchlib.alternating([*SUBJECTS, MERGE_PEER], bench.rounds):
        bench.create("qcow2", base, chain.SIZE_MIB)
        parent = bench.create("qcow2", bench.images / "live-parent.qcow2", chain.SIZE_MIB, base)
        chain.fill(bench, "qcow2", parent, range((chain.SIZE_MIB << 20) // chain.PIECE))
        leaf = bench.create("qcow2", bench.images / "live.qcow2", chain.SIZE_MIB, parent)
        os.sync()
        if subject == MERGE_PEER:
            copy = bench.images / "copy.qcow2"
            start = time.monotonic()
            subprocess.run(["cp", "--sparse=never", "--reflink=never", parent, copy], check=True)
            with open(copy, "rb") as file:
                os.fsync(file.fileno())
            took = time.monotonic() - start
            copy.unlink()
        else:
            with running(bench, subject, leaf) as disk:
                took = disk.coalesce()
        bench.results.add(MERGE, subject, mib_s=chain.SIZE_MIB / took)


def measure_qmp(bench):
    for subject in benchlib.alternating(SUBJECTS, bench.rounds):
        leaf = bench.create("qcow2", bench.images / "live.qcow2", chain.SIZE_MIB)
        with running(bench, subject, leaf) as disk:
            start = time.monotonic()
            for _ in range(ROUND_TRIPS):
                disk.control.execute("query-block-jobs")
            bench.results.add("live QMP round trip", subject, us=(time.monotonic() - start) * 1e6 / ROUND_TRIPS)


def measure_register(bench, runtime, others):
    """From the word to the answer that it is registered; its process's start is part of that."""
    leaf = bench.create("qcow2", bench.images / "live-other.qcow2", chain.SIZE_MIB)
    for _ in range(FINDS):
        start = time.monotonic()
        subprocess.run([str(bench.build / "vbdkit"), "activate", "--backend", str(bench.build / "vbdkit-backend"),
                        "--runtime-dir", str(runtime), f"qcow2:{leaf}"], check=True, stdout=subprocess.DEVNULL)
        bench.results.add(f"live start and register among {others}", "vbdkit", ms=(time.monotonic() - start) * 1000)
        subprocess.run([str(bench.build / "vbdkit"), "deactivate", "--runtime-dir", str(runtime), str(leaf)], check=True)


def measure_find(bench):
    """One instance among many. The others are what instances leave in a registry: their records, keys and links."""
    print("live find …", file=sys.stderr)
    leaf = bench.create("qcow2", bench.images / "live.qcow2", chain.SIZE_MIB)
    with running(bench, "vbdkit", leaf) as disk:
        own = next(disk.runtime.glob("instances/*"))
        record = (own / "record.json").read_text(encoding="utf-8")
        for i in range(INSTANCES):
            name = str(uuid.UUID(int=i))
            directory = disk.runtime / "instances" / name
            directory.mkdir()
            key = f"file-0:1-{i}"
            (directory / "record.json").write_text(record.replace(own.name, name), encoding="utf-8")
            (directory / "keys").write_text(key + "\n", encoding="utf-8")
            (directory / "pid").write_text("1\n", encoding="utf-8")
            link = disk.runtime / "index" / key
            link.mkdir()
            (link / name).symlink_to(f"../../instances/{name}")
        ways = {"by image": f"qcow2:{leaf}", "by UUID": own.name}
        measure_register(bench, disk.runtime, INSTANCES)
        for way in benchlib.alternating(ways, FINDS):
            command = [str(bench.build / "vbdkit"), "list", "--json", "--runtime-dir", str(disk.runtime), ways[way]]
            start = time.monotonic()
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            took = time.monotonic() - start
            if [one["uuid"] for one in json.loads(found.stdout)] != [own.name]:
                sys.exit(f"bench: {command} found {found.stdout}")
            bench.results.add(f"live find among {INSTANCES}, {way}", "vbdkit", ms=took * 1000)


def measure(results, build, directory, rounds, seconds):
    chain.fresh(directory)
    # As /run is: in memory.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="vbdkit-bench-", dir=memory) as sockets:
        bench = chain.Bench(results, build, rounds, seconds, directory, pathlib.Path(sockets))
        for depth in DEPTHS:
            measure_latencies(bench, depth)
            chain.fresh(directory)
        measure_group(bench)
        measure_merge(bench)
        measure_qmp(bench)
        with tempfile.TemporaryDirectory(prefix="live", dir=bench.sockets) as runtime:
            measure_register(bench, pathlib.Path(runtime), 0)
        measure_find(bench)
        chain.fresh(directory)
