"""What was asked, what was delivered, and whether each promised limit holds: measured value beside limit, with the slack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sartor.report.values import (
    NO_BREAK,
    NOT_MEASURED,
    Record,
    count,
    display,
    joined,
    latency_interval,
    mapping,
    metric_value,
    name_of,
    number,
    objectives,
    platforms,
    records,
    searched,
    show,
    sign,
    strings,
)

Verdict = Literal["kept", "narrow", "broken", "unmeasured"]

VERDICT_WORDS: dict[Verdict, str] = {
    "kept": "kept",
    "narrow": "kept, but within measurement error",
    "broken": "broken",
    "unmeasured": NOT_MEASURED,
}


MODELLED = (
    "no latency here was measured: the device was not at hand, and its latencies are those of a model made from its file. They tell which "
    "network is faster rather than how fast it is."
)


def modelled(result: Record) -> bool:
    """Whether the latencies of a result come from a model of the device; results of old say nothing and are measured."""
    return mapping(result.get("device")).get("measured") is False


@dataclass(frozen=True)
class Check:
    """One limit held against one model. `value` and `bound` in the metric's base unit; `slack` relative to the bound, negative = beyond."""

    model: str
    metric: str
    bound: float
    value: float | None
    slack: float | None
    verdict: Verdict


def limits(result: Record) -> list[tuple[str, float, str]]:
    """The readable limits of a result as ``(metric, bound, statistic)``; an entry without a metric or a finite bound is left out."""
    found = []
    for limit in records(result.get("limits")):
        bound = number(limit.get("bound"))
        if bound is not None and limit.get("metric"):
            found.append((str(limit["metric"]), bound, str(limit.get("statistic") or "p50")))
    return found


def modelled_metric(result: Record, metric: str) -> bool:
    """Whether a metric is a latency, or made of latencies, of which at least one comes from the model of a device."""
    further = platforms(result)
    if metric in ("weighted_latency_ms", "worst_latency"):
        return modelled(result) or not all(further.values())
    device = metric.partition("@")[2]
    return not further.get(device, True) if device else metric.startswith("latency_ms") and modelled(result)


def limit_words(metric: str, bound: float, statistic: str) -> str:
    """A limit in words: ``"Latency (p90) at most 2.00 ms"``."""
    which = f" ({'median' if statistic == 'p50' else statistic})" if metric.partition("@")[0] == "latency_ms" else ""
    return f"{display(metric).label}{which} {'at most' if sign(metric) > 0 else 'at least'} {show(metric, bound)}"


def check(model: Record, metric: str, bound: float, statistic: str) -> Check:
    """Hold one limit against one model.

    A median latency under the bound whose confidence interval reaches over it is "narrow": kept, but a second measurement may disagree.
    """
    value = metric_value(model, metric, statistic)
    if value is None:
        return Check(name_of(model), metric, bound, None, None, "unmeasured")
    room = sign(metric) * (bound - value)
    slack = room / abs(bound) if bound else None
    verdict: Verdict = "kept" if room >= 0 else "broken"
    base, _, device = metric.partition("@")
    interval = latency_interval(model, device) if base == "latency_ms" and statistic == "p50" else None
    if verdict == "kept" and interval is not None and interval[1] > bound:
        verdict = "narrow"
    return Check(name_of(model), metric, bound, value, slack, verdict)


def checks(model: Record, result: Record) -> list[Check]:
    """Every limit of the result held against `model`, in the result's order."""
    return [check(model, *limit) for limit in limits(result)]


def keeps_all(model: Record, result: Record) -> bool:
    """Whether every limit was measured and kept."""
    return all(c.verdict in ("kept", "narrow") for c in checks(model, result))


def tightest(found: Sequence[Check]) -> Check | None:
    """The check with the least slack among those measured: the one that decides whether the promise holds."""
    measured = [c for c in found if c.value is not None]
    return min(measured, key=lambda c: c.slack if c.slack is not None else sign(c.metric) * (c.bound - (c.value or 0.0)), default=None)


def overall(found: Sequence[Check]) -> Verdict:
    """The worst verdict: a promise is only as good as its worst model, and an unmeasured one is not kept."""
    for verdict in ("broken", "unmeasured", "narrow"):
        if any(c.verdict == verdict for c in found):
            return verdict
    return "kept" if found else "unmeasured"


def asked(result: Record) -> str:
    """What was asked, in one sentence."""
    data, device = mapping(result.get("data")), mapping(result.get("device"))
    classes, shape = strings(data.get("classes")), strings(data.get("input_shape"))
    sizes = [f"{len(classes):,} classes"] if classes else []
    sizes += [f"{'×'.join(shape)} inputs"] if shape else []
    details = ", ".join(sizes)
    task = f"for {data.get('name') or 'an unnamed data set'}" + (f" ({details})" if details else "")
    wish = joined(display(metric).best for metric in objectives(result))
    bounds = [_inside(limit_words(*limit)) for limit in limits(result)]
    condition = f", with {joined(bounds)}" if bounds else ", with no limit"
    names = [str(name) for name in (device.get("name"), *platforms(result)) if name]
    where = f" on {joined(names)}" if names else ""
    precision = f" ({device['precision']})" if device.get("precision") else ""
    return f"Networks {task} of {wish}{where}{precision}{condition}."


def _how(result: Record, metric: str) -> str:
    return "modelled" if modelled_metric(result, metric) else "measured"


def _inside(words: str) -> str:
    """`words` as they stand inside a sentence: small first letter, but for an acronym."""
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]


def delivered(result: Record) -> str:
    """What was delivered, in plain words, without hiding a broken promise or an unfinished run."""
    models = searched(result)
    if not models:
        refused = len(records(result.get("refused")))
        why = f"; {count(refused, 'candidate')} {'was' if refused == 1 else 'were'} refused (reasons below)" if refused else ""
        return {"partial": f"No network was finished before the run stopped{why}."}.get(
            str(result.get("status")), f"No network was delivered{why}."
        )
    found = [c for model in models for c in checks(model, result)]
    text = f"{count(len(models), 'network')}{_span(models)}."
    if not found:
        return f"{text} No limit was set, so there is none to break."
    good = sum(keeps_all(model, result) for model in models)
    noun = "limit" if len(limits(result)) == 1 else "limits"
    words = {
        "kept": f"Every network keeps {'the limit' if noun == 'limit' else 'all limits'}.",
        "narrow": f"Every network keeps the {noun}, but at least one of them only within measurement error.",
        "broken": f"{good} of {len(models)} keep {'the limit' if noun == 'limit' else 'every limit'}: a promise is broken.",
        "unmeasured": f"{good} of {len(models)} are known to keep the {noun}; for the others it was not measured.",
    }
    return f"{text} {words[overall(found)]}"


def _span(models: Sequence[Record]) -> str:
    """From the fastest to the most accurate: ``", from 94.10 % accuracy at 0.0500 ms to 98.20 % at 0.210 ms"``; empty when unmeasured."""
    known = [(a, t) for m in models if (a := metric_value(m, "accuracy")) is not None and (t := metric_value(m, "latency_ms")) is not None]
    if not known:
        return ""
    fast, best = min(known, key=lambda p: (p[1], -p[0])), max(known, key=lambda p: (p[0], -p[1]))
    first = f"{show('accuracy', fast[0])} accuracy at {show('latency_ms', fast[1])}"
    return (
        f"; the fastest is also the most accurate: {first}"
        if fast == best and len(known) > 1
        else f": {first}"
        if fast == best
        else f", from {first} to {show('accuracy', best[0])} at {show('latency_ms', best[1])}"
    )


def closest(result: Record) -> str | None:
    """When no delivered network keeps every limit: which one comes nearest, and by how much it is over. None otherwise."""
    ranked = []
    for model in searched(result):
        found = checks(model, result)
        if not found or keeps_all(model, result):
            return None
        over = [-c.slack for c in found if c.verdict == "broken" and c.slack is not None]
        if over and all(c.value is not None for c in found):
            ranked.append((sum(over), model))
    if not ranked:
        return None
    model = min(ranked, key=lambda pair: pair[0])[1]
    misses = joined(
        f"{_inside(limit_words(*limit))}: {show(limit[0], c.value)} {_how(result, limit[0])} "
        f"({-c.slack * 100:.1f}{NO_BREAK}% beyond the limit)"
        for limit, c in zip(limits(result), checks(model, result), strict=True)
        if c.verdict == "broken" and c.slack is not None
    )
    return f"Closest: {name_of(model)}, which misses {misses}."
