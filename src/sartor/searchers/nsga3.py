"""NSGA-III: Deb & Jain 2014, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated Sorting
Approach, Part I", IEEE TEVC 18(4), 577-601; constraints as in part II (Jain & Deb 2014)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor import pareto
from sartor.arch import Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.generations import Generations
from sartor.searchers.variation import whole
from sartor.trial import Proposal, Trial

Floats = NDArray[np.float64]
_MOST_POINTS = 10_000


def reference_points(objectives: int, partitions: int) -> Floats:
    """Das and Dennis' simplex lattice `(C(objectives + partitions - 1, partitions), objectives)`: Deb & Jain 2014, section IV-B.

    Every row sums to 1 and is a multiple of 1 / `partitions`.
    """
    rows = []
    for bars in itertools.combinations(range(objectives + partitions - 1), objectives - 1):
        edges = (-1, *bars, objectives + partitions - 1)
        rows.append([b - a - 1 for a, b in itertools.pairwise(edges)])
    return np.array(rows, dtype=float) / partitions


@dataclass(frozen=True)
class Frame:
    """What normalisation remembers: ideal and worst point so far `(m,)`, and the extreme points `(m, m)`, one row an axis."""

    ideal: Floats
    worst: Floats
    extremes: Floats | None = None

    def updated(self, points: Floats, first: NDArray[np.bool_]) -> tuple[Frame, Floats]:
        """The frame after a generation, and the nadir point `(m,)` that it gives: Deb & Jain 2014, section IV-C and algorithm 2.

        Args:
            points: feasible points `(n, m)`, minimised.
            first: mask `(n,)` of the non-dominated ones.
        """
        ideal, worst = np.minimum(self.ideal, points.min(axis=0)), np.maximum(self.worst, points.max(axis=0))
        candidates = points[first] if self.extremes is None else np.vstack([self.extremes, points[first]])
        shifted = candidates - ideal
        shifted[shifted < 1e-3] = 0.0
        weights = np.where(np.eye(len(ideal)) == 1, 1.0, 1e6)
        reach = (shifted[None] * weights[:, None]).max(axis=2)  # achievement scalarising function, equation 4: (axes, candidates)
        extremes = candidates[reach.argmin(axis=1)]
        frame = Frame(ideal, worst, extremes)
        return frame, frame._nadir(points[first].max(axis=0), points.max(axis=0))

    def _nadir(self, worst_of_front: Floats, worst_of_all: Floats) -> Floats:
        """Intercepts of the hyperplane through the extreme points; where there is no sensible plane, the worst of the first front."""
        assert self.extremes is not None
        edges = self.extremes - self.ideal
        nadir = worst_of_front.copy()
        try:
            plane = np.linalg.solve(edges, np.ones(len(self.ideal)))
            with np.errstate(divide="ignore"):
                intercepts = 1 / plane
            if np.allclose(edges @ plane, 1.0) and (intercepts > 1e-6).all():
                nadir = np.minimum(self.ideal + intercepts, self.worst)
        except np.linalg.LinAlgError:
            pass
        flat = nadir - self.ideal <= 1e-6
        nadir[flat] = worst_of_all[flat]
        return nadir


def associate(points: Floats, ideal: Floats, nadir: Floats, directions: Floats) -> tuple[NDArray[np.int_], Floats]:
    """Nearest reference line of every point `(n,)`, and the perpendicular distance to it `(n,)`: Deb & Jain 2014, algorithm 3."""
    span = np.where(nadir == ideal, 1e-12, nadir - ideal)
    scaled = (points - ideal) / span
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = scaled @ unit.T
    distance = np.linalg.norm(scaled[:, None, :] - along[:, :, None] * unit[None], axis=2)
    niche = distance.argmin(axis=1)
    return niche, distance[np.arange(len(points)), niche]


def niching(niche: NDArray[np.int_], distance: Floats, counts: NDArray[np.int_], n: int, rng: np.random.Generator) -> list[int]:
    """`n` positions out of a front that does not fit whole: Deb & Jain 2014, algorithm 4.

    The least crowded niche takes its nearest point if it is empty, else any. As in pymoo, all niches of the least count are served in one
    sweep, in random order.

    Args:
        niche, distance: of the front's points `(front,)`.
        counts: members of every niche among those that survive already `(niches,)`.
    """
    counts, free, kept = counts.copy(), np.ones(len(niche), dtype=bool), list[int]()
    while len(kept) < n:
        left = np.unique(niche[free])
        emptiest = left[counts[left] == counts[left].min()]
        for one in emptiest[rng.permutation(len(emptiest))[: n - len(kept)]]:
            members = np.flatnonzero((niche == one) & free)
            rng.shuffle(members)
            member = int(members[np.argmin(distance[members])] if counts[one] == 0 else members[0])
            free[member] = False
            kept.append(member)
            counts[one] += 1
    return kept


@dataclass(frozen=True)
class _Population:
    trials: tuple[Trial, ...]
    violations: tuple[float, ...]
    frame: Frame


class NSGA3:
    """Non-dominated sorting with reference points in place of crowding distance, for three objectives and more, a generation at a time.

    Feasible trials survive before infeasible ones, those by their violation. Parents are drawn at random; of two, an infeasible one loses
    to a feasible one, and to one of less violation (Jain & Deb 2014, algorithm 5).

    Args:
        population: members, and children a generation; None for the number of reference points, at least 12, as a multiple of four
            (Deb & Jain 2014, section V).
        partitions: steps of each axis of the simplex lattice; None for the most that give no more than 100 reference points (at least 1).
        crossover_rate, mutation_rate: as in :class:`Generations`.

    Raises:
        UserError: for settings out of range, and more than 10,000 reference points.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        population: int | None = None,
        partitions: int | None = None,
        crossover_rate: float = 1.0,
        mutation_rate: float | None = None,
    ) -> None:
        objectives = goals.table([])[0].shape[1]
        if partitions is None:
            partitions = max((p for p in range(1, 100) if math.comb(objectives + p - 1, p) <= 100), default=1)
        whole("nsga3", "partitions", partitions, 1)
        if (points := math.comb(objectives + partitions - 1, partitions)) > _MOST_POINTS:
            raise UserError(
                f"nsga3: {partitions} partitions of {objectives} objectives are {points} reference points; use fewer partitions, for at"
                f" most {_MOST_POINTS}"
            )
        self._goals = goals
        self._directions = reference_points(objectives, partitions)
        self._size = population if population is not None else max(12, 4 * math.ceil(len(self._directions) / 4))
        empty = Frame(np.full(objectives, math.inf), np.full(objectives, -math.inf))
        self._generations = Generations(
            "nsga3",
            space,
            size=self._size,
            start=lambda: _Population((), (), empty),
            select=self._select,
            mates=lambda members, rng: (_pick(members, rng), _pick(members, rng)),
            crossover_rate=crossover_rate,
            mutation_rate=mutation_rate,
        )

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        return self._generations.ask(history, pending, n, rng)

    def _select(self, parents: _Population, children: list[Trial], generation: int) -> _Population:
        merged = [*parents.trials, *children]
        values, violations = self._goals.table(merged)
        feasible = np.flatnonzero(violations == 0)
        frame, kept = parents.frame, feasible
        if len(feasible):
            # The generator of the tie-breaks is fixed by the generation, so that the population is a function of the history.
            frame, chosen = self.survivors(values[feasible], frame, np.random.default_rng(generation))
            kept = feasible[chosen]
        rest = np.flatnonzero(violations > 0)
        rest = rest[np.argsort(violations[rest], kind="stable")][: max(0, self._size - len(kept))]
        order = [*kept.tolist(), *rest.tolist()]
        return _Population(tuple(merged[i] for i in order), tuple(violations[order].tolist()), frame)

    def survivors(self, points: Floats, frame: Frame, rng: np.random.Generator) -> tuple[Frame, NDArray[np.int_]]:
        """The frame after these feasible points `(n, m)`, and the positions of those that survive: Deb & Jain 2014, algorithm 1."""
        rank = pareto.ranks(points)
        frame, nadir = frame.updated(points, rank == 0)
        niche, distance = associate(points, frame.ideal, nadir, self._directions)
        order = np.argsort(rank, kind="stable")
        if len(order) <= self._size:
            return frame, order
        last = rank[order[self._size - 1]]
        certain, front = np.flatnonzero(rank < last), np.flatnonzero(rank == last)
        counts = np.bincount(niche[certain], minlength=len(self._directions))
        picked = niching(niche[front], distance[front], counts, self._size - len(certain), rng)
        return frame, np.concatenate([order[: len(certain)], front[picked]])


def _pick(members: _Population, rng: np.random.Generator) -> Trial:
    a, b = (int(i) for i in rng.integers(len(members.trials), size=2))
    return members.trials[b if members.violations[b] < members.violations[a] else a]
