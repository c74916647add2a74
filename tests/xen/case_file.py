# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a case's file says of itself, in its first comments."""

import pathlib

CASES = pathlib.Path(__file__).resolve().parent / "cases"


def names():
    return sorted(path.stem for path in CASES.glob("*.sh"))


def comments(name):
    """Without the `# `, and without what is for tools."""
    for line in (CASES / f"{name.split(':')[0]}.sh").read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        if "SPDX" not in line and not line.startswith("# shellcheck"):
            yield line[2:]


def headers(name, key):
    """`# limit: 300 s`, `# lab: 4.20 hvm`, `# on request`, `# way: plugin`, and as many as it likes of `# shows: WORDS`."""
    return [line.removeprefix(f"{key}: ") for line in comments(name) if line == key or line.startswith(f"{key}: ")]


def header(name, key, default=""):
    return (headers(name, key) + [default])[0]


def description(name):
    """The first sentence."""
    return " ".join(comments(name)).split(". ")[0].strip().rstrip(".")
