"""Time of one op: many copies of its optimised nodes in one session, the session's own time taken off.

On shared machines a core changes speed within milliseconds (a busy sibling thread nearly halves it), so the average of a series depends
on what other processes did. Every sample is therefore bracketed by a fixed reference kernel of a few µs, and only samples between two
fast references count: the *quiet* time. `sartor.hardware.calibrate` fits how much slower whole networks run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sartor.hardware._lower import Kernel
from sartor.hardware.pace import QuietTime

if TYPE_CHECKING:
    import onnx

    from sartor.hardware.target import Bench

COPIES_MACS = 1_500_000  # small ops get more copies, so that a sample takes long enough for the clock
FUSED = QuietTime(0.0, 0.0, 0, True)


class Stopwatch:
    """Times kernels on a device. The constant of a session is measured once and taken off."""

    def __init__(self, bench: Bench, threads: int = 1, seconds: float = 0.02) -> None:
        self.bench, self.threads, self.seconds = bench, threads, seconds

    @cached_property
    def constant_us(self) -> float:
        return self.whole(Kernel((), (), {"x": np.zeros((1, 8), np.float32)}, _opsets())).us

    def times(self, kernels: Sequence[tuple[Kernel, int]]) -> Iterator[QuietTime]:
        """Undisturbed time in µs of each (kernel, its MACs), the runtime's cost per node included; 0 for one that is fused away."""
        constant = self.constant_us
        copies = {number: max(2, min(8, round(COPIES_MACS / max(macs, 1)))) for number, (one, macs) in enumerate(kernels) if one.nodes}
        models = ((kernels[number][0].replicate(count), kernels[number][0].feeds) for number, count in copies.items())
        found = self.bench.time(models, threads=self.threads, seconds=self.seconds)
        for number in range(len(kernels)):
            if number not in copies:
                yield FUSED
            else:
                one = next(found)
                yield replace(one, us=max(one.us - constant, 0.0) / copies[number])

    def each(self, kernel: Kernel, copies: int) -> float:
        """Time in µs of one of many copies of a kernel: for an op so small that a few copies drown in the noise of a session."""
        return max(self.whole(kernel, copies).us - self.constant_us, 0.0) / copies

    def whole(self, kernel: Kernel, copies: int = 1) -> QuietTime:
        """Time of a session with so many copies of the kernel; of one without nodes, what a network costs apart from its ops."""
        model = kernel.replicate(copies if kernel.nodes else 0)
        return next(iter(self.bench.time([(model, kernel.feeds)], threads=self.threads, seconds=self.seconds)))


def _opsets() -> tuple[onnx.OperatorSetIdProto, ...]:
    from onnx import helper

    return (helper.make_opsetid("", 17),)
