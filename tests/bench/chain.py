# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains of images over NBD: vbdkit, qemu-nbd and qemu-storage-daemon on the same chains, in turn.

A chain of depth N is one disk of SIZE_MIB whose 64 KiB pieces are dealt out to the N images at random, so that
reads of it go through all depths. What was just written is in the page cache. All servers run at once and idle but one.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

import benchlib
from nbd import pss_kib, wait_for

PEER = "qsd"
CONVERT_PEER = "qemu-img"
PREAD = "pread"
DEPTHS = [1, 8, 30, 64]
SIZE_MIB = 256
PIECE = 64 << 10
ALLOCATION_IOS = 4000
VHD_ALLOCATION_GIB = 16  # enough blocks of 2 MiB that most writes find a new one
OPEN_GIB = 100
OPEN_ROUNDS = 15

READS = {
    "randread 4k qd1": ["--rw", "randread", "--qd", "1"],
    "randread 4k qd32": ["--rw", "randread", "--qd", "32"],
    "read 128k qd8": ["--rw", "read", "--bs", "131072", "--qd", "8"],
}
IN_PLACE = "randwrite 4k qd32 in place"
ALLOCATING = "randwrite 4k qd32 allocating"
RANDWRITE = ["--rw", "randwrite", "--qd", "32"]


class Bench:
    """What all parts need: programs, a directory of images, one of sockets."""

    def __init__(self, results, build, rounds, seconds, images, sockets):
        self.results = results
        self.build = build
        self.rounds = rounds
        self.seconds = seconds
        self.images = images
        self.sockets = sockets
        self.aio = "threads"

    def create(self, fmt, path, size_mib, parent=None):
        """An empty image."""
        path.unlink(missing_ok=True)
        if fmt == "vpc":
            command = ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", path,
                       f"{size_mib}M"]
        elif fmt == "qcow2":
            backing = ["-b", parent, "-F", "qcow2"] if parent else []
            command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, f"{size_mib}M"]
        else:
            over = ["--parent", f"vhd:{parent}"] if parent else []
            command = [self.build / "vbdkit", "create", "--size", f"{size_mib}M", *over, f"vhd:{path}"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        return path

    def command(self, subject, fmt, image, path, read_only):
        ours = "qcow2" if fmt == "qcow2" else "vhd"
        if subject == "vbdkit":
            return [self.build / "vbdkit", "serve", f"{ours},direct=off:{image}", "--nbd", f"unix:{path}",
                    *(["--read-only"] if read_only else [])]
        theirs = "qcow2" if fmt == "qcow2" else "vpc"
        if subject == "qemu-nbd":
            return ["qemu-nbd", "-f", theirs, f"--aio={self.aio}", "--cache=writeback", "-t", "-k", path, image,
                    *(["-r"] if read_only else [])]
        access = "on" if read_only else "off"
        return ["qemu-storage-daemon",
                "--blockdev", f"driver=file,filename={image},aio={self.aio},node-name=file,read-only={access}",
                "--blockdev", f"driver={theirs},file=file,node-name=disk,read-only={access}",
                "--nbd-server", f"addr.type=unix,addr.path={path}",
                "--export", f"nbd,id=e,node-name=disk,name=,writable={'off' if read_only else 'on'}"]

    @contextlib.contextmanager
    def server(self, subject, fmt, image, read_only=False):
        """A running server: its socket and its process."""
        path = pathlib.Path(tempfile.mktemp(prefix=subject, dir=self.sockets))
        process = subprocess.Popen([str(word) for word in self.command(subject, fmt, image, path, read_only)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False)
        try:
            wait_for(path, process)
            yield path, process
        finally:
            # qemu-nbd can lose a SIGTERM that comes early, and nobody needs its image any more.
            if subject == "vbdkit":
                process.terminate()
            else:
                process.kill()
            process.wait()

    def load(self, path, process, options):
        done = subprocess.run([self.build / "tests/bench/nbdload", "--socket", path, "--pid", str(process.pid), *options],
                              stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    def timed(self, *options):
        return ["--seconds", str(self.seconds), *options]

    def add(self, case, subject, report):
        self.results.add(case, subject, iops=report["iops"], cpu_us_per_io=report["cpu_us_per_io"])


def fill(bench, fmt, image, pieces):
    """Writes the pieces through our own server."""
    with bench.server("vbdkit", fmt, image) as (path, _):
        script = "".join(f"write -q -P {1 + piece % 250} {piece * PIECE} {PIECE}\n" for piece in pieces)
        subprocess.run(["qemu-io", "-f", "raw", f"nbd+unix:///?socket={path}"], input=script, text=True, check=True,
                       stdout=subprocess.DEVNULL)


def make_chain(bench, fmt, depth):
    """The images, base first."""
    dealt = random.Random(depth)
    layers = [[] for _ in range(depth)]
    for piece in range((SIZE_MIB << 20) // PIECE):
        layers[dealt.randrange(depth)].append(piece)
    chain = []
    for level, pieces in enumerate(layers):
        image = bench.images / f"{fmt}-{depth}-{level}.{fmt}"
        bench.create(fmt, image, SIZE_MIB, chain[-1] if chain else None)
        fill(bench, fmt, image, pieces)
        chain.append(image)
    return chain


def overlay(bench, fmt, chain, name):
    """A leaf of its own over all of the chain but its own leaf, with as many images as the chain."""
    return bench.create(fmt, bench.images / f"{fmt}-{len(chain)}-{name}.{fmt}", SIZE_MIB,
                        chain[-2] if len(chain) > 1 else None)


def choose_aio(bench, image):
    """Which of QEMU's ways to do file I/O is the fastest here."""
    speed = {}
    for aio in ["threads", "io_uring"]:
        bench.aio = aio
        with bench.server("qsd", "qcow2", image) as (path, process):
            options = ["--seconds", "0.3", *READS["randread 4k qd32"]]
            bench.load(path, process, options)
            speed[aio] = max(bench.load(path, process, options)["iops"] for _ in range(3))
    bench.aio = max(speed, key=speed.get)
    print(f"chain: QEMU's fastest aio: {bench.aio} ({speed})", file=sys.stderr)


def measure_served(bench, fmt, chains, peers):
    """Reads and writes in place: all (depth, subject) in turn, so that drift falls on all alike."""
    def case_of(depth, name):
        return f"chain {fmt} {depth} {name}"

    def subjects(depth):
        return ["vbdkit", *(peers if depth in peers_at(fmt) else [])]

    parts = {name: {} for name in ("read", "write")}
    with contextlib.ExitStack() as stack:
        for depth, chain in chains.items():
            for subject in subjects(depth):
                full = overlay(bench, fmt, chain, f"full-{subject}")
                fill(bench, fmt, full, range((SIZE_MIB << 20) // PIECE))
                for part, image in (("read", chain[-1]), ("write", full)):
                    parts[part][depth, subject] = stack.enter_context(
                        bench.server(subject, fmt, image, read_only=part == "read"))
        # Images that wait for their writeback slow down whoever writes next.
        os.sync()
        for (depth, subject), (_, process) in parts["read"].items():
            bench.results.add(case_of(depth, "idle"), subject, pss_kib=pss_kib(process.pid))
        for part, name, options in [("read", *item) for item in READS.items()] + [("write", IN_PLACE, RANDWRITE)]:
            print(f"chain {fmt} {name} …", file=sys.stderr)
            running = parts[part]
            for path, process in running.values():  # tables and maps are read here
                bench.load(path, process, ["--seconds", "0.5", *options])
            for key in benchlib.alternating(list(running), bench.rounds):
                bench.add(case_of(key[0], name), key[1], bench.load(*running[key], bench.timed(*options)))
            compare_depths(bench.results, [case_of(depth, name) for depth in chains])
        for (depth, subject), (_, process) in parts["read"].items():
            bench.results.add(case_of(depth, "after the load"), subject, pss_kib=pss_kib(process.pid))
    measure_pages(bench, fmt, chains, lambda depth: case_of(depth, "randread 4k qd1 by pread"))


def measure_pages(bench, fmt, chains, case_of):
    """The kernel's share: the same bytes from the same files, without a server."""
    maps = {depth: subprocess.run([bench.build / "vbdkit", "map", "--json", f"{fmt}:{chain[-1]}"], check=True,
                                  stdout=subprocess.PIPE).stdout for depth, chain in chains.items()}
    for depth in benchlib.alternating(list(maps), bench.rounds):
        done = subprocess.run([bench.build / "tests/bench/pageload", str(bench.seconds)], input=maps[depth], check=True,
                              stdout=subprocess.PIPE)
        bench.add(case_of(depth), PREAD, json.loads(done.stdout))
    compare_depths(bench.results, [case_of(depth) for depth in chains], PREAD)


def compare_depths(results, cases, subject="vbdkit"):
    """The cost of depth: each sample by that of depth 1 in the same round."""
    for metric in ("iops", "cpu_us_per_io"):
        shallow = results.samples(cases[0], subject, metric)
        for case in cases[1:]:
            for deep, one in zip(list(results.samples(case, subject, metric)), shallow):
                results.add(case, subject, **{f"{metric}_by_depth_1": deep / one})


def peers_at(fmt):
    return DEPTHS if fmt == "qcow2" else [1]


def measure_allocating(bench, fmt, chains, peers):
    """A fresh leaf for each sample, and so many writes that most of them need new space."""
    print(f"chain {fmt} {ALLOCATING} …", file=sys.stderr)
    keys = [(depth, subject) for depth in chains for subject in ["vbdkit", *(peers if depth in peers_at(fmt) else [])]]
    for depth, subject in benchlib.alternating(keys, bench.rounds):
        if fmt == "vhd" and depth == 1:
            image = bench.create("vpc", bench.images / "allocating.vhd", VHD_ALLOCATION_GIB << 10)
        else:
            image = overlay(bench, fmt, chains[depth], "allocating")
        with bench.server(subject, fmt, image) as (path, process):
            report = bench.load(path, process, ["--ios", str(ALLOCATION_IOS), *RANDWRITE])
        bench.add(f"chain {fmt} {depth} {ALLOCATING}", subject, report)
        image.unlink()


def measure_convert(bench, fmt, source):
    """The whole disk into new images, as fast as each tool can (qemu-img's order is free: -W)."""
    theirs = "qcow2" if fmt == "qcow2" else "vpc"
    for to in ("raw", fmt):
        print(f"chain {fmt} convert to {to} …", file=sys.stderr)
        new = bench.images / f"converted.{to}"
        commands = {
            "vbdkit": [bench.build / "vbdkit", "convert", f"{fmt}:{source}", f"{to}:{new}"],
            CONVERT_PEER: ["qemu-img", "convert", "-W", "-f", theirs, "-O", theirs if to == fmt else to, source, new],
        }
        for subject in benchlib.alternating(commands, bench.rounds):
            start = time.monotonic()
            subprocess.run([str(word) for word in commands[subject]], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            bench.results.add(f"chain {fmt} convert to {to}", subject, mib_s=SIZE_MIB / (time.monotonic() - start))
            new.unlink()


def first_read_ms(bench, subject, fmt, image):
    """From the start of the server until it has answered a read; None where it took seconds."""
    path = pathlib.Path(tempfile.mktemp(prefix="open", dir=bench.sockets))
    command = [str(word) for word in bench.command(subject, fmt, image, path, False)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(str(path)) != 0:
                if process.poll() is not None or time.monotonic() > start + 10:
                    sys.exit(f"bench: {command} does not serve")
                time.sleep(0.0001)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0))
            # NBD_OPT_EXPORT_NAME, no zeroes; then 4 KiB from the disk's middle.
            client.recv(18, socket.MSG_WAITALL)
            client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
            client.recv(10, socket.MSG_WAITALL)
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, OPEN_GIB << 29, 4096))
            client.recv(16 + 4096, socket.MSG_WAITALL)
            return (time.monotonic() - start) * 1000
    except BlockingIOError:
        print(f"chain: {subject} did not answer in time", file=sys.stderr)
        return None
    finally:
        process.kill()
        process.wait()


def measure_open(bench, fmt, depths, peers):
    """Chains of OPEN_GIB disks with a little in each image."""
    print(f"chain {fmt} open …", file=sys.stderr)
    leaves = {}
    for depth in depths:
        image = None
        for level in range(depth):
            image = bench.create(fmt, bench.images / f"open-{depth}-{level}.{fmt}", OPEN_GIB << 10, image)
            fill(bench, fmt, image, [level * 1000, (OPEN_GIB << 29) // PIECE + level])
        leaves[depth] = image
    keys = [(depth, subject) for depth in depths for subject in ["vbdkit", *(peers if depth in peers_at(fmt) else [])]]
    for depth, subject in benchlib.alternating(keys, OPEN_ROUNDS):
        taken = first_read_ms(bench, subject, fmt, leaves[depth])
        if taken is not None:
            bench.results.add(f"chain {fmt} {depth} open {OPEN_GIB} GiB", subject, open_ms=taken)
    for depth, subject in keys:
        with bench.server(subject, fmt, leaves[depth]) as (_, process):
            bench.results.add(f"chain {fmt} {depth} open {OPEN_GIB} GiB", subject, pss_kib=pss_kib(process.pid))


def fresh(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def measure(results, build, directory, rounds, seconds):
    fresh(directory)
    with tempfile.TemporaryDirectory(prefix="vbdkit-bench-") as sockets:
        bench = Bench(results, build, rounds, seconds, directory, pathlib.Path(sockets))
        peers = ["qemu-nbd", "qsd"]
        for fmt in ("qcow2", "vhd"):
            measure_open(bench, fmt, DEPTHS, peers)
            chains = {depth: make_chain(bench, fmt, depth) for depth in DEPTHS}
            if fmt == "qcow2":
                choose_aio(bench, chains[1][-1])
            measure_served(bench, fmt, chains, peers)
            measure_allocating(bench, fmt, chains, peers)
            measure_convert(bench, fmt, chains[1][-1])
            fresh(directory)
