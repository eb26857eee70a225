from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.local import LocalSearch
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(4)) for i in range(4)})
GOALS = Goals(("accuracy",))


def smooth(arch: Arch) -> dict[str, float]:
    return {"accuracy": 1 - sum((v - 2) ** 2 for v in arch.values()) / 40}


def rugged(arch: Arch) -> dict[str, float]:
    return {"accuracy": int(hashlib.sha256(arch.to_json().encode()).hexdigest()[:8], 16) / 2**32}


@pytest.mark.parametrize("batch", [1, 5])
def test_steepest_ascent_is_the_textbooks(batch: int) -> None:
    """Against a plain loop from the same starts: the same path, the same evaluations before each move, and nothing evaluated twice."""
    trials = search(LocalSearch(SPACE, GOALS, improvement="best"), rugged, goals=GOALS, space=SPACE, budget=200, batch=batch).trials
    evaluated: set[Arch] = set()
    position = 0
    while position < len(trials):
        at = trials[position].arch
        assert trials[position].meta["from"] is None  # a start
        evaluated.add(at)
        position += 1
        while True:
            neighbours = SPACE.neighbours(at)
            new = set(neighbours) - evaluated
            seen = trials[position : position + len(new)]
            if len(seen) < len(new):
                return  # the budget ended here
            assert {t.arch for t in seen} == new and (not seen or len({t.meta["from"] for t in seen}) == 1)
            evaluated |= new
            position += len(new)
            best = max(neighbours, key=lambda arch: rugged(arch)["accuracy"])
            if rugged(best)["accuracy"] <= rugged(at)["accuracy"]:
                break
            at = best


def test_first_improvement_moves_at_once() -> None:
    trials = search(LocalSearch(SPACE, GOALS, improvement="first"), smooth, goals=GOALS, space=SPACE, budget=150).trials
    at = trials[0]
    for trial in trials[1:]:
        if trial.meta["from"] is None:
            at = trial
            continue
        assert trial.meta["from"] == at.number and trial.arch in SPACE.neighbours(at.arch)
        known = {t.arch: t for t in trials[: trial.number + 1]}
        while True:  # ground that is known is crossed at no cost
            improving = [known[a] for a in SPACE.neighbours(at.arch) if a in known and smooth(a)["accuracy"] > smooth(at.arch)["accuracy"]]
            if not improving:
                break
            at = improving[0]
    assert max(t.metrics["accuracy"] for t in trials) == 1.0


def test_a_local_optimum_is_left_by_a_new_start() -> None:
    trials = search(LocalSearch(SPACE, GOALS), rugged, goals=GOALS, space=SPACE, budget=256, batch=3).trials
    starts = [t for t in trials if t.meta["from"] is None]
    assert len(starts) > 3 and [t.meta["climb"] for t in starts] == list(range(len(starts)))
    assert len(trials) == SPACE.size  # the optima of all climbs together cover the space


def test_steepest_waits_for_all_neighbours_and_first_does_not() -> None:
    start = Trial(0, Arch(dict.fromkeys(SPACE.choices, 0)), {"accuracy": 0.0}, meta={"climb": 0, "from": None})
    around = SPACE.neighbours(start.arch)
    done = [start, Trial(1, around[0], {"accuracy": 0.5}, meta={"climb": 0, "from": 0})]
    pending = [Proposal(arch, meta={"climb": 0, "from": 0}) for arch in around[1:]]
    rng = np.random.default_rng(0)
    assert LocalSearch(SPACE, GOALS, improvement="best").ask(done, pending, 3, rng) == []
    assert all(p.meta["from"] == 1 for p in LocalSearch(SPACE, GOALS, improvement="first").ask(done, pending, 3, rng))


def test_limits_come_before_objectives() -> None:
    goals = Goals.parse(["accuracy"], ["latency=2ms"])

    def evaluate(arch: Arch) -> dict[str, float]:
        return {"accuracy": sum(arch.values()) / 12, "latency_ms": 1.0 + arch["c0"] + arch["c1"]}

    result = search(LocalSearch(SPACE, goals, improvement="best"), evaluate, goals=goals, space=SPACE, budget=60)
    assert result.front[0].metrics == {"accuracy": 7 / 12, "latency_ms": 2.0}


def test_another_improvement_is_refused() -> None:
    with pytest.raises(UserError, match="improvement must be"):
        LocalSearch(SPACE, GOALS, improvement="steepest")  # type: ignore[arg-type]  # wrong on purpose
