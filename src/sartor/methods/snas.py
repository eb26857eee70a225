"""SNAS (Xie et al. 2019, "SNAS: Stochastic neural architecture search", arXiv:1812.09926)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def snas(net: Any, data: SearchData, *, temperature: tuple[float, float] = (5.0, 0.1), **settings: Any) -> SearchResult:
    """Gumbel-softmax samples of the architecture at a falling temperature; one loss on all training images for weights and architecture.

    Section 2: no bilevel division. 150 epochs, batches of 64, optimisers as in DARTS (section 3.1). The paper names no temperatures; 5 to
    0.1, falling exponentially, are FBNet's.

    Args:
        net: a searchable network; it is copied.
        temperature: at the start and at the end.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for a `temperature` that is no pair of positive numbers.
    """
    from sartor.methods import parts

    policy = parts.make_policy(parts.Gumbel, net, seed=settings.get("seed", 0), temperature=temperature)
    return parts.search(net, parts.fixed_norms(net), policy, data, joint=True, **parts.with_defaults(settings, epochs=150))
