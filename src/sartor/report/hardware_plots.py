"""Pictures of a network on a device: roofline, memory over time, modelled against measured. PNG, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sartor.errors import UserError
from sartor.report.plots import CONTROL, LADDER, SEARCH, TRIAL, _canvas, _plain, _png

if TYPE_CHECKING:
    from sartor.hardware.memory import Moment
    from sartor.hardware.roofline import OpTime, Roofline

# By what the time of an op is decided; shape tells them apart as well.
BOUNDS = {"compute": (SEARCH, "o"), "memory": (LADDER, "s"), "overhead": (TRIAL, "v")}


def roofline_png(model: Roofline, times: Sequence[OpTime], title: str = "") -> bytes:
    """The device's roof and the network's ops under it: FLOPs per byte moved against FLOP/s reached, the area being the op's time.

    Raises UserError for a network without multiplications.
    """
    shown = [one for one in times if one.flops > 0]
    if not shown:
        raise UserError("expected a network with convolutions or linear layers for a roofline plot, got none")
    x = np.array([one.intensity for one in shown])
    y = np.array([1e6 * one.flops / one.us for one in shown])
    roof = np.geomspace(x.min() / 3, max(x.max(), model.peak_ops_per_s / model.bandwidth_bytes_per_s) * 3, 200)
    with _canvas(7, 4.8) as (figure, (axes,)):
        bound = np.minimum(model.peak_ops_per_s, roof * model.bandwidth_bytes_per_s) / 1e9
        axes.loglog(roof, bound, color="black", linewidth=1.6, label=_roof(model))
        total = sum(one.us for one in times)
        for name, (colour, marker) in BOUNDS.items():
            chosen = [i for i, one in enumerate(shown) if one.bound == name]
            if chosen:
                area = [20 + 900 * shown[i].us / total for i in chosen]
                axes.scatter(x[chosen], y[chosen] / 1e9, s=area, color=colour, marker=marker, alpha=0.75, edgecolors="white",
                             linewidths=0.6, label=f"{name} bound")  # fmt: skip
        axes.set(xlabel="FLOPs per byte moved", ylabel="GFLOP/s")
        axes.set_title(_plain(title or f"{model.name or 'device'}, {model.runtime}, {model.precision}"), fontsize=11, loc="left")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        return _png(figure)


def _roof(model: Roofline) -> str:
    return f"{model.peak_ops_per_s / 1e9:,.3g} GFLOP/s, {model.bandwidth_bytes_per_s / 1e9:,.3g} GB/s"


def memory_png(moments: Sequence[Moment], limit_bytes: float | None = None, title: str = "") -> bytes:
    """Live activations while each op runs, the largest marked, with the limit where there is one.

    Raises UserError for a network without ops.
    """
    if not moments:
        raise UserError("expected a network with ops for a plot of its memory, got none")
    unit, scale = ("KiB", 1024.0) if max(m.bytes for m in moments) < 2**22 else ("MiB", 2.0**20)
    sizes = np.array([moment.bytes for moment in moments]) / scale
    top = int(np.argmax(sizes))
    with _canvas(7, 3.6) as (figure, (axes,)):
        colours = [CONTROL if i == top else SEARCH for i in range(len(sizes))]
        axes.bar(range(1, len(sizes) + 1), sizes, width=1.0, color=colours, edgecolor="white", linewidth=0.4)
        axes.annotate(_plain(f"{sizes[top]:,.4g} {unit}: {moments[top].name}"), (top + 1, sizes[top]), (0, 4), textcoords="offset points",
                      ha="left" if top < len(sizes) / 2 else "right", fontsize=9)  # fmt: skip
        if limit_bytes is not None:
            axes.axhline(limit_bytes / scale, color=LADDER, linestyle="--", linewidth=1.3, label=f"limit {limit_bytes / scale:,.4g} {unit}")
            axes.legend(frameon=False, fontsize=9)
        axes.set(xlabel="op, in execution order", ylabel=f"live activations ({unit})", xlim=(0.5, len(sizes) + 0.5))
        axes.set_title(_plain(title or "memory over time"), fontsize=11, loc="left")
        axes.margins(y=0.14)
        axes.grid(axis="x", visible=False)
        return _png(figure)


def scatter_png(
    measured: Sequence[float], predicted: Sequence[float], what: str = "latency (ms)", title: str = "", within: float = 0.1
) -> bytes:  # fmt: skip
    """Predicted against measured values on logarithmic axes, with the band of `within` around the diagonal.

    Raises UserError for no values, values that are not positive, and sequences of different length.
    """
    x, y = np.asarray(measured, float), np.asarray(predicted, float)
    if x.shape != y.shape or not x.size or not (x > 0).all() or not (y > 0).all():
        raise UserError(f"expected equally many positive measured and predicted values, got {x.size} and {y.size}")
    ends = np.array([min(x.min(), y.min()) / 1.3, max(x.max(), y.max()) * 1.3])
    inside = np.abs(y / x - 1) <= within
    with _canvas(5.2, 5) as (figure, (axes,)):
        axes.fill_between(ends, ends * (1 - within), ends * (1 + within), color=TRIAL, alpha=0.3, label=f"within {within:.0%}")
        axes.loglog(ends, ends, "--", color=TRIAL, linewidth=1.3)
        axes.scatter(x[inside], y[inside], s=40, color=SEARCH, edgecolors="white", linewidths=0.7, label=f"{int(inside.sum())} inside")
        if not inside.all():
            axes.scatter(x[~inside], y[~inside], s=40, color=LADDER, marker="s", edgecolors="white", linewidths=0.7,
                         label=f"{int((~inside).sum())} outside")  # fmt: skip
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"measured {what}", ylabel=f"predicted {what}")
        axes.set_title(_plain(title or "predicted against measured"), fontsize=11, loc="left")
        axes.legend(loc="upper left", frameon=False, fontsize=9)
        return _png(figure)
