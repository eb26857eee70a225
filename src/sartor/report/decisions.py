"""Decision support: four ways of choosing one network from the front, each a documented ranking with its reason in words.

The rules, over the *candidates* (searched networks on the measured front that keep every limit):

real-time      the lowest p90 latency among those with at least 95 % of the best candidate's accuracy
battery-size   the lowest geometric mean of CPU time, file size and peak memory, each relative to the smallest, with the same floor
quality        the highest accuracy; of equals, the faster
balanced       the knee: the best point after which a gain in one objective costs most in the other (:func:`sartor.pareto.knee`)

A ranking and not one winner, so that a page whose reader hides some networks can name the best of those left by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sartor import pareto
from sartor.report.promises import keeps_all
from sartor.report.values import (
    Record,
    accuracy_error,
    joined,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    searched,
    show,
    sign,
    significant,
)

ACCURACY_FLOOR = 0.95
"""Share of the best candidate's accuracy below which a network is not offered for speed or size."""


@dataclass(frozen=True)
class Pick:
    """One network's place in a ranking: its index in ``searched(result)`` and the reason in a sentence."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """A way of choosing: `ranking` is best first, and empty when there is nothing to choose from."""

    key: str
    title: str
    rule: str
    ranking: tuple[Pick, ...]


def candidates(result: Record) -> list[int]:
    """Indices into ``searched(result)`` of what may be recommended: on the front, accuracy measured, every limit kept."""
    models = searched(result)
    pool = [i for i, m in enumerate(models) if metric_value(m, "accuracy") is not None and keeps_all(m, result)]
    if any("front" in m for m in models):
        return [i for i in pool if models[i].get("front")]
    names = objectives(result)
    values = [[metric_value(models[i], name) for name in names] for i in pool]
    F = np.array([[math.nan if v is None else v for v in row] for row in values], dtype=float).reshape(len(pool), len(names))
    F *= np.array([sign(name) for name in names])
    return [i for i, best in zip(pool, pareto.front(F), strict=True) if best]


def decisions(result: Record) -> list[Decision]:
    """The four decisions, in the order real-time, battery-size, quality, balanced."""
    models, pool = searched(result), candidates(result)
    best = max((metric_value(models[i], "accuracy") or 0.0 for i in pool), default=0.0)
    return [_real_time(models, pool, best), _battery(models, pool, best), _quality(result, models, pool), _balanced(result, models, pool)]


def _below_floor(model: Record, best: float) -> bool:
    return (metric_value(model, "accuracy") or 0.0) < ACCURACY_FLOOR * best


def _floor_words(model: Record, best: float) -> str:
    accuracy = show("accuracy", metric_value(model, "accuracy"))
    if _below_floor(model, best):
        return f"but its accuracy, {accuracy}, is under 95 % of the best ({show('accuracy', best)})"
    return f"at {accuracy} accuracy, against {show('accuracy', best)} for the best"


def _tail_ms(model: Record) -> float | None:
    tail = metric_value(model, "latency_ms", "p90")
    return tail if tail is not None else metric_value(model, "latency_ms")


def _real_time(models: Sequence[Record], pool: Sequence[int], best: float) -> Decision:
    timed = [(i, tail) for i in pool if (tail := _tail_ms(models[i])) is not None]
    timed.sort(key=lambda pair: (_below_floor(models[pair[0]], best), pair[1], -(metric_value(models[pair[0]], "accuracy") or 0.0)))
    picks = []
    for place, (i, tail) in enumerate(timed):
        measured = metric_value(models[i], "latency_ms", "p90") is not None
        statistic = "nine runs in ten finish within" if measured else "the tail was not measured; the median is"
        lead = "The shortest tail" if place == 0 else f"Number {place + 1} by tail"
        picks.append(Pick(i, name_of(models[i]), f"{lead}: {statistic} {show('latency_ms', tail)}, {_floor_words(models[i], best)}."))
    rule = "Lowest p90 latency among the networks with at least 95 % of the best accuracy."
    return Decision("real-time", "Real-time", rule, tuple(picks))


def _burdens(model: Record) -> dict[str, float]:
    """What a battery and a small device pay for, in base units; a figure that is missing or not positive is left out."""
    cpu = number(mapping(model.get("latency")).get("cpu_ms"))
    found = {"cpu_ms": cpu, "file_bytes": metric_value(model, "file_bytes"), "peak_bytes": metric_value(model, "peak_bytes")}
    return {key: value for key, value in found.items() if value is not None and value > 0}


def _battery(models: Sequence[Record], pool: Sequence[int], best: float) -> Decision:
    burdens = {i: _burdens(models[i]) for i in pool}
    # Only figures that every candidate has: a network must not win because one of its costs was never measured.
    shared = [key for key in ("cpu_ms", "file_bytes", "peak_bytes") if burdens and all(key in b for b in burdens.values())]
    scores: list[tuple[int, float]] = []
    if shared:
        least = {key: min(b[key] for b in burdens.values()) for key in shared}
        scores = [(i, math.exp(sum(math.log(b[key] / least[key]) for key in shared) / len(shared))) for i, b in burdens.items()]
        scores.sort(key=lambda pair: (_below_floor(models[pair[0]], best), pair[1]))
    words = {"cpu_ms": "{} ms of CPU time an image", "file_bytes": "a file of {}", "peak_bytes": "{} of peak memory"}
    picks = []
    for place, (i, score) in enumerate(scores):
        parts = joined(words[k].format(significant(burdens[i][k]) if k == "cpu_ms" else show(k, burdens[i][k])) for k in shared)
        lead = "The lightest" if place == 0 else f"Number {place + 1} by weight ({score:.2f} times the least possible)"
        energy = " Energy itself was not measured; CPU time stands for it." if "cpu_ms" in shared else ""
        picks.append(Pick(i, name_of(models[i]), f"{lead}: {parts}, {_floor_words(models[i], best)}.{energy}"))
    rule = (
        "Lowest geometric mean of CPU time, file size and peak memory (each relative to the smallest candidate's) among the networks "
        "with at least 95 % of the best accuracy."
    )
    return Decision("battery-size", "Battery and size", rule, tuple(picks))


def _quality(result: Record, models: Sequence[Record], pool: Sequence[int]) -> Decision:
    ranked = sorted(pool, key=lambda i: (-(metric_value(models[i], "accuracy") or 0.0), metric_value(models[i], "latency_ms") or math.inf))
    images = number(mapping(result.get("data")).get("test"))
    picks = []
    for place, i in enumerate(ranked):
        accuracy = metric_value(models[i], "accuracy") or 0.0
        lead = "The highest accuracy" if place == 0 else f"Number {place + 1} by accuracy"
        reason = f"{lead}: {show('accuracy', accuracy)}, at {show('latency_ms', metric_value(models[i], 'latency_ms'))}."
        error = accuracy_error(accuracy, images)
        if place == 0 and len(ranked) > 1 and error is not None:
            second = metric_value(models[ranked[1]], "accuracy") or 0.0
            if accuracy - second < error:
                reason += (
                    f" Its lead over {name_of(models[ranked[1]])} ({(accuracy - second) * 100:.2f} points) is less than the sampling error"
                    f" of {images:,.0f} test images (±{error * 100:.2f} points)."
                )
        picks.append(Pick(i, name_of(models[i]), reason))
    return Decision("quality", "Quality", "Highest measured test accuracy of the exported file; of equals, the faster.", tuple(picks))


def _balanced(result: Record, models: Sequence[Record], pool: Sequence[int]) -> Decision:
    names = objectives(result)
    rows = {i: [metric_value(models[i], name) for name in names] for i in pool}
    full = {i: [sign(n) * v for n, v in zip(names, row, strict=True) if v is not None] for i, row in rows.items() if None not in row}
    rule = "The knee of the front: the point farthest below the straight line between its two ends, each objective scaled to its range."
    if not full:
        return Decision("balanced", "Balanced", rule, ())
    order, depths = _knee_order(np.array(list(full.values()), dtype=float))
    index = list(full)
    picks = []
    for place, (row, depth) in enumerate(zip(order, depths, strict=True)):
        i = index[row]
        figures = joined(show(n, metric_value(models[i], n)) for n in names)
        if len(full) < 3:
            reason = f"The front has {len(full)} network{'s' if len(full) > 1 else ''}, too few for a knee; {figures}."
        else:
            lead = "The knee of the front" if place == 0 else f"Number {place + 1} by distance beyond the line between the front's ends"
            further = f" It lies farthest ({depth:.2f} of the range) beyond the line between the front's ends; past it, gains cost more."
            reason = f"{lead}: {figures}.{further if place == 0 else ''}"
        picks.append(Pick(i, name_of(models[i]), reason))
    return Decision("balanced", "Balanced", rule, tuple(picks))


def _knee_order(F: np.ndarray) -> tuple[list[int], list[float]]:
    """Rows of `F` (points, objectives; minimised) by depth below the plane through the front's ends, deepest first, and those depths.

    Each objective is scaled to its range, which puts the ends of a two-objective front at (0, 1) and (1, 0): the depth is
    ``1 - f1 - f2``, the distance to the line between them in units of its largest possible value (Das, 1999; Branke et al., PPSN 2004).
    """
    low, high = F.min(axis=0), F.max(axis=0)
    scaled = (F - low) / np.where(high > low, high - low, 1.0)
    depth = 1.0 - scaled.sum(axis=1) if F.shape[1] == 2 else 1.0 - scaled.mean(axis=1)
    order = sorted(range(len(F)), key=lambda row: (-depth[row], row))
    return order, [float(depth[row]) for row in order]
