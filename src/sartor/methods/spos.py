"""SPOS (Guo et al. 2020, "Single path one-shot neural architecture search with uniform sampling", arXiv:1904.00420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.one_shot import OneShotResult


def spos(net: Any, data: Any, *, population: int = 50, **settings: Any) -> OneShotResult:
    """A supernet trained on uniformly drawn single paths, then evolution on sub-nets with recalibrated batch normalisation.

    Sections 3.2 and 3.3: 120 epochs of supernet; evolution of 1000 sub-nets with a population of 50 under hard limits.

    Args:
        net: a searchable network; it is copied.
        population: of the evolution.
        settings: those of :class:`sartor.methods.oneshot.Exploring` (`limits`, `costs`, `evaluations`, `ranks` ...); the rest
            (a budget, `paths`, `checkpoint` ...) of :func:`sartor.recipes.single_path.train_single_path`. Of a budget in seconds, training
            takes four fifths.
    """
    from sartor.methods import oneshot

    how = oneshot.exploring(settings)
    begun: Any = oneshot.copied(net)
    training, left = oneshot.budgeted(settings, epochs=120)
    trained = oneshot.train_single_path(begun, data, **training)
    seed = settings.get("seed", 0)
    searcher = oneshot.make_searcher("genetic", begun.space, how.goals, population=population)
    return oneshot.concluded(
        begun, data, trained, how, left, lambda explore: oneshot.evolve(explore, searcher, how.evaluations, seed=seed), seed=seed
    )
