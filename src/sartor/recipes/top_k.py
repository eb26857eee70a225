"""Evolution of single paths under hard limits (Guo et al. 2020, "Single path one-shot neural architecture search with uniform sampling",
ECCV, arXiv:1904.00420, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sartor.arch import Arch, Space
from sartor.recipes.one_shot import Exploration
from sartor.searchers.variation import fraction, whole
from sartor.trial import Trial

_TRIES = 200  # for a child that keeps the limits and is new, drawn as the paper draws it
_STEPS = 3000  # of a walk towards the limits, where that finds none


def evolve_top(
    explore: Exploration, space: Space, excess: Callable[[Arch], float], budget: int, *, population: int = 50, top: int = 10,
    rate: float = 0.1, seed: int = 0,
) -> Trial:  # fmt: skip
    """The best of `budget` architectures, `population` a generation: drawn at random, then bred from the `top` best of all so far.

    Half of a generation are crossovers of two of the best, half mutants of one of them, each choice with probability `rate`. What does not
    keep the limits is drawn again, and never evaluated; where limits are so tight that no draw keeps them, mutations walk towards them. A
    child follows from the seed and the trials before it: with a history the search goes on as if it had not been interrupted. It ends
    early where nothing new within the limits is found any more. Where nothing ever was, the nearest alone is evaluated.

    Args:
        excess: by how much an architecture breaks the limits that are known without an evaluation; 0 if it keeps them.

    Raises:
        UserError: for a `population` or `top` below 1, and a `rate` outside 0..1.
    """
    whole("evolve_top", "population", population, 1)
    whole("evolve_top", "top", top, 1)
    fraction("evolve_top", "rate", rate)
    while len(explore.trials) < budget and not (explore.over and explore.trials):
        number = len(explore.trials)
        generation, place = divmod(number, population)
        parents = _best(explore, generation * population, top)
        rng = np.random.default_rng((seed, number))
        arch = _child(space, parents, 2 * place < population, rate, rng, excess, explore.knows)
        if excess(arch) > 0 or explore.knows(arch):
            if not explore.trials:
                explore(arch, {"generation": generation})
            break
        explore(arch, {"generation": generation})
    return explore.best()


def _best(explore: Exploration, count: int, top: int) -> list[Arch]:
    """The best of the first `count` trials: those of earlier generations."""
    ranked = sorted(explore.trials[:count], key=lambda t: (explore.goals.violation(t.metrics), float(explore.goals.values(t.metrics)[0])))
    return [trial.arch for trial in ranked[:top]]


def _child(
    space: Space, parents: Sequence[Arch], crossed: bool, rate: float, rng: np.random.Generator, excess: Callable[[Arch], float],
    knows: Callable[[Arch], bool],
) -> Arch:  # fmt: skip
    """A child within the limits that is new; where none turns up, one drawn at random, then the end of a walk from the nearest so far."""
    nearest, least = None, np.inf
    for attempt in range(2 * _TRIES if parents else _TRIES):
        if not parents or attempt >= _TRIES:
            new = space.sample(rng)
        elif crossed:
            first, second = (int(one) for one in rng.integers(len(parents), size=2))
            new = space.crossover(parents[first], parents[second], rng)
        else:
            new = space.mutate(parents[int(rng.integers(len(parents)))], rng, rate=rate)
        over = excess(new)
        if over <= 0 and not knows(new):
            return new
        if nearest is None or over < least:
            nearest, least = new, over
    assert nearest is not None
    for _ in range(_STEPS):
        new = space.mutate(nearest, rng, rate=rate)
        over = excess(new)
        if over <= 0 and not knows(new):
            return new
        if over <= least:
            nearest, least = new, over
    return nearest


__all__ = ["evolve_top"]
