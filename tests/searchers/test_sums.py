from __future__ import annotations

import numpy as np
import pytest

from sartor.searchers.sums import Sum

COSTS = np.array([0.5, 8.0, 3.0])
FIXED = 2.0


def counts(n: int, seed: int = 0) -> np.ndarray:
    """How many of three operations `(n, 3)`, and in three columns more another reading of the same."""
    rng = np.random.default_rng(seed)
    used = rng.integers(0, 4, (n, 3))
    return np.hstack([used, used + rng.integers(0, 3, (n, 3))]).astype(float)


def cost(rows: np.ndarray, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    exact = FIXED + rows[:, :3] @ COSTS
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(rows)))  # type: ignore[no-any-return]


READINGS = (np.arange(3), np.arange(3, 6))


@pytest.mark.parametrize("readings", [READINGS, READINGS[::-1]])
def test_the_costs_are_found_and_so_is_what_is_executed(readings: tuple[np.ndarray, ...]) -> None:
    rows = counts(60)
    found = Sum.of(rows, cost(rows, 0.03), readings)
    assert found.columns.tolist() == [0, 1, 2]
    assert found.weights == pytest.approx([FIXED, *COSTS], rel=0.2, abs=0.2)


def test_it_reaches_the_cheap_end_that_nothing_was_measured_at() -> None:
    """Logarithms of sums are steepest there: a line through logarithms is off by far."""
    rows = counts(200)
    rows = rows[rows[:, 1] >= 1][:40]
    cheap = np.zeros((1, 6))
    predicted = float(np.exp(Sum.of(rows, cost(rows, 0.03), READINGS).logarithm(cheap))[0])
    line = np.linalg.lstsq(np.column_stack([np.ones(len(rows)), rows[:, :3]]), np.log(cost(rows, 0.03)), rcond=None)[0]
    assert predicted == pytest.approx(FIXED, rel=0.5) and np.exp(line[0]) > 2 * FIXED


def test_outliers_move_it_little() -> None:
    rows = counts(60)
    values = cost(rows, 0.03)
    values[::10] *= 2.5
    asked = counts(40, seed=5)
    assert np.exp(Sum.of(rows, values, READINGS).logarithm(asked)) == pytest.approx(cost(asked), rel=0.12)


@pytest.mark.parametrize("values", [[4.0, 4.0], [1e-4, 1e-4, 1e-4], [0.5, 300.0, 7.0]])
def test_few_and_odd_values_give_a_finite_sum(values: list[float]) -> None:
    found = Sum.of(counts(len(values)), np.array(values), READINGS)
    predicted = np.exp(found.logarithm(counts(50, seed=3)))
    assert np.isfinite(predicted).all() and (found.weights >= 0).all() and (predicted >= 0.01 * np.median(values)).all()
