"""How a differentiable search went: the weight of every option of every choice, epoch by epoch, from ``trajectory.json``."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor.report.files import write_atomically
from sartor.report.markup import Html, section, table, tag

FILE = "trajectory.json"
PICTURE = "plots/trajectory.png"
MOST_CHOICES = 36
"""Choices drawn at most, those that moved most; a larger picture is not read."""
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def read(run_dir: Path | str) -> dict[str, Any] | None:
    """The content of ``trajectory.json``; None where the strategy has none, or the file is damaged."""
    try:
        content = json.loads((Path(run_dir) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("epochs") else None


def write_picture(run_dir: Path | str) -> Path | None:
    """Draw ``plots/trajectory.png``; None, and no picture, where there is nothing to draw."""
    path, content = Path(run_dir) / PICTURE, read(run_dir)
    if content is None:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, trajectory_png(content["epochs"]))
    return path


def moved(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choices by how far the weights of their options went from the first epoch to the last, the farthest first.

    A choice that later stages settled counts at the last epoch that has it.
    """
    found: dict[str, float] = {}
    first: dict[str, Mapping[str, float]] = {}
    for epoch in epochs:
        for name, row in epoch["strengths"].items():
            start = first.setdefault(name, row)
            found[name] = sum(abs(row.get(o, 0.0) - start.get(o, 0.0)) for o in {*row, *start})
    return sorted(found, key=lambda name: -found[name])


def trajectory_png(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """One small axis for each choice, one line for each option; dropped candidates end where they were dropped."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    far = moved(epochs)[:MOST_CHOICES]
    names = [name for name in _in_order(epochs) if name in far]
    labels = list(dict.fromkeys(o for e in epochs for name in names if name in e["strengths"] for o in e["strengths"][name]))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    with rc_context({"font.family": ["DejaVu Sans"], "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.0 * columns, 1.7 * rows + 0.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axis, name in zip(axes, names, strict=False):
            for number, label in enumerate(labels):
                points = [(e["epoch"], e["strengths"][name][label]) for e in epochs if label in e["strengths"].get(name, {})]
                if points:
                    style = "-" if number < len(_COLOURS) else "--"
                    axis.plot(*zip(*points, strict=True), style, color=_COLOURS[number % len(_COLOURS)], label=label, linewidth=1.2)
            axis.set_title(name)
            axis.set_ylim(bottom=0.0)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        figure.supxlabel("epoch")
        figure.supylabel("weight")
        handles: dict[str, Any] = {}
        for axis in axes[: len(names)]:
            handles.update({str(line.get_label()): line for line in axis.get_lines()})
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(5, len(handles)), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _in_order(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for epoch in epochs for name in epoch["strengths"]))


def learning(run_dir: Path | str) -> Html:
    """The section of the page; empty where the strategy learned no architecture parameters."""
    content = read(run_dir)
    if content is None:
        return Html("")
    epochs = content["epochs"]
    last = epochs[-1]
    words = (
        f"{content.get('strategy', 'The method')} searched for {len(epochs)} epochs. Each line is the weight of one option; "
        "the architecture of an epoch takes what is strongest."
    )
    picture = tag("img", src=PICTURE, alt="Weights of the options of every choice, by epoch", style="max-width:100%")
    rows = [[name, last["arch"].get(name, "–"), *_strongest(last["strengths"].get(name, {}))] for name in _in_order(epochs)]
    figures = table("Choices at the last epoch", ("choice", "derived", "strongest option", "weight"), rows, numeric=(3,))
    return section("learning", "What the method learned", tag("p", words), picture, tag("details", tag("summary", "Figures"), figures))


def _strongest(row: Mapping[str, float]) -> tuple[str, str]:
    if not row:
        return "settled", "–"
    option = max(row, key=row.__getitem__)
    return option, f"{row[option]:.3f}"
