# SPDX-License-Identifier: LGPL-2.1-or-later
"""NBD over a unix socket: one batching client (nbdload) on each server in turn."""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import benchlib

PEER = "nbdkit null"

CASES = {
    "nbd randread 4k qd1": ["--rw", "randread", "--qd", "1"],
    "nbd randread 4k qd32": ["--rw", "randread", "--qd", "32"],
    "nbd randwrite 4k qd32": ["--rw", "randwrite", "--qd", "32"],
    "nbd read 128k qd8": ["--rw", "read", "--bs", "131072", "--qd", "8"],
}


def servers(build, image, directory):
    size = image.stat().st_size
    path = lambda name: str(directory / name)
    qsd = lambda name, aio: [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,filename={image},aio={aio},locking=off,node-name=file",
        "--blockdev", "driver=raw,file=file,node-name=disk",
        "--nbd-server", f"addr.type=unix,addr.path={path(name)}",
        "--export", "nbd,id=e,node-name=disk,name=,writable=on",
    ]
    return {
        "vbdkit raw": [build / "vbdkit", "serve", f"raw,direct=off:{image}", "--nbd", f"unix:{path('vbdkit raw')}"],
        "vbdkit null": [build / "vbdkit", "serve", f"null,size={size}", "--nbd", f"unix:{path('vbdkit null')}"],
        "nbdkit null": ["nbdkit", "-f", "-U", path("nbdkit null"), "null", f"size={size}"],
        "nbdkit file": ["nbdkit", "-f", "-U", path("nbdkit file"), "file", str(image)],
        "qsd io_uring": qsd("qsd io_uring", "io_uring"),
        "qsd threads": qsd("qsd threads", "threads"),
    }


def wait_for(path, process):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.01)
    sys.exit(f"bench: no NBD server on {path}")


def pss_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


class Servers:
    """All servers of an image, each on a socket named after it."""

    def __init__(self, build, image):
        self._dir = tempfile.TemporaryDirectory(prefix="vbdkit-bench-")
        self.directory = pathlib.Path(self._dir.name)
        self._commands = servers(build, image, self.directory)
        self.running = {}

    def __enter__(self):
        try:
            for subject, command in self._commands.items():
                self.running[subject] = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL,
                                                         stderr=subprocess.DEVNULL)
                wait_for(self.directory / subject, self.running[subject])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()
        self._dir.cleanup()


def measure(results, build, images, rounds, seconds):
    with Servers(build, images["read"]) as readers, Servers(build, images["write"]) as writers:
        for subject, process in readers.running.items():
            results.add("nbd idle", subject, pss_kib=pss_kib(process.pid))
        for case, options in CASES.items():
            print(f"{case} …", file=sys.stderr)
            group = writers if "randwrite" in options else readers
            for subject in benchlib.alternating(list(group.running), rounds):
                done = subprocess.run(
                    [build / "tests/bench/nbdload", "--socket", group.directory / subject, "--seconds", str(seconds),
                     "--pid", str(group.running[subject].pid), *options],
                    stdout=subprocess.PIPE, text=True, check=True)
                report = json.loads(done.stdout)
                results.add(case, subject, iops=report["iops"], cpu_us_per_io=report["cpu_us_per_io"],
                            mib_s=report["mib_s"])
