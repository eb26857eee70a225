"""DARTS-ES, the early stop of RobustDARTS.

Zela et al. 2020, "Understanding and robustifying differentiable architecture search", arXiv:1909.09656.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def robust_darts(net: Any, data: SearchData, *, ratio: float = 0.75, window: int = 5, **settings: Any) -> SearchResult:
    """DARTS that watches the dominant eigenvalue of the validation loss's Hessian in the architecture, and returns to before it rose.

    Section 4.3: averaged over `window` = 5 epochs; the search ends when the average around the epoch `window` ago is below `ratio` = 0.75
    of today's, and returns to that epoch, which is the tenth or a later one.

    Args:
        net: a searchable network; it is copied.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for a `window` below 1 and a `ratio` outside (0, 1].
    """
    from sartor.methods import parts
    from sartor.methods.darts import darts

    stops = [*settings.get("stops", ()), parts.rising_eigenvalue(ratio, window)]
    return darts(net, data, **{**settings, "eigenvalue": True, "stops": stops})
