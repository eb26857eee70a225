"""SPOS (Guo et al. 2020, "Single path one-shot neural architecture search with uniform sampling", arXiv:1904.00420)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.one_shot import OneShotResult


def spos(net: Any, data: Any, *, population: int = 50, top: int = 10, mutation_rate: float = 0.1, **settings: Any) -> OneShotResult:
    """A supernet trained on uniformly drawn single paths, then evolution on sub-nets with recalibrated batch normalisation.

    Sections 3.2 and 3.4 and Algorithm 1: 120 epochs of supernet; evolution of 1000 sub-nets under hard limits, 20 generations of 50, half
    of each crossovers of the ten best so far, half mutants of them.

    Args:
        net: a searchable network; it is copied.
        population: of a generation.
        top: how many of the best so far breed.
        mutation_rate: probability of each choice of a mutant.
        settings: those of :class:`sartor.methods.oneshot.Exploring` (`limits`, `costs`, `evaluations`, `ranks` ...); the rest
            (a budget, `paths`, `checkpoint` ...) of :func:`sartor.recipes.single_path.train_single_path`. Of a budget in seconds, training
            takes four fifths.

    Raises:
        UserError: for a `population` or `top` below 1, and a `mutation_rate` outside 0..1, before anything is trained.
    """
    from sartor.methods import oneshot
    from sartor.searchers.variation import fraction, whole

    whole("spos", "population", population, 1)
    whole("spos", "top", top, 1)
    fraction("spos", "mutation_rate", mutation_rate)
    how = oneshot.exploring(settings)
    begun: Any = oneshot.copied(net)
    training, left = oneshot.budgeted(settings, epochs=120)
    trained = oneshot.train_single_path(begun, data, **training)
    seed = settings.get("seed", 0)
    excess = oneshot.excess_over_limits(begun, how)

    notes: list[str] = []

    def search(explore: Any) -> Any:
        best = oneshot.evolve_top(
            explore, begun.space, excess, how.evaluations, population=population, top=top, rate=mutation_rate, seed=seed
        )
        if len(explore.trials) < how.evaluations and not explore.over:
            notes.append(f"{len(explore.trials)} of {how.evaluations} sub-nets were evaluated: no more were found within the limits")
        return best

    found = oneshot.concluded(begun, data, trained, how, left, search, seed=seed)
    return replace(found, notes=(*notes, *found.notes))
