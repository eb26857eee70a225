"""Pictures of a comparison: matplotlib, PNG, written atomically."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sartor.bench.cases import Group
from sartor.bench.curves import measure
from sartor.bench.summary import Comparison
from sartor.report.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow; line styles tell apart what colours no longer can.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = [(colour, dash) for dash, colour in product(("-", "--", ":", "-."), _COLOURS)]
_LINEAR_BELOW = {"regret": 0.1, "hypervolume gap": 1e-3}  # where a measure reaches zero, the axis is logarithmic above this only


def write_figures(folder: Path, comparison: Comparison) -> list[Path]:
    """One picture a group (median over seeds, band from quartile to quartile) and, for several strategies, `ranks.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for group in comparison.groups:
        name = "_".join(filter(None, (measure(group).name.split()[-1], group.task, group.device, *group.limits, group.mode)))
        written.append(folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.png")
        with _figure(written[-1]) as figure:
            _draw_group(figure.subplots(), comparison, group)
    if comparison.groups and len(comparison.strategies) > 1:
        written.append(folder / "ranks.png")
        with _figure(written[-1]) as figure:
            _draw_ranks(figure.subplots(), comparison)
    return written


@contextmanager
def _figure(path: Path) -> Iterator[Figure]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _draw_group(axes: Axes, comparison: Comparison, group: Group) -> None:
    judged = measure(group)
    evaluations = np.arange(1, comparison.budget + 1)
    for strategy, (colour, dash) in zip(comparison.strategies, _styles(len(comparison.strategies)), strict=True):
        low, middle, high = np.quantile(comparison.curves[group][strategy], [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
        shown = np.isfinite(middle)
        axes.plot(evaluations[shown], middle[shown], dash, color=colour, linewidth=1.6, label=strategy)
        both = np.isfinite(low) & np.isfinite(high)
        axes.fill_between(evaluations[both], low[both], high[both], color=colour, alpha=0.12, linewidth=0)
    if any((drawn <= 0).any() for drawn in comparison.curves[group].values()):
        axes.set_yscale("symlog", linthresh=_LINEAR_BELOW[judged.name])
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    seeds = len(next(iter(comparison.rows[group].values())))
    axes.set_title(f"{group}, {group.mode}: median and quartiles of {seeds} seed{'' if seeds == 1 else 's'}", fontsize=10)
    axes.set_ylabel(judged.name + (f" ({judged.unit})" if judged.unit else ""))
    _finish(axes, comparison.budget)


def _draw_ranks(axes: Axes, comparison: Comparison) -> None:
    ranks = comparison.ranks()
    for strategy, line, (colour, dash) in zip(comparison.strategies, ranks, _styles(len(ranks)), strict=True):
        axes.plot(np.arange(1, comparison.budget + 1), line, dash, color=colour, linewidth=1.6, label=strategy)
    count = len(comparison.groups)
    axes.set_title(f"mean rank over {count} task{'' if count == 1 else 's'} and their seeds; 1 is best", fontsize=10)
    axes.set_ylabel("mean rank")
    axes.invert_yaxis()
    _finish(axes, comparison.budget)


def _finish(axes: Axes, budget: int) -> None:
    axes.set_xlabel("evaluations")
    axes.set_xlim(1, max(2, budget))
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _styles(count: int) -> list[tuple[str, str]]:
    return [_STYLES[i % len(_STYLES)] for i in range(count)]
