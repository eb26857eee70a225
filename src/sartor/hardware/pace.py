"""The machine's own pace: a fixed kernel timed beside what is measured, so that a slower machine is not taken for a slower network.

A core that shares its execution units, or its clock, with other work changes speed within milliseconds. Samples bracketed by two fast
reference timings come from quiet moments; their median is reproducible where the median of all samples depends on the neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1.12  # a reference within 12 % of the fastest one is fast; a busy sibling thread costs 40 % and more
FEWEST = 8  # samples in a row, unless they take longer than a moment: a slow network has enough of them over a whole series
MOMENT_S = 0.05


@dataclass(frozen=True)
class QuietTime:
    """Median over quiet samples in µs; without `quiet` there were too few, and it is the median of all samples scaled by the pace."""

    us: float
    spread: float  # interquartile range of the samples used, relative to the median
    runs: int
    quiet: bool


class Pacer:
    """Times calls between two timings of a reference kernel of about 5 µs of arithmetic in the first cache level."""

    def __init__(self) -> None:
        self._values = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
        self._out = np.empty_like(self._values)
        self.fastest_us = float(np.percentile([self.reference_us() for _ in range(2000)], 1))

    def reference_us(self) -> float:
        """One timing of the reference kernel in µs."""
        values, out, clock = self._values, self._out, time.perf_counter_ns
        np.exp(values, out=out)  # untimed: whatever ran before took the caches
        began = clock()
        np.exp(values, out=out)
        np.exp(values, out=out)
        return (clock() - began) / 1e3

    def samples(self, call: Callable[[], object], seconds: float) -> np.ndarray:
        """(n, 2) pairs of time of one call and slower of the two references around it, in µs, gathered for `seconds`."""
        clock = time.perf_counter_ns
        start = clock()
        end, patient = start + int(seconds * 1e9), start + int(MOMENT_S * 1e9)
        pairs: list[tuple[float, float]] = []
        before = self.reference_us()
        while True:
            began = clock()
            call()
            done = clock()
            after = self.reference_us()
            pairs.append(((done - began) / 1e3, max(before, after)))
            before = after
            if done > end and (len(pairs) >= FEWEST or done > patient):
                return np.array(pairs)

    def quiet(self, pairs: np.ndarray) -> np.ndarray:
        """Which samples (n, 2) came from quiet moments (n,)."""
        # The fastest reference ever seen may be one lucky reading of the clock: the percentile of a series cannot.
        self.fastest_us = min(self.fastest_us, float(np.percentile(pairs[:, 1], 1)))
        return np.asarray(pairs[:, 1] <= TOLERANCE * self.fastest_us)

    def quiet_time(self, call: Callable[[], object], seconds: float, wanted: int, patience: int) -> QuietTime:
        """Median time of `call` in quiet moments, gathered until there are `wanted`: `seconds` at least, `patience` times that at most."""
        pairs = self.samples(call, seconds)
        for _ in range(patience - 1):
            if int(self.quiet(pairs).sum()) >= wanted:
                break
            pairs = np.concatenate([pairs, self.samples(call, seconds)])
        mask = self.quiet(pairs)
        enough = int(mask.sum()) >= wanted
        used = pairs[mask, 0] if enough else pairs[:, 0] * self.fastest_us / pairs[:, 1]
        middle = float(np.median(used))
        return QuietTime(middle, float(np.subtract(*np.percentile(used, [75, 25])) / middle), len(pairs), enough)
