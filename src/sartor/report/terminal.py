"""A run on the terminal: its progress while it goes, its result as tables. Light: imports rich only, no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sartor.report import explanation, promises
from sartor.report.values import (
    NOT_MEASURED,
    Record,
    duration,
    latency_interval,
    mapping,
    metric_value,
    name_of,
    number,
    records,
    show,
    significant,
    strings,
)

PLAIN_WIDTH = 160  # of tables written to a file or a pipe, where no terminal says how wide it is


#: Figures that are made of others, with the head of their column.
_MADE = {"weighted_latency_ms": "weighted ms", "worst_latency": "worst / limit", "composite_cost": "composite cost", "merit": "merit"}


class Progress:
    """The callback ``progress(what, done, total)`` of the contracts, shown to a person.

    On a terminal: one bar a phase with elapsed and remaining time. Elsewhere (`plain`): a line when a phase begins, then at most one
    every `every_s` seconds, with the time left, and one when it ends. What follows a colon in `what` (``"train s01: loss 0.3"``) is shown
    but does not make another phase. Use as a context manager; it writes to `stream` (standard error).
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
        phase = what.partition(":")[0]
        if self._bars is None:
            self._line(phase, what, done, total)
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(what, total=total or None)
        elif done < self._done[phase]:
            # A phase that starts over (the next of several trainings with one name) gets a fresh clock.
            self._bars.reset(self._tasks[phase])
        self._done[phase] = done
        self._bars.update(self._tasks[phase], description=what, completed=done, total=total or None)

    def _line(self, phase: str, what: str, done: int, total: int) -> None:
        now = self._clock()
        finished = 0 < total <= done
        begun = self._phases.setdefault(phase, now)
        if phase in self._said and not finished and now - self._said[phase] < self._every_s:
            return
        if finished:
            # Forgotten, so that a later phase of the same name starts a fresh clock and says so.
            self._phases.pop(phase)
            self._said.pop(phase, None)
            tail = f"done in {duration(now - begun)}"
        else:
            self._said[phase] = now
            left = (now - begun) * (total - done) / done if done > 0 and total > 0 else 0.0
            tail = (f"{done}/{total}" if total > 0 else str(done)) + (f", about {duration(left)} left" if left else "")
        print(f"[{duration(now - self._begun)}] {what}{', ' if ':' in what else ': '}{tail}", file=self._stream, flush=True)


def console(stream: TextIO | None = None) -> Console:
    """A rich console on `stream` (standard output) that does not squeeze tables when no terminal is there."""
    stream = stream if stream is not None else sys.stdout
    return Console(file=stream, highlight=False) if stream.isatty() else Console(file=stream, highlight=False, width=PLAIN_WIDTH)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A rich table; the first `left` columns are flush left, the others (numbers) flush right."""
    shown = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    # Text, not str: a name like "s1[0]" is no markup.
    for position, column in enumerate(columns):
        shown.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def models_table(models: Sequence[Record], title: str) -> Table:
    """Model records (docs/architecture.md, "The run folder") in order of latency, one row each."""

    def latency(model: Record) -> list[str]:
        interval = latency_interval(model)
        noisy = " (noisy)" if mapping(model.get("latency")).get("noisy") else ""
        low_high = f"{milliseconds(interval[0])}–{milliseconds(interval[1])}" if interval else ""
        return [
            milliseconds(metric_value(model, "latency_ms")),
            low_high,
            milliseconds(metric_value(model, "latency_ms", "p90")) + noisy,
            quiet_words(model),
        ]

    def cells(model: Record, *metrics: str) -> list[str]:
        return [show(metric, metric_value(model, metric)).replace(NOT_MEASURED, "") for metric in metrics]

    def order(model: Record) -> tuple[float, str]:
        value = metric_value(model, "latency_ms")
        return (float("inf") if value is None else value, name_of(model))

    rows = [
        [
            name_of(m),
            *cells(m, "accuracy"),
            *latency(m),
            *cells(m, "peak_bytes", "file_bytes", "params", "macs"),
            "yes" if m.get("front") else "",
        ]
        for m in sorted(models, key=order)
    ]
    columns = ("name", "accuracy", "p50 ms", "95 % interval", "p90 ms", "quiet ms", "peak memory", "file", "parameters", "MACs", "on front")
    return table(title, columns, rows)


def further_table(models: Sequence[Record], title: str) -> Table | None:
    """The latency of each model on every device of the run, and what is made of several figures; None where there is nothing of these."""
    devices = {str(name): mapping(one) for m in models for name, one in mapping(m.get("platforms")).items()}
    made = [metric for metric in _MADE if any(metric_value(m, metric) is not None for m in models)]
    if not devices and not made:
        return None

    def figures(model: Record) -> list[str]:
        values = [metric_value(model, metric) for metric in ("latency_ms", *(f"latency_ms@{name}" for name in devices), *made)]
        return [milliseconds(value) for value in values]

    places = [f"{name} ms ({'modelled' if one.get('measured') is False else 'measured'})" for name, one in devices.items()]
    return table(title, ("name", "p50 ms", *places, *(_MADE[metric] for metric in made)), [[name_of(m), *figures(m)] for m in models])


def quiet_words(model: Record) -> str:
    """The median over moments in which the machine ran at full speed, with its interval: what networks are ranked by. Empty if unknown."""
    latency = mapping(model.get("latency"))
    quiet, low, high = (number(latency.get(key)) for key in ("quiet", "quiet_low", "quiet_high"))
    if quiet is None:
        return ""
    return milliseconds(quiet) + (f" ({milliseconds(low)}–{milliseconds(high)})" if low is not None and high is not None else "")


def milliseconds(value: float | None) -> str:
    """A latency with three significant digits; empty when it was not measured."""
    return "" if value is None else significant(value, 3)


def promises_table(result: Record) -> Table:
    """One row a limit: how many of the delivered models keep it, and the one nearest to breaking it (or furthest beyond)."""
    models = records(result.get("models"))
    rows = []
    for metric, bound, statistic in promises.limits(result):
        found = [promises.check(model, metric, bound, statistic) for model in models]
        nearest = promises.tightest(found)
        rows.append(
            [
                promises.limit_words(metric, bound, statistic) + (", modelled" if promises.modelled_metric(result, metric) else ""),
                f"{sum(c.verdict in ('kept', 'narrow') for c in found)} of {len(found)}",
                NOT_MEASURED if nearest is None else f"{show(metric, nearest.value)} ({nearest.model})",
                promises.VERDICT_WORDS[promises.overall(found)],
            ]
        )
    title = f"Promises, {'planned and modelled' if promises.modelled(result) else 'measured'} on the exported files"
    return table(title, ("limit", "kept by", "tightest", "verdict"), rows)


def print_profile(profile: Record, out: Console) -> None:
    """The latency of a file (`latency` as in a model record) and of its layers, each with its share."""
    latency, layers = profile["latency"], profile["layers"]
    interval = f"{milliseconds(latency['low'])}–{milliseconds(latency['high'])}"
    say(
        out,
        f"{profile['file']}: {milliseconds(latency['p50'])} ms (95 % interval {interval}, p90 {milliseconds(latency['p90'])}), "
        f"{profile['threads']} thread(s), {latency['runs']} runs{', noisy: the machine was busy' if latency['noisy'] else ''}.",
    )
    if not layers:  # an agent times whole files
        return
    total = sum(layer["latency_us"] for layer in layers) or 1.0
    rows = [[layer["name"], f"{layer['latency_us']:.1f}", f"{100 * layer['latency_us'] / total:.1f} %"] for layer in layers]
    out.print()
    out.print(table("Layers", ("name", "µs", "share"), rows))


def say(out: Console, sentence: str) -> None:
    """Print a sentence as it is: no markup in it, and no line breaks where no terminal asks for them."""
    out.print(sentence, soft_wrap=True, markup=False)


def print_result(result: Record, folder: str | Path, out: Console) -> None:
    """Everything a person wants to see at the end of a run: what was found, whether the promises hold, and where the files lie.

    `result` is the content of ``result.json``; any field of it may be missing.
    """
    models, baselines, refused = (records(result.get(name)) for name in ("models", "baselines", "refused"))
    device = mapping(result.get("device"))
    runtime = " ".join(str(device[name]) for name in ("cpu", "runtime", "version") if device.get(name))
    details = [runtime, *([f"{device['threads']} thread(s)"] if device.get("threads") else []), duration(number(result.get("seconds")))]
    sentences = [
        f"Not measured: {promises.MODELLED}" if promises.modelled(result) else "",
        promises.asked(result),
        promises.delivered(result),
        promises.closest(result),
        ", ".join(part for part in details if part) + ".",
    ]
    for sentence in filter(None, sentences):
        say(out, sentence)
    tables = [
        (models, lambda: models_table(models, "Models")),
        (baselines, lambda: models_table(baselines, "Reference nets, trained and exported the same way")),
        (further := further_table([*models, *baselines], "On every device, and what is made of several figures"), lambda: further),
        (models and promises.limits(result), lambda: promises_table(result)),
        (refused, lambda: table("Refused", ("name", "reason"), [[name_of(r), str(r.get("reason", ""))] for r in refused], left=2)),
    ]
    for present, draw in tables:
        if present:
            out.print()
            out.print(draw())
    for entry in records(result.get("explanation")):
        out.print()
        columns = ("choice", "share", "means, lowest to highest")
        out.print(table(explanation.terminal_title(entry), columns, explanation.terminal_rows(entry)))
        say(out, explanation.quality_words(entry))
    lines = [*_comparison(mapping(result.get("comparison"))), *(f"Note: {note}" for note in strings(result.get("notes")))]
    out.print()
    for line in [*lines, *_places(Path(folder), result)]:
        say(out, line)


def _comparison(comparison: Record) -> list[str]:
    volume = mapping(comparison.get("hypervolume"))
    search, ladder = number(volume.get("search")), number(volume.get("ladder"))
    ratio, speedup = number(comparison.get("ratio")), number(comparison.get("speedup_at_ladder_best"))
    lines = []
    if search is not None and ladder is not None:
        tail = f" (ratio {ratio:.3f})" if ratio is not None else ""
        lines.append(f"Hypervolume: search {search:.4g}, reference nets {ladder:.4g}{tail}.")
    if speedup is not None:
        lines.append(f"The fastest model at least as accurate as the best reference net runs {speedup:.2f} times as fast as it.")
    return lines


def _places(folder: Path, result: Record) -> list[str]:
    places = [("Report", folder / "report.html"), ("Models", folder / "models"), ("Everything", folder)]
    lines = [f"{label}: {path}" for label, path in places if path.exists()]
    if result.get("status") == "partial":
        lines.append(f"Go on with: sartor resume {folder}")
    return lines
