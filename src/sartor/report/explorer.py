"""The interactive part: chart, filter, table of networks, the chosen network; and the data that its script works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from sartor.goals import entry
from sartor.report.analysis import hypervolume_curve, predictions
from sartor.report.decisions import Decision
from sartor.report.markup import Html, join, section, table, tag
from sartor.report.promises import VERDICT_WORDS, checks, limits, overall
from sartor.report.sections import verdict_mark
from sartor.report.values import (
    DISPLAY,
    NOT_MEASURED,
    Record,
    accuracy_error,
    display,
    latency_interval,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    records,
    rivals,
    searched,
    secondary,
    show,
    sign,
    significant,
)

MODEL_FILES = {
    "model.onnx": "deployed model",
    "model_fp32.onnx": "model before quantisation",
    "model.py": "readable source",
    "model.safetensors": "weights",
    "card.md": "model card",
    "card.json": "figures",
}
MOST_TRIALS = 2000
"""Points of the search drawn at most: more slow a browser down and show nothing new."""

KINDS = {"search": "searched", "baseline": "hand-designed", "control": "random control"}


def metrics_present(result: Record) -> list[str]:
    """The metrics that at least one network has, in the order of display, then those unknown to it; other statistics of what is there
    serve no choice."""
    everyone = [*searched(result), *rivals(result)]
    extra = sorted({key for m in everyone for key in map(str, mapping(m.get("metrics"))) if not secondary(key)} - set(DISPLAY))
    return [key for key in (*DISPLAY, *extra) if any(metric_value(m, key) is not None for m in everyone)]


def networks(result: Record) -> list[tuple[str, str, Record]]:
    """Every network as ``(id, kind, record)``: ids ``m0, m1, …`` for searched ones, ``r0, …`` for rivals; kinds as in :data:`KINDS`."""
    found = [(f"m{i}", "search", m) for i, m in enumerate(searched(result))]
    return found + [(f"r{i}", "control" if m.get("origin") == "control" else "baseline", m) for i, m in enumerate(rivals(result))]


def page_data(result: Record, trials: Sequence[Mapping[str, Any]] | None, choices: Sequence[Decision], run_dir: Path) -> dict[str, Any]:
    """What the script needs beside the result: networks with ids and links, metrics, rankings, trials as columns, curve, predictions."""
    keys = metrics_present(result)
    images = number(mapping(result.get("data")).get("test"))
    nets = []
    for identifier, kind, model in networks(result):
        accuracy = metric_value(model, "accuracy")
        nets.append(
            {
                "id": identifier,
                "name": name_of(model),
                "kind": kind,
                "values": {key: metric_value(model, key) for key in keys},
                "interval": latency_interval(model),
                "accuracyError": accuracy_error(accuracy, images) if accuracy is not None else None,
                "verdict": overall(checks(model, result)) if limits(result) else None,
                "links": links(model, run_dir),
                "arch": {str(k): str(v) for k, v in mapping(model.get("arch")).items()},
                "layers": records(model.get("layers")),
                "training": mapping(model.get("training")),
                "tested": bool(mapping(model.get("test"))),
            }
        )
    curve = hypervolume_curve(result, trials)
    return {
        "metrics": [{"key": key, "direction": sign(key), **asdict(display(key))} for key in keys],
        "objectives": objectives(result),
        "limits": [{"metric": m if s == "p50" else entry(m, f"_{s}"), "bound": b} for m, b, s in limits(result)],
        "nets": nets,
        "decisions": [{"key": d.key, "ranking": [{"net": f"m{p.index}", "reason": p.reason} for p in d.ranking]} for d in choices],
        "trials": trial_columns(trials, keys),
        "curve": asdict(curve) if curve else None,
        "predictions": [asdict(p) for p in predictions(result)],
    }


def trial_columns(trials: Sequence[Mapping[str, Any]] | None, keys: Sequence[str]) -> dict[str, Any]:
    """Completed trials as columns, at most :data:`MOST_TRIALS` evenly spaced ones: ``{"total": n, "number": [...], metric: [...]}``."""
    complete = [t for t in trials or [] if t.get("status", "complete") == "complete"]
    chosen = (
        [complete[i] for i in np.unique(np.linspace(0, len(complete) - 1, min(len(complete), MOST_TRIALS)).astype(int))] if complete else []
    )
    columns: dict[str, Any] = {key: [number(mapping(t.get("metrics")).get(key)) for t in chosen] for key in keys}
    return {"total": len(complete), "number": [t.get("number") for t in chosen], "metrics": columns}


def links(model: Record, run_dir: Path) -> list[dict[str, str]]:
    """Links to the model's files that exist, relative to the run folder; nothing outside it is linked."""
    file = model.get("file")
    if not isinstance(file, str) or not file:
        return []
    parent = Path(file).parent
    if parent.is_absolute() or ".." in parent.parts:
        return []
    # Quoted, a colon cannot make a scheme ("javascript:") of the first part of the path.
    found = {Path(file).name: "deployed model", **MODEL_FILES}
    return [
        {"label": name, "title": words, "href": "./" + quote((parent / name).as_posix())}
        for name, words in found.items()
        if (run_dir / parent / name).is_file()
    ]


def explorer(result: Record, choices: Sequence[Decision], run_dir: Path) -> Html:
    """The sections "choose" and "network"; without a script, the picture of the front in `run_dir` stands for the chart."""
    keys = metrics_present(result)
    if not networks(result):
        nothing = section("choose", "Choose a network", tag("p", "There is no network to show yet."))
        return join([nothing, section("network", "One network", tag("p", "There is no network to show yet."))])
    chart = tag(
        "div",
        class_="chart",
        id="front",
        data_chart="front",
        role="img",
        aria_label="Networks by two metrics; the table below holds the same figures",
    )
    picture = tag(
        "img", src="plots/pareto.png", alt="Networks by the first two objectives; the table below holds the figures", class_="still"
    )
    still = tag("noscript", picture) if (run_dir / "plots" / "pareto.png").is_file() else Html("")
    parts = [_presets(choices), _axes(result, keys), chart, still, _filters(keys, bool(limits(result))), _models(result, keys)]
    one = tag(
        "div", tag("p", "Choose a network in the chart or in the table to see its layers.", class_="note"), id="details", aria_live="polite"
    )
    return join([section("choose", "Choose a network", *parts), section("network", "One network: where its time goes", one)])


def _presets(choices: Sequence[Decision]) -> Html:
    buttons = [
        tag("button", d.title, type="button", data_preset=d.key, aria_pressed="false", title=d.rule, disabled=not d.ranking)
        for d in choices
    ]
    rules = tag("dl", *(part for d in choices for part in (tag("dt", d.title), tag("dd", d.rule))), class_="facts")
    about = (
        "All rules choose among the searched networks on the measured front that keep every limit. Each is a ranking; "
        "when the filter hides its first, the button takes the first that is left."
    )
    see = tag("a", "See its layers", href="#network", id="see", hidden=True)
    return tag(
        "div",
        tag("p", "What matters most?", class_="label", id="presets-label"),
        tag("div", *buttons, class_="buttons", role="group", aria_labelledby="presets-label"),
        tag("p", tag("span", id="why", aria_live="polite"), " ", see, class_="why"),
        tag("details", tag("summary", "The rules"), tag("p", about), rules),
        class_="presets",
    )


def _axes(result: Record, keys: Sequence[str]) -> Html:
    names = objectives(result)
    y = names[0] if names[0] in keys else keys[0] if keys else ""
    x = next((n for n in [*names[1:], "latency_ms", *keys] if n in keys and n != y), y)

    def choice(axis: str, chosen: str) -> Html:
        options = [tag("option", display(k).label, value=k, selected=k == chosen) for k in keys]
        return tag("label", f"{axis} axis ", tag("select", *options, id=f"{axis.lower()}-axis", autocomplete="off"))

    log = tag("label", tag("input", type="checkbox", id="log-x", autocomplete="off"), " logarithmic across")
    seen = tag("label", tag("input", type="checkbox", id="show-trials", checked=True, autocomplete="off"), " candidates tried")
    return tag("div", choice("Across", x), choice("Up", y), log, seen, class_="controls")


def _filters(keys: Sequence[str], limited: bool) -> Html:
    rows = []
    for key in keys:
        how, word = display(key), "at most" if sign(key) > 0 else "at least"
        name = f"{how.label} {word}"
        unit = f" {how.unit}" if how.unit else ""
        rows.append(
            tag(
                "div",
                tag("label", name, for_=f"filter-{key}"),
                tag(
                    "input",
                    type="range",
                    id=f"slide-{key}",
                    data_slide=key,
                    min="0",
                    max="1",
                    step="1",
                    value="0",
                    aria_label=f"{name}, by network",
                    autocomplete="off",
                ),
                tag(
                    "span",
                    tag("input", type="number", id=f"filter-{key}", data_filter=key, step="any", placeholder="any", autocomplete="off"),
                    unit,
                ),
                class_="filter",
            )
        )
    buttons = [tag("button", "Show all", type="button", id="filter-clear")]
    if limited:
        buttons.insert(0, tag("button", "Set to the limits of this run", type="button", id="filter-limits"))
    return tag(
        "details",
        tag("summary", "Filter by limit"),
        tag(
            "p",
            "Networks beyond a limit disappear from the chart and the table. One whose figure was not measured is hidden too.",
            class_="note",
        ),
        tag("div", *rows, class_="filters"),
        tag("div", *buttons, class_="buttons"),
        tag("p", id="filter-count", aria_live="polite"),
        id="filter",
    )


def _models(result: Record, keys: Sequence[str]) -> Html:
    shown = [k for k in keys if k != "throughput"]
    headers: list[object] = [
        "Network",
        "Kind",
        *(tag("button", display(k).label, type="button", class_="sort", data_sort=k) for k in shown),
    ]
    rows: list[list[object]] = []
    attributes: list[dict[str, object]] = []
    has_limits = bool(limits(result))
    everyone = sorted(networks(result), key=lambda n: (metric_value(n[2], "latency_ms") is None, metric_value(n[2], "latency_ms") or 0.0))
    for identifier, kind, model in everyone:
        verdict = overall(checks(model, result))
        pick = tag("button", name_of(model), type="button", class_="pick", data_pick=identifier, aria_pressed="false")
        cells: list[object] = [pick, tag("span", KINDS[kind], class_=f"kind {kind}"), *(_cell(model, k) for k in shown)]
        rows.append([*cells, verdict_mark(verdict, VERDICT_WORDS[verdict])] if has_limits else cells)
        attributes.append({"data_net": identifier})
    headers += ["Limits"] if has_limits else []
    return table("All networks; choose one to see its layers", headers, rows, numeric=range(2, 2 + len(shown)), attributes=attributes)


def _cell(model: Record, key: str) -> Html:
    value = metric_value(model, key)
    interval = latency_interval(model) if key == "latency_ms" else None
    if value is None:
        return tag("span", NOT_MEASURED, class_="none")
    if interval is None:
        return tag("span", show(key, value))
    low, high = (significant(v) for v in interval)
    return tag("span", show(key, value), tag("small", f" {low}–{high}"))
