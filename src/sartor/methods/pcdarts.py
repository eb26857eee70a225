"""PC-DARTS (Xu et al. 2020, "PC-DARTS: Partial channel connections for memory-efficient architecture search", arXiv:1907.05737)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def pc_darts(net: Any, data: SearchData, *, k: int = 4, **settings: Any) -> SearchResult:
    """DARTS with 1/k of the channels through the mixed operations, and edges weighed against each other (edge normalisation).

    The memory that this frees is spent on batches of 256 at four times the learning rate (section 4.1): 50 epochs, the first 15 of weights
    alone, SGD from 0.1 to 0, Adam at 6e-4.

    Args:
        net: a searchable network; it is copied. Its `incoming` names the edges into each node.
        k: 4 for CIFAR, 2 for ImageNet.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: for `k` below 1.
    """
    from sartor.methods import parts
    from sartor.searchers.variation import whole

    whole("pc_darts", "k", k, 1)  # `partial_if_possible` would make a note of it
    edges = parts.incoming_edges(net)
    policy = parts.make_policy(parts.Softmax, net, edges=edges, seed=settings.get("seed", 0))
    partial, notes = parts.partial_if_possible(net, k, seed=settings.get("seed", 0))
    if edges is None:
        notes = (*notes, f"{type(net).__name__} names no edges that enter a node (`incoming`): the search runs without edge normalisation")
    paper = parts.with_defaults(
        settings,
        epochs=50,
        batch=256,
        weights_only=0.3,
        weights=parts.replace(parts.WEIGHTS, lr=0.1, floor=0.0),
        architecture=parts.Adam(lr=6e-4),
    )
    return parts.search(net, parts.fixed_norms(partial), policy, data, *notes, **paper)
