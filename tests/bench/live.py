# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest notices of operations on its running disk: the longest I/O, beside the same load without.

One client writes 4 KiB at random, 5000 times a second, one at a time. Meanwhile the disk is snapshotted, refreshed, or
its leaf is merged into its parent. vbdkit-backend and qemu-storage-daemon, the same chains, in turn.
"""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import benchlib
import chain
from nbd import wait_for

PEER = "qsd"
DEPTHS = [1, 64]
RATE = "5000"
SUBJECTS = ["vbdkit", "qsd"]


class Qmp:
    """A connection that has negotiated."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
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

    def __init__(self, bench, subject, leaf, directory):
        self.bench = bench
        self.subject = subject
        self.leaf = leaf
        self.nbd = directory / "nbd.sock"
        self.qmp = directory / "qmp.sock"
        if subject == "vbdkit":
            command = [bench.build / "vbdkit-backend", "--spec", f"qcow2,direct=off:{leaf}", "--uuid", "bench",
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

    def commit(self):
        """The leaf into its parent, to the end."""
        start = time.monotonic()
        parent = self.leaf.with_name("live-parent.qcow2")
        self.control.execute("block-commit", device="disk", job_id="commit", base=str(parent))
        self.control.wait_event("BLOCK_JOB_READY")
        self.control.execute("block-job-complete", device="commit")
        self.control.wait_event("BLOCK_JOB_COMPLETED")
        return time.monotonic() - start


def operations(subject, depth):
    names = ["nothing", "snapshot"]
    if subject == "vbdkit":
        names.append("refresh")
    if depth > 1:
        names.append("commit")
    return names


def new_leaf(bench, images):
    """A chain as deep as that of the images, whose upper two may be changed."""
    parent = images[-3] if len(images) > 1 else None
    for name in ["live-parent", "live"][-len(images):]:
        path = bench.create("qcow2", bench.images / f"{name}.qcow2", chain.SIZE_MIB, parent)
        chain.fill(bench, "qcow2", path, range(0, (chain.SIZE_MIB << 20) // chain.PIECE, 16))
        parent = path
    return parent


def measure_one(bench, subject, images, name):
    """The client's report, and how long the operation took."""
    leaf = new_leaf(bench, images)
    with tempfile.TemporaryDirectory(prefix="live", dir=bench.sockets) as directory:
        disk = Disk(bench, subject, leaf, pathlib.Path(directory))
        with contextlib.closing(disk.control):
            load = subprocess.Popen([str(bench.build / "tests/bench/nbdload"), "--socket", str(disk.nbd), "--rw", "randwrite",
                                     "--rate", RATE, "--seconds", str(bench.seconds)], stdout=subprocess.PIPE, text=True)
            time.sleep(bench.seconds / 3)
            took = getattr(disk, name)()
            report = json.loads(load.communicate()[0])
            disk.end()
    for left in bench.images.glob("*.snap"):
        left.unlink()
    return report, took


def measure(results, build, directory, rounds, seconds):
    chain.fresh(directory)
    with tempfile.TemporaryDirectory(prefix="vbdkit-bench-") as sockets:
        bench = chain.Bench(results, build, rounds, seconds, directory, pathlib.Path(sockets))
        for depth in DEPTHS:
            images = chain.make_chain(bench, "qcow2", depth)
            if depth == 1:
                chain.choose_aio(bench, images[0])
            keys = [(subject, name) for name in ("nothing", "snapshot", "refresh", "commit") for subject in SUBJECTS
                    if name in operations(subject, depth)]
            print(f"live {depth} …", file=sys.stderr)
            for subject, name in benchlib.alternating(keys, rounds):
                report, took = measure_one(bench, subject, images, name)
                case = f"live {depth} {name}"
                results.add(case, subject, longest_us=report["lat_us"]["max"], p999_us=report["lat_us"]["p999"])
                if took is not None:
                    results.add(case, subject, took_ms=took * 1000)
            chain.fresh(directory)
