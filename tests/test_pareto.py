from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sartor import pareto

small = st.integers(1, 4).flatmap(lambda m: arrays(float, st.tuples(st.integers(0, 12), st.just(m)), elements=st.integers(0, 4).map(float)))


def _dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def _peeled(better: np.ndarray) -> list[int]:
    """Ranks from a dominance matrix (row dominates column), by peeling one front after the other."""
    left, rank, result = set(range(len(better))), 0, [0] * len(better)
    while left:
        best = {j for j in left if not any(better[i, j] for i in left)}
        for j in best:
            result[j] = rank
        left, rank = left - best, rank + 1
    return result


def _populations(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Objectives and violations: continuous, tied, doubled and constant columns; none, some and all infeasible."""
    rng = np.random.default_rng(7)
    made = []
    for i in range(count):
        n, m = int(rng.integers(1, 40)), int(rng.integers(2, 5))
        F = rng.random((n, m)) if i % 2 else rng.integers(0, 5, (n, m)).astype(float)
        if i % 3 == 0:
            F = F[rng.integers(n, size=n)]
        if i % 7 == 0:
            F[:, 0] = 1.0
        V = np.maximum(0.0, rng.integers(-3, 4, n) * (1.0 if i % 2 else rng.random(n))) * (i % 5 > 0)
        made.append((F, V))
    return made


def test_ranks_crowding_and_survivors_equal_pymoo() -> None:
    pytest.importorskip("pymoo")
    from pymoo.core.population import Population
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    peer_crowding, sort = get_crowding_function("cd"), NonDominatedSorting()
    for F, _ in _populations(1000):
        _, rank = sort.do(F, return_rank=True)
        ours = pareto.ranks(F)
        assert np.array_equal(ours, rank)
        ours_crowding = pareto.crowding(F, ours)
        for r in range(rank.max() + 1):
            assert np.array_equal(ours_crowding[rank == r], peer_crowding.do(F[rank == r]))
        n = (len(F) + 1) // 2
        peer = RankAndCrowding().do(
            _Unconstrained, Population.new(F=F, X=np.arange(len(F))), n_survive=n, random_state=np.random.default_rng(0)
        )
        theirs, mine = peer.get("X").astype(int), pareto.survivors(F, n)
        # pymoo breaks exact ties at the cut by chance: the merits must agree in number, the members where no tie is cut.
        merits = list(zip(ours.tolist(), (-ours_crowding).tolist(), strict=True))
        kept = sorted(merits[i] for i in mine)
        assert kept == sorted(merits[i] for i in theirs)
        if merits.count(kept[-1]) == kept.count(kept[-1]):
            assert set(mine.tolist()) == set(theirs.tolist())


class _Unconstrained:
    @staticmethod
    def has_constraints() -> bool:
        return False


def test_constrained_ranks_are_those_of_the_definition() -> None:
    """Deb et al. 2002, section VI-A, definition 1, by peeling."""
    for F, V in _populations(150):
        better = np.zeros((len(F), len(F)), dtype=bool)
        for i, j in itertools.product(range(len(F)), repeat=2):
            both = V[i] == V[j] == 0
            better[i, j] = _dominates(F[i], F[j]) if both else V[i] < V[j]
        assert pareto.ranks(F, V).tolist() == _peeled(better)


def test_constrained_survivors_equal_pymoo() -> None:
    pytest.importorskip("pymoo")
    from pymoo.core.population import Population
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    class Constrained:
        @staticmethod
        def has_constraints() -> bool:
            return True

    for F, V in _populations(300):
        n = (len(F) + 1) // 2
        pop = Population.new(F=F, G=V[:, None], X=np.arange(len(F)))
        theirs = RankAndCrowding().do(Constrained, pop, n_survive=n, random_state=np.random.default_rng(0)).get("X").astype(int)
        mine = pareto.survivors(F, n, V)
        assert sorted(V[mine]) == sorted(V[theirs])
        rank = pareto.ranks(F, V)
        assert sorted(rank[mine]) == sorted(rank[theirs])


@given(small)
def test_front_is_the_undominated_first_of_equals(F: np.ndarray) -> None:
    expected = [
        not any(_dominates(b, a) for b in F) and not any((b == a).all() for b in F[:i]) for i, a in enumerate(F)
    ]  # fmt: skip
    assert pareto.front(F).tolist() == expected


def test_front_leaves_out_infeasible_and_unknown_points() -> None:
    F = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [math.nan, 0.0], [-1.0, math.inf]])
    assert pareto.front(F, np.array([0.1, 0, 0, 0, 0])).tolist() == [False, True, True, False, False]
    assert pareto.front(F).tolist() == [True, False, False, False, False]
    assert not pareto.front(F, np.full(5, math.nan)).any()


def test_nan_ranks_last() -> None:
    assert pareto.ranks(np.array([[math.nan, 1.0], [1.0, 1.0], [2.0, 2.0]])).tolist() == [1, 0, 1]
    assert pareto.ranks(np.array([[1.0], [1.0], [0.0]]), np.array([math.nan, 2.0, math.inf])).tolist() == [1, 0, 1]


def test_crowding_survives_failed_trials() -> None:
    distance = pareto.crowding(np.array([[math.inf, math.inf]] * 4 + [[0.0, 1.0]]))
    assert not np.isnan(distance).any()


@given(small)
def test_hypervolume_is_the_volume_of_the_covered_cells(F: np.ndarray) -> None:
    reference = np.full(F.shape[1], 3.0)
    cells = np.array(list(itertools.product(range(3), repeat=F.shape[1])), dtype=float)  # unit cells by their lower corner
    covered = sum(bool((cell >= F).all(axis=1).any()) for cell in cells) if len(F) else 0
    assert pareto.hypervolume(F, reference) == pytest.approx(covered)


def test_hypervolume_ignores_what_is_not_finite_or_beyond() -> None:
    F = np.array([[1.0, 1.0], [math.nan, 0.0], [-math.inf, 0.5], [3.0, 0.0], [0.0, 2.0]])
    assert pareto.hypervolume(F, np.array([2.0, 2.0])) == 1.0
    with pytest.raises(ValueError, match="reference"):
        pareto.hypervolume(F, np.array([2.0, math.inf]))


def test_knee_is_the_bulge() -> None:
    F = np.array([[0.0, 10.0], [5.0, 5.0], [1.0, 2.0], [10.0, 0.0], [0.5, 11.0]])
    assert pareto.knee(F) == 2
    assert pareto.knee(F * [1e-3, 1e6] + [5.0, -7.0]) == 2  # no scale matters
    assert pareto.knee(np.array([[math.inf, 0.0]])) is None
    assert pareto.knee(np.array([[3.0, 3.0], [3.0, 3.0]])) == 0


def test_trade_off() -> None:
    assert pareto.trade_off(np.array([0.8, 10.0]), np.array([0.84, 20.0])) == pytest.approx(0.05)
    assert pareto.trade_off(np.array([0.8, 10.0]), np.array([0.72, 10.0])) == -math.inf
    assert math.isnan(pareto.trade_off(np.array([1.0, 1.0]), np.array([1.0, 1.0])))
    with pytest.raises(ValueError, match="zeros"):
        pareto.trade_off(np.array([0.0, 1.0]), np.array([1.0, 1.0]))


def test_empty() -> None:
    F = np.zeros((0, 2))
    assert len(pareto.ranks(F)) == len(pareto.crowding(F)) == len(pareto.front(F)) == len(pareto.survivors(F, 5)) == 0
    assert pareto.hypervolume(F, np.ones(2)) == 0.0
