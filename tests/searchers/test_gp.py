from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from sartor.arch import Space
from sartor.searchers.embedding import Embedding
from sartor.searchers.gp import GP, Hyper, Kernel, Tracked, _negative_likelihood, _squared, covariance, fit, prior_variance

SPACE = Space({f"c{i}": ["u", "v", "w"] for i in range(5)})
EMBEDDING = Embedding(SPACE)
ROWS = EMBEDDING.rows(list(SPACE))
KERNEL = Kernel(EMBEDDING.group, (tuple(range(5)), (0, 1)))
HYPER = Hyper(np.array([[0.3, 0.5, 0.2, 0.9, 1.2], [0.7, 0.1, 0.0, 0.0, 0.0]]), np.array([0.6, 0.9]), 0.05)


def sample(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(ROWS))[:count]
    y = ROWS[chosen] @ rng.normal(size=ROWS.shape[1]) + 0.1 * rng.normal(size=count)
    return ROWS[chosen], (y - y.mean()) / y.std()


def test_covariance_is_a_product_over_choices_summed_over_terms() -> None:
    a, b = SPACE.at(17), SPACE.at(101)
    differs = np.array([a[name] != b[name] for name in SPACE.choices], dtype=float)
    expected = 1.0 + sum(s * np.exp(-(w * differs).sum()) for w, s in zip(HYPER.weights, HYPER.variances, strict=True))
    assert covariance(EMBEDDING.rows([a]), EMBEDDING.rows([b]), KERNEL, HYPER)[0, 0] == pytest.approx(expected)


def test_posterior_is_the_textbook_s() -> None:
    x, y = sample(40)
    posterior = GP.condition(x, y, KERNEL, HYPER).posterior(ROWS)
    inverse = np.linalg.inv(covariance(x, x, KERNEL, HYPER) + HYPER.noise * np.eye(40))
    cross = covariance(ROWS, x, KERNEL, HYPER)
    assert posterior.mean == pytest.approx(cross @ inverse @ y, abs=1e-6)
    exact = covariance(ROWS, ROWS, KERNEL, HYPER) - cross @ inverse @ cross.T
    assert posterior.variance == pytest.approx(np.diag(exact), abs=1e-6)
    draws = posterior.draw(20_000, np.random.default_rng(0))[:, :6]
    assert np.cov(draws.T) == pytest.approx(exact[:6, :6], abs=0.05)


def test_believing_extends_the_factor() -> None:
    """A batch believed at once, one by one, and in a process conditioned anew are the same; the means stay, the variances shrink."""
    x, y = sample(30)
    gp = GP.condition(x, y, KERNEL, HYPER)
    before = gp.posterior(ROWS)
    batch = [3, 50, 51]
    at_once = gp.believe(ROWS[batch]).posterior(ROWS)
    anew = GP.condition(np.vstack([x, ROWS[batch]]), np.concatenate([y, before.mean[batch]]), KERNEL, HYPER).posterior(ROWS)
    one_by_one = before
    for i in batch:
        one_by_one = one_by_one.believe(i)
    for other in (anew, one_by_one):
        assert other.mean == pytest.approx(before.mean, abs=1e-6)
        assert other.variance == pytest.approx(at_once.variance, abs=1e-6)
    assert (at_once.variance <= before.variance + 1e-9).all()
    assert (at_once.variance[batch] < before.variance[batch] - 1e-3).all()


def test_left_out_errors_are_those_of_refitting() -> None:
    x, y = sample(12)
    errors = GP.condition(x, y, KERNEL, HYPER).left_out_errors()
    for i in range(12):
        kept = np.arange(12) != i
        assert errors[i] == pytest.approx(y[i] - GP.condition(x[kept], y[kept], KERNEL, HYPER).posterior(x[[i]]).mean[0], abs=1e-6)


def test_gradients_of_the_likelihood() -> None:
    x, y = sample(25)
    linear = [1, 3]
    distances = np.stack([_squared(x[:, EMBEDDING.group == g]) for g in range(5)])
    products = np.stack([x[:, EMBEDDING.group == g] @ x[:, EMBEDDING.group == g].T for g in linear])
    used = HYPER.weights > 0
    start = np.log(np.concatenate([HYPER.weights[used], HYPER.variances, [0.4, 0.7], [HYPER.noise]]))

    def hyper(theta: np.ndarray) -> Hyper:
        weights, effects = np.zeros_like(HYPER.weights), np.zeros(5)
        weights[used], effects[linear] = np.exp(theta[: used.sum()]), np.exp(theta[-3:-1])
        return Hyper(weights, np.exp(theta[used.sum() : -3]), float(np.exp(theta[-1])), effects)

    def value(theta: np.ndarray) -> float:
        return _negative_likelihood(distances, products, y, hyper(theta), linear)[0]

    def gradient(theta: np.ndarray) -> np.ndarray:
        _, weights, variances, effects, noise = _negative_likelihood(distances, products, y, hyper(theta), linear)
        return np.concatenate([weights[used], variances, effects, [noise]])

    assert check_grad(value, gradient, start) < 1e-4


def test_fit_finds_which_choices_matter() -> None:
    rng = np.random.default_rng(1)
    archs = [SPACE.at(int(i)) for i in rng.permutation(SPACE.size)[:80]]
    y = np.array([2.0 * (arch["c1"] == 2) + 1.0 * (arch["c3"] == 0) * (arch["c1"] != 1) for arch in archs])
    kernel = Kernel(EMBEDDING.group, (tuple(range(5)),))
    found = fit(EMBEDDING.rows(archs), (y - y.mean()) / y.std(), kernel)
    weights = found.weights[0]
    assert min(weights[1], weights[3]) > 3 * max(weights[0], weights[2], weights[4])
    assert found.noise < Hyper.prior(kernel).noise
    twice, noisy = EMBEDDING.rows(archs[:40] * 2), rng.normal(size=80)  # each architecture has two independent values
    assert fit(twice, (noisy - noisy.mean()) / noisy.std(), kernel).noise > 0.2


def test_a_tracked_process_is_the_conditioned_one_and_does_not_depend_on_when_it_was_asked() -> None:
    """Rows one at a time, from none at all too: the same posterior as conditioning on all, draws and fantasies included."""
    x, y = sample(40)
    exact = GP.condition(x, y, KERNEL, HYPER).posterior(ROWS)
    for first in (0, 1, 25, 40):
        asked, quiet = Tracked(ROWS, x[:first], KERNEL, HYPER), Tracked(ROWS, x[:first], KERNEL, HYPER)
        for n in range(first, 40):
            if n:
                asked.posterior(y[:n])
            asked.add(x[n])
            quiet.add(x[n])
        found = asked.posterior(y)
        assert found.mean == pytest.approx(exact.mean, abs=1e-7) and found.variance == pytest.approx(exact.variance, abs=1e-7)
        assert np.array_equal(found.mean, quiet.posterior(y).mean) and np.array_equal(found.variance, quiet.posterior(y).variance)
    some = np.array([3, 50, 51])
    taken, whole = found.take(some), found.believe(50)
    assert taken.believe(1).variance == pytest.approx(whole.variance[some], abs=1e-7)
    assert taken.draw(3, np.random.default_rng(0)).shape == (3, 3)


def test_linear_effects_reach_beyond_what_was_seen() -> None:
    """Learnt on numbers up to 6, a straight line is known at 12; without the linear effect the mean comes back."""
    x = np.arange(7.0)[:, None] / 3
    line = Kernel(np.array([0]), ((0,),), (0,))
    y = (x[:, 0] - x.mean()) / x.std()
    far = np.array([[4.0]])
    reached = GP.condition(x, y, line, fit(x, y, line)).posterior(far).mean[0]
    plain = Kernel(np.array([0]), ((0,),))
    fallen = GP.condition(x, y, plain, fit(x, y, plain)).posterior(far).mean[0]
    truth = (4.0 - x.mean()) / x.std()
    assert abs(reached - truth) < 0.2 * truth and fallen < 0.7 * truth
    hyper = fit(x, y, line)
    tracked = Tracked(np.vstack([x, far]), x[:3], line, hyper)
    for row in x[3:]:
        tracked.add(row)
    assert tracked.posterior(y).mean[-1] == pytest.approx(reached, abs=1e-6)
    assert prior_variance(x, line, hyper) == pytest.approx(np.diag(covariance(x, x, line, hyper)))
