"""DARTS+ (Liang et al. 2019, "DARTS+: Improved differentiable architecture search with early stopping", arXiv:1909.06035)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def darts_plus(net: Any, data: SearchData, *, most_skips: int = 2, stable_epochs: int = 10, **settings: Any) -> SearchResult:
    """DARTS that ends when a normal cell has two skip connections, or when the ranking of the operations with weights has settled.

    Section 3.3, criteria 1 and 1*.

    Args:
        net: a searchable network; it is copied.
        most_skips: the number of skip connections at which the search ends.
        stable_epochs: epochs for which the ranking must have stayed the same.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for `most_skips` or `stable_epochs` below 1.
    """
    from sartor.methods import parts
    from sartor.methods.darts import darts
    from sartor.recipes.stops import offers_skips
    from sartor.searchers.variation import whole

    whole("darts_plus", "most_skips", most_skips, 1)
    whole("darts_plus", "stable_epochs", stable_epochs, 1)
    stops, notes = [parts.stable_ranking(net.space, stable_epochs)], list[str]()
    if offers_skips(net.space):
        stops.append(parts.too_many_skips(net.space, most_skips, among=parts.normal_cell))
    else:
        notes.append("no choice offers a skip connection: the search ends by the ranking alone")
    found = darts(net, data, **{**settings, "stops": [*settings.get("stops", ()), *stops]})
    return parts.replace(found, notes=(*found.notes, *notes))
