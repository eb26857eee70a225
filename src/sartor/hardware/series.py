"""The measuring core: calls under the clock, interleaved, with the machine's own pace and state recorded beside them.

It knows no runtime: a `Series` times anything that can be called. `sartor.hardware.measure` puts files and runtimes to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sartor.hardware import conditions
from sartor.hardware.pace import Pacer

MIN_RUNS = 100
SAMPLE_US = 100.0  # shorter runs are timed in groups of this length, so that the clock and the call do not dominate
NOISY_DRIFT = 0.05  # halves of a series that differ by more are no steady state
NOISY_WIDTH = 0.05  # of the median: widest acceptable bootstrap interval
NOISY_REFERENCE = 0.15  # the reference kernel's 90th percentile may lie so much over its 10th
ROUNDS = 40  # of interleaving: the fewer milliseconds a turn takes, the more alike the moments that the files meet
PACED_SHARE = 0.4  # of the time: samples between reference kernels, which find the quiet moments
MIN_QUIET = 8  # samples from quiet moments below which no quiet latency is given


@dataclass(frozen=True)
class Measurement:
    """Wall time of one inference in ms. `low`..`high` is the 95 % bootstrap interval of the median `p50`.

    `cpu_ms` is process CPU time per inference (well under p50: the process waited; over it: several threads worked). `drift` is
    the median of the second half over that of the first, minus 1. `reference` is the same for a fixed kernel timed in between:
    it tells a slower machine from a slower network. `noisy`: the series was not steady, and says so instead of averaging it away.
    `quiet` is the median over moments in which the machine ran at full speed (`sartor.hardware.pace`): on an idle machine it equals
    p50, on a shared one it is what p50 would be without the others, with `quiet_low`..`quiet_high` its 95 % bootstrap interval.
    None when there were too few such moments. `conditions` is what the machine tells of its temperature, clock and power meanwhile
    (`sartor.hardware.conditions`), None where it tells nothing.
    """

    p10: float
    p50: float
    p90: float
    low: float
    high: float
    runs: int
    cpu_ms: float
    drift: float
    noisy: bool
    reference: float = 0.0
    quiet: float | None = None
    quiet_low: float | None = None
    quiet_high: float | None = None
    conditions: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Series:
    """One call under the clock: collects its time, sample by sample.

    `run` is one inference on an input that is ready. `enter` is called, untimed, before every stretch of samples: it sets what belongs
    to the process and not to the call (the cores it may use, a library's thread count).
    """

    def __init__(self, run: Callable[[], object], *, enter: Callable[[], None] | None = None, warm_up_seconds: float = 0.05) -> None:
        self._run, self._enter = run, enter or (lambda: None)
        self.samples_ms: list[float] = []
        self.paced: list[np.ndarray] = []  # pairs of Pacer.samples
        self.moments: list[conditions.Moment] = []
        self.runs = 0
        self.cpu_seconds = 0.0
        self._enter()
        end, shortest = time.perf_counter() + warm_up_seconds, float("inf")
        for _ in range(10_000):
            began = time.perf_counter_ns()
            run()
            shortest = min(shortest, (time.perf_counter_ns() - began) / 1e3)
            if time.perf_counter() > end:
                break
        self.group = max(1, int(np.ceil(SAMPLE_US / shortest)))

    def sample(self, seconds: float, pacer: Pacer, at_least: int = 1) -> None:
        """Samples for `seconds`, at least `at_least` of them, a share of it between reference kernels."""
        run, group = self._run, self.group
        self._enter()
        end = time.perf_counter() + seconds * (1 - PACED_SHARE)
        cpu = time.process_time()
        taken = 0
        while taken < at_least or time.perf_counter() < end:
            began = time.perf_counter_ns()
            for _ in range(group):
                run()
            self.samples_ms.append((time.perf_counter_ns() - began) / 1e6 / group)
            taken += 1
        self.runs += taken * group
        self.cpu_seconds += time.process_time() - cpu
        self.paced.append(pacer.samples(run, seconds * PACED_SHARE))

    def measurement(self, pacer: Pacer, seed: int = 0) -> Measurement:
        samples, paced = np.array(self.samples_ms), np.concatenate(self.paced)
        p10, p50, p90 = (float(value) for value in np.percentile(samples, [10, 50, 90]))
        low, high = median_interval(samples, seed)
        drift, wander = _drift(samples), _drift(paced[:, 1])
        slow, fast = np.percentile(paced[:, 1], [90, 10])
        noisy = abs(drift) > NOISY_DRIFT or (high - low) > NOISY_WIDTH * p50 or slow > (1 + NOISY_REFERENCE) * fast
        mask = pacer.quiet(paced)
        quiet: float | None = None
        quiet_low: float | None = None
        quiet_high: float | None = None
        if mask.sum() >= MIN_QUIET:
            calm = paced[mask, 0] / 1e3
            quiet, (quiet_low, quiet_high) = float(np.median(calm)), median_interval(calm, seed)
        cpu_ms = self.cpu_seconds * 1e3 / self.runs
        told = conditions.between(self.moments)
        noisy = noisy or (told is not None and bool(told.warnings))
        state = None if told is None else told.to_json()
        return Measurement(
            p10, p50, p90, low, high, self.runs, cpu_ms, drift, bool(noisy), wander, quiet, quiet_low, quiet_high, state
        )  # fmt: skip


def interleave(
    series: Sequence[Series], *, seconds: float, seed: int = 0, patience: int = 1, progress: Callable[[str, int, int], None] | None = None
) -> list[Measurement]:
    """Samples all series in rounds of random order, `seconds` for each in all, and at least `MIN_RUNS` runs.

    Drift of the machine then meets all alike. While a series is noisy, all go on, for `patience` times as long at most.
    """
    rng, pacer = np.random.default_rng(seed), Pacer()
    found: list[Measurement] = []
    for once in range(patience):
        for turn in range(ROUNDS):
            # The state is read a few times only: sensors are slow files.
            now = conditions.read() if turn % (ROUNDS // 4) == 0 or turn == ROUNDS - 1 else None
            for number in rng.permutation(len(series)):
                if now is not None:
                    series[number].moments.append(now)
                series[number].sample(seconds / ROUNDS, pacer, at_least=-(-MIN_RUNS // (ROUNDS * series[number].group)))
            if progress is not None:
                progress("measure", once * ROUNDS + turn + 1, patience * ROUNDS)
        found = [one.measurement(pacer, seed) for one in series]
        if not any(one.noisy for one in found):
            break
    if progress is not None:
        progress("measure", patience * ROUNDS, patience * ROUNDS)
    return found


def median_interval(samples: np.ndarray, seed: int = 0, resamples: int = 200) -> tuple[float, float]:
    """95 % interval of the median: percentile bootstrap (Efron 1979) of the means of neighbours, then percentiles of medians.

    Consecutive samples of a timing series are correlated, so whole blocks of neighbours are drawn (moving-block bootstrap,
    Kuensch 1989); independent draws would promise too narrow an interval.
    """
    count = len(samples)
    block = max(1, count // 20)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count - block + 1, (resamples, -(-count // block)))
    medians = [float(np.median(samples[(row[:, None] + np.arange(block)).ravel()[:count]])) for row in starts]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def _drift(samples: np.ndarray) -> float:
    half = len(samples) // 2
    return float(np.median(samples[half:]) / np.median(samples[:half]) - 1) if half else 0.0
