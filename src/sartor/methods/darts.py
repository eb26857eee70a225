"""DARTS (Liu, Simonyan & Yang 2019, "DARTS: Differentiable architecture search", arXiv:1806.09055)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def darts(net: Any, data: SearchData, *, order: int = 1, **settings: Any) -> SearchResult:
    """Softmax over all operations of an edge; weights and architecture in turns, on one half of the training images each.

    Args:
        net: a searchable network; it is copied.
        order: 1, or 2 with one unrolled step of the weights (section 2.3).
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`; by default the paper's (appendix A.1.1): 50 epochs, batches of 64.
    """
    from sartor.methods import parts

    policy = parts.make_policy(parts.Softmax, net, seed=settings.get("seed", 0))
    return parts.search(net, parts.fixed_norms(net), policy, data, order=order, **parts.with_defaults(settings, epochs=50))


def darts_second_order(net: Any, data: SearchData, **settings: Any) -> SearchResult:
    """:func:`darts` with the unrolled step."""
    return darts(net, data, order=2, **settings)
