"""FBNet (Wu et al. 2019, "FBNet: Hardware-aware efficient ConvNet design via differentiable NAS", arXiv:1812.03443)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult
    from sartor.recipes.cost_term import Cost


def fbnet(
    net: Any,
    data: SearchData,
    *,
    cost: Cost | None = None,
    a: float = 0.2,
    b: float = 0.6,
    temperature: tuple[float, float] = (5.0, 0.09),
    **settings: Any,
) -> SearchResult:
    """Gumbel-softmax weights of all options, and the loss ``CE * a * log(E[LAT])^b`` with the latency in microseconds.

    Sections 3.1 to 3.3 and 4.1: 90 epochs, the first 10 of weights alone, batches of 192, SGD from 0.1 to 0 with decay 1e-4, Adam at 0.01
    with decay 5e-4, 20 % of the images for the architecture; temperature 5, times exp(-0.045) every epoch (0.09 after 90). The paper takes
    an epoch of the 80 % and then one of the 20 %; here a step of the architecture follows every four of the weights, which are as many.
    E[LAT] is the exact expectation, where the paper charges the sampled weights, and the most probable architecture is derived, where it
    trains draws.

    Args:
        net: a searchable network; it is copied.
        cost: a latency in ms; without one, multiply-accumulates stand for it, counted in units of one.
        a, b: of equation 2; above zero, or slow networks would cost nothing or be preferred.
        temperature: at the start and at the end.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for a `cost` that is none, `a` or `b` not above zero, and a `temperature` that is no pair of positive numbers.
    """
    from sartor.methods import parts
    from sartor.methods.limits import check_cost, check_positive, priced
    from sartor.recipes.cost_term import Cost, FBNetTerm

    check_cost("fbnet", cost)
    check_positive("fbnet", "a", a)
    check_positive("fbnet", "b", b)
    policy = parts.make_policy(parts.Gumbel, net, seed=settings.get("seed", 0), temperature=temperature)
    notes: tuple[str, ...] = ()
    if cost is None:
        term = FBNetTerm(Cost.of_macs(net.space, net.factors()), a=a, b=b, microseconds=1.0)
        notes = ("no latency was given: the loss counts multiply-accumulates",)
    else:
        term = FBNetTerm(cost, a=a, b=b)
    terms = [priced(net, term), *settings.pop("terms", ())]
    paper = parts.with_defaults(
        settings,
        epochs=90,
        batch=192,
        share=0.8,
        weights_only=1 / 9,
        every=4,
        weights=parts.replace(parts.WEIGHTS, lr=0.1, weight_decay=1e-4, floor=0.0),
        architecture=parts.Adam(lr=0.01, betas=(0.9, 0.999), weight_decay=5e-4),
    )
    return parts.search(net, parts.copied(net), policy, data, *notes, terms=terms, **paper)
