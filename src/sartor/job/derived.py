"""Figures that follow from others: one latency for several devices, the composite cost, and the figure of merit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sartor.goals import QUIET, Goals, entry
from sartor.hardware.energy import merit
from sartor.hardware.graph import Op
from sartor.hardware.platforms import Platform
from sartor.predictors.latency.composite import Composite, weighted, worst_case
from sartor.predictors.latency.features import moved_values
from sartor.request import SearchRequest

_EVEN = (1.0, 1.0, 1.0)


def asks(request: SearchRequest, metric: str) -> bool:
    """Whether a search names a metric as an objective or a limit, or sets its weights."""
    goals = request.goals()
    weights = {"composite_cost": request.composite, "merit": request.merit}[metric]
    return weights is not None or metric in (*goals.objectives, *(limit.metric for limit in goals.limits))


@dataclass(frozen=True)
class Derived:
    """How figures are derived from a network's other metrics, for the p50 and for the quiet latency alike.

    Args:
        weights: metric of a latency -> its weight in `weighted_latency_ms`; empty where the run has one device.
        limits: metric of a latency -> its limit in ms; empty where one of the devices has none.
        composite: the weights of `composite_cost`, per FLOP, byte and ms; None where it was not asked for.
        exponents: those of `merit`; None where it was not asked for.
    """

    weights: Mapping[str, float]
    limits: Mapping[str, float]
    composite: Composite | None = None
    exponents: tuple[float, float, float] | None = None

    @staticmethod
    def of(request: SearchRequest, goals: Goals, platforms: Sequence[Platform], composite: Composite | None) -> Derived:
        names = ("latency_ms", *(platform.metric for platform in platforms))
        weights = {"latency_ms": 1.0, **{platform.metric: platform.weight for platform in platforms}} if platforms else {}
        bounds = {limit.key: limit.bound for limit in goals.limits if limit.key in names}
        limits = bounds if platforms and len(bounds) == len(names) else {}
        alpha, beta, gamma = request.merit or _EVEN
        return Derived(weights, limits, composite, (alpha, beta, gamma) if asks(request, "merit") else None)

    def __call__(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics with everything that can be derived from them; what lacks a part of it, as merit without accuracy, is left out."""
        found = dict(metrics)
        for statistic in ("", QUIET):
            if statistic and not any(entry(name, statistic) in metrics for name in self.weights or ("latency_ms",)):
                continue  # of a prediction, and of devices that are modelled
            latency = {name: metrics.get(entry(name, statistic), metrics.get(name, math.nan)) for name in self.weights or ("latency_ms",)}
            found |= {f"{name}{statistic}": value for name, value in self._of(metrics, latency).items() if math.isfinite(value)}
        return found

    def _of(self, metrics: Mapping[str, float], latency: Mapping[str, float]) -> dict[str, float]:
        own, found = latency["latency_ms"], dict[str, float]()
        whole = all(math.isfinite(value) for value in latency.values())
        if self.weights and whole:
            found["weighted_latency_ms"] = float(weighted(latency, self.weights))
        if self.limits and whole:
            found["worst_latency"] = float(worst_case(latency, self.limits))
        if self.composite is not None and {"macs", "moved_bytes"} <= metrics.keys():
            found["composite_cost"] = float(
                self.composite.of(flops=2 * metrics["macs"], moved_bytes=metrics["moved_bytes"], latency_ms=own)
            )
        accuracy, energy = metrics.get("accuracy", math.nan), metrics.get("energy_mj", math.nan)
        if self.exponents is not None and math.isfinite(accuracy) and energy > 0 and own > 0 and math.isfinite(energy * own):
            alpha, beta, gamma = self.exponents
            # A predicted accuracy may lie below 0, of which there is no power.
            found["merit"] = merit(max(0.0, accuracy), energy, own, alpha=alpha, beta=beta, gamma=gamma)
        return found


def composite_of(request: SearchRequest, reference: Mapping[str, float]) -> Composite:
    """The request's weights of `composite_cost`, relative to a network with these figures (flops, moved_bytes, latency_ms)."""
    alpha, beta, gamma = request.composite or _EVEN
    return Composite.relative(
        alpha, beta, gamma, flops=reference["flops"], moved_bytes=reference["moved_bytes"], latency_ms=reference["latency_ms"]
    )


def moved_bytes(ops: Iterable[Op], bytes_per_value: int) -> float:
    """Bytes of operands, weights and results that the ops read and write."""
    return float(bytes_per_value * sum(moved_values(op) for op in ops))
