from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from sartor import pareto
from sartor.searchers import acquisition as acq

RNG = np.random.default_rng(0)


def test_expected_improvement_is_the_closed_form_and_keeps_its_order_far_away() -> None:
    mean, deviation, best = RNG.normal(size=50), RNG.uniform(0.1, 2, 50), -0.3
    z = (best - mean) / deviation
    exact = deviation * (norm.pdf(z) + z * norm.cdf(z))
    assert acq.log_expected_improvement(mean, deviation, best) == pytest.approx(np.log(exact), abs=1e-8)
    far = acq.log_expected_improvement(np.linspace(10, 5000, 400), np.ones(400), 0.0)
    assert np.isfinite(far).all() and (np.diff(far) < 0).all()


@pytest.mark.parametrize("logarithmic", [False, True])
def test_partial_expectations_are_means_of_draws(logarithmic: bool) -> None:
    draws = 0.3 + 0.5 * RNG.standard_normal(400_000)
    y = np.exp(draws) if logarithmic else draws
    function = acq.partial_expectation_log if logarithmic else acq.partial_expectation
    for bound in (-1.0, 0.2, 1.0, 2.5):
        expected = np.maximum(bound - y, 0).mean()
        assert float(function(np.array(bound), np.array(0.3), np.array(0.5))) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("logarithmic", [(False, False), (True, True), (False, True)])
def test_exact_hypervolume_improvement_is_the_mean_over_draws(logarithmic: tuple[bool, bool]) -> None:
    front = np.array([[0.5, 2.0], [1.0, 1.2], [1.8, 0.6], [1.9, 1.9], [4.0, 0.1]])  # one dominated, one beyond the reference
    reference = np.array([2.5, 2.2])
    mean, deviation = RNG.uniform(-0.5, 1.0, (6, 2)), RNG.uniform(0.05, 0.6, (6, 2))
    exact = acq.expected_hypervolume_improvement(mean, deviation, front, reference, logarithmic=logarithmic)
    draws = mean + deviation * RNG.standard_normal((4000, 6, 2))
    draws = np.where(logarithmic, np.exp(draws), draws)
    before = pareto.hypervolume(front, reference)
    for i in range(6):
        gains = [pareto.hypervolume(np.vstack([front, y]), reference) - before for y in draws[:, i]]
        assert exact[i] == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(len(gains)) + 1e-6)
    empty = acq.expected_hypervolume_improvement(mean, deviation, np.zeros((0, 2)), reference)
    alone = acq.partial_expectation(reference, mean, deviation).prod(axis=1)
    assert empty == pytest.approx(alone)


@pytest.mark.parametrize("logarithmic", [(False, False), (True, True), (True, False)])
def test_what_is_out_of_reach_is_left_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch, logarithmic: tuple[bool, bool]) -> None:
    """Candidates whose optimistic point the front dominates have no improvement to speak of; the others keep theirs to the last bit."""
    front, reference = np.array([[0.3, 1.5], [0.9, 0.8], [1.6, 0.2]]), np.array([2.5, 2.2])
    mean, deviation = RNG.uniform(-1.0, 2.0, (300, 2)), RNG.uniform(0.01, 0.1, (300, 2))
    found = acq.expected_hypervolume_improvement(mean, deviation, front, reference, logarithmic=logarithmic)
    monkeypatch.setattr(acq, "_FAR", 1e6)
    every = acq.expected_hypervolume_improvement(mean, deviation, front, reference, logarithmic=logarithmic)
    left_out = found == 0
    assert 20 < left_out.sum() < 290
    assert np.array_equal(found[~left_out], every[~left_out]) and (every[left_out] < 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.floats(0.0, 1.0), st.integers(0, 10_000))
def test_the_leading_candidate_is_that_of_the_exact_improvement(count: int, kept: float, seed: int) -> None:
    """Among 900 candidates, more than are looked at closely at a time, some of them of no share; nobody else comes out higher."""
    rng = np.random.default_rng(seed)
    front, reference = np.exp(rng.normal(size=(count, 2))), np.array([3.0, 2.0])
    mean, deviation = rng.normal(size=(900, 2)), rng.uniform(0.01, 0.5, (900, 2))
    shares = rng.uniform(0.1, 1.0, 900) * (rng.random(900) < kept)
    exact = acq.expected_hypervolume_improvement(mean, deviation, front, reference, logarithmic=(True, True)) * shares
    leading = acq.leading_hypervolume_improvement(mean, deviation, front, reference, shares, logarithmic=(True, True))
    assert np.array_equal(leading == leading.max(), exact == exact.max()) and leading.max() == pytest.approx(exact.max(), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 12), st.integers(0, 10_000))
def test_boxes_measure_the_improvement_of_any_point(m: int, count: int, seed: int) -> None:
    """Against the difference of two hypervolumes; coordinates on a grid, so that ties happen."""
    rng = np.random.default_rng(seed)
    front, points, reference = rng.integers(0, 6, (count, m)) / 5, rng.integers(-1, 8, (8, m)) / 5, np.full(m, 1.1)
    found = acq.sampled_hypervolume_improvement(points[None].astype(float), front, reference)
    before = pareto.hypervolume(front, reference) if count else 0.0
    expected = [pareto.hypervolume(np.vstack([front, point]), reference) - before for point in points]
    assert found == pytest.approx(np.array(expected), abs=1e-9)


def test_probability_of_a_limit() -> None:
    found = acq.log_probability_below(np.array([0.0, 1.0, 60.0]), np.array([1.0, 2.0, 1.0]))
    assert found[:2] == pytest.approx(np.log([0.5, norm.cdf(-0.5)]))
    assert -2000 < found[2] < -1500  # far from feasible is still ordered
