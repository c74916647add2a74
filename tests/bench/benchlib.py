# SPDX-License-Identifier: LGPL-2.1-or-later
"""Samples, their medians, and the two ways they are shown: a table and summary.tsv.

The machines this runs on are shared: absolute figures mean little, a ratio of two subjects measured in
turn in one run means something. So subjects alternate, and the table ends each row with the
median of the ratios taken pair by pair, and their spread.
"""

import statistics


class Results:
    """(case, subject, metric) -> the samples, in the order they were taken."""

    def __init__(self):
        self._samples = {}

    def add(self, case, subject, **metrics):
        for metric, value in metrics.items():
            self._samples.setdefault((case, subject, metric), []).append(value)

    def samples(self, case, subject, metric):
        return self._samples.get((case, subject, metric), [])

    def median(self, case, subject, metric):
        samples = self.samples(case, subject, metric)
        return statistics.median(samples) if samples else None

    def ratio(self, case, metric, subject, peer):
        """Median, least and greatest of subject/peer, pair by pair; None where either is missing."""
        pairs = list(zip(self.samples(case, subject, metric), self.samples(case, peer, metric)))
        ratios = [a / b for a, b in pairs if b]
        return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def cases(self):
        return list(dict.fromkeys(case for case, _, _ in self._samples))

    def subjects(self, case):
        return list(dict.fromkeys(s for c, s, _ in self._samples if c == case))

    def metrics(self, case):
        return list(dict.fromkeys(m for c, _, m in self._samples if c == case))

    def write_tsv(self, path):
        with open(path, "w", encoding="utf-8") as out:
            out.write("case\tsubject\tmetric\tvalue\n")
            for (case, subject, metric), samples in self._samples.items():
                out.write(f"{case}\t{subject}\t{metric}\t{statistics.median(samples):.6g}\n")

    def print_table(self, peer_of):
        """peer_of(case) names the subject that the others are compared with."""
        for case in self.cases():
            metrics = self.metrics(case)
            peer = peer_of(case)
            print(f"\n{case}")
            print(f"  {'':26}" + "".join(f"{m:>16}" for m in metrics) + f"   ÷ {peer}")
            for subject in self.subjects(case):
                row = f"  {subject:26}"
                for metric in metrics:
                    value = self.median(case, subject, metric)
                    row += f"{_shown(value):>16}"
                if subject != peer:
                    row += "   " + self._ratios(case, metrics, subject, peer)
                print(row)

    def _ratios(self, case, metrics, subject, peer):
        parts = []
        for metric in metrics:
            ratio = self.ratio(case, metric, subject, peer)
            if ratio:
                middle, low, high = ratio
                parts.append(f"{metric} {middle:.2f} ({low:.2f}–{high:.2f})")
        return ", ".join(parts)


def _shown(value):
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def alternating(subjects, rounds):
    """A B C, A B C, …: what drifts with time falls on all alike, and no subject follows itself: what has just run
    finds the processors otherwise than what comes after another."""
    for _ in range(rounds):
        yield from subjects
