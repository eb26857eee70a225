"""DrNAS (Chen et al. 2021, "DrNAS: Dirichlet neural architecture search", arXiv:2006.10355)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def drnas(
    net: Any,
    data: SearchData,
    *,
    k: Sequence[int] = (6, 3),
    candidates: Sequence[float] = (1.0, 0.5),
    anchor: float = 1e-3,
    **settings: Any,
) -> SearchResult:
    """The weights of an edge are Dirichlet samples; partial channels that grow, and candidates that fall, from stage to stage.

    Sections 3.2 and 3.3 and 4.1, and the authors' code: concentration elu(alpha) + 1, KL anchor of weight 1e-3 in place of weight decay
    (the code's default is an L2 of that weight), two stages of 25 epochs, the first 10 of each of weights alone, with 1/6 and 1/3 of the
    channels and all, then half of the candidates; batches of 64, SGD from 0.1 to 0 by one cosine over the stages, Adam at 6e-4 (both begin
    anew in each stage). On NAS-Bench-201 the authors take stages of 50 epochs, k = (4, 2), five and three candidates, 0.025 to 0.001 and
    3e-4. The weights of a stage start from those of the stage before where the two overlap.

    Args:
        net: a searchable network; it is copied. Where k does not divide the channels, the largest divisor below it is taken.
        k: partial channels of each stage; 1 runs all.
        candidates: share of the options of every choice in each stage.
        anchor: weight of the KL divergence.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`; the budget is that of all stages.

    Raises:
        UserError: for `k` and `candidates` of different lengths, or a negative `anchor`.
    """
    from sartor.errors import UserError
    from sartor.methods import parts
    from sartor.searchers.variation import whole

    if len(k) != len(candidates) or not k:
        raise UserError(f"expected k= and candidates= for the same stages, got {len(k)} and {len(candidates)}")
    for part in k:
        whole("drnas", "k", part, 1)
    if not 0 <= anchor < math.inf:
        raise UserError(f"drnas: anchor must be a finite number of zero or more, got {anchor!r}")
    paper = parts.with_defaults(
        settings,
        epochs=25 * len(k),
        weights_only=0.4,
        weights=parts.replace(parts.WEIGHTS, lr=0.1, floor=0.0),
        architecture=parts.Adam(lr=6e-4, weight_decay=0.0),
    )
    space = parts.relaxed_space(net)[0]
    if not any(net.space.choices[name][i] == "none" for name, allowed in net.space.allowed.items() for i in allowed):
        space = parts.without(space, "none")  # as in the authors' code for the space of DARTS, which derives no `none`
    results: list[SearchResult] = []
    for stage, part in enumerate(k):
        partial, notes = parts.partial_if_possible(net, part, seed=paper.get("seed", 0) + stage)
        begun = parts.fixed_norms(partial)
        if results:
            space = parts.keep_candidates(results[-1].policy, candidates[stage])
            parts.load_weights(begun, results[-1].net.state_dict())
        policy = parts.make_policy(parts.Dirichlet, net, space=space, seed=paper.get("seed", 0))
        if results:
            parts.carry_over(results[-1].policy, policy)
        staged = parts.stage_settings(paper, results, len(k))
        staged["weights"] = parts.replace(paper["weights"], part=(stage / len(k), (stage + 1) / len(k)))
        staged["terms"] = [*staged.get("terms", ()), parts.Anchor(policy, anchor)]
        results.append(parts.search(net, begun, policy, data, *notes, **staged))
        if results[-1].stopped:
            break
    return parts.joined(results, len(k))
