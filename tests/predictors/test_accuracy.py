from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sartor.arch import Space
from sartor.errors import UserError
from sartor.predictors.accuracy import CANDIDATES, fit, kendall
from sartor.predictors.ensemble import _forward, _gradients
from sartor.predictors.kernel import fit_kernel

SPACE = Space({f"c{i}": tuple(range(4)) for i in range(10)})


def samples(count: int, seed: int = 0, pairs: float = 0.0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Additive accuracies (the same for every seed), with pair effects and noise."""
    truth, rng = np.random.default_rng(99), np.random.default_rng(seed)
    archs = [SPACE.sample(rng) for _ in range(count)]
    x = SPACE.encode(archs)
    single, double = truth.normal(size=x.shape[1]), np.triu(truth.normal(size=(x.shape[1],) * 2), 1)
    score = x @ single + pairs * np.einsum("ni,ij,nj->n", x, double, x)
    return x, 0.8 + 0.01 * (score + noise * rng.normal(size=count))


@pytest.mark.parametrize("kind", CANDIDATES)
def test_every_candidate_ranks_unseen_architectures(kind: str) -> None:
    (x, y), (new, truth) = samples(150, noise=0.3), samples(300, seed=1)
    predictor = fit(x, y, candidates=[kind])
    mean, std = predictor.predict(new)
    assert predictor.kind == kind and mean.shape == std.shape == (300,) and (std > 0).all()
    assert kendall(mean, truth) > 0.6


def test_the_choice_follows_the_cross_validated_rank_and_prefers_the_simple() -> None:
    additive = fit(*samples(120, noise=0.3), candidates=["gp", "ridge"])
    assert additive.kind == "ridge" and additive.quality["kendall_tau"] == max(additive.quality["candidates"].values()) > 0.8
    paired = fit(*samples(300, pairs=0.8), candidates=["ridge", "ridge_pairs"])
    assert paired.kind == "ridge_pairs" and paired.quality["candidates"]["ridge_pairs"] > paired.quality["candidates"]["ridge"] + 0.05


def test_the_reported_quality_is_that_on_unseen_architectures() -> None:
    (x, y), (new, truth) = samples(200, pairs=0.3, noise=0.5), samples(1000, seed=1, pairs=0.3, noise=0.5)
    predictor = fit(x, y, candidates=["ridge", "gp"])
    mean, std = predictor.predict(new)
    assert kendall(mean, truth) == pytest.approx(predictor.quality["kendall_tau"], abs=0.08)
    assert np.sqrt(((mean - truth) ** 2).mean()) == pytest.approx(predictor.quality["rmse"], rel=0.25)
    assert 0.82 < (np.abs(mean - truth) < 1.6449 * std).mean() < 0.97


def test_ridge_is_bayesian_linear_regression() -> None:
    x, y = samples(60, noise=0.5)
    model = fit_kernel("ridge", x.astype(float), y)
    z = (x - x.mean(0)) / model.scale
    gram = model.factor[0]
    noise = float((np.tril(gram) @ np.tril(gram).T - z @ z.T)[0, 0])
    weights = np.linalg.solve(z.T @ z + noise * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    covariance = model.amplitude * noise * np.linalg.inv(z.T @ z + noise * np.eye(z.shape[1]))
    mean, std = model.predict(x.astype(float))
    assert np.allclose(mean, y.mean() + z @ weights, atol=1e-8)
    assert np.allclose(std**2, np.einsum("ni,ij,nj->n", z, covariance, z), rtol=1e-4)


def test_network_gradients_match_finite_differences() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1, 6, 3)), rng.normal(size=(1, 6, 1))
    counts = rng.integers(0, 3, size=(2, 6, 1)).astype(float)
    weights = [rng.normal(size=s) for s in ((2, 3, 4), (2, 1, 4), (2, 4, 4), (2, 1, 4), (2, 4, 1), (2, 1, 1))]

    def loss() -> float:
        return float((counts * (_forward(x, tuple(weights))[-1] - y) ** 2).sum() / 6)

    for w, gradient in zip(weights, _gradients(x, y, counts, tuple(weights)), strict=True):
        place = tuple(0 for _ in w.shape)
        kept = w[place]
        w[place] = kept + 1e-6
        up = loss()
        w[place] = kept - 1e-6
        down = loss()
        w[place] = kept
        assert gradient[place] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", ["ridge", "gp", "mlp", "boosting"])
def test_saved_predictors_predict_the_same(tmp_path: Path, kind: str) -> None:
    x, y = samples(60)
    predictor = fit(x, y, candidates=[kind], folds=2)
    predictor.save(tmp_path / "p.npz")
    again = type(predictor).load(tmp_path / "p.npz")
    assert again.quality == predictor.quality and [p.name for p in tmp_path.iterdir()] == ["p.npz"]
    for a, b in zip(predictor.predict(x), again.predict(x), strict=True):
        assert np.array_equal(a, b)


def test_uncertainty_grows_away_from_the_samples() -> None:
    rng = np.random.default_rng(0)
    near = SPACE.encode([SPACE.canonical({f"c{i}": int(rng.integers(2)) for i in range(10)}) for _ in range(100)])
    y = near @ np.random.default_rng(1).normal(size=near.shape[1])
    predictor = fit(near, y, candidates=["gp"])
    far = SPACE.encode([SPACE.canonical({f"c{i}": 3 for i in range(10)})])
    assert predictor.predict(far)[1][0] > 3 * predictor.predict(near)[1].mean()


def test_constant_accuracies_are_no_crash() -> None:
    predictor = fit(samples(30)[0], np.full(30, 0.5), candidates=["ridge", "gp", "mlp"])
    mean, std = predictor.predict(samples(5, seed=2)[0])
    assert np.allclose(mean, 0.5) and np.isfinite(std).all() and predictor.quality["kendall_tau"] == 0.0


def test_bad_input_is_named(tmp_path: Path) -> None:
    x, y = samples(20)
    bad = [
        (x[:5], y[:5], {}),
        (x, y[:10], {}),
        (x, np.where(y > 0.8, np.nan, y), {}),
        (x, y, {"candidates": ["svm"]}),
        (x, y, {"candidates": []}),
    ]
    for features, targets, more in bad:
        with pytest.raises(UserError):
            fit(features, targets, **more)
    with pytest.raises(UserError, match="40 columns, got 3"):
        fit(x, y, candidates=["ridge"]).predict(np.zeros((1, 3)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nonsense")
    for name in ("absent.npz", "broken.npz"):
        with pytest.raises(UserError, match="predictor"):
            type(fit(x, y, candidates=["ridge"])).load(tmp_path / name)
