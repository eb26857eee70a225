"""ProxylessNAS (Cai et al. 2019, "ProxylessNAS: Direct neural architecture search on target task and hardware", arXiv:1812.00332)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.exchange import Accept, Bound


def proxylessnas(net: Any, data: SearchData, *, cost: Cost | None = None, weight: float = 0.1, **settings: Any) -> SearchResult:
    """One gated path in the weight step, two in the architecture step; the expected cost of all options is added to the loss.

    Section 3 and the authors' code: 160 epochs, the first 40 of weights alone, batches of 256, SGD with Nesterov momentum at 0.025 and
    decay 4e-5, Adam at 1e-3 with betas (0, 0.999) and no decay, 10 % of the images for the architecture, whose step follows every fifth of
    the weights. The learning rate falls by one cosine over all epochs; the code has another for the 40, from 0.05, and smooths labels.

    Args:
        net: a searchable network; it is copied.
        cost: the loss is ``CE + weight * E[cost] / cost(largest)`` (equation 3); for a limit use :func:`sartor.methods.limited`.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for a `cost` that is none, and a `weight` below zero.
    """
    from sartor.methods import parts
    from sartor.methods.limits import check_cost, priced
    from sartor.policies.two_path import TwoPath
    from sartor.recipes.cost_term import Additive

    check_cost("proxylessnas", cost)
    policy = parts.make_policy(TwoPath, net, seed=settings.get("seed", 0))
    terms = list(settings.pop("terms", ()))
    if cost is not None:
        terms.append(priced(net, Additive(cost, weight, scale=float(cost(net.largest)))))
    paper = parts.with_defaults(
        settings,
        epochs=160,
        batch=256,
        share=0.9,
        weights_only=0.25,
        every=5,
        weights=parts.replace(parts.WEIGHTS, weight_decay=4e-5, nesterov=True, floor=0.0),
        architecture=parts.Adam(lr=1e-3, betas=(0.0, 0.999), weight_decay=0.0),
    )
    return parts.search(net, parts.copied(net), policy, data, terms=terms, **paper)


def proxylessnas_reinforce(
    net: Any,
    data: SearchData,
    *,
    cost: Cost | None = None,
    target: float | None = None,
    exponent: float = -0.07,
    accept: Accept | None = None,
    others: Sequence[Bound] = (),
    **settings: Any,
) -> SearchResult:
    """One path in every step; the probabilities of the paths learn from rewards, so that a cost may have any form.

    Section 3.3.2, equation 5. The reward is ``accuracy * (cost / target)^exponent`` (section 4.2; MnasNet's), or accuracy. With a `target`
    only architectures within it are derived. As in the authors' code, an update has ten paths on one batch, is compared with their mean (a
    baseline of which 0.99 is new), and follows every sixteenth step of the weights: 300 in an epoch of ImageNet.

    Args:
        net: a searchable network; it is copied.
        accept, others: further conditions on what is derived, as in :func:`sartor.methods.limited`; they need a cost and its target.
        settings: of :func:`sartor.recipes.enas.search_reinforce`.

    Raises:
        UserError: for a `cost` that is none, a `target` not above zero or out of reach, and one of the two without the other.
    """
    from sartor.methods import oneshot, parts
    from sartor.methods.limits import check_cost, check_positive
    from sartor.recipes.enas import PolicyGradient, search_reinforce

    check_cost("proxylessnas_reinforce", cost)
    if target is not None:
        check_positive("proxylessnas_reinforce", "target", target)
    derive, fits, reward = oneshot.limited_reward(net, cost, target, exponent, accept=accept, others=others)
    policy = parts.make_policy(parts.Softmax, net, space=net.space, seed=settings.get("seed", 0), derive=derive)
    paper = parts.with_defaults(
        settings,
        epochs=160,
        batch=256,
        weights_only=0.25,
        weights=parts.replace(parts.WEIGHTS, weight_decay=4e-5, nesterov=True, floor=0.0),
        learning=PolicyGradient(
            lr=1e-3, betas=(0.0, 0.999), steps=1, draws=10, entropy=0.0, decay=0.01, current=True, one_batch=True, every=16, candidates=0
        ),
    )
    agreed = oneshot.agreed(cost, target, exponent, others)
    return search_reinforce(parts.copied(net), policy, data, accept=fits, reward=reward, agreed=agreed, **paper)
