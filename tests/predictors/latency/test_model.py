from __future__ import annotations

import numpy as np
import pytest

from sartor.benchmarks import nasbench201
from sartor.benchmarks.tables import table
from sartor.errors import UserError
from sartor.predictors.latency.features import Floats, Readings, cell_readings, one_hot
from sartor.predictors.latency.model import cross_judge, fit, intervals

READINGS = cell_readings(nasbench201.SPACE, nasbench201.cells())
FEATURES = one_hot(nasbench201.cells(), 5)
COSTS = np.array([2.0, 0.1, 0.8, 6.0, 1.5])
ROWS = np.random.default_rng(0).choice(np.flatnonzero(nasbench201.connected()), 150, replace=False)
SOME = np.arange(7, nasbench201.CELLS, 20)


def at(rows: np.ndarray) -> Readings:
    return {name: columns[rows] for name, columns in READINGS.items()}


def device(interaction: float) -> Floats:
    """Costs that add, except that a convolution on the last edge is slow behind a pooling."""
    cells = nasbench201.cells()
    slow = 1 + interaction * ((cells[:, 5] == 3) & (cells[:, 1] == 4)) + interaction * (cells[:, 0] == 3)
    return (READINGS["all"] @ COSTS) * slow * np.exp(0.02 * np.random.default_rng(1).standard_normal(nasbench201.CELLS))


def hits(predicted: Floats, truth: Floats) -> float:
    return float((np.abs(predicted / truth - 1) <= 0.1).mean())


def test_a_process_corrects_the_sum_where_it_helps() -> None:
    truth = device(0.3)
    model = fit(at(ROWS), truth[ROWS], features=FEATURES[ROWS])
    plain = fit(at(ROWS), truth[ROWS])
    assert model.correction is not None and plain.correction is None
    assert hits(model.predict(at(SOME), FEATURES[SOME])[0], truth[SOME]) > hits(plain.predict(at(SOME))[0], truth[SOME]) + 0.1
    with pytest.raises(UserError, match="features that this latency model was fitted with"):
        model.predict(at(SOME))


def test_and_is_left_out_where_it_does_not() -> None:
    truth = device(0.0)
    assert fit(at(ROWS), truth[ROWS], features=FEATURES[ROWS]).correction is None
    with pytest.raises(UserError, match="of the 150 measured networks"):
        fit(at(ROWS), truth[ROWS], features=FEATURES[:3])


def test_intervals_of_a_board_hold() -> None:
    """Conformal intervals of nominally 90 % on real measurements with heavy tails; the figure over many splits is in the benchmark."""
    truth = table("nasbench201_latency").column("pixel3")
    cells = np.flatnonzero(nasbench201.connected())
    covered = []
    for seed in range(4):
        rows = np.random.default_rng(seed).choice(cells, 100, replace=False)
        found = intervals(READINGS, rows, truth[rows], SOME, folds=5)
        covered.append(found.covers(truth[SOME]))
        assert (found.low < found.centre).all() and (found.centre < found.high).all()
    assert 0.84 < np.mean(covered) < 0.96


def test_a_model_is_judged_on_what_it_did_not_see() -> None:
    truth = device(0.0)
    found = cross_judge(at(ROWS), truth[ROWS], folds=5)
    assert found.good and found.count == 150 and found.coverage == pytest.approx(0.9, abs=0.08)
    shuffled = np.random.default_rng(0).permutation(truth[ROWS])
    bad = cross_judge(at(ROWS), shuffled, folds=5)
    assert bad.grade == "poor" and abs(bad.kendall_tau) < 0.2
