"""What there is to compare, and a comparison as tables on the terminal."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sartor.bench.cases import Group
from sartor.benchmarks import catalogue, table
from sartor.evaluators.tabular import TASKS
from sartor.report.terminal import console
from sartor.report.terminal import table as terminal_table
from sartor.searchers import SEARCHERS

_SHOWN = 3  # steps in a table on the terminal; all of them are in summary.json


def listing() -> dict[str, Any]:
    """Strategies with their settings, tasks, devices, and the tables with their origin, licence and citation."""
    strategies = []
    for name, factory in SEARCHERS.items():
        parameters = [p for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
        settings = {p.name: _plain(p.default) for p in parameters}
        strategies.append({"name": name, "description": _first_sentence(factory), "settings": settings})
    latency = table("nasbench201_latency")
    devices = [{"name": c.name, "description": c.description, "unit": c.unit} for c in latency.columns.values()]
    tasks = [{"name": t.name, "description": t.description, "devices": list(t.devices)} for t in TASKS.values()]
    tables = []
    for found in catalogue().values():
        entry = {key: getattr(found, key) for key in ("name", "title", "rows", "source", "licence", "citation")}
        tables.append({**entry, "columns": {c.name: {"unit": c.unit, "description": c.description} for c in found.columns.values()}})
    return {"strategies": strategies, "tasks": tasks, "devices": devices, "tables": tables}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _first_sentence(factory: Any) -> str:
    text = " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split())
    end = text.find(". ")
    return re.sub(r":\w+:|[`*]", "", text if end < 0 else text[: end + 1])


def print_listing(found: Mapping[str, Any]) -> None:
    """Tables of :func:`listing`."""
    out = console()
    rows = [[s["name"], s["description"], ", ".join(s["settings"]) or "-"] for s in found["strategies"]]
    out.print(terminal_table("Strategies", ("name", "description", "settings"), rows, left=3))
    rows = [[t["name"], t["description"], f"{len(t['devices'])}" if t["devices"] else "none"] for t in found["tasks"]]
    out.print(terminal_table("Tasks", ("name", "description", "devices"), rows, left=3))
    rows = [[d["name"], d["description"]] for d in found["devices"]]
    out.print(terminal_table("Devices", ("name", "description"), rows, left=2))
    rows = [row for t in found["tables"] for row in _origin(t)]
    out.print(terminal_table("Published tables that come with the package", ("name", "", ""), rows, left=3))


def _origin(entry: Mapping[str, Any]) -> list[list[str]]:
    what = [["content", entry["title"]], ["from", entry["source"]], ["licence", entry["licence"]], ["cite", entry["citation"]]]
    return [[entry["name"] if i == 0 else "", *row] for i, row in enumerate(what)]


def print_summary(summary: Mapping[str, Any]) -> None:
    """One table a group, best first, then ranks over all groups and the tests."""
    out = console()
    for group in summary["groups"]:
        _print_table(out, *_group_table(group))
    if len(summary["ranks"]) > 1 and summary["groups"]:
        found = summary["tests"] or {"wilcoxon_holm_p": {}, "best": None, "friedman_p": None, "blocks": 0}
        p = found["wilcoxon_holm_p"]
        rows = [[s, f"{rank:.2f}", "best" if s == found["best"] else _p(p.get(s))] for s, rank in summary["ranks"].items()]
        count = len(summary["groups"])
        title = f"Mean rank over {count} task{'' if count == 1 else 's'}, and p against the best (Wilcoxon, Holm)"
        _print_table(out, title, ("strategy", "mean rank", "p"), rows)
        if found["friedman_p"] is not None:
            out.print(f"All alike? Friedman's test over {found['blocks']} blocks of task and seed: p {_p(found['friedman_p'])}")


def _print_table(out: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The title on a line of its own: within the table it would be folded to the table's width."""
    out.print(f"\n[bold]{title.replace('[', chr(92) + '[')}[/bold]", soft_wrap=True)
    out.print(terminal_table("", columns, rows, left=1))


def _group_table(group: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows."""
    columns = ["strategy", *(f"after {step}" for step in group["steps"][-_SHOWN:])]
    single = group["measure"] == "regret"
    oracle = single and group["mode"] == "oracle"
    columns += (["test accuracy, mean ± sd"] if single else []) + (["evaluations to the optimum"] if oracle else []) + ["seconds"]
    ordered = sorted(group["strategies"].items(), key=lambda item: _last(item[1]["median"]))
    rows = []
    for name, found in ordered:
        cells = [_span(m, q) for m, q in zip(found["median"][-_SHOWN:], found["quartiles"][-_SHOWN:], strict=True)]
        if single:
            cells.append(_mean_and_spread(found["test_accuracy"]))
        if oracle:
            cells.append(_optimum(found["optimum"]))
        rows.append([name, *cells, f"{found['seconds']:.2f}"])
    unit = f" in {group['unit']}" if group["unit"] else ""
    where = Group(group["task"], group["device"], group["mode"], tuple(group["limits"]))
    title = f"{where}, {group['mode']}, {group['seeds']} seeds: {group['measure']}{unit}, median [quartiles]"
    return title, columns, rows


def _last(values: list[float | None]) -> float:
    return float("inf") if values[-1] is None else values[-1]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _span(middle: float | None, quartiles: list[float | None]) -> str:
    return f"{_number(middle)} [{_number(quartiles[0])}, {_number(quartiles[1])}]"


def _mean_and_spread(accuracy: Mapping[str, Any]) -> str:
    if accuracy["mean"] is None:
        return "-"
    return f"{accuracy['mean']:.2f} ± {accuracy['sd']:.2f} %" if accuracy["sd"] is not None else f"{accuracy['mean']:.2f} % (one seed)"


def _optimum(found: Mapping[str, Any]) -> str:
    middle = "not reached" if found["median_evaluations"] is None else f"{found['median_evaluations']:.0f}"
    return f"{middle} ({100 * found['reached']:.0f} % of seeds)"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 1e-3 else f"{value:.3f}"
