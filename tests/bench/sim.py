# SPDX-License-Identifier: LGPL-2.1-or-later
"""The simulated Xen: the same frontend on a disk of vbdkit's and on one of QEMU's qdisk.

Runs inside a World (simxen-run). vbdkit is reached as on a host: vbdkitd sees the device's nodes and starts the
instance. QEMU is started for each disk, as libxl does for a PV guest.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import benchlib

PEER = "qdisk"

# name: what the frontend does
# Its idle time is for the memory that a backend keeps when what the connection needed is over.
CASES = {
    "sim randread 4k qd1": ["--op", "randread", "--qd", "1", "--idle", "1.5"],
    "sim randread 4k qd32": ["--op", "randread", "--qd", "32"],
    "sim randread 4k qd128": ["--op", "randread", "--qd", "128", "--ring-order", "2"],
    "sim randwrite 4k qd32": ["--op", "randwrite", "--qd", "32"],
}
# 128 KiB travel as one indirect request where the backend has those, else as requests of 32 KiB: 8 pages are the
# largest divisor that fits the 11 segments of a direct request. Both keep 1 MiB in flight.
LARGE = "sim read 128k"
LARGE_DIRECT = ["--op", "read", "--bs", "32768", "--qd", "32"]
LARGE_INDIRECT = ["--op", "read", "--bs", "131072", "--qd", "8", "--indirect", "256"]


class Frontend:
    """Runs simfront and keeps what it said."""

    def __init__(self, build, images, seconds):
        self._program = build / "tests/sim/simfront"
        self._images = images
        self._seconds = seconds

    def run(self, subject, options):
        image = self._images["write" if "randwrite" in options else "read"]
        if subject == "qdisk":
            disk = ["--backend", "qdisk", "--target", str(image)]
        else:
            disk = ["--backend", "vbd", "--target", f"raw,direct=off:{image}"]
            if subject == "vbdkit":
                disk.append("--persistent")
        done = subprocess.run(
            [self._program, *disk, "--seconds", str(self._seconds), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: {subject} {options}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)


class Daemon:
    """vbdkitd with a runtime directory of its own."""

    def __init__(self, build):
        self._dir = tempfile.TemporaryDirectory(prefix="vbdkit-bench-")
        runtime = pathlib.Path(self._dir.name)
        (runtime / "shm").mkdir()
        self._log = open(runtime / "vbdkitd.log", "w", encoding="utf-8")
        self._process = subprocess.Popen(
            [build / "vbdkitd", "--runtime-dir", runtime / "run", "--backend", build / "vbdkit-backend",
             "--backend-arg", "--xentop-dir", "--backend-arg", runtime / "shm", "--sysfs", runtime / "sys"],
            stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 10
        while not (runtime / "run/vbdkitd.sock").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit("bench: vbdkitd did not start: " + (runtime / "vbdkitd.log").read_text())
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._log.close()
        self._dir.cleanup()


def normalised(report, block):
    """As if requests were of `block` bytes: what a 128 KiB read costs, however it travels."""
    factor = report["bs"] / block
    return {
        "iops": report["iops"] * factor,
        "cpu_us_per_io": report["cpu_us_per_io"] / factor,
        "mib_s": report["mib_s"],
    }


def measure(results, build, images, rounds, seconds):
    frontend = Frontend(build, images, seconds)
    with Daemon(build):
        # vbdkit: the guest offers persistent grants, as Linux does. vbdkit-copy: it does not.
        for case, options in CASES.items():
            print(f"{case} …", file=sys.stderr)
            for subject in benchlib.alternating(["vbdkit", "vbdkit-copy", "qdisk"], rounds):
                report = frontend.run(subject, options)
                results.add(case, subject, **normalised(report, 4096))
                if case == "sim randread 4k qd1":
                    results.add("sim idle and attach", subject, rss_kib=report["idle_rss_kib"],
                                pss_kib=report["idle_pss_kib"], own_pss_kib=report["idle_own_pss_kib"],
                                attach_ms=report["attach_ms"])
        print(f"{LARGE} …", file=sys.stderr)
        for subject in benchlib.alternating(["vbdkit", "vbdkit-copy", "qdisk"], rounds):
            options = LARGE_DIRECT if subject == "qdisk" else LARGE_INDIRECT
            results.add(LARGE, subject, **normalised(frontend.run(subject, options), 131072))
