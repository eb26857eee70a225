"""Time of one op: many copies of its optimised nodes in one session, the session's own time taken off.

On shared machines a core changes speed within milliseconds (a busy sibling thread nearly halves it), so the average of a series depends
on what other processes did. Every sample is therefore bracketed by a fixed reference kernel of a few µs, and only samples between two
fast references count: the *quiet* time. `sartor.hardware.calibrate` fits how much slower whole networks run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sartor.hardware._lower import Kernel
from sartor.hardware.measure import open_session
from sartor.hardware.pace import Pacer, QuietTime

if TYPE_CHECKING:
    import onnx

SAMPLES = 24  # quiet samples wanted
PATIENCE = 6  # times the usual duration that a series may wait for them
COPIES_MACS = 1_500_000  # small ops get more copies, so that a sample takes long enough for the clock


class Stopwatch:
    """Times kernels. The constant of a session is measured once and taken off."""

    def __init__(self, threads: int = 1, seconds: float = 0.02) -> None:
        self.threads, self.seconds = threads, seconds
        self.pacer = Pacer()
        empty = Kernel((), (), {"x": np.zeros((1, 8), np.float32)}, _opsets())
        self.constant_us = self._series(empty.replicate(0), empty.feeds).us

    def time(self, kernel: Kernel, macs: int = 0) -> QuietTime:
        """Undisturbed time of a kernel in µs, the runtime's cost per node included. 0 for one that is fused away."""
        if not kernel.nodes:
            return QuietTime(0.0, 0.0, 0, True)
        copies = max(2, min(8, round(COPIES_MACS / max(macs, 1))))
        found = self._series(kernel.replicate(copies), kernel.feeds)
        return replace(found, us=max(found.us - self.constant_us, 0.0) / copies)

    def whole(self, kernel: Kernel) -> QuietTime:
        """Time of a session with one copy of the kernel: what a network costs apart from its ops."""
        return self._series(kernel.replicate(1 if kernel.nodes else 0), kernel.feeds)

    def _series(self, model: bytes, feeds: dict[str, np.ndarray]) -> QuietTime:
        session = open_session(model, self.threads, optimise=False)
        for _ in range(5):
            session.run(None, feeds)
        return self.pacer.quiet_time(lambda: session.run(None, feeds), self.seconds, SAMPLES, PATIENCE)


def _opsets() -> tuple[onnx.OperatorSetIdProto, ...]:
    from onnx import helper

    return (helper.make_opsetid("", 17),)
