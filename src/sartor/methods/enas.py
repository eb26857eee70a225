"""ENAS (Pham et al. 2018, "Efficient neural architecture search via parameter sharing", arXiv:1802.03268)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Accept, Bound


def enas(
    net: Any,
    data: SearchData,
    *,
    cost: Cost | None = None,
    target: float | None = None,
    accept: Accept | None = None,
    others: Sequence[Bound] = (),
    hidden: int = 64,
    **settings: Any,
) -> SearchResult:
    """An LSTM controller draws architectures of one set of weights; weights and controller learn in turns, the controller by REINFORCE.

    Sections 2.2, 3.1 and 3.2: 150 epochs, SGD from 0.05 to 0.001, Adam at 0.00035, logits ``2.5 * tanh(logits / 5)``; of ten draws on one
    batch the best is derived. Batches of 128 and the entropy's weight 1e-4 are those of the authors' scripts for CIFAR-10, where
    section 3.2 has 0.1; their script for cells has the controller learn at 0.0035.

    Args:
        net: a searchable network; it is copied.
        cost, target: the reward becomes ``accuracy * (cost / target)^-0.07``, and only architectures within the target are derived.
        accept, others: further conditions on what is derived, as in :func:`sartor.methods.limited`; they need a cost and its target.
        hidden: width of the LSTM.
        settings: of :func:`sartor.recipes.enas.search_reinforce`.
    """
    from sartor.methods import oneshot, parts
    from sartor.methods.limits import check_cost, check_positive
    from sartor.policies.controller import Controller
    from sartor.recipes.enas import search_reinforce

    check_cost("enas", cost)
    if target is not None:
        check_positive("enas", "target", target)
    derive, fits, reward = oneshot.limited_reward(net, cost, target, -0.07, accept=accept, others=others)
    policy = parts.make_policy(Controller, net, space=net.space, seed=settings.get("seed", 0), hidden=hidden, derive=derive)
    paper = parts.with_defaults(settings, epochs=150)
    return search_reinforce(
        parts.copied(net), policy, data, accept=fits, reward=reward, agreed=oneshot.agreed(cost, target, -0.07, others), **paper
    )
