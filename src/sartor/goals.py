"""What a search wants (objectives) and what it must keep to (limits).

A trial's metrics are a plain mapping. Latency is a distribution: `latency_ms` is its median (p50); other statistics are separate
entries, `latency_ms_p10` and `latency_ms_p90`, and a limit names the one it means. The latency on a further device of a search is
`latency_ms@DEVICE` (`latency_ms_p90@DEVICE`); it can be an objective and a limit as any other.

A metric that is missing, NaN or infinite counts as the worst possible: +inf as an objective, an infinite violation as a limit. Such a
trial is never feasible and never on a front; :meth:`Goals.missing` names what it lacks.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sartor.errors import UserError
from sartor.trial import Trial

STATISTICS = ("p10", "p50", "p90")
QUIET = "_quiet"  # `latency_ms_quiet`: the median over moments in which the machine ran at full speed


@dataclass(frozen=True)
class Metric:
    """A quantity of a model: which direction is better, and the unit its number is in."""

    name: str
    direction: Literal["max", "min"]
    unit: str
    description: str


_ALL = (
    Metric("accuracy", "max", "fraction", "share of images whose first guess is right, 0..1"),
    Metric("top5", "max", "fraction", "share of images whose class is among the first five guesses, 0..1"),
    Metric("latency_ms", "min", "ms", "time of one inference (median; p10 and p90 as latency_ms_p10, latency_ms_p90)"),
    Metric("throughput", "max", "images/s", "images per second"),
    Metric("peak_bytes", "min", "bytes", "largest sum of activations that live at the same time"),
    Metric("file_bytes", "min", "bytes", "size of the exported file"),
    Metric("params", "min", "count", "parameters"),
    Metric("macs", "min", "count", "multiply-accumulates of one inference"),
    Metric("flash_bytes", "min", "bytes", "weights and biases as a microcontroller stores them, without the runtime's code"),
    Metric("quantisation_error", "min", "fraction", "norm(W - Q(W)) / norm(W) of the layer that rounding to int8 changes most"),
    Metric("energy_mj", "min", "mJ", "energy of one inference by the device's energy model, not measured"),
    Metric("edp", "min", "mJ*ms", "energy-delay product of one inference by the device's energy model"),
    Metric("weighted_latency_ms", "min", "ms", "sum of weight times latency over the device and the further platforms"),
    Metric(
        "worst_latency",
        "min",
        "ratio",
        "largest latency / limit over the devices; at most 1 where each of them keeps its own limit",
    ),
    Metric(
        "composite_cost",
        "min",
        "ratio",
        "alpha FLOPs + beta moved bytes + gamma latency, relative to the largest network of the space",
    ),
    Metric("merit", "max", "score", "accuracy^alpha / (energy^beta latency^gamma), in fraction, mJ and ms"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
#: Metrics that are known only once there is an accuracy, and of a delivered network once it is trained.
OF_ACCURACY = ("accuracy", "top5", "merit")

_ALIASES = {
    "latency": "latency_ms", "acc": "accuracy", "top1": "accuracy", "fps": "throughput", "peak": "peak_bytes", "memory": "peak_bytes",
    "ram": "peak_bytes", "sram": "peak_bytes", "file": "file_bytes", "size": "file_bytes", "flash": "flash_bytes",
    "parameters": "params", "energy": "energy_mj", "quantization_error": "quantisation_error",
}  # fmt: skip
# KB means 1024 bytes here, as in every microcontroller data sheet ("256 KB SRAM"); KiB says the same.
_BYTES = {"": 1, "b": 1, "bytes": 1, **{f"{p}{b}": 1024**i for i, p in enumerate("kmg", 1) for b in ("", "b", "ib")}}
_UNITS: dict[str, dict[str, float]] = {
    "ms": {"": 1, "ms": 1, "s": 1e3, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ns": 1e-6},  # both Unicode spellings of micro
    "bytes": _BYTES,
    "count": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
    "fraction": {"": 1, "%": 1e-2},
    "images/s": {"": 1, "/s": 1, "fps": 1, "img/s": 1, "images/s": 1, "k": 1e3},
    "mJ": {"": 1, "mj": 1, "j": 1e3, "uj": 1e-3, "µj": 1e-3, "μj": 1e-3},
    "mJ*ms": {"": 1, "mj*ms": 1},
    "ratio": {"": 1, "%": 1e-2},
    "score": {"": 1},
}
_SPELLED = {
    "ms": "s, ms, us, ns", "bytes": "B, KB, MB, GB (1 KB = 1024 B)", "count": "K, M, G", "fraction": "%", "images/s": "fps, images/s",
    "mJ": "J, mJ, uJ", "mJ*ms": "mJ*ms", "ratio": "%", "score": "none",
}  # fmt: skip


def metric_name(text: str) -> str:
    """The metric a user means: `latency` -> `latency_ms`, `latency@pi` -> `latency_ms@pi`.

    Raises:
        UserError: for an unknown metric, naming the known ones and the closest, and for another one than latency on a further device.
    """
    text, at, device = text.strip().partition("@")
    name = text.lower().replace("-", "_")
    name = _ALIASES.get(name, name)
    if name not in METRICS:
        close = difflib.get_close_matches(name, [*METRICS, *_ALIASES], n=1, cutoff=0.5)
        hint = f"did you mean '{_ALIASES.get(close[0], close[0])}'? " if close else ""
        raise UserError(f"unknown metric '{text}'; {hint}known metrics: {', '.join(METRICS)}")
    if at and (name != "latency_ms" or not device):
        raise UserError(f"'{text}@{device}': of a further device there is its latency only; write latency@DEVICE")
    return f"{name}{at}{device}"


def metric_of(name: str) -> Metric:
    """What a name stands for that may say on which further device: that of `latency_ms@pi` is `latency_ms`. Raises KeyError if unknown."""
    return METRICS[name.partition("@")[0]]


def entry(name: str, statistic: str) -> str:
    """The entry of a trial's metrics for another statistic: (`latency_ms@pi`, `_p90`) -> `latency_ms_p90@pi`."""
    base, at, device = name.partition("@")
    return f"{base}{statistic}{at}{device}"


@dataclass(frozen=True)
class Limit:
    """A bound on a metric: an upper one where less is better (`latency_ms <= 2`), a lower one where more is better (`accuracy >= 0.9`).

    Args:
        metric: a name in :data:`METRICS`, or `latency_ms@DEVICE`.
        bound: in the metric's unit (ms, bytes, images/s, fraction 0..1, count); finite and above zero.
        statistic: "p10", "p50" or "p90" of a latency; every other metric has only "p50".

    Raises:
        UserError: where one of these does not hold.
    """

    metric: str
    bound: float
    statistic: str = "p50"

    def __post_init__(self) -> None:
        name = metric_name(self.metric)
        metric = metric_of(name)
        if name != self.metric:
            raise UserError(f"a limit needs the full metric name '{name}', got '{self.metric}'")
        if self.statistic not in STATISTICS:
            raise UserError(f"limit on {self.metric}: unknown statistic '{self.statistic}'; known: {', '.join(STATISTICS)}")
        if self.statistic != "p50" and metric.name != "latency_ms":
            raise UserError(f"limit on {self.metric}: the statistic {self.statistic} exists for latencies only; leave it out")
        if not math.isfinite(self.bound) or self.bound <= 0:
            raise UserError(f"limit on {self.metric}: the bound must be a finite number above zero, got {self.bound}")
        if metric.unit == "fraction" and self.bound > 1:
            raise UserError(f"limit on {self.metric}: expected a fraction 0..1 or a percentage, got {self.bound:g}; write 0.9 or 90%")

    @property
    def key(self) -> str:
        """The entry of a trial's metrics that this limit reads: `latency_ms` (p50), `latency_ms_p90`."""
        return self.metric if self.statistic == "p50" else entry(self.metric, f"_{self.statistic}")

    @property
    def upper(self) -> bool:
        """Whether the bound is an upper one."""
        return metric_of(self.metric).direction == "min"

    def excess(self, metrics: Mapping[str, float]) -> float:
        """Relative excess over the bound: 0 or less where it is kept (the slack), +inf where the metric is missing or not finite."""
        value = _finite(metrics, self.key)
        if value is None:
            return math.inf
        return (value - self.bound if self.upper else self.bound - value) / self.bound

    def __str__(self) -> str:
        """A form that :func:`parse_limit` reads back."""
        short = f"{self.bound:.12g}"
        return f"{self.key}{'<=' if self.upper else '>='}{short if float(short) == self.bound else repr(float(self.bound))}"


_FORM = re.compile(r"^\s*([A-Za-z][\w-]*)(@[\w.-]*)?\s*(<=|>=|==|=|<|>|≤|≥)\s*(.*?)\s*$")
_NUMBER = re.compile(r"^([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s.,+-]*)$")
_STATISTIC = re.compile(r"_(p\d+)(?=_|$)")


def parse_limit(text: str) -> Limit:
    """A limit from what a user writes: `latency_ms<=2`, `latency=2ms`, `latency_p90=500us`, `peak=256KB`, `accuracy>=90%`, `params<=1M`.

    `=` means the metric's sensible direction. 1 KB = 1024 bytes; 1K parameters = 1000. A bare number is in the metric's unit.

    Raises:
        UserError: for an unknown metric, statistic or unit, a missing number, a bound that is not above zero, and a wrong direction.
    """
    form = _FORM.match(text)
    if form is None:
        raise UserError(f"limit '{text}': expected METRIC<=NUMBER or METRIC>=NUMBER, such as latency=2ms. Metrics: {', '.join(METRICS)}")
    name, device, sign, amount = form.groups()
    statistic = _STATISTIC.search(name)
    full = metric_name((_STATISTIC.sub("", name, count=1) if statistic else name) + (device or ""))
    _check_direction(text, metric_of(full), sign)
    bound = _bound(text, metric_of(full), amount)
    return Limit(full, bound, statistic.group(1) if statistic else "p50")


def _check_direction(text: str, metric: Metric, sign: str) -> None:
    wanted = ("<=", "≤", "=") if metric.direction == "min" else (">=", "≥", "=")
    if sign not in wanted:
        kind = "an upper" if metric.direction == "min" else "a lower"
        raise UserError(f"limit '{text}': {metric.name} takes {kind} bound; write {metric.name}{wanted[0]}NUMBER, not '{sign}'")


def _bound(text: str, metric: Metric, amount: str) -> float:
    number = _NUMBER.match(amount)
    if number is None:
        said = f"'{amount}'" if amount else "nothing"
        raise UserError(f"limit '{text}': expected a number after the sign, with an optional unit ({_SPELLED[metric.unit]}), got {said}")
    factor = _UNITS[metric.unit].get(number.group(2).lower())
    if factor is None:
        raise UserError(f"limit '{text}': {metric.name} has no unit '{number.group(2)}'; units: {_SPELLED[metric.unit]}, or none")
    value = float(number.group(1))
    # Division keeps 500us at exactly 0.5 and 90% at exactly 0.9; a product with 1e-3 would round twice.
    return value * factor if factor >= 1 else value / round(1 / factor)


@dataclass(frozen=True)
class Goals:
    """Objectives (maximised or minimised as :data:`METRICS` says) and hard limits.

    Raises:
        UserError: for no objective, an unknown or repeated one, and two limits on the same quantity.
    """

    objectives: tuple[str, ...]
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        if not self.objectives:
            raise UserError(f"goals need at least one objective. Known metrics: {', '.join(METRICS)}")
        for name in self.objectives:
            if metric_name(name) != name:
                raise UserError(f"an objective needs the full metric name '{metric_name(name)}', got '{name}'")
        keys = [limit.key for limit in self.limits]
        for what, names in (("objective", list(self.objectives)), ("limit", keys)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise UserError(f"the {what} on {twice} is given twice; keep one")

    @classmethod
    def parse(cls, objectives: Iterable[str], limits: Iterable[str] = ()) -> Goals:
        """Goals from what a user writes: `Goals.parse(["accuracy", "latency"], ["latency=2ms", "peak=256KB"])`."""
        return cls(tuple(metric_name(name) for name in objectives), tuple(parse_limit(text) for text in limits))

    def values(self, metrics: Mapping[str, float]) -> np.ndarray:
        """Objectives `(m,)`, all minimised (accuracy is negated); +inf where a metric is missing or not finite.

        A latency is compared by its quiet statistic where that was measured: p50 moves with the load of a shared machine, and would rank
        networks by the moments that they met. Limits are judged by the statistic that they name.
        """
        quiet = {name: key if (key := entry(name, QUIET)) in metrics else name for name in self.objectives}
        found = ((_finite(metrics, quiet[name]), metric_of(name).direction) for name in self.objectives)
        return np.array([math.inf if value is None else -value if direction == "max" else value for value, direction in found])

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Sum of relative excesses over the limits, >= 0; +inf where an objective or a limited metric is missing or not finite."""
        if self.missing(metrics):
            return math.inf
        return float(sum(max(0.0, limit.excess(metrics)) for limit in self.limits))

    def excess(self, figures: Mapping[str, float]) -> float:
        """:meth:`violation` of the limits on what is in `figures` alone: 0 where nothing that is known breaks a limit."""
        return float(sum(max(0.0, limit.excess(figures)) for limit in self.limits if limit.key in figures))

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Whether every limit is kept and every named metric is there."""
        return self.violation(metrics) == 0.0

    def missing(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Names that these goals read and `metrics` does not give as a finite number."""
        names = dict.fromkeys((*self.objectives, *(limit.key for limit in self.limits)))
        return tuple(name for name in names if _finite(metrics, name) is None)

    def table(self, trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
        """Objectives `(n, m)`, minimised, and violations `(n,)`; failed trials are +inf in both."""
        rows = [trial.metrics if trial.status == "complete" else {} for trial in trials]
        values = np.array([self.values(row) for row in rows]).reshape(len(rows), len(self.objectives))
        return values, np.array([self.violation(row) for row in rows], dtype=float)


def _finite(metrics: Mapping[str, float], key: str) -> float | None:
    value = metrics.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


# -- softer forms of a limit: pure functions of an objective f (minimised) and excesses g (g <= 0 where a limit is kept) --------------


def penalty(f: float, g: Iterable[float], weight: float) -> float:
    """Quadratic penalty `f + weight * sum(max(0, g)^2)`: exact in the limit weight -> inf, smooth at the bound."""
    return f + weight * sum(max(0.0, x) ** 2 for x in g)


def hinge(f: float, g: Iterable[float], weight: float) -> float:
    """Linear penalty `f + weight * sum(max(0, g))`: an exact penalty for a finite weight, with a kink at the bound."""
    return f + weight * sum(max(0.0, x) for x in g)


def soft_objectives(values: np.ndarray, excesses: np.ndarray) -> np.ndarray:
    """Limits as further objectives: objectives `(n, m)` and excesses `(n, k)` to `(n, m + k)`, minimised; a kept limit counts 0."""
    return np.hstack([values, np.maximum(0.0, excesses)])


def tightened(initial: float, final: float, step: float, tau: float) -> float:
    """Progressive limit `final + (initial - final) * exp(-step / tau)`: from `initial` at step 0 towards `final`.

    Raises:
        UserError: if tau is not above zero.
    """
    if not tau > 0:
        raise UserError(f"progressive limit: tau must be above zero, got {tau}")
    return final + (initial - final) * math.exp(-step / tau)


def mnasnet_reward(accuracy: float, latency_ms: float, target_ms: float, *, hard: bool = False) -> float:
    """Reward `ACC * (LAT / TAR)^w` (maximised): MnasNet, Tan et al. 2019, section 3.1, equations 2 and 3.

    Soft (the default): w = alpha = beta = -0.07. Hard: alpha = 0 within the target, beta = -1 beyond it. The exponent is negative, so
    that slow nets are worse.

    Raises:
        UserError: if a latency is not above zero.
    """
    if not (latency_ms > 0 and target_ms > 0):
        raise UserError(f"MnasNet reward: latencies must be above zero, got latency {latency_ms} ms and target {target_ms} ms")
    alpha, beta = (0.0, -1.0) if hard else (-0.07, -0.07)
    return accuracy * (latency_ms / target_ms) ** (alpha if latency_ms <= target_ms else beta)
