"""Latency of exported files in ONNX Runtime: medians with intervals, with the machine's own drift measured beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.pace import Pacer

if TYPE_CHECKING:
    import onnxruntime as ort

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
    None when there were too few such moments.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_session(model: Path | str | bytes, threads: int = 1, *, optimise: bool = True, profile: str | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session as this package measures: `threads` inside ops, one op at a time, no spinning when idle threads would
    steal from other processes. `model` is a file or the serialised model. Raises UserError for what the runtime cannot load."""
    import onnxruntime as ort

    if isinstance(model, str | Path) and not Path(model).is_file():
        raise UserError(f"expected an ONNX file, got {model}, which does not exist")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes differ by version
        name = "the model given" if isinstance(model, bytes) else str(model)
        raise UserError(
            f"expected an ONNX model that ONNX Runtime {ort.__version__} can run, got {name}: {str(error).splitlines()[0]}"
        ) from error


def synthetic_input(session: ort.InferenceSession, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images for a session's inputs: float inputs standard normal, integer inputs over 0..255; free dimensions become `batch`.

    Raises UserError for inputs that are no arrays of numbers, and for free dimensions other than the first.
    """
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(double)": np.float64}
    feeds = {}
    for item in session.get_inputs():
        if item.type not in kinds:
            raise UserError(f"expected inputs of type {', '.join(kinds)}, got {item.type} for {item.name!r}")
        free = [place for place, size in enumerate(item.shape) if not isinstance(size, int)]
        if any(place > 0 for place in free):
            raise UserError(f"expected only the first dimension to be free, got shape {item.shape} for input {item.name!r}")
        if not free and item.shape and item.shape[0] != batch:
            raise UserError(f"expected batch {item.shape[0]}, which the file fixes for input {item.name!r}, got batch {batch}")
        shape = [batch if place in free else size for place, size in enumerate(item.shape)]
        kind = kinds[item.type]
        values = rng.standard_normal(shape) if np.issubdtype(kind, np.floating) else rng.integers(0, 127, shape)
        feeds[item.name] = values.astype(kind)
    return feeds


class Series:
    """One session under the clock: collects the time of one inference, sample by sample."""

    def __init__(self, session: ort.InferenceSession, feeds: dict[str, np.ndarray], warm_up_seconds: float = 0.05) -> None:
        self._run: Callable[..., Any] = session.run
        self._feeds = feeds
        self.samples_ms: list[float] = []
        self.paced: list[np.ndarray] = []  # pairs of Pacer.samples
        self.runs = 0
        self.cpu_seconds = 0.0
        end, shortest = time.perf_counter() + warm_up_seconds, float("inf")
        for _ in range(10_000):
            began = time.perf_counter_ns()
            session.run(None, feeds)
            shortest = min(shortest, (time.perf_counter_ns() - began) / 1e3)
            if time.perf_counter() > end:
                break
        self.group = max(1, int(np.ceil(SAMPLE_US / shortest)))

    def sample(self, seconds: float, pacer: Pacer, at_least: int = 1) -> None:
        """Samples for `seconds`, at least `at_least` of them, a share of it between reference kernels."""
        run, feeds, group = self._run, self._feeds, self.group
        end = time.perf_counter() + seconds * (1 - PACED_SHARE)
        cpu = time.process_time()
        taken = 0
        while taken < at_least or time.perf_counter() < end:
            began = time.perf_counter_ns()
            for _ in range(group):
                run(None, feeds)
            self.samples_ms.append((time.perf_counter_ns() - began) / 1e6 / group)
            taken += 1
        self.runs += taken * group
        self.cpu_seconds += time.process_time() - cpu
        self.paced.append(pacer.samples(lambda: run(None, feeds), seconds * PACED_SHARE))

    def measurement(self, pacer: Pacer, seed: int = 0) -> Measurement:
        samples, paced = np.array(self.samples_ms), np.concatenate(self.paced)
        p10, p50, p90 = (float(value) for value in np.percentile(samples, [10, 50, 90]))
        low, high = median_interval(samples, seed)
        drift, wander = _drift(samples), _drift(paced[:, 1])
        slow, fast = np.percentile(paced[:, 1], [90, 10])
        noisy = abs(drift) > NOISY_DRIFT or (high - low) > NOISY_WIDTH * p50 or slow > (1 + NOISY_REFERENCE) * fast
        mask = pacer.quiet(paced)
        quiet: tuple[float | None, ...] = (None, None, None)
        if mask.sum() >= MIN_QUIET:
            calm = paced[mask, 0] / 1e3
            quiet = (float(np.median(calm)), *median_interval(calm, seed))
        return Measurement(p10, p50, p90, low, high, self.runs, self.cpu_seconds * 1e3 / self.runs, drift, bool(noisy), wander, *quiet)


def measure(file: Path | str, *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0) -> Measurement:
    """Latency of one exported file on this machine, in ms for the whole batch. At least 100 runs, whatever `seconds` says.

    Raises UserError for a missing file, one the runtime cannot load, and one with more free dimensions than the batch.
    """
    return measure_many([file], threads=threads, batch=batch, seconds=seconds, seed=seed)[0]


def measure_many(
    files: Sequence[Path | str], *, threads: int = 1, batch: int = 1, seconds: float = 1.0, seed: int = 0, patience: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Measurement]:  # fmt: skip
    """Latencies of several files that are to be compared: interleaved rounds in random order, `seconds` for each file in all.

    Drift of the machine then meets all files alike. While a series is noisy, all go on, for `patience` times as long at most.
    """
    if not (batch >= 1 and threads >= 1 and seconds > 0):
        raise UserError(
            f"expected batch and threads of at least 1 and a positive time, got batch {batch}, threads {threads}, seconds {seconds}"
        )
    rng = np.random.default_rng(seed)
    pacer = Pacer()
    series = []
    for file in files:
        session = open_session(file, threads)
        series.append(Series(session, synthetic_input(session, batch, seed), min(0.05, seconds / 5)))
    found: list[Measurement] = []
    for once in range(patience):
        for turn in range(ROUNDS):
            for number in rng.permutation(len(files)):
                series[number].sample(seconds / ROUNDS, pacer, at_least=-(-MIN_RUNS // (ROUNDS * series[number].group)))
            if progress is not None:
                progress("measure", once * ROUNDS + turn + 1, patience * ROUNDS)
        found = [one.measurement(pacer, seed) for one in series]
        if not any(one.noisy for one in found):
            break
    if progress is not None:
        progress("measure", patience * ROUNDS, patience * ROUNDS)
    return found


def sweep_threads(file: Path | str, threads: Sequence[int] | None = None, *, seconds: float = 1.0) -> dict[int, Measurement]:
    """Latency by thread count; all powers of two up to this machine's cores, and the cores themselves, unless told."""
    from sartor.hardware.device import cores

    counts = threads or sorted({2**power for power in range(cores().bit_length()) if 2**power <= cores()} | {cores()})
    return {count: measure(file, threads=count, seconds=seconds) for count in counts}


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
