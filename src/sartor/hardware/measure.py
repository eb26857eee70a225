"""Latency of exported files: medians with intervals, with the machine's own drift measured beside them.

Every runtime is measured by the same core (`sartor.hardware.series`); what differs is how a file is loaded (`sartor.hardware.runtimes`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sartor.errors import UserError
from sartor.hardware.runtimes import Setup, load
from sartor.hardware.runtimes.ort import open_session, synthetic_input
from sartor.hardware.series import Measurement, Series, interleave, median_interval

__all__ = [
    "Measurement", "Setup", "measure", "measure_many", "measure_setups", "median_interval", "open_session", "sweep", "sweep_threads",
    "synthetic_input",
]  # fmt: skip

Progress = Callable[[str, int, int], None]


def measure(
    file: Path | str, *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0, setup: Setup | None = None
) -> Measurement:
    """Latency of one exported file on this machine, in ms for the whole batch. At least 100 runs, whatever `seconds` says.

    `setup` (runtime, precision, threads, batch, cores) takes the place of `threads` and `batch`; without it ONNX Runtime is measured.
    Raises UserError for a missing file, one the runtime cannot load, one with more free dimensions than the batch, and for a runtime
    that is not installed.
    """
    return measure_many([file], threads=threads, batch=batch, seconds=seconds, seed=seed, setup=setup)[0]


def measure_many(
    files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0, patience: int = 1,
    progress: Progress | None = None, setup: Setup | None = None,
) -> list[Measurement]:  # fmt: skip
    """Latencies of several files that are to be compared: interleaved rounds in random order, `seconds` for each file in all.

    Drift of the machine then meets all files alike. While a series is noisy, all go on, for `patience` times as long at most.
    """
    common = setup or Setup(threads=threads, batch=batch)
    return measure_setups([(file, common) for file in files], seconds=seconds, seed=seed, patience=patience, progress=progress)


def measure_setups(
    jobs: Sequence[tuple[Path | str, Setup]], *, seconds: float = 1.0, seed: int = 0, patience: int = 1, progress: Progress | None = None
) -> list[Measurement]:
    """Latencies of (file, setup) pairs in one interleaved run: runtimes, thread counts and cores can be compared with each other."""
    if not seconds > 0:
        raise UserError(f"expected a positive time, got seconds {seconds}")
    with _affinity_kept() as everywhere:
        series = []
        for file, setup in jobs:
            pin = _Pin(setup.cores or everywhere)
            pin()  # threads that the runtime makes inherit it
            loaded = load(file, setup, seed)
            series.append(Series(loaded.run, enter=_both(pin, loaded.enter), warm_up_seconds=min(0.05, seconds / 5)))
        return interleave(series, seconds=seconds, seed=seed, patience=patience, progress=progress)


def sweep(
    file: Path | str, *, threads: Sequence[int] | None = None, cores: Sequence[Sequence[int]] = ((),), setup: Setup | None = None,
    seconds: float = 1.0, seed: int = 0,
) -> list[tuple[Setup, Measurement]]:  # fmt: skip
    """Latency by thread count and by the cores it may use, in one interleaved run, the fastest first.

    `threads`: all powers of two up to this machine's cores, and the cores themselves, unless told. `cores` are the sets of cores to
    pin to (an empty one: not pinned); a set with fewer cores than threads is left out. Raises UserError when nothing is left.
    """
    from sartor.hardware.device import cores as available

    most = available()
    counts = threads or sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    base = setup or Setup()
    tried = [
        replace(base, threads=count, cores=tuple(pinned))
        for count, pinned in itertools.product(counts, cores)
        if not pinned or len(pinned) >= count
    ]
    if not tried:
        raise UserError(f"expected a set of cores with room for the threads, got cores {list(cores)} for threads {list(counts)}")
    found = measure_setups([(file, one) for one in tried], seconds=seconds, seed=seed)
    return sorted(zip(tried, found, strict=True), key=lambda pair: pair[1].p50)


def sweep_threads(file: Path | str, threads: Sequence[int] | None = None, *, seconds: float = 1.0) -> dict[int, Measurement]:
    """Latency by thread count; all powers of two up to this machine's cores, and the cores themselves, unless told."""
    return {setup.threads: one for setup, one in sorted(sweep(file, threads=threads, seconds=seconds), key=lambda pair: pair[0].threads)}


class _Pin:
    """Puts the calling thread on a set of cores; does nothing where the system cannot, or the set is that of the process anyway."""

    def __init__(self, cores: frozenset[int] | tuple[int, ...]) -> None:
        self.cores = frozenset(cores)

    def __call__(self) -> None:
        if hasattr(os, "sched_setaffinity") and self.cores and os.sched_getaffinity(0) != self.cores:
            os.sched_setaffinity(0, self.cores)


@contextmanager
def _affinity_kept() -> Iterator[frozenset[int]]:
    """The cores this thread may use, which are given back at the end."""
    before = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
    try:
        yield before
    finally:
        _Pin(before)()


def _both(first: Callable[[], None], second: Callable[[], None] | None) -> Callable[[], None]:
    if second is None:
        return first

    def enter() -> None:
        first()
        second()

    return enter
