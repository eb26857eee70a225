"""Pictures of a run for documents and for readers without a browser: matplotlib, PNG, the same bytes for the same result."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor import pareto
from sartor.errors import UserError
from sartor.report.analysis import hypervolume_curve, predictions
from sartor.report.files import write_atomically
from sartor.report.promises import limits
from sartor.report.values import (
    Record,
    display,
    file_safe,
    latency_interval,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    records,
    rivals,
    searched,
    sign,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, as on the page; shape tells the kinds apart as well.
SEARCH, LADDER, CONTROL, TRIAL = "#0072B2", "#C75000", "#8A4F7D", "#9AA0A6"
MOST_LAYERS = 60
"""Layers drawn at most, the slowest; a taller picture is not read."""


def write_plots(run_dir: Path | str, result: Mapping[str, Any], trials: Sequence[Mapping[str, Any]] | None = None) -> list[Path]:
    """Write ``plots/pareto.png``, ``predicted_vs_measured.png``, ``search.png`` and ``layers_<name>.png`` of every searched network.

    A picture for which nothing was measured is not drawn, and one left by an earlier call is removed, so that none is out of date.

    Args:
        run_dir: the run folder; ``plots/`` is created in it.
        result: the content of ``result.json``; any field may be missing.
        trials: the history, as :func:`sartor.report.html.write_report` takes it.

    Returns:
        The paths written, in the order above.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(run_dir) / "plots"
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("layers_*.png"):
            old.unlink()
        pictures = {"pareto": partial(pareto_png, result, trials), "predicted_vs_measured": partial(predicted_png, result)}
        pictures["search"] = partial(search_png, result, trials)
        for model in searched(result):
            pictures[f"layers_{file_safe(name_of(model))}"] = partial(layers_png, model)
        for name, draw in pictures.items():
            path, content = folder / f"{name}.png", draw()
            if content is None:
                path.unlink(missing_ok=True)
                continue
            write_atomically(path, content)
            written.append(path)
    except OSError as error:
        raise UserError(f"cannot write pictures into {folder}: {error.strerror or error}; check that the folder is writable") from error
    return written


@contextmanager
def _canvas(width: float, height: float, axes: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of its own, without pyplot: no window, no list of open figures."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(
        {
            "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that pictures do not depend on the machine's fonts
            "font.size": 11,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, list(np.atleast_1d(figure.subplots(1, axes)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # without the version, so that equal results give equal bytes
    return buffer.getvalue()


def _label(metric: str) -> str:
    how = display(metric)
    return f"{how.label} ({how.unit})" if how.unit else how.label


def _points(models: Sequence[Record], x: str, y: str) -> tuple[list[Record], np.ndarray]:
    """The models that have both metrics, and their values `(n, 2)` in display units."""
    known = [(m, a, b) for m in models if (a := metric_value(m, x)) is not None and (b := metric_value(m, y)) is not None]
    values = np.array([[a * display(x).scale, b * display(y).scale] for _, a, b in known], dtype=float).reshape(len(known), 2)
    return [m for m, _, _ in known], values


def _plain(text: str, longest: int = 40) -> str:
    """`text` cut to a label's length and without mathematics: matplotlib would read what stands between two dollar signs."""
    return (text if len(text) <= longest else f"{text[: longest - 1]}…").replace("$", r"\$")


def pareto_png(result: Record, trials: Sequence[Mapping[str, Any]] | None = None) -> bytes | None:
    """The first two objectives: networks with their staircases and latency intervals, trials faintly; None without networks."""
    names = objectives(result)
    y, x = (names[0], names[1]) if len(names) > 1 else ("accuracy", "latency_ms") if names[0] == "accuracy" else ("accuracy", names[0])
    others = rivals(result)
    groups = [
        ([m for m in others if m.get("origin") != "control"], "hand-designed", LADDER, "D", "--"),
        ([m for m in others if m.get("origin") == "control"], "random control", CONTROL, "s", ""),
        (searched(result), "searched", SEARCH, "o", "-"),
    ]
    if not any(len(_points(models, x, y)[0]) for models, *_ in groups):
        return None
    with _canvas(8, 5.2) as (figure, (axes,)):
        shown = np.vstack([_points(models, x, y)[1] for models, *_ in groups])
        axes.set(xlabel=_label(x), ylabel=_label(y))
        if shown[:, 0].min() > 0 and shown[:, 0].max() > 30 * shown[:, 0].min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        _draw_trials(axes, trials, x, y)
        for models, label, color, marker, line in groups:
            _draw_models(axes, models, (x, y), label, color, marker, line)
        _draw_limits(axes, result, x, y)
        _frame(axes, shown)
        figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=9)  # outside, where it hides nothing
        return _png(figure)


def _draw_trials(axes: Axes, trials: Sequence[Mapping[str, Any]] | None, x: str, y: str) -> None:
    rows = [(number(mapping(t.get("metrics")).get(x)), number(mapping(t.get("metrics")).get(y))) for t in trials or []]
    known = np.array([(a * display(x).scale, b * display(y).scale) for a, b in rows if a is not None and b is not None])
    if len(known):
        axes.scatter(known[:, 0], known[:, 1], s=9, color=TRIAL, alpha=0.4, linewidths=0, label="candidates tried (estimates)", zorder=1)


def _draw_models(axes: Axes, models: Sequence[Record], metrics: tuple[str, str], label: str, color: str, marker: str, line: str) -> None:
    x, y = metrics
    kept, at = _points(models, x, y)
    if not len(kept):
        return
    order = np.flatnonzero(pareto.front(at * [sign(x), sign(y)]))
    order = order[np.argsort(sign(x) * at[order, 0])]
    if line:
        axes.plot(at[order, 0], at[order, 1], line, color=color, drawstyle="steps-post", linewidth=1.6, zorder=2)
    if x == "latency_ms":
        intervals = [latency_interval(m) or (v, v) for m, v in zip(kept, at[:, 0], strict=True)]
        reach = np.maximum([[v - low, high - v] for (low, high), v in zip(intervals, at[:, 0], strict=True)], 0.0)
        axes.errorbar(at[:, 0], at[:, 1], xerr=reach.T, fmt="none", ecolor=color, elinewidth=1.2, capsize=3, zorder=2)
    axes.scatter(at[:, 0], at[:, 1], s=46, color=color, marker=marker, edgecolors="white", linewidths=0.8, label=label, zorder=3)
    better = 1 if label == "searched" else -1
    towards = (-6 * better * sign(x), -7 * better * sign(y))
    named: list[np.ndarray] = []
    places = np.column_stack([np.log(at[:, 0]) if axes.get_xscale() == "log" else at[:, 0], at[:, 1]])
    span = np.maximum(np.ptp(places, axis=0), 1e-12)
    for model, point, place in zip(kept, at, places, strict=True):
        # A name needs a tenth of the width or a twentieth of the height to itself.
        if any((np.abs(place - other) < span * [0.1, 0.05]).all() for other in named):
            continue
        named.append(place)
        axes.annotate(
            _plain(name_of(model)), tuple(point), textcoords="offset points", xytext=towards, color=color, fontsize=8.5,
            ha="right" if towards[0] < 0 else "left", va="bottom" if towards[1] > 0 else "top", zorder=4,
        )  # fmt: skip


def _draw_limits(axes: Axes, result: Record, x: str, y: str) -> None:
    for metric, bound, statistic in limits(result):
        if statistic != "p50" or metric not in (x, y):
            continue
        line = axes.axvline if metric == x else axes.axhline
        label = f"limit: {display(metric).label.lower()}"
        line(bound * display(metric).scale, color="#A8320A", linestyle=":", linewidth=1.4, label=label, zorder=1)


def _frame(axes: Axes, shown: np.ndarray) -> None:
    """Frame the networks and not the trials, most of which lie far below."""
    for values, scale, setter in ((shown[:, 0], axes.get_xscale(), axes.set_xlim), (shown[:, 1], "linear", axes.set_ylim)):
        low, high = float(values.min()), float(values.max())
        if scale == "log":
            setter(low / 1.3, high * 1.3)
            continue
        pad = 0.2 * ((high - low) or abs(high) or 1.0)
        setter(max(low - pad, 0.0) if low >= 0 else low - pad, high + pad)


def predicted_png(result: Record) -> bytes | None:
    """Predicted against measured, one panel a metric, the diagonal being exact; None without predictions that were measured."""
    found = [p for p in predictions(result) if p.measured is not None]
    metrics = list(dict.fromkeys(p.metric for p in found))
    if not metrics:
        return None
    with _canvas(4.4 * len(metrics) + 0.4, 4.4, len(metrics)) as (figure, panels):
        for axes, metric in zip(panels, metrics, strict=True):
            scale = display(metric).scale
            at = np.array([[p.predicted * scale, (p.measured or 0.0) * scale] for p in found if p.metric == metric])
            pad = 0.08 * (float(np.ptp(at)) or abs(float(at.max())) or 1.0)
            ends = (float(at.min()) - pad, float(at.max()) + pad)
            axes.plot(ends, ends, "--", color=TRIAL, linewidth=1.3, label="exact", zorder=1)
            axes.scatter(at[:, 0], at[:, 1], s=46, color=SEARCH, edgecolors="white", linewidths=0.8, label="network", zorder=2)
            axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="predicted", ylabel="measured", title=_label(metric))
            axes.legend(loc="upper left", frameon=False)
        return _png(figure)


def search_png(result: Record, trials: Sequence[Mapping[str, Any]] | None) -> bytes | None:
    """Hypervolume over trials, as a share of its last value; None when the trials give none."""
    curve = hypervolume_curve(result, trials)
    if curve is None:
        return None
    with _canvas(7, 4) as (figure, (axes,)):
        axes.plot(curve.trials, [v * 100 for v in curve.share], color=SEARCH, linewidth=1.8, drawstyle="steps-post")
        axes.set(xlabel="candidates tried", ylabel="hypervolume (% of last)", ylim=(0, 104), xlim=(curve.trials[0], curve.trials[-1]))
        return _png(figure)


def layers_png(model: Record) -> bytes | None:
    """Time of each layer in µs, in order, or its MACs when times were not measured; None without either."""
    layers = records(model.get("layers"))
    timed = any(number(layer.get("latency_us")) is not None for layer in layers)
    key = "latency_us" if timed else "macs"
    names = [f"{i}  {layer.get('name') or layer.get('kind') or 'layer'}" for i, layer in enumerate(layers, 1)]
    bars = [(name, v) for name, layer in zip(names, layers, strict=True) if (v := number(layer.get(key))) is not None]
    if not bars:
        return None
    least = sorted((v for _, v in bars), reverse=True)[min(len(bars), MOST_LAYERS) - 1]
    drawn = [bar for bar in bars if bar[1] >= least][:MOST_LAYERS]
    cut = f", the {len(drawn)} largest of {len(bars)}" if len(drawn) < len(bars) else ""
    with _canvas(7.5, 1.2 + 0.27 * len(drawn)) as (figure, (axes,)):
        values = [v for _, v in drawn]
        held = axes.barh(range(len(drawn)), values, color=SEARCH, height=0.72)
        axes.bar_label(held, labels=[f"{v:.3g}" if timed else f"{v:,.0f}" for v in values], padding=3, fontsize=9)
        axes.set_yticks(range(len(drawn)), [_plain(name) for name, _ in drawn], fontsize=9)
        axes.set(xlabel="time (µs)" if timed else "multiply-accumulates (time not measured)", ylim=(len(drawn) - 0.4, -0.6))
        axes.set_title(_plain(f"{name_of(model)}: layers{cut}"), fontsize=11, loc="left")
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        return _png(figure)
