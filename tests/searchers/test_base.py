from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers import make_searcher
from sartor.searchers.base import Fold, Visited
from sartor.trial import Proposal, Trial

SPACE = Space({"depth": [1, 2], "k": [3, 5, 7], "e": [1, 2]}, {"e": {"depth": [2]}})  # 3 + 6 architectures


@given(st.sets(st.integers(0, SPACE.size - 1)), st.integers(0, 2**32))
def test_draws_come_from_the_unvisited_only(numbers: set[int], seed: int) -> None:
    visited = Visited(SPACE)
    for number in numbers:
        assert visited.add(SPACE.at(number))
        assert not visited.add(SPACE.at(number))
    arch = visited.draw(np.random.default_rng(seed))
    assert (arch is None) == (len(numbers) == SPACE.size)
    assert arch is None or SPACE.index(arch) not in numbers


@pytest.mark.parametrize("taken", [2, 6])  # below and above half of the space: by rejection, by rank
def test_draws_are_uniform(taken: int) -> None:
    visited, rng = Visited(SPACE), np.random.default_rng(0)
    for number in range(1, 1 + taken):
        visited.add(SPACE.at(number))
    n = 3000
    counts = Counter(visited.draw(rng) for _ in range(n))
    left = SPACE.size - taken
    assert len(counts) == left
    chi2 = sum((count - n / left) ** 2 / (n / left) for count in counts.values())
    assert chi2 < 30  # 6 degrees of freedom: p < 5e-5


@given(st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8)), st.integers(0, 99))
def test_what_is_held_is_forgotten(past: set[int], pending: set[int], seed: int) -> None:
    """After `holding`, the visited are what they were, also where the draw has numbered them meanwhile."""
    visited, plain = Visited(SPACE), Visited(SPACE)
    for number in past:
        visited.add(SPACE.at(number))
        plain.add(SPACE.at(number))
    with visited.holding([Proposal(SPACE.at(number)) for number in pending]):
        arch = visited.draw(np.random.default_rng(seed))
        assert arch is None or SPACE.index(arch) not in past | pending
        if arch is not None:
            visited.add(arch)
    assert len(visited) == len(plain)
    assert [visited.draw(np.random.default_rng(i)) for i in range(5)] == [plain.draw(np.random.default_rng(i)) for i in range(5)]


def test_a_visited_architecture_of_a_larger_space_takes_no_place() -> None:
    small = SPACE.restrict({"k": [3]})
    visited, rng = Visited(small), np.random.default_rng(0)
    for number in range(SPACE.size):
        if SPACE.at(number)["k"] > 0:
            visited.add(SPACE.at(number))
    found = []
    while (arch := visited.draw(rng)) is not None:
        visited.add(arch)
        found.append(small.index(arch))
    assert sorted(found) == [0, 1, 2]


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=8))
def test_a_fold_equals_folding_anew(histories: list[list[int]]) -> None:
    fold = Fold[list[int]](list, lambda state, trial: state.append(trial.number))
    for numbers in histories:
        assert fold([Trial(number, Arch({}), {}) for number in numbers]) == numbers


def test_a_fold_steps_once_for_each_new_trial() -> None:
    steps: list[int] = []
    fold = Fold[list[int]](list, lambda state, trial: steps.append(trial.number))
    trials = [Trial(i, Arch({}), {}) for i in range(9)]
    for n in (3, 3, 9):
        fold(trials[:n])
    assert steps == list(range(9))


def test_unknown_searchers_and_settings_are_named() -> None:
    goals = Goals(("accuracy",))
    with pytest.raises(UserError, match="did you mean 'nsga2'"):
        make_searcher("nsga22", SPACE, goals)
    with pytest.raises(UserError, match="no setting 'size'; known: population"):
        make_searcher("nsga2", SPACE, goals, size=3)
