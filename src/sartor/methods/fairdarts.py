"""FairDARTS (Chu et al. 2020, "Fair DARTS: Eliminating unfair advantages in differentiable architecture search", arXiv:1911.12126)."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def fair_darts(net: Any, data: SearchData, *, zero_one: float = 10.0, none: str = "none", **settings: Any) -> SearchResult:
    """A sigmoid gate for every operation instead of a softmax over them, and a loss that drives each gate to zero or one.

    Section 4 and the authors' code: weight 10 of the zero-one loss, batches of 128, SGD from 0.005 to 0.001, Adam at 3e-3 with betas (0.9,
    0.999); otherwise as DARTS. The option `none` is left out: a closed gate says it. The
    strongest operation of each edge is derived; the paper also drops edges whose strongest gate is below 0.85.

    Args:
        net: a searchable network; it is copied.
        zero_one: weight of the zero-one loss.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for `zero_one` below zero, which would hold every gate half open.
    """
    from sartor.errors import UserError
    from sartor.methods import parts

    if not (isinstance(zero_one, Real) and 0 <= zero_one < math.inf):
        raise UserError(f"fair_darts: zero_one must be a finite number of zero or more, got {zero_one!r}")
    space = parts.without(parts.relaxed_space(net)[0], none)
    policy = parts.make_policy(parts.Sigmoid, net, space=space, seed=settings.get("seed", 0))
    paper = parts.with_defaults(
        settings,
        epochs=50,
        batch=128,
        weights=parts.replace(parts.WEIGHTS, lr=0.005, floor=0.2),
        architecture=parts.Adam(lr=3e-3, betas=(0.9, 0.999)),
    )
    paper["terms"] = [*paper.get("terms", ()), parts.ZeroOne(policy, zero_one)]
    return parts.search(net, parts.fixed_norms(net), policy, data, **paper)
