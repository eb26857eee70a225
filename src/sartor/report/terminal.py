"""A run on the terminal: its progress while it goes, its result as tables. Light: imports rich only, no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 160  # of tables written to a file or a pipe, where no terminal says how wide it is
MISSING = "–"

Record = Mapping[str, Any]


def seconds(value: float) -> str:
    """A duration for people: ``8 s``, ``2 min 05 s``, ``1 h 03 min``."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(value: float) -> str:
    """Bytes for people, in powers of 1024 as limits are read: ``640 B``, ``12.3 KB``, ``1.2 MB``."""
    return _scaled(value, 1024.0, (" B", " KB", " MB", " GB"))


def count(value: float) -> str:
    """A count for people: ``640``, ``12.3 K``, ``1.2 M``."""
    return _scaled(value, 1000.0, ("", " K", " M", " G"))


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    step = 0
    while abs(value) >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    return (f"{value:.0f}" if step == 0 or abs(value) >= 99.95 else f"{value:.3g}") + units[step]


def milliseconds(value: float) -> str:
    """A latency in ms with three significant digits, never in exponent form."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def percent(value: float) -> str:
    """A fraction 0..1 as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


FORMATS: Mapping[str, Callable[[float], str]] = {
    "accuracy": percent,
    "top5": percent,
    "latency_ms": lambda value: f"{milliseconds(value)} ms",
    "throughput": lambda value: f"{count(value)} images/s",
    "peak_bytes": memory,
    "file_bytes": memory,
    "params": count,
    "macs": count,
}


class Progress:
    """The callback ``progress(what, done, total)`` of the contracts, shown to a person.

    On a terminal: one bar a phase with elapsed and remaining time. Elsewhere (`plain`): a line when a phase begins, then at most one
    every `every_s` seconds, with the time left, and one when it ends. Use as a context manager; it writes to `stream` (standard error).
    """

    def __init__(
        self, *, plain: bool | None = None, stream: TextIO | None = None, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._plain = not self._stream.isatty() if plain is None else plain
        self._every_s, self._clock = every_s, clock
        self._begun = clock()
        self._phases: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if not self._plain:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            self._line(what, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total or None)
        elif done < self._done[what]:
            # A phase that starts over (the next of several trainings with one name) gets a fresh clock.
            self._bars.reset(self._tasks[what])
        self._done[what] = done
        self._bars.update(self._tasks[what], completed=done, total=total or None)

    def _line(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        finished = 0 < total <= done
        begun = self._phases.setdefault(what, now)
        if what in self._said and not finished and now - self._said[what] < self._every_s:
            return
        if finished:
            # Forgotten, so that a later phase of the same name starts a fresh clock and says so.
            self._phases.pop(what)
            self._said.pop(what, None)
            tail = f"done in {seconds(now - begun)}"
        else:
            self._said[what] = now
            left = (now - begun) * (total - done) / done if done > 0 and total > 0 else 0.0
            tail = (f"{done}/{total}" if total > 0 else str(done)) + (f", about {seconds(left)} left" if left else "")
        print(f"[{seconds(now - self._begun)}] {what}: {tail}", file=self._stream, flush=True)


def devices_table(devices: Sequence[Record]) -> Table:
    """What `sartor.hardware.device.describe` says of each device, one row each."""
    columns = ("name", "cpu", "instruction sets", "cores", "runtime", "precision", "threads", "identity")
    rows = [
        [
            str(d["name"]),
            str(d["cpu"]),
            " ".join(d["isa"]),
            str(d["cores"]),
            f"{d['runtime']} {d['version']}",
            str(d["precision"]),
            str(d["threads"]),
            str(d["fingerprint"]),
        ]
        for d in devices
    ]
    return table("Devices", columns, rows, left=3)


def console(stream: TextIO | None = None) -> Console:
    """A rich console on `stream` (standard output) that does not squeeze tables when no terminal is there."""
    stream = stream if stream is not None else sys.stdout
    return Console(file=stream, highlight=False) if stream.isatty() else Console(file=stream, highlight=False, width=PLAIN_WIDTH)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A rich table; the first `left` columns are flush left, the others (numbers) flush right."""
    shown = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for position, column in enumerate(columns):
        shown.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def models_table(records: Sequence[Record], title: str) -> Table:
    """Model records (`docs/architecture.md`, the run folder) in order of latency, one row each."""

    def cell(record: Record, metric: str) -> str:
        value = record.get("metrics", {}).get(metric)
        return MISSING if value is None else FORMATS[metric](value)

    def p90(record: Record) -> str:
        latency = record.get("latency") or {}
        return (milliseconds(latency["p90"]) + " ms" if "p90" in latency else MISSING) + (" noisy" if latency.get("noisy") else "")

    def interval(record: Record) -> str:
        latency = record.get("latency") or {}
        return f"{milliseconds(latency['low'])}–{milliseconds(latency['high'])}" if {"low", "high"} <= latency.keys() else MISSING

    metrics = ("peak_bytes", "file_bytes", "params", "macs")
    rows = (
        [
            str(r["name"]),
            cell(r, "accuracy"),
            cell(r, "latency_ms"),
            interval(r),
            p90(r),
            *(cell(r, m) for m in metrics),
            "yes" if r.get("front") else "",
        ]
        for r in sorted(records, key=lambda r: (r.get("metrics", {}).get("latency_ms", float("inf")), str(r["name"])))
    )
    columns = ("name", "accuracy", "latency p50", "95 % interval", "p90", "peak memory", "file", "parameters", "MACs", "on front")
    return table(title, columns, rows)


def measured(record: Record, metric: str, statistic: str = "p50") -> float | None:
    """The value of a model record that a limit on (`metric`, `statistic`) speaks of, or None if it was not measured."""
    if metric == "latency_ms" and statistic in (record.get("latency") or {}):
        return float(record["latency"][statistic])
    value = record.get("metrics", {}).get(metric)
    return None if value is None else float(value)


def promises_table(result: Record) -> Table:
    """One row a limit: the bound, how many delivered models keep it, and the one nearest to breaking it (or furthest beyond)."""
    from sartor.goals import METRICS

    models = result.get("models", [])
    rows = []
    for limit in result.get("limits", []):
        metric, bound, statistic = limit["metric"], float(limit["bound"]), limit.get("statistic", "p50")
        upper = METRICS[metric].direction == "min"
        found = [(value, m["name"]) for m in models if (value := measured(m, metric, statistic)) is not None]
        kept = sum(value <= bound if upper else value >= bound for value, _ in found)
        worst = (max if upper else min)(found, default=None)
        name = f"{metric} {statistic}" if metric == "latency_ms" else metric
        tightest = MISSING if worst is None else f"{FORMATS[metric](worst[0])} ({worst[1]})"
        rows.append([name, f"{'≤' if upper else '≥'} {FORMATS[metric](bound)}", f"{kept} of {len(models)}", tightest])
    return table("Promises, measured on the exported files", ("limit", "bound", "kept by", "tightest"), rows)


def print_profile(profile: Record, out: Console) -> None:
    """The latency of a file (`latency` as in a model record) and of its layers, the longest marked by their share."""
    latency, layers = profile["latency"], profile["layers"]
    interval = f"{milliseconds(latency['low'])}–{milliseconds(latency['high'])}"
    out.print(
        f"{profile['file']}: {milliseconds(latency['p50'])} ms (95 % interval {interval}, p90 {milliseconds(latency['p90'])}), "
        f"{profile['threads']} thread(s), {latency['runs']} runs{', noisy: the machine was busy' if latency['noisy'] else ''}.",
        soft_wrap=True,
        markup=False,
    )
    total = sum(layer["latency_us"] for layer in layers) or 1.0
    rows = [[layer["name"], f"{layer['latency_us']:.1f}", percent(layer["latency_us"] / total)] for layer in layers]
    out.print()
    out.print(table("Layers", ("name", "µs", "share"), rows), markup=False)


def print_result(result: Record, folder: str | Path, out: Console) -> None:
    """Everything a person wants to see at the end of a run: what was found, whether the promises hold, and where the files lie."""
    data, device = result.get("data", {}), result.get("device", {})
    out.print(
        f"{data.get('name', '?')} on {device.get('name', '?')} ({device.get('cpu', 'unknown CPU')}, {device.get('runtime', '?')} "
        f"{device.get('version', '')}, {device.get('precision', '?')}, {device.get('threads', '?')} thread(s)): "
        f"{_status(result)} in {seconds(float(result.get('seconds', 0)))}.",
        soft_wrap=True,
        markup=False,
    )
    sections = [
        (result.get("models"), lambda: models_table(result["models"], "Models")),
        (result.get("baselines"), lambda: models_table(result["baselines"], "Reference nets, trained and measured the same way")),
        (result.get("limits") and result.get("models"), lambda: promises_table(result)),
        (
            result.get("refused"),
            lambda: table("Refused", ("name", "reason"), [[str(r["name"]), str(r["reason"])] for r in result["refused"]], left=2),
        ),
    ]
    for present, draw in sections:
        if present:
            out.print()
            out.print(draw(), markup=False)
    lines = [*_comparison(result.get("comparison")), *(f"Note: {note}" for note in result.get("notes", [])), *_places(Path(folder), result)]
    if lines:
        out.print()
        for line in lines:
            out.print(line, soft_wrap=True, markup=False)


def _status(result: Record) -> str:
    models = result.get("models", [])
    found = f"{len(models)} model{'' if len(models) == 1 else 's'}, {sum(bool(m.get('front')) for m in models)} on the front"
    status = result.get("status", "complete")
    return {"complete": found, "infeasible": "no model keeps the limits", "partial": f"unfinished, so far {found}"}.get(
        status, f"{status}, {found}"
    )


def _comparison(comparison: Record | None) -> list[str]:
    if not comparison:
        return []
    lines = []
    volume = comparison.get("hypervolume") or {}
    if {"search", "ladder"} <= volume.keys():
        ratio = comparison.get("ratio")
        lines.append(
            f"Hypervolume: search {volume['search']:.4g}, reference nets {volume['ladder']:.4g}"
            + (f" (ratio {ratio:.3f})." if ratio is not None else ".")
        )
    speedup = comparison.get("speedup_at_ladder_best")
    if speedup is not None:
        lines.append(f"The fastest model at least as accurate as the best reference net runs {speedup:.2f} times as fast as it.")
    return lines


def _places(folder: Path, result: Record) -> list[str]:
    places = [("Report", folder / "report.html"), ("Models", folder / "models"), ("Everything", folder)]
    lines = [f"{label}: {path}" for label, path in places if path.exists()]
    if result.get("status") == "partial":
        lines.append(f"Go on with: sartor resume {folder}")
    return lines
