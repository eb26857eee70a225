"""The figures a report derives from a result: ladder comparison, trade-offs, prediction errors, hypervolume over trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sartor import pareto
from sartor.goals import entry
from sartor.report.promises import limits
from sartor.report.values import (
    NOT_MEASURED,
    Record,
    joined,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    percent,
    rivals,
    searched,
    show,
    sign,
    significant,
)

LEVEL = 0.005
"""Hypervolumes closer than this share are called level: neither side is said to have won."""


@dataclass(frozen=True)
class Comparison:
    """The search against the hand-designed ladder. `verdict` is "won", "lost", "level" or "unmeasured"; `words` says it in full."""

    verdict: str
    words: str
    hypervolume_search: float | None
    hypervolume_ladder: float | None
    ratio: float | None
    speedup: float | None


def comparison(result: Record) -> Comparison:
    """The verdict, read from ``result["comparison"]`` and told the same way whether the search won or lost."""
    given = mapping(result.get("comparison"))
    volumes = mapping(given.get("hypervolume"))
    search, ladder = number(volumes.get("search")), number(volumes.get("ladder"))
    ratio, speedup = number(given.get("ratio")), number(given.get("speedup_at_ladder_best"))
    if ratio is None and search is not None and ladder:
        ratio = search / ladder
    if ratio is None:
        if search is not None and ladder == 0:
            return Comparison(
                "unmeasured",
                "No hand-designed network beats the reference point, so there is no ratio to give.",
                search,
                ladder,
                None,
                speedup,
            )
        return Comparison("unmeasured", "The comparison with hand-designed networks was not measured.", search, ladder, None, speedup)
    if abs(ratio - 1) < LEVEL:
        verdict, words = "level", f"Level: the two fronts cover the same hypervolume within {LEVEL * 100:.1f} %."
    elif ratio > 1:
        verdict, words = (
            "won",
            f"The search won: its front covers {(ratio - 1) * 100:.1f} % more hypervolume than the hand-designed ladder.",
        )
    else:
        verdict, words = (
            "lost",
            f"The search lost: its front covers {(1 - ratio) * 100:.1f} % less hypervolume than the hand-designed ladder.",
        )
    return Comparison(verdict, f"{words} {_speed_words(result, speedup)}", search, ladder, ratio, speedup)


def _speed_words(result: Record, speedup: float | None) -> str:
    if speedup is None:
        return "No searched network reaches the accuracy of the ladder's best, or its speed there was not measured."
    at = [value for model in rivals(result) if model.get("origin") != "control" and (value := metric_value(model, "accuracy")) is not None]
    best = f" ({show('accuracy', max(at))})" if at else ""
    pace = f"{significant(speedup, 3)} times as fast" if speedup >= 1 else f"slower, at {significant(speedup, 3)} times the speed"
    return f"At the accuracy of the ladder's best network{best}, the fastest searched network that reaches it is {pace}."


def beaten_by(rival: Record, result: Record) -> list[str] | None:
    """Names of searched networks at least as good as `rival` in every objective and better in one; None when `rival` was not measured."""
    names = objectives(result)
    mine = [metric_value(rival, n) for n in names]
    if None in mine:
        return None
    found = []
    for model in searched(result):
        theirs = [metric_value(model, n) for n in names]
        gains = [sign(n) * (m - t) for n, m, t in zip(names, mine, theirs, strict=True) if m is not None and t is not None]
        if len(gains) == len(names) and min(gains) >= 0 and max(gains) > 0:
            found.append(name_of(model))
    return found


@dataclass(frozen=True)
class Exchange:
    """One step along the front, from the network that is cheaper in the second objective to its neighbour.

    `first` and `second` are relative changes ``(f(b) - f(a)) / |f(a)|`` of the first two objectives; `rate` is first / second, the
    percentage of the first bought by one per cent of the second.
    """

    a: str
    b: str
    first: float
    second: float
    rate: float
    words: str


def exchanges(result: Record) -> list[Exchange]:
    """The normalised trade-off ``(Δf1/f1)/(Δf2/f2)`` between neighbours on the front of the first two objectives."""
    names = objectives(result)
    if len(names) < 2:
        return []
    one, two = names[:2]
    known = [(m, x, y) for m in searched(result) if (x := metric_value(m, one)) is not None and (y := metric_value(m, two)) is not None]
    if not known:
        return []
    F = np.array([[sign(one) * x, sign(two) * y] for _, x, y in known])
    front = sorted((known[i] for i in np.flatnonzero(pareto.front(F))), key=lambda p: sign(two) * p[2])
    steps = []
    for (a, x1, y1), (b, x2, y2) in pairwise(front):
        if x1 == 0 or y1 == 0 or y1 == y2:
            continue
        first, second = (x2 - x1) / abs(x1), (y2 - y1) / abs(y1)
        rate = pareto.trade_off(np.array([x1, y1]), np.array([x2, y2]))
        words = f"{percent(first, 2)} in {one.removesuffix('_ms')} for {percent(second)} in {two.removesuffix('_ms')}"
        steps.append(Exchange(name_of(a), name_of(b), first, second, rate, words))
    return steps


@dataclass(frozen=True)
class Prediction:
    """What the search believed of a network and what was measured, in the metric's base unit; `error` is relative to `measured`."""

    model: str
    metric: str
    predicted: float
    measured: float | None
    error: float | None


def predictions(result: Record) -> list[Prediction]:
    """Every prediction in ``models`` and ``baselines`` beside its measured value, grouped by metric."""
    found = []
    everyone = [*searched(result), *rivals(result)]
    for metric in sorted({str(key) for m in everyone for key in mapping(m.get("predicted"))}):
        for model in everyone:
            predicted = number(mapping(model.get("predicted")).get(metric))
            if predicted is None:
                continue
            measured = metric_value(model, metric)
            error = (predicted - measured) / abs(measured) if measured else None
            found.append(Prediction(name_of(model), metric, predicted, measured, error))
    return found


def prediction_words(found: Sequence[Prediction]) -> str:
    """How well one metric was predicted: mean absolute relative error, bias, and rank agreement (Kendall's tau-b) from four networks on."""
    errors = [p.error for p in found if p.error is not None]
    pairs = [(p.predicted, p.measured) for p in found if p.measured is not None]
    if not errors:
        return NOT_MEASURED
    noun = "network" if len(errors) == 1 else "networks"
    parts = [
        f"mean absolute relative error {np.mean(np.abs(errors)) * 100:.1f} % over {len(errors)} {noun}",
        f"bias {percent(float(np.mean(errors)))}",
    ]
    if len(pairs) >= 4:
        from scipy.stats import kendalltau

        tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
        parts.append(f"rank agreement (Kendall τ) {tau:.2f}" if np.isfinite(tau) else "rank agreement not defined (all values equal)")
    return joined(parts)


@dataclass(frozen=True)
class Curve:
    """Hypervolume after each trial, as a share of the last value: `trials` (n,) counts from 1, `share` (n,) rises to 1."""

    trials: list[int]
    share: list[float]


def hypervolume_curve(result: Record, trials: Sequence[Mapping[str, Any]] | None, *, points: int = 200) -> Curve | None:
    """How the front of the trials grew. The reference is the worst value seen of each objective, so shares compare within one run only.

    Trials that failed, lack an objective or break a limit count as steps that gain nothing. None when nothing can be drawn.
    """
    names = objectives(result)
    rows = [_objective_row(trial, names, result) for trial in trials or []]
    complete = np.array([row for row in rows if row is not None], dtype=float)
    if len(complete) < 2:
        return None
    reference = complete.max(axis=0)
    at = sorted({round(i) for i in np.linspace(1, len(rows), min(points, len(rows)))})
    front = np.empty((0, len(names)))
    volumes, done = [], 0
    for stop in at:
        new = [row for row in rows[done:stop] if row is not None]
        done = stop
        if new:
            merged = np.unique(np.vstack([front, np.array(new)]), axis=0)
            front = merged[np.asarray(pareto.front(merged), dtype=bool)]
        volumes.append(float(pareto.hypervolume(front, reference)) if len(front) else 0.0)
    if volumes[-1] <= 0:
        return None
    return Curve(at, [v / volumes[-1] for v in volumes])


def _objective_row(trial: Mapping[str, Any], names: Sequence[str], result: Record) -> list[float] | None:
    """A trial's objectives, minimised; None when it failed, lacks one, or breaks a limit on a metric that it has."""
    metrics = mapping(trial.get("metrics"))
    if trial.get("status", "complete") != "complete":
        return None
    for metric, bound, statistic in limits(result):
        value = number(metrics.get(metric if statistic == "p50" else entry(metric, f"_{statistic}")))
        if value is not None and sign(metric) * (value - bound) > 0:
            return None
    values = [number(metrics.get(n)) for n in names]
    known = [sign(n) * v for n, v in zip(names, values, strict=True) if v is not None]
    return known if len(known) == len(names) else None
