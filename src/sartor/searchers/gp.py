"""Gaussian-process regression on embedded architectures (Rasmussen & Williams 2006, Gaussian Processes for Machine Learning).

The kernel is a sum of terms, each a product over groups of columns: `sum_t s_t exp(-sum_g w_tg d_g(x, x'))`, with `d_g` the squared
distance within group `g`. With one group for each choice this is a weighted Hamming kernel with automatic relevance determination. To it
come linear effects `sum_g l_g <x_g, x_g'>` of some groups, which reach beyond what was seen, where the others fall back to the mean. The
mean is an unknown constant (a constant kernel). Hyperparameters maximise the marginal likelihood under
log-normal priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CONSTANT = 1.0  # variance of the constant, in units of the targets' variance
_JITTER = 1e-8
_BLOCK = 512  # columns of a covariance at a time, so that temporaries stay in the processor's cache
_NOISE_PRIOR = (np.log(0.01), 1.5)  # mean and deviation of the logarithm of the noise variance
_SHARE_DEVIATION = 1.0  # of the logarithm of a term's variance
_WEIGHT_DEVIATION = 1.2  # of the logarithm of a group's weight
_LINEAR = 0.3  # prior median of the sum of the linear effects' variances
_LINEAR_DEVIATION = 1.5  # of the logarithm of one
_TOTAL_DECAY = 1.5  # prior mean of the sum of a term's weights: what two random architectures differ by, as exponents


@dataclass(frozen=True)
class Kernel:
    """What a kernel is made of: the group of every column, for each term the groups in its product, and the groups with linear effects."""

    group: NDArray[np.int64]
    terms: tuple[tuple[int, ...], ...]
    linear: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        return int(self.group.max(initial=-1)) + 1


@dataclass(frozen=True)
class Hyper:
    """Hyperparameters: weights `(terms, groups)` (zero where a group is not in the term), variances `(terms,)`, the noise variance, and the
    variances of linear effects `(groups,)`."""

    weights: Floats
    variances: Floats
    noise: float
    linear: Floats = field(default_factory=lambda: np.zeros(0))

    @staticmethod
    def prior(kernel: Kernel) -> Hyper:
        """The prior's medians. Weights shrink with the number of groups, as in Hvarfner et al. 2024 (ICML, section 4)."""
        weights = np.zeros((len(kernel.terms), kernel.groups))
        for t, term in enumerate(kernel.terms):
            weights[t, list(term)] = _TOTAL_DECAY / max(1, len(term))
        linear = np.zeros(kernel.groups)
        linear[list(kernel.linear)] = _LINEAR / max(1, len(kernel.linear))
        return Hyper(weights, np.full(len(kernel.terms), 1 / max(1, len(kernel.terms))), float(np.exp(_NOISE_PRIOR[0])), linear)

    @property
    def flat(self) -> bool:
        """Whether there are no linear effects."""
        return not self.linear.any()


def covariance(a: Floats, b: Floats, kernel: Kernel, hyper: Hyper) -> Floats:
    """Prior covariance `(n, m)` of the latent function between rows `a` (n, columns) and `b` (m, columns)."""
    total = np.full((len(a), len(b)), _CONSTANT)
    for weights, variance in zip(hyper.weights, hyper.variances, strict=True):
        scale = np.sqrt(weights[kernel.group])
        used = scale > 0
        u, v = a[:, used] * scale[used], b[:, used] * scale[used]
        norms_u, norms_v = (u**2).sum(1), (v**2).sum(1)
        for start in range(0, len(b), _BLOCK):
            part = slice(start, start + _BLOCK)
            exponent = u @ (2 * v[part]).T
            exponent -= norms_u[:, None]
            exponent -= norms_v[None, part]
            np.exp(np.minimum(exponent, 0.0, out=exponent), out=exponent)
            exponent *= variance
            total[:, part] += exponent
    if not hyper.flat:
        scale = hyper.linear[kernel.group]
        used = scale > 0
        total += (a[:, used] * scale[used]) @ b[:, used].T
    return total


def prior_variance(rows: Floats, kernel: Kernel, hyper: Hyper) -> Floats:
    """The diagonal of :func:`covariance` `(n,)`."""
    total = np.full(len(rows), _CONSTANT + float(hyper.variances.sum()))
    return total if hyper.flat else total + (rows**2) @ hyper.linear[kernel.group]


def fit(x: Floats, y: Floats, kernel: Kernel, *, iterations: int = 40) -> Hyper:
    """The hyperparameters that maximise marginal likelihood times prior, from the prior's median by L-BFGS with exact gradients.

    Args:
        x: embedded architectures (n, columns).
        y: targets (n,), standardised.
    """
    from scipy.optimize import minimize

    distances = np.array([_squared(x[:, kernel.group == g]) for g in range(kernel.groups)]).reshape(-1, len(x), len(x))
    linear = list(kernel.linear)
    products = np.array([x[:, kernel.group == g] @ x[:, kernel.group == g].T for g in linear]).reshape(-1, len(x), len(x))
    start = Hyper.prior(kernel)
    pairs = [(t, g) for t, term in enumerate(kernel.terms) for g in term]
    rows, columns = np.array([t for t, _ in pairs], dtype=int), np.array([g for _, g in pairs], dtype=int)
    parts = np.cumsum([len(pairs), len(kernel.terms), len(linear)])
    centre = np.log(np.concatenate([start.weights[rows, columns], start.variances, start.linear[linear], [start.noise]]))
    spreads = (_WEIGHT_DEVIATION, len(pairs)), (_SHARE_DEVIATION, len(kernel.terms)), (_LINEAR_DEVIATION, len(linear)), (_NOISE_PRIOR[1], 1)
    deviation = np.concatenate([np.full(count, spread) for spread, count in spreads])

    def unpack(theta: Floats) -> Hyper:
        of_weights, variances, of_linear, noise = np.split(np.exp(theta), parts)
        weights, effects = np.zeros_like(start.weights), np.zeros(kernel.groups)
        weights[rows, columns], effects[linear] = of_weights, of_linear
        return Hyper(weights, variances, float(noise[0]), effects)

    def objective(theta: Floats) -> tuple[float, Floats]:
        z = (theta - centre) / deviation
        value, d_weights, d_variances, d_linear, d_noise = _negative_likelihood(distances, products, y, unpack(theta), linear)
        gradient = np.concatenate([d_weights[rows, columns], d_variances, d_linear, [d_noise]])
        return value + 0.5 * float(z @ z), gradient + z / deviation

    bounds = list(zip(centre - 4 * deviation, centre + 4 * deviation, strict=True))
    found = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    return unpack(found.x)


def _squared(x: Floats) -> Floats:
    norms = (x**2).sum(1)
    return np.maximum(norms[:, None] + norms[None] - 2 * x @ x.T, 0.0)


def _negative_likelihood(
    distances: Floats, products: Floats, y: Floats, hyper: Hyper, linear: Sequence[int] = ()
) -> tuple[float, Floats, Floats, Floats, float]:
    """Negative log marginal likelihood (without its constant), and its gradients by the logarithms of weights, variances, the variances of
    linear effects, and noise.

    Rasmussen & Williams 2006, equations 5.8 and 5.9. `distances` is (groups, n, n), `products` (linear groups, n, n).
    """
    from scipy.linalg import cho_solve, cholesky

    n = len(y)
    terms = [s * np.exp(-np.tensordot(w, distances, axes=1)) for w, s in zip(hyper.weights, hyper.variances, strict=True)]
    effects = [hyper.linear[g] * product for g, product in zip(linear, products, strict=True)]
    lower = cholesky(sum([*terms, *effects], np.full((n, n), _CONSTANT)) + (hyper.noise + _JITTER) * np.eye(n), lower=True)
    inverse = cho_solve((lower, True), np.eye(n))
    alpha = inverse @ y
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(lower)).sum())
    slope = inverse - np.outer(alpha, alpha)  # twice the derivative by the covariance
    flat = distances.reshape(len(distances), n * n)
    by_term = [slope * term for term in terms]
    d_weights = np.stack([-0.5 * w * (flat @ part.ravel()) for w, part in zip(hyper.weights, by_term, strict=True)])
    d_variances = np.array([0.5 * part.sum() for part in by_term])
    d_linear = np.array([0.5 * float((slope * effect).sum()) for effect in effects])
    return value, d_weights, d_variances, d_linear, 0.5 * hyper.noise * float(np.trace(slope))


@dataclass(frozen=True)
class GP:
    """A process conditioned on targets `y` (n,) at rows `x` (n, columns); `lower` is the Cholesky factor of their covariance."""

    kernel: Kernel
    hyper: Hyper
    x: Floats
    y: Floats
    lower: Floats

    @staticmethod
    def condition(x: Floats, y: Floats, kernel: Kernel, hyper: Hyper) -> GP:
        from scipy.linalg import cholesky

        matrix = covariance(x, x, kernel, hyper) + (hyper.noise + _JITTER) * np.eye(len(x))
        return GP(kernel, hyper, x, y, cholesky(matrix, lower=True))

    def posterior(self, rows: Floats) -> Posterior:
        """Of the latent function at `rows` (m, columns)."""
        from scipy.linalg import solve_triangular

        reach = solve_triangular(self.lower, covariance(self.x, rows, self.kernel, self.hyper), lower=True, check_finite=False)
        half = solve_triangular(self.lower, self.y, lower=True, check_finite=False)
        prior = prior_variance(rows, self.kernel, self.hyper)
        return Posterior(self, rows, half @ reach, np.maximum(prior - (reach**2).sum(0), 1e-12), reach)

    def left_out_errors(self) -> Floats:
        """Target minus its prediction `(n,)` from all the others (Rasmussen & Williams 2006, equation 5.12)."""
        from scipy.linalg import cho_solve

        inverse = cho_solve((self.lower, True), np.eye(len(self.y)))
        return inverse @ self.y / np.diag(inverse)

    def believe(self, rows: Floats) -> GP:
        """Conditioned further on the posterior mean at `rows` (k, columns): the believer's fantasies.

        Means stay, variances shrink around `rows` (Ginsbourger et al. 2010, "Kriging Is Well-Suited to Parallelize Optimization",
        section 4.2). The Cholesky factor is extended, not computed again.
        """
        from scipy.linalg import cholesky

        if not len(rows):
            return self
        seen = self.posterior(rows)
        corner = covariance(rows, rows, self.kernel, self.hyper) - seen.reach.T @ seen.reach
        corner += (self.hyper.noise + _JITTER) * np.eye(len(rows))
        n, k = len(self.x), len(rows)
        lower = np.zeros((n + k, n + k))
        lower[:n, :n], lower[n:, :n], lower[n:, n:] = self.lower, seen.reach.T, cholesky(corner, lower=True)
        return GP(self.kernel, self.hyper, np.vstack([self.x, rows]), np.concatenate([self.y, seen.mean]), lower)


class Tracked:
    """A process's posterior at `rows` (m, columns), known first at `x` (n, columns) and then at one row more at a time.

    A further row costs its covariances and one product, O(n m), where conditioning anew costs O(n^2 m). The targets are given when the
    posterior is asked for, as their scale changes with every one of them. The result depends on the order of the rows alone, to the last
    bit, not on how often it was asked for.
    """

    def __init__(self, rows: Floats, x: Floats, kernel: Kernel, hyper: Hyper) -> None:
        from scipy.linalg import cholesky, solve_triangular

        self.rows, self.kernel, self.hyper = rows, kernel, hyper
        # What of the rows goes into a covariance, once: they are many, and always the same.
        self._scales = [np.sqrt(weights[kernel.group]) for weights in hyper.weights]
        self._scaled = [rows * scale for scale in self._scales]
        self._norms = [(scaled**2).sum(1) for scaled in self._scaled]
        self._x, self._lower, self._reach = x, np.zeros((0, 0)), np.zeros((0, len(rows)))
        self.count = 0
        self._reserve(max(16, 2 * len(x)))
        n = self.count = len(x)
        if n:
            matrix = covariance(x, x, kernel, hyper) + (hyper.noise + _JITTER) * np.eye(n)
            self._lower[:n, :n] = cholesky(matrix, lower=True)
            across = covariance(x, rows, kernel, hyper)
            self._reach[:n] = solve_triangular(self._lower[:n, :n], across, lower=True, check_finite=False)
        self._variance = prior_variance(rows, kernel, hyper) - (self._reach[:n] ** 2).sum(0)

    def _reserve(self, capacity: int) -> None:
        lower, reach = np.zeros((capacity, capacity)), np.zeros((capacity, len(self.rows)))
        n = self.count
        lower[:n, :n], reach[:n] = self._lower[:n, :n], self._reach[:n]
        self._lower, self._reach = lower, reach

    def add(self, row: Floats) -> None:
        """Condition on one row (columns,) more."""
        from scipy.linalg import solve_triangular

        n = self.count
        if n == len(self._lower):
            self._reserve(2 * n)
        own = covariance(self._x, row[None], self.kernel, self.hyper)[:, 0]
        link = solve_triangular(self._lower[:n, :n], own, lower=True, check_finite=False) if n else np.zeros(0)
        prior = float(prior_variance(row[None], self.kernel, self.hyper)[0])
        pivot = np.sqrt(max(prior + self.hyper.noise + _JITTER - float(link @ link), _JITTER))
        step = (self._covariances(row) - link @ self._reach[:n]) / pivot
        self._lower[n, :n], self._lower[n, n], self._reach[n] = link, pivot, step
        self._variance -= step**2
        self._x = np.vstack([self._x, row])
        self.count = n + 1

    def _covariances(self, row: Floats) -> Floats:
        """Prior covariances `(m,)` of one row with all."""
        total = np.full(len(self.rows), _CONSTANT)
        for scale, scaled, norms, variance in zip(self._scales, self._scaled, self._norms, self.hyper.variances, strict=True):
            u = row * scale
            total += variance * np.exp(np.minimum(scaled @ (2 * u) - norms - u @ u, 0.0))
        return total if self.hyper.flat else total + self.rows @ (row * self.hyper.linear[self.kernel.group])

    def posterior(self, y: Floats) -> Posterior:
        """Of the latent function at all rows, with targets `y` `(count,)`."""
        from scipy.linalg import solve_triangular

        n = self.count
        lower, reach = self._lower[:n, :n], self._reach[:n]
        half = solve_triangular(lower, y, lower=True, check_finite=False)
        gp = GP(self.kernel, self.hyper, self._x, y, lower)
        return Posterior(gp, self.rows, half @ reach, np.maximum(self._variance, 1e-12), reach)


@dataclass(frozen=True)
class Posterior:
    """Mean and variance `(m,)` of the latent function at `rows`; `reach` (n, m) is the factor's inverse times the cross-covariance."""

    gp: GP
    rows: Floats
    mean: Floats
    variance: Floats
    reach: Floats

    def take(self, positions: NDArray[np.int64]) -> Posterior:
        """At some of the rows."""
        parts = self.rows[positions], self.mean[positions], self.variance[positions], self.reach[:, positions]
        return Posterior(self.gp, *parts)

    def believe(self, i: int) -> Posterior:
        """After a fantasy of the mean at row `i`: one more row of `reach`, variances reduced."""
        gp = self.gp
        cross = covariance(self.rows[[i]], self.rows, gp.kernel, gp.hyper)[0] - self.reach[:, i] @ self.reach
        step = cross / np.sqrt(self.variance[i] + gp.hyper.noise + _JITTER)
        return replace(self, variance=np.maximum(self.variance - step**2, 1e-12), reach=np.vstack([self.reach, step]))

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws `(count, m)` of the latent function at all rows."""
        from scipy.linalg import cholesky

        matrix = covariance(self.rows, self.rows, self.gp.kernel, self.gp.hyper) - self.reach.T @ self.reach
        nugget = 1e-6 * (_CONSTANT + float(self.gp.hyper.variances.sum()))  # rows may be alike to the kernel
        lower = cholesky(matrix + nugget * np.eye(len(matrix)), lower=True, check_finite=False)
        return self.mean + rng.standard_normal((count, len(self.mean))) @ lower.T
