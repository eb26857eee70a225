"""GDAS (Dong & Yang 2019, "Searching for a robust neural architecture in four GPU hours", arXiv:1910.04465)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def gdas(net: Any, data: SearchData, *, temperature: tuple[float, float] = (10.0, 0.1), **settings: Any) -> SearchResult:
    """One operation per edge is drawn and run in every pass; its gradient is that of the Gumbel-softmax relaxation.

    Section 4.2: 250 epochs, batches of 64, SGD with Nesterov momentum from 0.025 to 0.001, Adam at 3e-4, temperature from 10 to 0.1,
    falling linearly.

    Args:
        net: a searchable network; it is copied.
        temperature: at the start and at the end.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for a `temperature` that is no pair of positive numbers.
    """
    from sartor.methods import parts

    policy = parts.make_policy(parts.Gumbel, net, seed=settings.get("seed", 0), temperature=temperature, linear=True, hard=True)
    paper = parts.with_defaults(settings, epochs=250, weights=parts.replace(parts.WEIGHTS, nesterov=True))
    return parts.search(net, parts.fixed_norms(net), policy, data, **paper)
