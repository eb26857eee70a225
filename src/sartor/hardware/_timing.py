"""Time of one op: many copies of its optimised nodes in one session, the session's own time taken off.

On shared machines a core changes speed within milliseconds (a busy sibling thread halves it), so no average of such a series is
reproducible. Its lower edge is: a sample of 50 µs fits into an undisturbed moment. The table therefore holds *undisturbed* times, and
`sartor.hardware.calibrate` fits how much slower a whole network runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from sartor.hardware._lower import Kernel
from sartor.hardware.measure import open_session

QUANTILE = 0.03  # of the samples: the lower edge, without the single luckiest ones
CHUNKS = 4  # the lower edges of the series' quarters must agree ...
AGREEMENT = 0.03  # ... within so much
EXTENSIONS = 4  # a series that disagrees is continued so many times
COPIES_MACS = 1_500_000  # small ops get more copies, so that a sample takes long enough for the clock


@dataclass(frozen=True)
class OpTime:
    us: float
    spread: float  # disagreement of the lower edges of the quarters of the series, relative
    runs: int

    @property
    def noisy(self) -> bool:
        return self.spread > 2 * AGREEMENT


class Stopwatch:
    """Times kernels. The constant of a session is measured once and taken off."""

    def __init__(self, threads: int = 1, seconds: float = 0.04) -> None:
        self.threads, self.seconds = threads, seconds
        empty = Kernel((), (), {"x": np.zeros((1, 8), np.float32)}, _opsets())
        self.constant_us, _, _ = self._series(empty.replicate(0), empty.feeds)

    def time(self, kernel: Kernel, macs: int = 0) -> OpTime:
        """Undisturbed time of a kernel in µs, the runtime's cost per node included. 0 for one that is fused away."""
        if not kernel.nodes:
            return OpTime(0.0, 0.0, 0)
        copies = max(2, min(8, round(COPIES_MACS / max(macs, 1))))
        value, spread, runs = self._series(kernel.replicate(copies), kernel.feeds)
        return OpTime(max(value - self.constant_us, 0.0) / copies, spread, runs)

    def whole(self, kernel: Kernel) -> OpTime:
        """Time of a session with one copy of the kernel: what a network costs apart from its ops."""
        return OpTime(*self._series(kernel.replicate(1 if kernel.nodes else 0), kernel.feeds))

    def _series(self, model: bytes, feeds: dict[str, np.ndarray]) -> tuple[float, float, int]:
        session = open_session(model, self.threads, optimise=False)
        run, clock = session.run, time.perf_counter_ns
        for _ in range(3):
            run(None, feeds)
        samples: list[int] = []
        for _ in range(1 + EXTENSIONS):
            end = clock() + int(self.seconds * 1e9)
            while True:
                began = clock()
                run(None, feeds)
                done = clock()
                samples.append(done - began)
                if done > end and len(samples) >= 16:
                    break
            edges = [np.quantile(part, QUANTILE) for part in np.array_split(np.array(samples), CHUNKS)]
            lowest = sorted(edges)[: CHUNKS // 2]
            spread = float(lowest[-1] / lowest[0] - 1)
            if spread <= AGREEMENT:
                break
        return float(np.quantile(samples, QUANTILE)) / 1e3, spread, len(samples)


def _opsets() -> tuple:  # type: ignore[type-arg]  # onnx is imported late
    from onnx import helper

    return (helper.make_opsetid("", 17),)
