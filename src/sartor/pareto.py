"""Pareto dominance, crowding, hypervolume, knees and trade-offs.

Every function takes objectives `F` of shape `(n, m)`, all minimised. NaN counts as +inf. Where a function takes `violations` of shape
`(n,)`, 0 means feasible, and constrained domination holds (Deb et al. 2002, section VI-A, definition 1): feasible before infeasible, less
violation before more, and dominance only among the feasible.
"""

from __future__ import annotations

import math

import moocore
import numpy as np


def _objectives(F: np.ndarray) -> np.ndarray:
    F = np.array(F, dtype=float)
    if F.ndim != 2:
        raise ValueError(f"expected objectives of shape (n, m), got shape {F.shape}")
    F[np.isnan(F)] = math.inf
    return F


def _violations(violations: np.ndarray, n: int) -> np.ndarray:
    V = np.array(violations, dtype=float)
    if V.shape != (n,):
        raise ValueError(f"expected violations of shape ({n},), got {V.shape}")
    V[np.isnan(V)] = math.inf
    return np.maximum(V, 0.0)


def ranks(F: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Front number of every point `(n,)` int, 0 = non-dominated: Deb et al. 2002, section III-A; constrained with `violations`.

    Infeasible points follow all feasible ones, one rank for each distinct violation.
    """
    F = _objectives(F)
    if len(F) == 0:
        return np.zeros(0, dtype=int)
    if violations is None:
        return np.asarray(moocore.pareto_rank(F), dtype=int)
    V = _violations(violations, len(F))
    feasible = V == 0
    result = np.zeros(len(F), dtype=int)
    first_infeasible = 0
    if feasible.any():
        result[feasible] = ranks(F[feasible])
        first_infeasible = int(result[feasible].max()) + 1
    result[~feasible] = first_infeasible + np.unique(V[~feasible], return_inverse=True)[1]
    return result


def crowding(F: np.ndarray, rank: np.ndarray | None = None) -> np.ndarray:
    """Crowding distance `(n,)` within one front, or within each front that `rank` `(n,)` names: Deb et al. 2002, section III-B.

    As in pymoo: the mean over objectives instead of the sum (the order is the same), the extremes of every objective infinite, an objective
    in which all points are equal left out, and fronts of one or two points infinite. Ties are ordered by position.
    """
    F = _objectives(F)
    distance = np.zeros(len(F))
    if rank is not None:
        for r in np.unique(rank):
            members = np.flatnonzero(rank == r)
            distance[members] = crowding(F[members])
        return distance
    n, m = F.shape
    if n <= 2:
        return np.full(n, math.inf)
    for values in F.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        span = ordered[-1] - ordered[0] if np.isfinite(ordered[-1]) else math.nan
        if not span > 0:  # all equal, or without a finite scale: this objective tells nothing
            continue
        gaps = np.diff(ordered) / span
        distance[order] += np.concatenate([[math.inf], gaps]) + np.concatenate([gaps, [math.inf]])
    return distance / m


def crowded_order(rank: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Positions `(n,)`, best first: by rank, then by falling crowding distance. Ties keep the order of the rows.

    The crowded-comparison operator of Deb et al. 2002, section III-B.
    """
    return np.lexsort((-distance, rank))


def survivors(F: np.ndarray, n: int, violations: np.ndarray | None = None) -> np.ndarray:
    """Positions of the `n` best points, best first: whole fronts in order, the last one by falling crowding distance.

    Deb et al. 2002, section III-C.
    """
    rank = ranks(F, violations)
    return crowded_order(rank, crowding(F, rank))[:n]


def front(F: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Mask `(n,)` of the feasible, finite, non-dominated points; of points with equal objectives only the first."""
    F = _objectives(F)
    mask = np.isfinite(F).all(axis=1)
    if violations is not None:
        mask &= _violations(violations, len(F)) == 0
    kept = np.flatnonzero(mask)
    if len(kept) == 0:
        return mask
    _, first = np.unique(F[kept], axis=0, return_index=True)
    kept = kept[np.sort(first)]
    best = ranks(F[kept]) == 0 if F.shape[1] == 1 else moocore.is_nondominated(F[kept], keep_weakly=True)
    mask[:] = False
    mask[kept[best]] = True
    return mask


def hypervolume(F: np.ndarray, reference: np.ndarray) -> float:
    """Volume that `F` dominates up to `reference` `(m,)`; points that are not finite or do not dominate the reference add nothing."""
    F, reference = _objectives(F), np.asarray(reference, dtype=float)
    if reference.shape != (F.shape[1],) or not np.isfinite(reference).all():
        raise ValueError(f"expected a finite reference point of shape ({F.shape[1]},), got {reference}")
    inside = F[np.isfinite(F).all(axis=1) & (reference > F).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if F.shape[1] == 1:
        return float(reference[0] - inside.min())
    return float(moocore.hypervolume(inside, ref=reference))


def knee(F: np.ndarray) -> int | None:
    """Position of the knee: the front's point furthest below the plane through the extremes, objectives scaled to 0..1 over the front.

    With two objectives this is the distance to the line between the two extremes; with more, the plane `sum = 1` of the scaled unit points.
    A front without a bulge (concave) has no knee, and gives an extreme. None if no point is finite; ties take the first.
    """
    F = _objectives(F)
    candidates = np.flatnonzero(front(F))
    if len(candidates) == 0:
        return None
    points = F[candidates]
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return int(candidates[np.argmin(scaled.sum(axis=1))])


def trade_off(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised trade-off `(Δf1/f1) / (Δf2/f2)` of going from `a` `(2,)` to `b` `(2,)`, relative to `a`, in natural units.

    0.25 between (accuracy, latency) points: one percent more latency buys a quarter of a percent of accuracy. Infinite where the second
    objective does not change, NaN where neither does.

    Raises:
        ValueError: where a value of `a` is zero, to which nothing is relative.
    """
    start, end = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if start.shape != (2,) or end.shape != (2,) or not start.all():
        raise ValueError(f"expected two points of two objectives, the first without zeros, got {a} and {b}")
    first, second = (end - start) / start
    if second == 0:
        return math.nan if first == 0 else math.copysign(math.inf, first)
    return float(first / second)
