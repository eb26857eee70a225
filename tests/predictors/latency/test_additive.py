from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.benchmarks import nasbench201
from sartor.benchmarks.tables import table
from sartor.errors import UserError
from sartor.predictors.latency.additive import Additive, fit_additive, vague_prior
from sartor.predictors.latency.features import Floats, Readings, cell_readings

READINGS = cell_readings(nasbench201.SPACE, nasbench201.cells())
COSTS = np.array([2.0, 0.1, 0.8, 6.0, 1.5])


def at(rows: np.ndarray) -> Readings:
    return {name: columns[rows] for name, columns in READINGS.items()}


def device(reading: str, noise: float, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.maximum(READINGS[reading] @ COSTS, 0.01) * np.exp(noise * rng.standard_normal(nasbench201.CELLS))


def within(predicted: Floats, truth: Floats, share: float = 0.1) -> float:
    return float((np.abs(predicted / truth - 1) <= share).mean())


@pytest.mark.parametrize("reading", ["all", "needed", "fed", "live"])
def test_costs_and_what_the_device_leaves_out_are_found(reading: str) -> None:
    latency, rows = device(reading, 0.02), np.random.default_rng(1).choice(nasbench201.CELLS, 60, replace=False)
    model = fit_additive(at(rows), latency[rows])
    assert model.readings[reading] > 0.99
    assert model.weights[reading] == pytest.approx(COSTS, abs=0.15)
    assert model.noise == pytest.approx(0.02, rel=0.5)
    cells = np.flatnonzero(nasbench201.connected())
    assert within(model.predict(at(cells))[0], READINGS[reading][cells] @ COSTS, 0.03) > 0.95


def test_outliers_do_not_move_the_costs() -> None:
    rng = np.random.default_rng(2)
    rows = rng.choice(np.flatnonzero(nasbench201.connected()), 100, replace=False)
    clean = device("all", 0.02)
    spoiled = np.where(rng.random(nasbench201.CELLS) < 0.2, clean * rng.uniform(1.5, 3, nasbench201.CELLS), clean)
    truth = READINGS["all"] @ COSTS
    guess = fit_additive(at(rows), spoiled[rows]).predict(READINGS)[0]
    squares = np.linalg.lstsq(READINGS["all"][rows], spoiled[rows], rcond=None)[0]
    assert within(guess, truth, 0.05) > 0.9
    assert within(READINGS["all"] @ squares, truth, 0.05) < 0.5  # what the noise would do to least squares


@settings(deadline=None, max_examples=15)
@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_units_do_not_matter(factor: float, seed: int) -> None:
    rows = np.random.default_rng(seed).choice(nasbench201.CELLS, 12, replace=False)
    latency = device("needed", 0.05, seed)[rows]
    one, other = (fit_additive(at(rows), latency * f).predict(at(np.arange(200))) for f in (1.0, factor))
    assert other[0] == pytest.approx(one[0] * factor, rel=1e-6) and other[1] == pytest.approx(one[1], rel=1e-5)


def test_order_of_measurements_does_not_matter() -> None:
    rows = np.random.default_rng(0).choice(nasbench201.CELLS, 30, replace=False)
    latency = device("all", 0.1)
    one, other = (fit_additive(at(r), latency[r]).predict(READINGS)[0] for r in (rows, rows[::-1]))
    assert other == pytest.approx(one, rel=1e-6)


def test_the_deviation_says_how_far_the_mean_is_off() -> None:
    """Standardised errors of the latent latency over many draws have about unit scale: neither boasting nor hedging."""
    latency, truth, z = device("all", 0.05), READINGS["all"] @ COSTS, []
    for seed in range(30):
        rows = np.random.default_rng(seed).choice(nasbench201.CELLS, 15, replace=False)
        mean, deviation = fit_additive(at(rows), latency[rows]).predict(at(np.arange(0, nasbench201.CELLS, 50)))
        z.append((mean / truth[::50] - 1) / deviation)
    assert 0.6 < float(np.sqrt(np.mean(np.square(z)))) < 1.4


def test_a_phone_from_200_measurements() -> None:
    """Golden: 200 cells of the Pixel 3 predict three quarters of the others within 10 %, and that it eliminates dead code."""
    latency, cells = table("nasbench201_latency").column("pixel3"), np.flatnonzero(nasbench201.connected())
    rows = np.random.default_rng(0).choice(cells, 200, replace=False)
    model = fit_additive(at(rows), latency[rows])
    assert model.readings["needed"] > 0.999
    assert within(model.predict(at(cells))[0], latency[cells]) == pytest.approx(0.75, abs=0.02)


def test_it_survives_json() -> None:
    rows = np.arange(0, 3000, 100)
    model = fit_additive(at(rows), device("all", 0.1)[rows])
    again = Additive.from_json(json.loads(json.dumps(model.to_json())))
    for one, other in zip(model.predict(READINGS), again.predict(READINGS), strict=True):
        assert np.array_equal(one, other)


def test_bad_measurements_are_refused() -> None:
    rows = np.arange(5)
    good = device("all", 0.0)[rows]
    for latency, message in (
        (good[:4], "one latency for each"),
        (np.where(rows == 2, 0.0, good), "positive"),
        (np.where(rows == 2, np.nan, good), "positive"),
    ):
        with pytest.raises(UserError, match=message):
            fit_additive(at(rows), latency)
    with pytest.raises(UserError, match="at least 3"):
        fit_additive(at(rows[:2]), good[:2])
    with pytest.raises(UserError, match="at least one reading"):
        fit_additive({}, good)
    with pytest.raises(UserError, match="prior's readings"):
        fit_additive({"all": READINGS["all"][rows]}, good, vague_prior(READINGS))
    with pytest.raises(UserError, match="columns \\(n, 5\\)"):
        fit_additive(at(rows), good).predict({name: columns[:, :4] for name, columns in READINGS.items()})
