"""`sartor predict`: parses, calls, prints. Light until it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sartor.options import Json, number, print_json, whole


def predict(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.onnx...", help="Networks to predict, all of one precision.", show_default=False)
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="What was measured: columns file (seen from the CSV) and latency_ms.", show_default=False),
    ] = None,
    other: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.csv", help="Pairs of another device; from two on, few of your own go further.", show_default=False),
    ] = None,
    ops: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Learn from measured operations: CSV of op and latency_ms, or a table.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Whose vectors and runtime are meant (see `sartor devices`).", show_default=False)
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="Another runtime than the device's own.", show_default=False)] = None,
    next_: Annotated[int, typer.Option("--next", parser=whole, metavar="N", help="Tell which N networks to measure next.")] = 0,
    coverage: Annotated[
        float | None, typer.Option(parser=number, metavar="X", help="Share of networks within their interval (default: 0.9).")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Predict latencies with intervals from a few measured networks, judge the prediction, and choose what to measure next."""
    from sartor.deploy.predict_latency import predicted

    found = predicted(files, pairs, other or (), ops=ops, device=device, runtime=runtime, choose=next_, coverage=coverage)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: Mapping[str, Any]) -> None:
    from sartor.report import terminal

    console = terminal.console()
    names = short_names([one["file"] for one in found["predicted"]])
    if any(one["latency_ms"] is not None or one["refused"] for one in found["predicted"]):
        what = f"{found['operations']} operations" if found["operations"] else f"{found['learned_from']} networks"
        title = f"Predicted from {what}" + (f" and {len(found['others'])} other devices" if found["others"] else "")
        interval = [] if found["coverage"] is None else [f"{found['coverage']:.0%} interval"]
        rows = [[names[one["file"]], *_row(one, bool(interval))] for one in found["predicted"]]
        console.print(terminal.table(title, ("network", "predicted ms", *interval, "measured ms", "remark"), rows))
    terminal.say(console, f"The model, on what it did not learn from: {found['verdict']}.")
    if found["next"]:
        terminal.say(console, "Measure next, most informative first: " + ", ".join(names[file] for file in found["next"]) + ".")


def _row(one: Mapping[str, Any], interval: bool) -> list[str]:
    low, high = one["low_ms"], one["high_ms"]
    ends = "–" if low is None and high is None else f"{0 if low is None else low:.4g}–{'∞' if high is None else format(high, '.4g')}"
    figures = ["–" if one[key] is None else f"{one[key]:.4g}" for key in ("latency_ms", "measured_ms")]
    return [figures[0], *([ends] if interval else []), figures[1], one["refused"] or ""]


def short_names(files: list[str]) -> dict[str, str]:
    """File -> the end of its path that tells it from the others."""
    for parts in range(1, max((len(Path(file).parts) for file in files), default=1) + 1):
        found = {file: "/".join(Path(file).parts[-parts:]) for file in files}
        if len(set(found.values())) == len(found):
            break
    return found
