"""Parts that methods of the DARTS family add to the bilevel search: loss terms, fewer candidates, limits on what is derived."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sartor.arch import Arch, Space
from sartor.policies.base import Derive, Policy
from sartor.policies.dirichlet import Dirichlet, anchor
from sartor.policies.sigmoid import Sigmoid
from sartor.recipes.stops import SKIPS, skips_of


class ZeroOne:
    """``loss + weight * L01`` with ``L01 = -1/N * sum_i (sigmoid(alpha_i) - 0.5)^2`` over the N gates: drives every gate to 0 or 1.

    Chu et al. 2020, "Fair DARTS", section 4.2, equation 4; weight 10.
    """

    def __init__(self, policy: Sigmoid, weight: float = 10.0) -> None:
        self.policy, self.weight = policy, weight

    def __call__(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        gates = torch.sigmoid(self.policy.alpha)[self.policy.mask]
        return loss - self.weight * (gates - 0.5).square().mean()

    def update(self, mixture: Mapping[str, Any]) -> None:
        """Nothing to learn."""


class Anchor:
    """``loss + weight * KL(policy, uniform Dirichlet)`` (Chen et al. 2021, DrNAS, section 3.2, equation 6; weight 1e-3)."""

    def __init__(self, policy: Dirichlet, weight: float = 1e-3) -> None:
        self.policy, self.weight = policy, weight

    def __call__(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor:
        return loss + self.weight * anchor(self.policy)

    def update(self, mixture: Mapping[str, Any]) -> None:
        """Nothing to learn."""


def keep_candidates(policy: Policy, share: float) -> Space:
    """The space in which every free choice of `policy` keeps the ``ceil(share * number of its options)`` strongest of those it has left.

    Candidate dropping (Chen et al. 2019, P-DARTS, section 3.2: 8, 5, 3; Chen et al. 2021, DrNAS, section 3.3: a half). Ties go to the
    first.
    """
    space = policy.space
    keep = {}
    for name, row in policy.strengths().items():
        if isinstance(row, int):
            continue
        count = max(1, math.ceil(share * len(space.choices[name])))
        best = sorted(row, key=lambda index, row=row: (-row[index], index))[:count]  # type: ignore[misc]  # mypy does not infer the default
        keep[name] = [space.choices[name][index] for index in best]
    return space.restrict(keep)


def limit_skips(
    derive: Derive, space: Space, most: int, *, skips: Collection[str] = SKIPS, among: Callable[[str], bool] | None = None
) -> Derive:
    """`derive` with at most `most` skip connections: the weakest is forbidden, one after the other, and the rest derived anew.

    Chen et al. 2019, P-DARTS, section 3.3.2: search space regularisation, M = 2 in the normal cell.
    """

    def limited(strengths: Mapping[str, int | Mapping[int, float]]) -> Arch:
        left = {name: row if isinstance(row, int) else dict(row) for name, row in strengths.items()}
        while True:
            arch = derive(left)
            found = skips_of(space, arch, skips=skips, among=among)
            weights = {
                name: row[arch[name]] for name in found if isinstance(row := left.get(name), dict) and len(row) > 1 and arch[name] in row
            }
            if len(found) <= most or not weights:
                return arch
            weakest = min(weights, key=weights.__getitem__)
            row = left[weakest]
            assert isinstance(row, dict)
            del row[arch[weakest]]

    return limited


def decaying_skip_dropout(rate: float, weights_only: float, decay: float = 3.0) -> Callable[[float], float]:
    """The rate of skip dropout over the spent share of a stage: falling linearly while the weights are trained alone, then from `rate` as
    ``exp(-decay * share of the rest)``. P-DARTS's code: ``exp(-0.2 * epoch)`` over the 15 epochs after 10 of weights alone, hence 3."""

    def schedule(fraction: float) -> float:
        if fraction < weights_only:
            return rate * (1.0 - fraction)
        return rate * math.exp(-decay * (fraction - weights_only) / max(1.0 - weights_only, 1e-9))

    return schedule
