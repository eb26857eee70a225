"""How good a latency model is on networks it did not learn from, and a refusal to call a bad one good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sartor.errors import UserError
from sartor.hardware.calibrate import Quality, quality

FEWEST = 10  # held-out networks below which nothing is said
WITHIN_GOOD, WITHIN_FAIR = 0.8, 0.5
TAU_GOOD, TAU_FAIR = 0.8, 0.6
COVERAGE_GOOD = (0.8, 1.0)  # of intervals of nominally 90 %
CEILING_MARGIN = 0.05  # a model need not agree with a measurement better than a second measurement does, less this


@dataclass(frozen=True)
class Judgement:
    """Figures of a latency model on held-out networks.

    Attributes:
        grade: `good`, `fair`, `poor`, or `unknown` where too few networks were held out.
        count: held-out networks.
        within_10: share predicted within 10 % of what was measured.
        within_10_low, within_10_high: its 95 % interval (Wilson 1927), as wide as few networks make it.
        kendall_tau: rank correlation tau-b; 0 for a model that ranks nothing.
        mape: mean absolute percentage error, as a fraction.
        coverage: share of networks within their nominally 90 % intervals; None without intervals.
        ceiling: share of networks whose second measurement is within 10 % of the first; None where nothing was measured twice.
        reasons: why it is not better than its grade.
    """

    grade: str
    count: int
    within_10: float
    within_10_low: float
    within_10_high: float
    kendall_tau: float
    mape: float
    coverage: float | None
    ceiling: float | None
    reasons: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.grade == "good"

    def sentence(self) -> str:
        """For a person: the grade, what it rests on, and what is wrong."""
        figures = (
            f"{self.within_10:.0%} of {self.count} held-out networks within 10 % ({self.within_10_low:.0%} to {self.within_10_high:.0%})"
        )
        tail = f"; {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.grade}: {figures}, Kendall τ {self.kendall_tau:.2f}{tail}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": list(self.reasons)}


def judge(
    predicted_ms: ArrayLike,
    measured_ms: ArrayLike,
    *,
    low_ms: ArrayLike | None = None,
    high_ms: ArrayLike | None = None,
    measured_again_ms: ArrayLike | None = None,
) -> Judgement:
    """Judge predictions `(n,)` of networks that the model did not learn from.

    `good` needs the whole 95 % interval of the hit rate to be above `WITHIN_FAIR` and its centre above `WITHIN_GOOD` (or as high as two
    measurements of one network agree), a Kendall τ of `TAU_GOOD`, and intervals, if there are any, that hold.

    Args:
        low_ms, high_ms: ends of nominally 90 % prediction intervals `(n,)`.
        measured_again_ms: a second measurement of the same networks `(n,)`.

    Raises:
        UserError: for shapes that differ, and numbers that are no latencies.
    """
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    if predicted.ndim != 1 or predicted.shape != measured.shape or not len(measured):
        raise UserError(f"expected one prediction for each measured latency, got shapes {predicted.shape} and {measured.shape}")
    if not (np.isfinite(predicted).all() and np.isfinite(measured).all() and (measured > 0).all()):
        raise UserError(
            "expected finite predictions and positive latencies in ms to judge a model, got others: leave failed measurements out"
        )
    figures = quality(predicted, measured)
    tau = figures.tau if np.isfinite(figures.tau) else 0.0
    bounds = wilson(figures.within, figures.count)
    coverage = None if low_ms is None or high_ms is None else float(((low_ms <= measured) & (measured <= high_ms)).mean())
    ceiling = None if measured_again_ms is None else quality(np.asarray(measured_again_ms, dtype=float), measured).within
    grade, reasons = _grade(figures.within, bounds, tau, coverage, ceiling, figures.count)
    return Judgement(grade, figures.count, figures.within, *bounds, tau, figures.mape, coverage, ceiling, tuple(reasons))


def judge_quality(figures: Quality) -> Judgement:
    """The judgement on figures of held-out networks that were computed elsewhere, such as a table's or a roofline's calibration."""
    tau = figures.tau if np.isfinite(figures.tau) else 0.0
    bounds = wilson(figures.within, figures.count)
    grade, reasons = _grade(figures.within, bounds, tau, None, None, figures.count)
    return Judgement(grade, figures.count, figures.within, *bounds, tau, figures.mape, None, None, tuple(reasons))


def _grade(
    within: float, bounds: tuple[float, float], tau: float, coverage: float | None, ceiling: float | None, count: int
) -> tuple[str, Sequence[str]]:
    if count < FEWEST:
        return "unknown", [f"only {count} held-out networks, at least {FEWEST} are needed for a judgement: measure more"]
    enough = WITHIN_GOOD if ceiling is None else min(WITHIN_GOOD, ceiling - CEILING_MARGIN)
    reasons = []
    if within < enough:
        reasons.append(f"{within:.0%} within 10 %, a good model has {enough:.0%}")
    elif bounds[0] < WITHIN_FAIR and within < 1:
        reasons.append(f"with {count} networks the hit rate may be as low as {bounds[0]:.0%}: measure more")
    if ceiling is not None and ceiling < WITHIN_FAIR:
        reasons.append(
            f"two measurements of one network agree within 10 % for only {ceiling:.0%}: the measurements are too noisy to judge by"
        )
    if tau < TAU_GOOD:
        reasons.append(f"Kendall τ {tau:.2f}, a good model has {TAU_GOOD}")
    if coverage is not None and not COVERAGE_GOOD[0] <= coverage <= COVERAGE_GOOD[1]:
        reasons.append(f"intervals of 90 % hold {coverage:.0%} of the networks")
    if not reasons:
        return "good", []
    return ("fair" if within >= min(WITHIN_FAIR, enough) and tau >= TAU_FAIR else "poor"), reasons


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share among `count` cases (Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference")."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, min(share, float(centre - reach))), min(1.0, max(share, float(centre + reach)))
