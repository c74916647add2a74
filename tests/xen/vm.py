#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's machine: QEMU with Xen and dom0, and the channel that runs scripts in dom0.

As a program: `vm.py LAB shell` boots and leaves the terminal in a dom0 shell.
"""

import base64
import ctypes
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile

# What TCG must not offer. SMAP, SMEP: a PV dom0 dies early. RDTSCP: PVH and HVM guests die on an instruction that TCG's
# SVM cannot decode. AVX: see XEN.
CPU = "max,-smap,-smep,-la57,-pku,-rdtscp,-avx,-avx2,-fma,-f16c"
# eager-fpu: by default Xen hands the FPU over lazily, relying on CR0.TS; under QEMU 7.2 programs then run with another
# domain's vector registers, and crash or hang at random (every twentieth process in dom0 while a guest is busy).
XEN = ("console=com1 com1=115200 dom0_mem=1536M,max:1536M dom0_max_vcpus=2 spec-ctrl=eager-fpu "
       "loglvl=info guest_loglvl=info")
BOOT_SECONDS = 300


class LabError(Exception):
    """The lab itself failed: QEMU, dom0's boot, or the channel. Not a test's failure."""


def qemu_command(lab, serial, dom0_words):
    """serial: QEMU's arguments for the console and the channel."""
    dom0 = f"{lab}/base/vmlinux console=hvc0 loglevel=4 nosoftlockup {dom0_words}"
    # The last two are for a driver domain: the same again, each with its own changes (snapshot=on).
    drives = ["base/root.ext4", "layer.ext4", "scratch.img", "base/root.ext4", "layer.ext4"]
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", CPU, "-smp", "2", "-m", "4096",
               "-no-reboot", "-nic", "none", "-vga", "none", "-kernel", f"{lab}/base/xen", "-append", XEN,
               "-initrd", f"{dom0},{lab}/dom0.img"]
    for path in drives:
        command += ["-drive", f"file={lab}/{path},format=raw,if=virtio,cache=unsafe,discard=unmap,snapshot=on"]
    return command + serial


def end_with_parent():
    """For a child between fork and exec: however the runner ends, QEMU does too."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Patience:
    """A deadline that counts only seconds that we have waited through: where all of the lab stands still for minutes (a
    suspended machine, a frozen control group), dom0 has not been silent for that long."""

    STEP = 1.0

    def __init__(self, seconds):
        self._left = seconds

    def wait(self, channel):
        """Until the channel has something to read. False: it is too late."""
        while self._left > 0:
            if select.select([channel], [], [], self.STEP)[0]:
                return True
            self._left -= self.STEP
        return False


class Machine:
    """A booted dom0. Use as a context manager; QEMU ends with it."""

    def __init__(self, lab, console_log):
        self._dir = tempfile.TemporaryDirectory(prefix="vbdkit-lab-")
        path = f"{self._dir.name}/lab.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(30)
        self._console_log = pathlib.Path(console_log)
        self._process = subprocess.Popen(
            qemu_command(lab, [
                "-display", "none", "-monitor", "none", "-serial", f"file:{console_log}",
                "-device", "virtio-serial-pci", "-chardev", f"socket,id=lab,path={path}",
                "-device", "virtserialport,chardev=lab,name=lab"], ""),
            stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
        self._buffer = b""
        self._seq = 0
        self.versions = ""  # of Xen and dom0's kernel, for whoever finds out
        try:
            self._channel, _ = listener.accept()
            listener.close()
            line = self._line(Patience(BOOT_SECONDS))
            if not line.startswith("r "):
                raise LabError(f"dom0's agent said {line!r} instead of being ready")
        except (OSError, LabError) as error:
            self.close()
            raise LabError(f"dom0 did not come up: {error}; console: {console_log}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._process.kill()
        self._process.wait()
        self._dir.cleanup()

    def _line(self, patience):
        while b"\n" not in self._buffer:
            if not patience.wait(self._channel):
                raise LabError("dom0 does not answer")
            data = self._channel.recv(65536)
            if not data:
                raise LabError(f"QEMU ended, status {self._process.wait()}")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def run(self, script, seconds, on_line):
        """Runs a bash script in dom0, hands each line it prints to on_line, returns its exit status (124: time-out)."""
        self._seq += 1
        encoded = base64.b64encode(script.encode()).decode()
        self._channel.sendall(f"{self._seq} {seconds} {encoded}\n".encode())
        patience = Patience(seconds + 30)
        while True:
            kind, seq, rest = (self._line(patience).split(" ", 2) + ["", ""])[:3]
            if seq != str(self._seq):
                continue
            if kind == "d":
                return int(rest)
            on_line(rest)


def shell(lab):
    os.execvp("qemu-system-x86_64", qemu_command(lab, ["-nographic", "-serial", "mon:stdio"], "lab=shell"))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] != "shell":
        sys.exit(__doc__)
    shell(sys.argv[1])
