"""Sub-nets that were evaluated before an interruption are not evaluated again, and the search goes on as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.goals import Goals
from sartor.methods.oneshot import predicted_first
from sartor.recipes.one_shot import Exploration, coarse_to_fine
from sartor.recipes.top_k import evolve_top
from sartor.trial import Trial

SPACE = Space({f"b{i}.{kind}": tuple(range(3)) for i in range(4) for kind in ("kernel", "expand")})
NET = SimpleNamespace(space=SPACE, costs=lambda arch: {"params": float(sum(arch.values()))})
TARGET = SPACE.sample(np.random.default_rng(7))

SEARCHES: dict[str, Callable[[Exploration], Trial]] = {
    "bignas": lambda explore: coarse_to_fine(explore, SPACE, coarse=6, fine=14, seed=1),
    "spos": lambda explore: evolve_top(explore, SPACE, lambda arch: 0.0, 20, population=5, top=3, seed=1),
    "ofa": lambda explore: predicted_first(explore, NET, (), samples=16, rounds=1, seed=1),
}


def closeness(arch: Arch) -> dict[str, float]:
    return {"accuracy": sum(arch[name] == TARGET[name] for name in SPACE.choices) / 8}


@pytest.mark.parametrize(
    ("method", "done"),
    [
        ("bignas", 1),
        ("bignas", 5),
        ("bignas", 9),
        ("bignas", 18),
        ("spos", 1),
        ("spos", 17),
        ("spos", 20),
        pytest.param("ofa", 17, marks=pytest.mark.slow),
    ],
)
def test_what_was_evaluated_is_not_evaluated_again(method: str, done: int) -> None:
    whole = Exploration(closeness, Goals(("accuracy",)))
    best = SEARCHES[method](whole)
    assert (
        len(whole.trials) == len({t.arch for t in whole.trials}) == (18 if method == "bignas" else 20)
    )  # two points of the grid are alike
    evaluated: list[Arch] = []

    def evaluate(arch: Arch) -> dict[str, float]:
        evaluated.append(arch)
        return closeness(arch)

    explore = Exploration(evaluate, Goals(("accuracy",)), history=whole.trials[:done])
    again = SEARCHES[method](explore)
    assert evaluated == [t.arch for t in whole.trials[done:]]
    assert again.arch == best.arch and [t.arch for t in explore.trials] == [t.arch for t in whole.trials]


def test_the_deadline_counts_what_was_spent_before_the_interruption() -> None:
    history = [Trial(n, SPACE.at(n), closeness(SPACE.at(n)), seconds=3.0) for n in range(4)]
    assert Exploration(closeness, Goals(("accuracy",)), 10.0, history=history).over
    assert not Exploration(closeness, Goals(("accuracy",)), 100.0, history=history).over
    assert Exploration(closeness, Goals(("accuracy",)), 100.0, history=history, spent=float("inf")).over


@pytest.mark.parametrize("method", ["bignas", "spos"])
def test_a_search_that_was_over_stays_so(method: str) -> None:
    whole = Exploration(closeness, Goals(("accuracy",)))
    SEARCHES[method](whole)
    explore = Exploration(closeness, Goals(("accuracy",)), 100.0, history=whole.trials[:12], spent=float("inf"))
    SEARCHES[method](explore)
    assert [t.arch for t in explore.trials] == [t.arch for t in whole.trials[:12]]
