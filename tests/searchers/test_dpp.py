from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.dpp import DPPSearch, greedy_map, kernel, select_diverse, similarity
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(4)) for i in range(6)})
GOALS = Goals(("accuracy",))


def random_kernel(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return kernel(np.exp(rng.normal(size=n)), similarity(rng.normal(size=(n, 5))))


def volume(L: np.ndarray, items: tuple[int, ...]) -> float:
    return float(np.linalg.det(L[np.ix_(items, items)]))


def plain_greedy(L: np.ndarray, k: int, chosen: tuple[int, ...] = ()) -> list[int]:
    taken = list(chosen)
    for _ in range(k):
        taken.append(max(set(range(len(L))) - set(taken), key=lambda j: volume(L, (*taken, j))))
    return taken[len(chosen) :]


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2))
def test_the_fast_greedy_is_the_plain_one(seed: int, n: int, k: int, given_items: int) -> None:
    L = random_kernel(seed, n)
    chosen = tuple(range(min(given_items, n)))
    k = min(k, n - len(chosen))
    assert greedy_map(L, k, chosen) == plain_greedy(L, k, chosen)


@given(st.integers(0, 10_000), st.integers(3, 8), st.integers(1, 4))
def test_greedy_is_near_the_optimum_of_brute_force(seed: int, n: int, k: int) -> None:
    """Civril & Magdon-Ismail 2009: the greedy volume is at least 1/k! of the largest, and for one item it is the largest."""
    L, k = random_kernel(seed, n), min(k, n)
    best = max(volume(L, items) for items in itertools.combinations(range(n), k))
    found = volume(L, tuple(greedy_map(L, k)))
    assert found >= best / math.factorial(k) ** 2 * (1 - 1e-9)
    if k == 1:
        assert math.isclose(found, best)


def test_greedy_equals_brute_force_where_groups_are_alike() -> None:
    """Three groups of near-copies with different qualities: the largest determinant takes the best of each group."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(3), 3)
        alike = np.where(groups[:, None] == groups, 0.95, 0.02)
        np.fill_diagonal(alike, 1.0)
        L = kernel(rng.uniform(0.5, 2, 9), alike)
        best = max(itertools.combinations(range(9), 3), key=lambda items: volume(L, items))
        assert sorted(greedy_map(L, 3)) == list(best) and len(set(groups[list(best)])) == 3


def test_copies_are_taken_once() -> None:
    assert sorted(greedy_map(np.ones((4, 4)), 4)) == [0]
    assert greedy_map(kernel([1.0, 2.0, 1.0], similarity([[1.0, 0], [1, 0], [0, 1]])), 3) == [1, 2]
    assert greedy_map(np.eye(3), 2, chosen=[0, 0, 1]) == [2]


def test_diversity_yields_to_quality_as_told() -> None:
    near, far = [SPACE.at(i) for i in range(4)], SPACE.at(SPACE.size - 1)
    archs = [*near, far]
    assert select_diverse(SPACE, archs, np.ones(5), 2) == [0, 4]
    assert 4 not in select_diverse(SPACE, archs, [1e3, 1e3, 1e3, 1e3, 1.0], 2)
    assert select_diverse(SPACE, near, np.ones(4), 1, chosen=[near[0]]) != [0]


def test_a_quality_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="quality"):
        kernel([1.0, 0.0], np.eye(2))


def spread(archs: list[Arch]) -> float:
    pairs = itertools.combinations(archs, 2)
    return float(np.mean([sum(a[c] != b[c] for c in SPACE.choices) for a, b in pairs]))


def test_a_first_batch_is_more_diverse_than_draws() -> None:
    rng = np.random.default_rng(0)
    drawn = np.mean([spread([SPACE.sample(rng) for _ in range(8)]) for _ in range(50)])
    for seed in range(5):
        assert spread([p.arch for p in DPPSearch(SPACE, GOALS).ask([], [], 8, np.random.default_rng(seed))]) > drawn + 0.1


def test_pending_proposals_are_members_of_the_set() -> None:
    busy = [Proposal(SPACE.at(i)) for i in range(8)]
    asked = DPPSearch(SPACE, GOALS).ask([], busy, 4, np.random.default_rng(1))
    alone = DPPSearch(SPACE, GOALS).ask([], [], 4, np.random.default_rng(1))
    distance = [np.mean([spread([p.arch, b.arch]) for p in found for b in busy]) for found in (asked, alone)]
    assert distance[0] > distance[1]


def test_the_latest_trials_are_members_of_the_set() -> None:
    searcher = DPPSearch(SPACE, GOALS, batch=9)
    past = [Trial(i, SPACE.at(i), {"accuracy": 0.5}) for i in range(8)]
    asked, alone = (searcher.ask(history, [], 4, np.random.default_rng(1)) for history in (past, []))
    distance = [np.mean([spread([p.arch, t.arch]) for p in found for t in past]) for found in (asked, alone)]
    assert distance[0] > distance[1] + 0.1


def test_it_learns_what_is_good() -> None:
    def evaluate(arch: Arch) -> dict[str, float]:
        return {"accuracy": sum(arch.values()) / 18}

    trials = search(DPPSearch(SPACE, GOALS, pool=60), evaluate, goals=GOALS, space=SPACE, budget=60, batch=10).trials
    late, early = (np.mean([t.metrics["accuracy"] for t in part]) for part in (trials[-20:], trials[:10]))
    assert late > early + 0.2 and max(t.metrics["accuracy"] for t in trials) > 0.9


@pytest.mark.parametrize("settings", [{"pool": 1}, {"batch": 0}, {"sharpness": -1.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="dpp"):
        DPPSearch(SPACE, GOALS, **settings)  # type: ignore[arg-type]  # wrong on purpose
