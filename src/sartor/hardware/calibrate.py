"""A small correction of a latency table, fitted on whole networks: what ops in isolation miss, and how busy the machine is.

latency = sum over groups g of c_g * (sum of table times of group g), with c_g >= 0 shrunk towards one common factor s.
s is the median of measured / predicted: it absorbs the load of the machine; the c_g absorb what neighbours, caches and scheduling add.
The fit is relative (each network counts the same, whatever its size) and its strength is chosen by leaving one network out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph, Shape

GROUPS = ("pointwise", "depthwise", "dense", "se", "rest", "session")
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 30.0)


def group(op: Op) -> str:
    """The correction group of an op: by what decides its kernel, few enough to fit on a few dozen networks."""
    if op.kind == "conv":
        if op.groups > 1:
            return "depthwise"
        return "pointwise" if op.kernel == 1 else "dense"
    return "se" if op.kind == "se" else "rest"


@dataclass(frozen=True)
class Quality:
    """Figures of predictions, each for a network left out of the fit. `within` is the share within 10 % of the measured latency."""

    within: float
    mape: float
    tau: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Factors by group; 1 is no correction. `quality` is the leave-one-out figure of the fit, None for the identity."""

    factors: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(GROUPS, 1.0))
    strength: float = float("inf")
    quality: Quality | None = None

    def of(self, op: Op) -> float:
        return self.factors[group(op)]

    @property
    def session(self) -> float:
        return self.factors["session"]

    def to_json(self) -> dict[str, Any]:
        quality = None if self.quality is None else vars(self.quality)
        return {"factors": dict(self.factors), "strength": self.strength, "quality": quality}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Calibration:
        quality = None if record["quality"] is None else Quality(**record["quality"])
        return cls(dict(record["factors"]), float(record["strength"]), quality)


@dataclass(frozen=True)
class Pair:
    """Uncorrected table times of a network by group, in ms (groups,), and its measured latency in ms."""

    terms: np.ndarray
    latency_ms: float


def terms(graph: OpGraph, price: Callable[[Op], float], session_ms: Callable[[Shape], float]) -> np.ndarray:
    """Table times of a network by group, in ms (groups,)."""
    sums = dict.fromkeys(GROUPS, 0.0)
    for op in graph:
        sums[group(op)] += price(op)
    sums["session"] += session_ms(graph.input_shape)
    return np.array([sums[name] for name in GROUPS])


def fit(pairs: Sequence[Pair]) -> Calibration:
    """Non-negative ridge regression towards the common factor; its strength is the one with the smallest leave-one-out error.

    Raises UserError for fewer than 4 pairs or latencies that are not positive.
    """
    if len(pairs) < 4 or any(not pair.latency_ms > 0 for pair in pairs):
        raise UserError(
            f"expected at least 4 measured networks with positive latencies for a calibration, got {[p.latency_ms for p in pairs]}"
        )
    design = np.array([pair.terms / pair.latency_ms for pair in pairs])
    left_out = {strength: _leave_one_out(design, strength) for strength in STRENGTHS}
    # Median absolute error: one interrupted measurement must not choose the model.
    best = min(STRENGTHS, key=lambda strength: (float(np.mean(np.minimum(np.abs(left_out[strength] - 1), 0.3))), -strength))
    factors = _solve(design, best)
    measured = np.array([pair.latency_ms for pair in pairs])
    return Calibration(dict(zip(GROUPS, factors.tolist(), strict=True)), best, quality(left_out[best] * measured, measured))


def quality(predicted: np.ndarray, measured: np.ndarray) -> Quality:
    """Share within 10 %, mean absolute percentage error (a fraction) and Kendall's tau-b of predictions (n,) and latencies (n,).

    The tau of what ranks nothing, such as equal latencies, is 0.
    """
    from scipy.stats import kendalltau

    error, tau = np.abs(predicted / measured - 1), float(kendalltau(predicted, measured).statistic)
    return Quality(float(np.mean(error <= 0.1)), float(np.mean(error)), tau if np.isfinite(tau) else 0.0, len(measured))


def _solve(design: np.ndarray, strength: float) -> np.ndarray:
    """Minimises mean |design c - 1|^2 + strength * mean share-weighted |c - s|^2 over c >= 0."""
    from scipy.optimize import nnls

    common = float(np.median(1 / design.sum(1)))
    # A group's penalty grows with its share of the latency, so that rare groups are free only as far as data speaks for it.
    pull = np.sqrt(strength * len(design)) * np.maximum(design.mean(0), 0.02)
    rows = np.vstack([design, np.diag(pull)])
    target = np.concatenate([np.ones(len(design)), pull * common])
    return np.asarray(nnls(rows, target)[0])


def _leave_one_out(design: np.ndarray, strength: float) -> np.ndarray:
    """Predicted over measured latency of each network, fitted without it (n,)."""
    keep = ~np.eye(len(design), dtype=bool)
    return np.array([design[row] @ _solve(design[keep[row]], strength) for row in range(len(design))])
