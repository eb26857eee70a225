"""Which sub-nets a supernet is trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError

Sampler = Callable[[np.random.Generator], Arch]


def uniform_sampler(space: Space) -> Sampler:
    """Every architecture equally often."""
    return space.sample


def stratified_sampler(
    space: Space,
    cost: Callable[[Arch], float],
    *,
    strata: int = 8,
    range_: tuple[float, float] | None = None,
    tries: int = 24,
    pilot: int = 256,
    seed: int = 0,
) -> Sampler:
    """Every band of cost equally often, so that a supernet is not trained mostly on nets of middling or light cost.

    The logarithm of the cost is cut into `strata` equal bands; a band is drawn uniformly, then an architecture from it: by rejection from
    the uniform distribution (exact within a band), and where `tries` uniform draws all miss (the thin ends), by mutating the nearest draw
    towards the band, which is no longer uniform within it.

    Args:
        cost: positive cost of an architecture, e.g. multiply-accumulates; any unit.
        range_: (lowest, highest) cost to cover, e.g. the costs of a net's smallest and largest architecture; by default the extremes of
            `pilot` uniform draws.

    Raises:
        UserError: for a cost that is not positive, or fewer than one stratum.
    """
    if strata < 1:
        raise UserError(f"strata= must be at least 1, got {strata}")
    if range_ is None:
        rng = np.random.default_rng(seed)
        costs = [float(cost(space.sample(rng))) for _ in range(pilot)]
        range_ = (min(costs), max(costs))
    if not 0 < range_[0] <= range_[1] < float("inf"):
        raise UserError(f"a stratified sampler needs positive finite costs, got the range {range_[0]} to {range_[1]}; check cost=")
    bounds = np.linspace(np.log(range_[0]), np.log(range_[1]), strata + 1)

    def sample(rng: np.random.Generator) -> Arch:
        band = int(rng.integers(strata))
        low, high = bounds[band], bounds[band + 1]

        def miss(arch: Arch) -> float:
            value = float(np.log(cost(arch)))
            return max(low - value, value - high, 0.0)

        best, distance = space.sample(rng), np.inf
        for number in range(3 * tries):
            candidate = space.sample(rng) if number < tries else space.mutate(best, rng)
            gap = miss(candidate)
            if gap <= 1e-9:
                return candidate
            if gap <= distance:
                best, distance = candidate, gap
        return best

    return sample
