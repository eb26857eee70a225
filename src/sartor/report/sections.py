"""The parts of the page that are complete without JavaScript: what was promised, compared, predicted, refused, and how it was measured."""

from __future__ import annotations

from sartor.report.analysis import beaten_by, comparison, exchanges, prediction_words, predictions
from sartor.report.decisions import Decision
from sartor.report.markup import Html, join, section, table, tag
from sartor.report.promises import (
    MODELLED,
    VERDICT_WORDS,
    Check,
    asked,
    checks,
    closest,
    delivered,
    limit_words,
    limits,
    modelled,
    modelled_metric,
    overall,
    tightest,
)
from sartor.report.values import (
    NOT_MEASURED,
    Record,
    count,
    display,
    duration,
    joined,
    latency_interval,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    percent,
    records,
    rivals,
    searched,
    show,
    significant,
    strings,
)

BANNERS = {
    "partial": "This run stopped before its end. What follows is what it had reached; anything missing is marked “not measured”.",
    "infeasible": "No network in this search space was found that keeps every limit. What follows is the nearest that there is.",
}


NOT_TESTED = "of the exported file on validation data, not tested yet"


def banner(result: Record) -> Html:
    """Warnings above everything else: the run is not complete, or its latencies are those of a model."""
    status = str(result.get("status") or "partial")
    warnings: list[Html] = []
    if status != "complete":
        words = BANNERS.get(status, "This status is unknown to this report.")
        warnings.append(tag("p", tag("strong", f"Status: {status}. "), words, class_="banner", role="status"))
    if modelled(result):
        warnings.append(tag("p", tag("strong", "Not measured. "), MODELLED, class_="banner", role="status"))
    return join(warnings)


def summary(result: Record, choices: list[Decision]) -> Html:
    """The headline: asked, delivered, whether the promises hold, and the recommended networks."""
    facts = [tag("dt", "Asked"), tag("dd", asked(result)), tag("dt", "Delivered"), tag("dd", delivered(result))]
    near = closest(result)
    if near:
        facts += [tag("dt", "Nearest"), tag("dd", near)]
    facts += [tag("dt", "Against hand-designed networks"), tag("dd", comparison(result).words)]
    everyone = [*searched(result), *rivals(result)]
    noisy = sum(bool(mapping(m.get("latency")).get("noisy")) for m in everyone)
    if noisy:
        words = f"{noisy} of {len(everyone)} latencies were measured on a machine that was not quiet: small differences mean nothing."
        facts += [tag("dt", "Mind"), tag("dd", words)]
    picks = tag("ul", *(tag("li", tag("strong", f"{d.title}: {d.ranking[0].name}. "), d.ranking[0].reason) for d in choices if d.ranking))
    recommended = join([tag("h3", "Which one to take"), picks]) if any(d.ranking for d in choices) else Html("")
    return section("summary", "In short", tag("dl", *facts, class_="facts"), _promises(result), recommended)


def verdict_mark(verdict: str, words: str) -> Html:
    """A verdict as a word with a sign, never by colour alone."""
    signs = {"kept": "✓", "won": "✓", "narrow": "≈", "level": "≈", "broken": "✗", "lost": "✗"}
    return tag("span", tag("span", signs.get(verdict, "–"), aria_hidden="true"), f" {words}", class_=f"verdict {verdict}")


def _promises(result: Record) -> Html:
    rules, models = limits(result), searched(result)
    if not rules:
        return Html("")
    rows: list[list[object]] = []
    for position, (metric, bound, statistic) in enumerate(rules):
        found = [checks(model, result)[position] for model in models]
        worst = tightest(found)
        kept = sum(c.verdict in ("kept", "narrow") for c in found)
        measured = f"{show(metric, worst.value)} ({worst.model})" if worst else NOT_MEASURED
        verdict = overall(found)
        rows.append(
            [
                limit_words(metric, bound, statistic) + (" (modelled, not measured)" if modelled_metric(result, metric) else ""),
                measured,
                slack_words(worst),
                f"{kept} of {len(models)}",
                verdict_mark(verdict, VERDICT_WORDS[verdict]),
            ]
        )
    headers = ["Limit", "Measured, network with least slack", "Slack", "Networks that keep it", "Verdict"]
    return join(
        [tag("h3", "Do the promises hold?"), table("Limits asked for, beside what was measured", headers, rows), _each_promise(result)]
    )


def _each_promise(result: Record) -> Html:
    rules = limits(result)
    rows = []
    for model in searched(result):
        cells = [f"{show(c.metric, c.value)} ({slack_words(c)})" if c.value is not None else NOT_MEASURED for c in checks(model, result)]
        verdict = overall(checks(model, result))
        rows.append([name_of(model), *cells, verdict_mark(verdict, VERDICT_WORDS[verdict])])
    every = table(
        "Every network against every limit: measured value (slack)", ["Network", *(limit_words(*r) for r in rules), "Verdict"], rows
    )
    return tag("details", tag("summary", "Every network against every limit"), every) if rows else Html("")


def slack_words(found: Check | None) -> str:
    """``"12.0 % below the limit"``, ``"3.1 % over"``; slack is on the good side whichever way the limit points."""
    if found is None or found.slack is None:
        return NOT_MEASURED
    return f"{found.slack * 100:.1f} % slack" if found.slack >= 0 else f"{-found.slack * 100:.1f} % beyond"


def against_ladder(result: Record) -> Html:
    """Won or lost, both hypervolumes, their ratio, speed at the ladder's best accuracy, and who beats each hand-designed network."""
    found = comparison(result)
    reference = mapping(mapping(result.get("comparison")).get("reference"))
    point = joined(f"{display(str(k)).label.lower()} {show(str(k), number(v))}" for k, v in reference.items()) or NOT_MEASURED
    figures = [
        ["Hypervolume, search", _figure(found.hypervolume_search)],
        ["Hypervolume, hand-designed ladder", _figure(found.hypervolume_ladder)],
        ["Ratio", _figure(found.ratio)],
        [
            "Speed at the ladder's best accuracy",
            f"{significant(found.speedup, 3)} ×" if found.speedup is not None else "not reached or not measured",
        ],
        ["Reference point", point],
    ]
    rows = []
    for rival in rivals(result):
        winners = beaten_by(rival, result)
        by = NOT_MEASURED if winners is None else joined(winners) if winners else "none: it stands"
        kind = "random control" if rival.get("origin") == "control" else "hand-designed"
        rows.append([name_of(rival), kind, *(show(n, metric_value(rival, n)) for n in objectives(result)), by])
    numeric = range(2, 2 + len(objectives(result)))
    headers = ["Network", "Kind", *(display(n).label for n in objectives(result)), "Beaten by"]
    ladder = (
        table("Networks the search is compared with", headers, rows, numeric=numeric) if rows else tag("p", "No baseline was measured.")
    )
    words = tag("p", verdict_mark(found.verdict, ""), found.words)
    note = tag(
        "p",
        "Hypervolume is the area between a front and the reference point: larger is better, and one number hides where along the front "
        "the difference lies. “Beaten” means at least as good in every objective and better in one.",
        class_="note",
    )
    return section(
        "comparison",
        "Against hand-designed networks",
        words,
        table("Fronts compared", ["Figure", "Value"], figures, numeric=[1]),
        ladder,
        note,
    )


def _figure(value: float | None) -> str:
    return significant(value) if value is not None else NOT_MEASURED


def predicted(result: Record) -> Html:
    """Predicted beside measured, metric by metric."""
    found = predictions(result)
    if not found:
        return section("predictions", "Predicted and measured", tag("p", f"Predictions: {NOT_MEASURED}."))
    parts: list[Html] = []
    for metric in dict.fromkeys(p.metric for p in found):
        group = [p for p in found if p.metric == metric]
        rows = [
            [p.model, show(metric, p.predicted), show(metric, p.measured), percent(p.error) if p.error is not None else NOT_MEASURED]
            for p in group
        ]
        label = display(metric).label
        words = tag("p", tag("strong", f"{label}: "), f"{prediction_words(group)}.")
        grid = table(f"{label}, predicted and measured", ["Network", "Predicted", "Measured", "Error"], rows, numeric=[1, 2, 3])
        chart = tag(
            "div",
            class_="chart small",
            data_chart="prediction",
            data_metric=metric,
            role="img",
            aria_label=f"{label}: predicted against measured",
        )
        parts += [words, tag("div", chart, grid, class_="pair")]
    note = (
        "Predicted: what the search believed while it ran (latency: table of layers; accuracy: shared weights, validation data). "
        "Measured: the exported file, accuracy on test data."
    )
    return section("predictions", "Predicted and measured", *parts, tag("p", note, class_="note"))


def trade_offs(result: Record) -> Html:
    """The normalised trade-off between neighbours on the front."""
    steps, names = exchanges(result), objectives(result)
    if not steps:
        return section("trade-offs", "What the next step costs", tag("p", "A trade-off needs two measured networks on the front."))
    one, two = (display(n).label for n in names[:2])
    rows = [[f"{s.a} → {s.b}", percent(s.first, 2), percent(s.second), significant(s.rate, 3)] for s in steps]
    headers = ["Step", f"Δ{one}, relative", f"Δ{two}, relative", "Trade-off"]
    note = tag(
        "p",
        f"Trade-off (Δf₁/f₁)/(Δf₂/f₂): the per cent of {one.lower()} that one per cent of {two.lower()} buys. The smaller, the dearer.",
        class_="note",
    )
    return section(
        "trade-offs", "What the next step costs", table("Steps between neighbours on the front", headers, rows, numeric=[1, 2, 3]), note
    )


def refused(result: Record) -> Html:
    """Networks that were not delivered, each with its reason."""
    rows = [[name_of(r), str(r.get("reason") or "no reason recorded")] for r in records(result.get("refused"))]
    body = table("Refused networks", ["Network", "Reason"], rows) if rows else tag("p", "None was refused.")
    return section("refused", "Refused", body)


def how_measured(result: Record) -> Html:
    """Device, runtime, threads, runs, statistic, noise, data splits."""
    device, data = mapping(result.get("device")), mapping(result.get("data"))
    runtime = " ".join(str(device[k]) for k in ("runtime", "version") if device.get(k)) or NOT_MEASURED
    everyone = [*searched(result), *rivals(result)]
    processor = f" ({device['cpu']})" if device.get("cpu") else ""
    classes = strings(data.get("classes"))
    named = joined(classes) if len(classes) <= 30 else f"{', '.join(classes[:10])} and {len(classes) - 10:,} more"
    tested = any(mapping(m.get("test")) for m in everyone)
    runs = [r for m in everyone if (r := number(mapping(m.get("latency")).get("runs"))) is not None]
    splits = [f"{s} {n:,.0f}" for s in ("train", "validation", "test") if (n := number(data.get(s))) is not None]
    rows = [
        ["Device", f"{device.get('name') or NOT_MEASURED}{processor}{': modelled, not measured' if modelled(result) else ''}"],
        *([f"Further device {one.get('name') or 'unnamed'}", _further(one)] for one in records(result.get("platforms"))),
        ["Runtime", runtime],
        ["Precision", str(device.get("precision") or NOT_MEASURED)],
        ["Threads", str(device.get("threads") or NOT_MEASURED)],
        ["Batch", str(device.get("batch") or NOT_MEASURED)],
        [
            "Runs of each network",
            f"{min(runs):,.0f}" + (f" to {max(runs):,.0f}" if max(runs) > min(runs) else "") if runs else NOT_MEASURED,
        ],
        ["Statistic", "median (p50) with its confidence interval; p10 and p90 beside it; limits are judged by the statistic they name"],
        ["Ranked by", "the quiet latency: the median over moments in which the machine ran at full speed, which other work does not move"],
        ["Data", f"{data.get('name') or 'unnamed'}: images {joined(splits)}" if splits else NOT_MEASURED],
        ["Classes", named or NOT_MEASURED],
        ["Accuracy", "of the exported file, on test data that was read once, at the end" if tested else NOT_TESTED],
    ]
    untested = [name_of(m) for m in everyone if not mapping(m.get("test"))]
    validated = tag("p", f"{NOT_TESTED.capitalize()}: {joined(untested)}.", class_="banner") if tested and untested else Html("")
    noisy = [name_of(m) for m in everyone if mapping(m.get("latency")).get("noisy")]
    warning = tag(
        "p",
        tag("strong", "Noise: "),
        f"the machine was not quiet while {joined(noisy)} {'was' if len(noisy) == 1 else 'were'} measured. Treat small differences in "
        f"{'its' if len(noisy) == 1 else 'their'} p50 as unknown, compare quiet latencies, or measure again on an idle machine.",
        class_="banner",
    )
    unknown = [name_of(m) for m in everyone if latency_interval(m) is None]
    silent = tag("p", f"Latency interval {NOT_MEASURED} for: {joined(unknown)}.") if unknown else Html("")
    calm = tag("p", "No measurement was flagged as noisy.") if runs else Html("")
    return section(
        "how", "How it was measured", table("Conditions", ["What", "Value"], rows), warning if noisy else calm, silent, validated
    )


def _further(one: Record) -> str:
    """A further device of the run in words: its processor, how its figures come about, and what was asked of it."""
    limit, weight = number(one.get("limit_ms")), number(one.get("weight"))
    words = [str(one.get("cpu") or "processor unknown"), "modelled, not measured" if one.get("measured") is False else "measured"]
    words += [f"weight {weight:g}"] if weight is not None else []
    words += [f"at most {show('latency_ms', limit)}"] if limit is not None else ["no limit of its own"]
    return "; ".join(words)


def phases(result: Record) -> Html:
    """Where the run's own time went."""
    timed = [(str(p.get("name") or "unnamed"), s) for p in records(result.get("phases")) if (s := number(p.get("seconds"))) is not None]
    total = number(result.get("seconds"))
    if not timed:
        return section("time", "Where the run's time went", tag("p", f"Phases: {NOT_MEASURED}."))
    most = max(max(s for _, s in timed), 1e-9)
    rows = [
        [name, tag("div", class_="bar", style=f"width:{max(s / most, 0) * 100:.1f}%", aria_hidden="true"), duration(s)] for name, s in timed
    ]
    whole = f"{duration(total)} in all, {count(len(timed), 'phase')}." if total else ""
    return section(
        "time", "Where the run's time went", tag("p", whole), table("Phases of the run", ["Phase", "", "Time"], rows, numeric=[2])
    )


def notes(result: Record) -> Html:
    """The run's own notes, the search space and the versions."""
    space, versions = mapping(result.get("space")), mapping(result.get("versions"))
    size = str(space.get("size") or "")
    facts = [
        f"{int(size):,} architectures" if size.isdigit() else "",
        f"fingerprint {space['fingerprint']}" if space.get("fingerprint") else "",
    ]
    lines = [*strings(result.get("notes")), f"Search space: {space.get('name') or 'unnamed'}" + "".join(f", {f}" for f in facts if f) + "."]
    if versions:
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    return section("notes", "Notes", tag("ul", *(tag("li", line) for line in lines)))
