"""Which choices mattered, as the page and the terminal show it: shares of variance, interactions and marginal effects.

Read from ``result["explanation"]``, which :func:`sartor.explain.to_json` makes of the search's history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sartor.report.markup import Html, join, section, table, tag
from sartor.report.values import Record, count, mapping, number, records, show

TRUSTED = 0.5
"""Share of the variance of unseen trials that the model must explain for the rest to be worth much."""
_CHOICES = 10
_LEAST = 0.005  # a share below that is said to be under one per cent


def share(value: float | None) -> str:
    """A share of variance in whole per cents."""
    if value is None:
        return "unknown"
    return f"{100 * value:.0f} %" if value >= _LEAST else "< 1 %"


def leading(entry: Record) -> list[tuple[str, float]]:
    """The choices with the largest shares, largest first; at most ten."""
    found = [(str(name), value) for name, given in mapping(entry.get("importance")).items() if (value := number(given)) is not None]
    return sorted(found, key=lambda item: -item[1])[:_CHOICES]


def effects(entry: Record, choice: str) -> list[tuple[str, float]]:
    """Options of a choice with the metric's mean over the architectures that have it, in the order of the space."""
    given = mapping(mapping(entry.get("effects")).get(choice))
    return [(str(option), value) for option, raw in given.items() if (value := number(raw)) is not None]


def range_words(entry: Record, choice: str) -> str:
    """From the option with the lowest mean to the one with the highest: ``16: 91.20 % to 32: 93.40 %``."""
    found = effects(entry, choice)
    if len(found) < 2:
        return ""
    metric = str(entry.get("metric"))
    (low, least), (high, most) = min(found, key=lambda item: item[1]), max(found, key=lambda item: item[1])
    return f"{low}: {show(metric, least)} to {high}: {show(metric, most)}"


def quality_words(entry: Record) -> str:
    """How far to trust it."""
    r2, trials = number(entry.get("r2")), number(entry.get("trials"))
    seen = count(int(trials or 0), "candidate")
    if r2 is None:
        return f"From {seen}."
    if r2 < TRUSTED:
        return f"From {seen}. The model behind it predicts unseen candidates badly (R² {r2:.2f}): take it as a hint at most."
    return f"From {seen}; the model behind it explains {100 * r2:.0f} % of the variance of candidates that it did not see."


def explanation(result: Record) -> Html:
    """The section of the page; empty where the run has no explanation."""
    entries = records(result.get("explanation"))
    if not entries:
        return Html("")
    words = (
        "Shares of the variance over the whole search space that each choice explains alone (functional analysis of variance on a model of "
        "the search's own estimates), and the mean of the metric under each option."
    )
    return section("mattered", "Which choices mattered", tag("p", words), *(_metric(entry) for entry in entries))


def _metric(entry: Record) -> Html:
    metric = str(entry.get("metric"))
    rows: list[list[object]] = []
    for choice, value in leading(entry):
        bar = tag("div", class_="bar", style=f"width: {100 * min(1.0, value):.1f}%", aria_hidden="true")
        means = join([f"{option}: {show(metric, mean)}" for option, mean in effects(entry, choice)], " · ")
        rows.append([choice, share(value), bar, means])
    parts = [
        tag("h3", f"For {metric}"),
        tag("p", quality_words(entry), class_="note"),
        table(f"Choices by their share of the variance of {metric}", ["Choice", "Share", "", "Mean under each option"], rows, numeric=[1]),
    ]
    together = [(one, two, value) for one, two, value in pairs(entry) if value >= 0.01]
    if together:
        said = [f"{one} with {two} ({share(value)})" for one, two, value in together[:5]]
        parts.append(tag("p", f"Beyond that, together: {', '.join(said)}."))
    return join(parts)


def pairs(entry: Record) -> list[tuple[str, str, float]]:
    """Pairs of choices with the share that they explain only together, largest first."""
    found = []
    given = entry.get("pairs")
    for item in given if isinstance(given, list | tuple) else []:
        value = number(item[2]) if isinstance(item, list | tuple) and len(item) == 3 else None
        if value is not None:
            found.append((str(item[0]), str(item[1]), value))
    return sorted(found, key=lambda pair: -pair[2])


def terminal_rows(entry: Record) -> list[list[str]]:
    """Rows of the terminal's table: choice, share, range of the means."""
    return [[choice, share(value), range_words(entry, choice)] for choice, value in leading(entry)]


def terminal_title(entry: Mapping[str, Any]) -> str:
    return f"Which choices mattered for {entry.get('metric')}"
