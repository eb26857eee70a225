"""The evolution of SPOS: who breeds, what is never evaluated, and going on from a history."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.recipes.one_shot import Exploration
from sartor.recipes.top_k import evolve_top

SPACE = Space({f"c{i}": tuple(range(4)) for i in range(10)})
TARGET = SPACE.sample(np.random.default_rng(7))


def closeness(arch: Arch) -> dict[str, float]:
    return {"accuracy": sum(arch[name] == TARGET[name] for name in SPACE.choices) / 10}


def differing(a: Arch, b: Arch) -> int:
    return sum(a[name] != b[name] for name in SPACE.choices)


def test_half_of_a_generation_are_crossovers_of_the_ten_best_and_half_mutants_of_one() -> None:
    explore = Exploration(closeness, Goals(("accuracy",)))
    evolve_top(explore, SPACE, lambda arch: 0.0, 200, population=40, top=5, rate=0.1)
    found = explore.trials
    assert [t.meta["generation"] for t in found] == [n // 40 for n in range(200)] and len({t.arch for t in found}) == 200
    for generation in (1, 2):  # later the crossovers of five that are alike are used up, and others are drawn
        before = sorted(found[: 40 * generation], key=lambda t: -t.metrics["accuracy"])[:5]
        parents = [t.arch for t in before]
        crossed, mutants = found[40 * generation : 40 * generation + 20], found[40 * generation + 20 : 40 * generation + 40]
        inherited = [all(any(p[name] == t.arch[name] for p in parents) for name in SPACE.choices) for t in crossed]
        assert np.mean(inherited) >= 0.9
        assert np.median([min(differing(t.arch, p) for p in parents) for t in mutants]) <= 2
    means = [np.mean([t.metrics["accuracy"] for t in found[40 * g : 40 * g + 40]]) for g in range(5)]
    assert means[4] > means[0] + 0.3


def test_what_breaks_a_limit_is_never_evaluated() -> None:
    evaluated = Counter[int]()

    def evaluate(arch: Arch) -> dict[str, float]:
        evaluated[arch["c0"]] += 1
        return closeness(arch)

    evolve_top(Exploration(evaluate, Goals(("accuracy",))), SPACE, lambda arch: float(arch["c0"] != 2), 120, population=20)
    assert evaluated == {2: 120}


def test_tight_limits_are_walked_to_and_hopeless_ones_end_at_the_nearest() -> None:
    """One architecture in 10,000 is within: draws alone find none, and the budget is used all the same."""

    def excess(arch: Arch) -> float:
        return float(max(0, sum(arch.values()) - 5))

    explore = Exploration(closeness, Goals(("accuracy",)))
    evolve_top(explore, SPACE, excess, 100, population=20)
    assert len(explore.trials) == 100 and all(excess(trial.arch) == 0 for trial in explore.trials)
    hopeless = Exploration(closeness, Goals(("accuracy",)))
    assert sum(evolve_top(hopeless, SPACE, lambda arch: 1.0 + sum(arch.values()), 100).arch.values()) <= 2
    assert len(hopeless.trials) == 1


def test_it_goes_on_from_a_history_as_if_it_had_not_stopped() -> None:
    whole = Exploration(closeness, Goals(("accuracy",)))
    evolve_top(whole, SPACE, lambda arch: 0.0, 90, population=20)
    rest = Exploration(closeness, Goals(("accuracy",)), history=whole.trials[:33])
    evolve_top(rest, SPACE, lambda arch: 0.0, 90, population=20)
    assert [t.arch for t in rest.trials] == [t.arch for t in whole.trials]


def test_a_small_space_is_searched_to_its_end() -> None:
    space = Space({"a": (0, 1), "b": (0, 1)})
    explore = Exploration(lambda arch: {"accuracy": float(arch["a"])}, Goals(("accuracy",)))
    evolve_top(explore, space, lambda arch: 0.0, 50, population=4)
    assert len(explore.trials) == 4
