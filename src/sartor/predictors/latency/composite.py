"""Costs made of several: FLOPs, moved bytes and latency in one number, and one latency for several platforms.

Everything here is arithmetic on what it is given: floats, arrays `(n,)` and 0-dimensional tensors (differentiable) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sartor.errors import UserError
from sartor.hardware.graph import Op
from sartor.predictors.latency.features import moved_values

Price = Callable[[Op], float]


@dataclass(frozen=True)
class Composite:
    """`α·FLOPs + β·moved bytes + γ·latency`; the weights carry the units (per FLOP, per byte, per ms).

    Use :meth:`relative` for weights without units. A multiply-accumulate is two FLOPs.
    """

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta, self.gamma) < 0 or self.alpha + self.beta + self.gamma <= 0:
            raise UserError(f"expected weights of at least 0, not all of them 0, got α={self.alpha}, β={self.beta}, γ={self.gamma}")

    @staticmethod
    def relative(alpha: float, beta: float, gamma: float, *, flops: float, moved_bytes: float, latency_ms: float) -> Composite:
        """Weights relative to a reference network with these figures, whose own cost is then `alpha + beta + gamma`."""
        if min(flops, moved_bytes, latency_ms) <= 0:
            raise UserError(f"expected positive figures of the reference, got {flops} FLOPs, {moved_bytes} bytes, {latency_ms} ms")
        return Composite(alpha / flops, beta / moved_bytes, gamma / latency_ms)

    def of(self, *, flops: Any, moved_bytes: Any, latency_ms: Any) -> Any:
        """The cost of networks with these figures."""
        return self.alpha * flops + self.beta * moved_bytes + self.gamma * latency_ms

    def price(self, latency: Price, *, bytes_per_value: float = 4) -> Price:
        """Price of one op for :func:`sartor.hardware.cost`, which sums it exactly, and on mixtures gives its exact expectation.

        Args:
            latency: op -> ms, such as `LatencyTable.price` or a fitted :class:`sartor.predictors.latency.ops.OpModel`.
            bytes_per_value: 4 for fp32, 1 for int8.
        """
        return lambda op: float(self.of(flops=2 * op.macs, moved_bytes=bytes_per_value * moved_values(op), latency_ms=latency(op)))


def weighted(latency_ms: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """`Σ w_p · latency_p` over platforms.

    Raises:
        UserError: for weights of platforms without a latency, negative ones, and none at all.
    """
    _check(latency_ms, weights, "weight")
    return sum(weight * latency_ms[platform] for platform, weight in weights.items())


def worst_case(latency_ms: Mapping[str, Any], limits_ms: Mapping[str, float]) -> Any:
    """`max_p latency_p / limit_p` over platforms: at most 1 where every platform keeps its limit.

    Raises:
        UserError: for limits of platforms without a latency, and limits that are not positive.
    """
    _check(latency_ms, limits_ms, "limit")
    if min(limits_ms.values()) <= 0:
        raise UserError(f"expected positive limits in ms, got {dict(limits_ms)}")
    ratios = [latency_ms[platform] / limit for platform, limit in limits_ms.items()]
    if any(getattr(ratio, "ndim", 0) > 0 for ratio in ratios):
        import numpy as np

        return np.maximum.reduce([np.asarray(ratio, dtype=float) for ratio in ratios])
    return max(ratios)


def weighted_price(prices: Mapping[str, Price], weights: Mapping[str, float]) -> Price:
    """`Σ w_p · price_p(op)`: the weighted latency of several platforms as the price of one op, for :func:`sartor.hardware.cost`."""
    _check(prices, weights, "weight")
    return lambda op: float(sum(weight * prices[platform](op) for platform, weight in weights.items()))


def _check(have: Mapping[str, Any], wanted: Mapping[str, float], what: str) -> None:
    missing = [platform for platform in wanted if platform not in have]
    if missing or not wanted:
        raise UserError(f"expected a {what} for platforms among {', '.join(have) or 'none'}, got {', '.join(missing) or 'none'}")
    if any(value < 0 for value in wanted.values()):
        raise UserError(f"expected every {what} to be at least 0, got {dict(wanted)}")
