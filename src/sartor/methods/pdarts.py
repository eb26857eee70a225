"""P-DARTS (Chen et al. 2019, "Progressive differentiable architecture search: Bridging the depth gap", arXiv:1904.12760)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.bilevel import SearchData, SearchResult


def p_darts(
    net: Any,
    data: SearchData,
    *,
    deepen: Callable[[int], Any] | None = None,
    candidates: Sequence[float] = (1.0, 5 / 8, 3 / 8),
    dropout: Sequence[float] = (0.0, 0.4, 0.7),
    most_skips: int = 2,
    **settings: Any,
) -> SearchResult:
    """DARTS in stages: each begins anew, on a deeper network, with fewer candidates on every edge and more dropout on skip connections.

    Sections 3.2 and 3.3 and 4.2: 5, 11 and 17 cells with 8, 5 and 3 candidates; 25 epochs a stage, the first 10 of weights alone; batches
    of 96; SGD from 0.025 to 0, Adam at 6e-4; at most two skip connections in the derived normal cell.

    Args:
        net: a searchable network. The first stage begins with a copy of it, the others with networks of 11/5 and 17/5 as many cells, if
            it can be `deepened(factor)` as those of the spaces `darts` and `nasbench201`; otherwise with copies, and a note says so.
        deepen: stage number (from 0) -> the network of that stage, with the same choices.
        candidates: share of the options of every edge in each stage.
        dropout: initial rate on skip connections in each stage; it decays within the stage.
        settings: of :func:`sartor.recipes.bilevel.search_bilevel`; the budget is that of all stages.

    Raises:
        UserError: for `candidates` and `dropout` of different lengths.
    """
    from sartor.errors import UserError
    from sartor.methods import parts
    from sartor.searchers.variation import whole

    whole("p_darts", "most_skips", most_skips, 0)
    if len(candidates) != len(dropout):
        raise UserError(f"expected candidates= and dropout= for the same stages, got {len(candidates)} and {len(dropout)}")
    deeper, shallow = (deepen, ()) if deepen is not None else _deepening(net, settings.get("seed", 0))
    paper = parts.with_defaults(
        settings,
        epochs=25 * len(candidates),
        batch=96,
        weights_only=0.4,
        weights=parts.replace(parts.WEIGHTS, floor=0.0),
        architecture=parts.Adam(lr=6e-4),
    )
    space = parts.relaxed_space(net)[0]
    results: list[SearchResult] = []
    for stage, rate in enumerate(dropout):
        begun = parts.fixed_norms(deeper(stage))
        begun, notes = parts.skip_dropout_if_possible(begun)
        policy = parts.make_policy(parts.Softmax, net, space=space, seed=paper.get("seed", 0))
        schedule = parts.decaying_skip_dropout(rate, paper["weights_only"])
        staged = {**parts.stage_settings(paper, results, len(candidates)), "drop_path": schedule}
        results.append(parts.search(net, begun, policy, data, *notes, *shallow, **staged))
        if results[-1].stopped:
            break
        if stage + 1 < len(candidates):
            space = parts.keep_candidates(policy, candidates[stage + 1])
    derive = parts.limit_skips(parts.derivation(net), net.space, most_skips, among=parts.normal_cell)
    return parts.joined(results, len(candidates), derive(parts.derived_strengths(results[-1])))


def _deepening(net: Any, seed: int) -> tuple[Callable[[int], Any], tuple[str, ...]]:
    """The network of each stage, of 5, 11, 17 cells or as many times the cells that there are; a note where that cannot be."""
    import torch

    if not hasattr(net, "deepened"):
        return lambda stage: net, (f"{type(net).__name__} cannot be deepened: all stages have the same depth",)

    def deeper(stage: int) -> Any:
        if not stage:
            return net
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + stage)
            return net.deepened(1 + 6 / 5 * stage)

    return deeper, ()
