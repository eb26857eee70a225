from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from sartor.benchmarks import nasbench201
from sartor.benchmarks.tables import table
from sartor.errors import UserError
from sartor.predictors.latency.active import choose, expectation, measure_actively
from sartor.predictors.latency.additive import fit_additive
from sartor.predictors.latency.features import Floats, Readings, cell_readings
from sartor.predictors.latency.transfer import learn_prior, pca_ridge, without_sources

READINGS = cell_readings(nasbench201.SPACE, nasbench201.cells())
SOURCES = ("1080ti_1", "1080ti_256", "silver_4210r", "pixel3", "samsung_s7")


@pytest.fixture(scope="module")
def tables() -> dict[str, Floats]:
    return {name: table("nasbench201_latency").column(name) for name in SOURCES}


def at(rows: np.ndarray) -> Readings:
    return {name: columns[rows] for name, columns in READINGS.items()}


def rank(predicted: Floats, truth: Floats) -> float:
    return float(spearmanr(predicted, truth).statistic)


def test_the_prior_knows_what_the_sources_share(tables: dict[str, Floats]) -> None:
    prior = learn_prior(READINGS, tables, sample=300)
    assert prior.devices == SOURCES and prior.mean.sum() == pytest.approx(1.0)
    assert prior.mean[3] > prior.mean[2] > prior.mean[1]  # 3x3 costs more than 1x1, and that more than a skip
    assert prior.readings["all"] == pytest.approx(4.5 / 7) and prior.readings["needed"] == pytest.approx(
        1.5 / 7
    )  # pixel3 alone drops dead code
    assert np.linalg.eigvalsh(prior.covariance).min() > 0


def test_ten_measurements_of_an_unseen_device(tables: dict[str, Floats]) -> None:
    """Above the principal components of the same devices, and above the same model without them, on a device kept for choosing settings."""
    truth = table("nasbench201_latency").column("gold_6240")
    prior = learn_prior(READINGS, tables, sample=300)
    alone, found = without_sources(prior, READINGS), []
    for draw in range(8):
        rows = np.random.default_rng(draw).choice(nasbench201.CELLS, 10, replace=False)
        guesses = [fit_additive(at(rows), truth[rows], p).predict(READINGS)[0] for p in (prior, alone)]
        found.append([rank(guess, truth) for guess in (*guesses, pca_ridge(tables, rows, truth[rows]))])
    ours, vague, components = np.mean(found, axis=0)
    assert ours > 0.945 and ours > vague and ours > components


def test_the_baseline_is_ridge_regression_on_components() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 2))
    tables = {str(i): 50 + hidden @ rng.normal(size=2) for i in range(5)}
    truth = 30 + hidden @ np.array([2.0, -1.0])
    rows = rng.choice(400, 40, replace=False)
    assert np.abs(pca_ridge(tables, rows, truth[rows], components=2, ridge=1e-9) - truth).max() < 1e-5
    assert np.ptp(pca_ridge(tables, rows, truth[rows], ridge=1e12)) < 1e-6
    with pytest.raises(UserError, match="complete source tables"):
        pca_ridge({**tables, "0": np.full(400, np.nan)}, rows, truth[rows])


def test_bad_sources_are_refused(tables: dict[str, Floats]) -> None:
    with pytest.raises(UserError, match="at least 2 source devices"):
        learn_prior(READINGS, {"pixel3": tables["pixel3"]})
    with pytest.raises(UserError, match="'pixel3'"):
        learn_prior(READINGS, {**tables, "pixel3": tables["pixel3"][:10]})


def test_chosen_measurements_lower_the_variance_more_than_random_ones(tables: dict[str, Floats]) -> None:
    prior = learn_prior(READINGS, tables, sample=300)
    truth = table("nasbench201_latency").column("1080ti_32")
    pool = np.random.default_rng(0).choice(nasbench201.CELLS, 500, replace=False)
    readings = at(pool)
    rows, latency, model = measure_actively(readings, lambda wanted: truth[pool[wanted]], 8, prior)
    assert len(set(rows.tolist())) == 8 and (latency == truth[pool[rows]]).all()
    chosen = float(np.mean(model.predict(readings)[1] ** 2))
    random = []
    for seed in range(10):
        drawn = np.random.default_rng(seed).choice(500, 8, replace=False)
        other = fit_additive({n: c[drawn] for n, c in readings.items()}, truth[pool[drawn]], prior)
        random.append(float(np.mean(other.predict(readings)[1] ** 2)))
    assert chosen < np.median(random)


def test_the_greedy_choice_is_the_best_single_one() -> None:
    """For one reading and Gaussian noise the first choice minimises the mean posterior variance over all candidates, by brute force."""
    rng = np.random.default_rng(0)
    columns = np.column_stack([np.ones(40), rng.integers(0, 5, (40, 2))]).astype(float)
    model = fit_additive({"all": columns[:6]}, columns[:6] @ np.array([5.0, 1.0, 2.0]) * np.exp(0.1 * rng.standard_normal(6)))
    latent = columns @ model.weights["all"]
    relative, noise = columns / latent[:, None], 3 * model.noise**2
    prior = np.linalg.inv(model.covariances["all"])

    def left(i: int) -> float:
        posterior = np.linalg.inv(prior + np.outer(relative[i], relative[i]) / noise)
        return float(np.einsum("ij,jk,ik->i", relative, posterior, relative).mean())

    first = int(choose(model, {"all": columns}, 1)[0])
    assert left(first) == pytest.approx(min(left(i) for i in range(40)))


def test_what_was_measured_is_not_chosen_again(tables: dict[str, Floats]) -> None:
    model = expectation(learn_prior(READINGS, tables, sample=100))
    few = at(np.arange(12))
    assert sorted(choose(model, few, 9, measured=[3, 5, 7]).tolist()) == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    with pytest.raises(UserError, match="0 to 9"):
        choose(model, few, 10, measured=[3, 5, 7])
    with pytest.raises(UserError, match="at least 3"):
        measure_actively(few, lambda rows: np.ones(len(rows)), 2, learn_prior(READINGS, tables, sample=100))
