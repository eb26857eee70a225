"""Reading a result that may have holes, and saying its numbers the same way everywhere.

A run can be interrupted at any point, so nothing here assumes a field exists: what is absent, null, NaN or of the wrong type
becomes ``None``, and ``None`` is written "not measured".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.goals import METRICS, QUIET, entry

Record = Mapping[str, Any]

NOT_MEASURED = "not measured"
NO_BREAK = "\u00a0"
"""Stands between a number and its unit, so that they stay on one line."""


@dataclass(frozen=True)
class Display:
    """How a metric is shown: ``value * scale`` with `unit`, and the words for "best"."""

    label: str
    unit: str
    scale: float
    best: str
    decimals: int | None = None  # None: three significant digits


DISPLAY: dict[str, Display] = {
    "accuracy": Display("Accuracy", "%", 100.0, "highest accuracy", 2),
    "top5": Display("Top-5 accuracy", "%", 100.0, "highest top-5 accuracy", 2),
    "latency_ms": Display("Latency", "ms", 1.0, "lowest latency"),
    "latency_ms_p90": Display("Latency (p90)", "ms", 1.0, "lowest p90 latency"),
    "latency_ms_quiet": Display("Latency (quiet)", "ms", 1.0, "lowest quiet latency"),
    "throughput": Display("Throughput", "images/s", 1.0, "highest throughput"),
    "peak_bytes": Display("Peak memory", "KB", 1 / 1024, "lowest peak memory"),
    "file_bytes": Display("File size", "KB", 1 / 1024, "smallest file"),
    "params": Display("Parameters", "k", 1e-3, "fewest parameters"),
    "macs": Display("MACs", "M", 1e-6, "fewest multiply-accumulates"),
    "flash_bytes": Display("Flash", "KB", 1 / 1024, "least flash"),
    "quantisation_error": Display("Rounding error of weights", "%", 100.0, "smallest rounding error"),
    "energy_mj": Display("Energy (modelled)", "mJ", 1.0, "lowest energy"),
    "weighted_latency_ms": Display("Latency, weighted over devices", "ms", 1.0, "lowest weighted latency"),
    "worst_latency": Display("Worst latency / limit", "", 1.0, "lowest worst latency"),
    "composite_cost": Display("Composite cost", "", 1.0, "lowest composite cost"),
    "merit": Display("Figure of merit", "", 1.0, "highest figure of merit"),
    "moved_bytes": Display("Data moved", "KB", 1 / 1024, "least data moved"),
    "edp": Display("Energy-delay product (modelled)", "mJ·ms", 1.0, "lowest energy-delay product"),
}


def display(metric: str) -> Display:
    """The way to show `metric`, `latency_ms@DEVICE` too; one this module does not know is shown under its own name, unscaled."""
    base, at, device = metric.partition("@")
    if at and base in DISPLAY:
        how = DISPLAY[base]
        return Display(f"{how.label} on {device}", how.unit, how.scale, f"{how.best} on {device}", how.decimals)
    return DISPLAY.get(metric) or Display(metric, "", 1.0, f"best {metric}")


def sign(metric: str) -> float:
    """+1 where less is better, -1 where more is; a metric unknown to :data:`sartor.goals.METRICS` counts as a cost."""
    known = METRICS.get(metric.partition("@")[0])
    return -1.0 if known is not None and known.direction == "max" else 1.0


def number(value: object) -> float | None:
    """`value` as a finite float, or None for anything else (absent, null, NaN, infinite, a bool, a string)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: object) -> Record:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def records(value: object) -> list[Record]:
    """The mappings in the list `value`; anything else gives an empty list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) and not isinstance(value, str) else []


def strings(value: object) -> list[str]:
    """The items of the list `value` as strings; anything else gives an empty list."""
    return [str(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else []


def metric_value(model: Record, metric: str, statistic: str = "p50") -> float | None:
    """One metric of a model record in its base unit; latency in the asked `statistic` (``"p50"``, ``"p90"``, ...), in ms."""
    if metric.startswith("latency_ms_p"):
        metric, statistic = "latency_ms", metric.removeprefix("latency_ms_")
    if metric == "latency_ms":
        measured = number(mapping(model.get("latency")).get(statistic))
        if measured is not None:
            return measured
    if statistic != "p50":
        metric = entry(metric, f"_{statistic}")
    return number(mapping(model.get("metrics")).get(metric))


def latency_interval(model: Record, device: str = "") -> tuple[float, float] | None:
    """The confidence interval ``(low, high)`` of the median latency in ms, or None when it was not measured; `device`: a further one."""
    latency = latency_on(model, device)
    low, high = number(latency.get("low")), number(latency.get("high"))
    return (low, high) if low is not None and high is not None else None


def latency_on(model: Record, device: str = "") -> Record:
    """What a model record tells of its latency on a further device, or on the run's own; empty where it does not."""
    if not device:
        return mapping(model.get("latency"))
    return mapping(mapping(model.get("platforms")).get(device))


def platforms(result: Record) -> dict[str, bool]:
    """The further devices of a result: name -> whether its latencies were measured."""
    return {str(one["name"]): one.get("measured") is not False for one in records(result.get("platforms")) if one.get("name")}


def secondary(metric: str) -> bool:
    """Whether an entry of a model's metrics is another statistic of one that is shown anyway."""
    base, at, _ = metric.partition("@")
    return base == "latency_ms_p10" or (base != f"latency_ms{QUIET}" and base.endswith(QUIET)) or bool(at and base != "latency_ms")


def accuracy_error(accuracy: float, images: float | None) -> float | None:
    """Half-width of the 95 % Wilson score interval of an accuracy counted on `images` test images (Wilson, JASA 1927)."""
    if not images or images <= 0:
        return None
    z = 1.959964
    spread = accuracy * (1 - accuracy) / images + z * z / (4 * images * images)
    return z * math.sqrt(max(spread, 0.0)) / (1 + z * z / images)


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, thousands separated, no exponent between 1e-6 and 1e15."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -6 <= magnitude < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def show(metric: str, value: float | None) -> str:
    """`value` (base unit) for people: ``show("accuracy", 0.9812)`` is 98.12 %; None gives "not measured"."""
    if value is None:
        return NOT_MEASURED
    how = display(metric)
    scaled = value * how.scale
    text = significant(scaled) if how.decimals is None else f"{scaled:.{how.decimals}f}"
    return f"{text}{NO_BREAK}{how.unit}" if how.unit else text


def percent(fraction: float, decimals: int = 1) -> str:
    """A signed percentage with a true minus sign: ``percent(-0.031)`` is −3.1 %."""
    text = f"{abs(fraction) * 100:.{decimals}f}{NO_BREAK}%"
    return ("−" if fraction < 0 else "+") + text


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``"0.4 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def joined(words: Iterable[str]) -> str:
    """A list in prose: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def count(n: int, noun: str) -> str:
    """``count(1, "network") == "1 network"``, ``count(3, "network") == "3 networks"``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def name_of(model: Record) -> str:
    """The model's name; one without is called "unnamed"."""
    return str(model.get("name") or "unnamed")


def file_safe(name: str) -> str:
    """`name` with everything that a file name should not hold replaced by ``_``; never empty, never a dot file."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "unnamed"


def searched(result: Record) -> list[Record]:
    """The delivered models: those in ``models`` that came from the search."""
    return [m for m in records(result.get("models")) if m.get("origin", "search") == "search"]


def rivals(result: Record) -> list[Record]:
    """What the search is compared with: ``baselines``, and anything in ``models`` that did not come from the search."""
    return records(result.get("baselines")) + [m for m in records(result.get("models")) if m.get("origin", "search") != "search"]


def objectives(result: Record) -> list[str]:
    """The objectives asked for; accuracy and latency when the result does not say."""
    return strings(result.get("objectives")) or ["accuracy", "latency_ms"]
