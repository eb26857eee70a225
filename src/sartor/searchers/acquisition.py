"""How promising a candidate is: expected improvement, expected hypervolume improvement, probability of feasibility.

Everything is minimised, and returned as a logarithm where products of small numbers follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sartor import pareto

Floats = NDArray[np.float64]

_FAR = 5.0  # deviations below its mean at which a candidate is no longer expected (one in three million)
_COARSE = 5  # points of a front that a bound of the improvement is computed with
_PART = 256  # candidates looked at closely at a time
_ROUNDING = 1e-9  # relative: what rounding may take from a bound
_HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Logarithm of `E[max(0, best - Y)]` for Gaussian Y, `(m,)`.

    Jones, Schonlau & Welch 1998, equation 15; in the stable form of Ament et al. 2023 (NeurIPS, equation 9), which keeps its order where
    the improvement itself is too small for a double.
    """
    return np.log(deviation) + _log_h((best - mean) / deviation)


def _log_h(z: Floats) -> Floats:
    """log(phi(z) + z Phi(z))."""
    from scipy.special import erfcx, ndtr

    z = np.asarray(z, dtype=float)
    result = np.empty_like(z)
    large = z > -1
    zl = z[large]
    result[large] = np.log(np.exp(-0.5 * zl**2 - _HALF_LOG_2PI) + zl * ndtr(zl))
    zs = z[~large]
    # phi(z) (1 + z Phi(z)/phi(z)), the ratio by the scaled complementary error function; for z below -1e3 it is 1/z^2 to six digits
    ratio = 1 + zs * np.sqrt(np.pi / 2) * erfcx(-zs / np.sqrt(2))
    result[~large] = -0.5 * zs**2 - _HALF_LOG_2PI + np.where(zs < -1e3, -2 * np.log(-zs), np.log(np.maximum(ratio, 1e-300)))
    return result


def partial_expectation(bound: Floats, mean: Floats, deviation: Floats) -> Floats:
    """`E[max(0, bound - Y)]` for Gaussian Y; arguments broadcast; a bound of -inf gives 0."""
    from scipy.special import ndtr

    with np.errstate(invalid="ignore"):
        z = (bound - mean) / deviation
        value = (bound - mean) * ndtr(z) + deviation * np.exp(-0.5 * z**2 - _HALF_LOG_2PI)
    return np.where(np.isneginf(bound), 0.0, np.maximum(value, 0.0))


def partial_expectation_log(bound: Floats, mean: Floats, deviation: Floats) -> Floats:
    """`E[max(0, bound - exp(Y))]` for Gaussian Y; bounds not above zero give 0."""
    from scipy.special import ndtr

    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(np.maximum(bound, 0.0))
        z = (logs - mean) / deviation
        value = bound * ndtr(z) - np.exp(mean + 0.5 * deviation**2) * ndtr(z - deviation)
    return np.where(bound > 0, np.maximum(value, 0.0), 0.0)


def expected_hypervolume_improvement(
    mean: Floats, deviation: Floats, front: Floats, reference: Floats, *, logarithmic: tuple[bool, bool] = (False, False)
) -> Floats:
    """Exact, two objectives: `(m,)` for independent Gaussians `mean`, `deviation` (m, 2).

    The area left of and below each stair of the front is a product of independent one-dimensional expectations, one a strip (Emmerich,
    Deutz & Klinkenberg 2011; Yang et al. 2019, "Efficient computation of expected hypervolume improvement", section 4).

    Args:
        front: points (k, 2) reached so far, in the objectives' own scale; dominated ones and ones beyond the reference are left out.
        logarithmic: which of the two Gaussians are logarithms of the objective.
    """
    inside = front[(front < reference).all(axis=1)].reshape(-1, 2)
    inside = inside[pareto.front(inside)] if len(inside) else inside
    inside = inside[np.argsort(inside[:, 0])]
    hopeful = _reach(mean - _FAR * deviation, inside, reference, logarithmic)
    if not hopeful.all():
        found = np.zeros(len(mean))
        part = mean[hopeful], deviation[hopeful]
        found[hopeful] = expected_hypervolume_improvement(*part, front, reference, logarithmic=logarithmic) if hopeful.any() else 0.0
        return found
    right = np.append(inside[:, 0], reference[0])  # right ends of the strips; the first reaches to -inf on the left
    height = np.append(reference[1], inside[:, 1])
    widths = _partial(right, mean[:, 0], deviation[:, 0], logarithmic[0])
    widths[:, 1:] -= widths[:, :-1].copy()
    return (np.maximum(widths, 0.0) * _partial(height, mean[:, 1], deviation[:, 1], logarithmic[1])).sum(1)


def leading_hypervolume_improvement(
    mean: Floats, deviation: Floats, front: Floats, reference: Floats, shares: Floats, *, logarithmic: tuple[bool, bool] = (False, False)
) -> Floats:
    """:func:`expected_hypervolume_improvement` times `shares` (m,) wherever it may be the largest of all, and less than that elsewhere.

    With fewer points on the front the improvement is no less, and sooner computed: that bound tells who need not be looked at.
    """
    inside = front[(front < reference).all(axis=1)].reshape(-1, 2)
    inside = inside[pareto.front(inside)] if len(inside) else inside
    inside = inside[np.argsort(inside[:, 0])]
    coarse = inside[np.unique(np.linspace(0, len(inside) - 1, _COARSE).round().astype(int))] if len(inside) > _COARSE else inside
    bound = expected_hypervolume_improvement(mean, deviation, coarse, reference, logarithmic=logarithmic) * shares
    if len(coarse) == len(inside):
        return bound
    found, order, start, best = np.zeros(len(mean)), np.argsort(-bound, kind="stable"), 0, 0.0
    while start < len(order) and bound[order[start]] > 0 and (1 + _ROUNDING) * bound[order[start]] >= best:
        part = order[start : start + _PART]
        improvement = expected_hypervolume_improvement(mean[part], deviation[part], inside, reference, logarithmic=logarithmic)
        found[part] = improvement * shares[part]
        best, start = max(best, float(found[part].max())), start + _PART
    return found


def _reach(optimistic: Floats, stairs: Floats, reference: Floats, logarithmic: tuple[bool, bool]) -> NDArray[np.bool_]:
    """Which of `optimistic` (m, 2) are not dominated by `stairs`, a front by rising first objective, and lie below the reference."""
    columns = [np.exp(column) if log else column for column, log in zip(optimistic.T, logarithmic, strict=True)]
    lowest = np.append(np.inf, stairs[:, 1])[np.searchsorted(stairs[:, 0], columns[0], side="right")]  # second objective reached so far
    return (columns[0] < reference[0]) & (columns[1] < np.minimum(lowest, reference[1]))  # type: ignore[no-any-return]


def _partial(bounds: Floats, mean: Floats, deviation: Floats, logarithmic: bool) -> Floats:
    expectation = partial_expectation_log if logarithmic else partial_expectation
    return expectation(bounds[None], mean[:, None], deviation[:, None])


def sampled_hypervolume_improvement(samples: Floats, front: Floats, reference: Floats) -> Floats:
    """Mean hypervolume improvement `(m,)` over `samples` (draws, m, objectives) in the objectives' own scale: any number of objectives.

    The part of the box below the reference that the front leaves open is cut into disjoint boxes once (Daulton, Balandat & Bakshy 2020,
    section 3; here by recursion over the last objective), so that every sample is a sum over boxes.
    """
    inside = front[(front < reference).all(axis=1)].reshape(-1, front.shape[1])
    lower, upper = free_boxes(inside[pareto.front(inside)] if len(inside) else inside, reference)
    total = np.zeros(samples.shape[1])
    for low, high in zip(lower, upper, strict=True):
        total += np.prod(np.maximum(high - np.maximum(low, samples), 0.0), axis=-1).sum(0)
    return total / len(samples)


def free_boxes(front: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Disjoint boxes `(boxes, m)`, lower (may be -inf) and upper corners, that cover what `front` does not dominate below `reference`.

    Sweeping the last objective upwards, the points passed so far define what is dominated in the others.
    """
    m = len(reference)
    if m == 1:
        return np.full((1, 1), -np.inf), np.array([[min(float(front.min(initial=np.inf)), float(reference[0]))]])
    order = np.argsort(front[:, -1], kind="stable")
    levels = [-np.inf, *front[order, -1], float(reference[-1])]
    lowers, uppers = [], []
    for i in range(len(levels) - 1):
        if levels[i + 1] <= levels[i]:
            continue
        passed = front[order[:i], :-1]
        passed = passed[pareto.front(passed)] if len(passed) else passed
        low, high = free_boxes(passed, reference[:-1])
        lowers.append(np.column_stack([low, np.full(len(low), levels[i])]))
        uppers.append(np.column_stack([high, np.full(len(high), levels[i + 1])]))
    return np.vstack(lowers), np.vstack(uppers)


def log_probability_below(mean: Floats, deviation: Floats, bound: float = 0.0) -> Floats:
    """log P(Y <= bound) for Gaussian Y, `(m,)`."""
    from scipy.special import log_ndtr

    return log_ndtr((bound - mean) / deviation)


def chebyshev(points: Floats, weights: Floats) -> Floats:
    """Augmented Chebyshev scalarisation over the last axis: Knowles 2006 (ParEGO), equation 2, with rho = 0.05."""
    weighted = points * weights
    return weighted.max(axis=-1) + 0.05 * weighted.sum(axis=-1)
