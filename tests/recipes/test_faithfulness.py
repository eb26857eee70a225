from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from sartor.errors import UserError
from sartor.recipes.faithfulness import rank_correlation, ranks

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=25)


@given(pairs)
def test_agrees_with_scipy_under_ties(values: list[tuple[int, int]]) -> None:
    a, b = (np.array(v, dtype=float) for v in zip(*values, strict=True))
    result = rank_correlation(a, b, resamples=5)
    constant = len(set(a)) == 1 or len(set(b)) == 1
    assert result.kendall_tau.value == pytest.approx(0.0 if constant else kendalltau(a, b).statistic, abs=1e-9)
    assert result.spearman.value == pytest.approx(0.0 if constant else spearmanr(a, b).statistic, abs=1e-9)
    assert -1 - 1e-9 <= result.kendall_tau.low <= result.kendall_tau.high <= 1 + 1e-9


def test_perfect_and_reversed_rankings() -> None:
    a = np.linspace(0.5, 0.9, 20)
    same, reverse = rank_correlation(a, a**2, k=5), rank_correlation(a, -a, k=5)
    assert (same.kendall_tau.value, same.spearman.value, same.top_k_overlap.value) == pytest.approx((1.0, 1.0, 1.0))
    assert same.kendall_tau.low == pytest.approx(1.0) and same.top_k_overlap.low == 1.0
    assert (reverse.kendall_tau.value, reverse.top_k_overlap.value) == pytest.approx((-1.0, 0.0))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, truth, hits = np.random.default_rng(0), 2 / np.pi * np.arcsin(0.7), 0
    for seed in range(50):  # bivariate normal: tau = 2/pi * arcsin(rho)
        x = rng.normal(size=(2, 30))
        result = rank_correlation(x[0], 0.7 * x[0] + np.sqrt(1 - 0.49) * x[1], confidence=0.9, resamples=100, seed=seed).kendall_tau
        hits += result.low <= truth <= result.high
    assert 39 <= hits <= 49


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


@pytest.mark.parametrize(
    "a, b, k", [([1, 2], [1, 2], None), ([1, 2, 3], [1, 2], None), ([1, 2, np.nan], [1, 2, 3], None), ([1, 2, 3], [1, 2, 3], 4)]
)
def test_bad_input(a: list[float], b: list[float], k: int | None) -> None:
    with pytest.raises(UserError):
        rank_correlation(a, b, k=k)
