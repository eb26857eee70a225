"""Latencies of networks learned from a few that were measured, from other devices, or from single operations: behind `sartor predict`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.deploy.pairs import Pair, precision_of_all, read_operations, read_pairs, resolved
from sartor.errors import UserError
from sartor.hardware.devices import find
from sartor.hardware.fusion import as_run, rules
from sartor.hardware.graph import Op
from sartor.hardware.onnx_graph import onnx_graph
from sartor.predictors.latency.active import choose as most_telling
from sartor.predictors.latency.active import expectation
from sartor.predictors.latency.additive import Prior, fit_additive, vague_prior
from sartor.predictors.latency.features import Readings, graph_columns, kind_of
from sartor.predictors.latency.judgement import Judgement, judge
from sartor.predictors.latency.model import cross_judge, intervals
from sartor.predictors.latency.ops import FEWEST as ENOUGH
from sartor.predictors.latency.ops import OpModel, fit_ops, op_features
from sartor.predictors.latency.transfer import learn_prior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST, MOST = 4, 5000  # measured networks in one file
COVERAGE = 0.9
_SOURCES = 2  # other devices that a prior needs
_FOLDS = 5


def predicted(
    files: Sequence[Path], pairs: Path | None = None, others: Sequence[Path] = (), *, ops: Path | None = None, device: str | None = None,
    runtime: str | None = None, choose: int = 0, coverage: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Latencies of ONNX files from measured ones: Bayesian regression on counts of operations, with conformal intervals (CV+).

    With `others` the costs begin from what these devices have in common (:func:`sartor.predictors.latency.transfer.learn_prior`). With
    `ops` networks are sums of measured and learned latencies of operations, corrected by the pairs where there are any; no intervals then.
    `device` tells how wide vectors are and how its runtime fuses; `runtime` names another runtime.

    The record has `precision`, `device`, `learned_from` (networks), `others` (devices), `operations` (number, or None), `coverage`;
    `judgement` (each measured network predicted without it; None without any), `verdict`, `predicted`: `file`, `latency_ms`, `low_ms`,
    `high_ms` (None where nothing can be said), `measured_ms` and `refused` (None, or why) of each network; and `next`, files.

    Raises:
        UserError: for files that are no ONNX or of several precisions, tables that are not as expected, and nothing to learn from.
    """
    if coverage is not None and not 0.5 <= coverage < 1:
        raise UserError(f"coverage: expected a share from 0.5 to below 1, but got {coverage:g}.")
    if pairs is None and ops is None and not choose:
        raise UserError("pairs: expected --pairs or --ops to learn from, or --next N to be told what to measure first, but got neither.")
    if ops is not None and (choose or others or device or runtime or coverage is not None):
        raise UserError("ops: expected none of --next, --other, --device, --runtime and --coverage beside it: they are for whole networks.")
    own = [] if pairs is None else read_pairs(pairs, FEWEST, MOST)
    sources = _sources(others, own)
    nets = _Networks(files, [own, *sources.values()], device, runtime)
    facts: dict[str, Any] = {
        "precision": nets.precision, "device": device, "runtime": nets.runtime, "learned_from": len(own), "others": list(sources),
        "operations": None, "coverage": None if ops else coverage or COVERAGE,
    }  # fmt: skip
    if ops is not None:
        return facts | _by_operations(nets, own, *read_operations(ops, nets.precision))
    return facts | _by_networks(nets, own, sources, choose, coverage or COVERAGE)


def _sources(others: Sequence[Path], own: Sequence[Pair]) -> dict[str, list[Pair]]:
    if len(others) == 1:
        raise UserError(f"other: expected at least {_SOURCES} devices, since how they differ is what is learned, but got 1.")
    found = {path.stem: read_pairs(path, FEWEST, MOST, "other") for path in others}
    if len(found) < len(others):
        raise UserError("other: expected files of different names, which name the devices, but two are alike.")
    mine = {pair.file: pair.latency_ms for pair in own}
    for path, known in zip(others, found.values(), strict=True):
        ratios = [pair.latency_ms / mine[pair.file] for pair in known if pair.file in mine]
        if len(ratios) >= FEWEST and max(ratios) < (1 + 1e-6) * min(ratios):
            raise UserError(
                f"other: expected the latencies of another device, but those in {path} are your own: they would judge themselves."
            )
    return found


class _Networks:
    """The op graphs of all files, each read once, as they stand and as the runtime executes them. `files` are those to predict."""

    def __init__(self, files: Sequence[Path], tables: Sequence[Sequence[Pair]], device: str | None, runtime: str | None) -> None:
        self.files = list(dict.fromkeys(resolved(path, "FILE.onnx") for path in files))
        paths = list(dict.fromkeys([*self.files, *(pair.file for table in tables for pair in table)]))
        graphs = [onnx_graph(path) for path in paths]
        self.precision = precision_of_all(graphs, paths)
        spec = None if device is None else find(device)
        self.lanes = 1 if spec is None else spec.lanes.get("fp32") or max(1, spec.lanes.get("int8", 1) // 4)  # 32-bit accumulators
        self.runtime = runtime or (None if spec is None else spec.runtime)
        if runtime is not None:
            rules(runtime, self.precision)  # one without is refused
        self.plain = dict(zip(paths, graphs, strict=True))
        self.executed = {path: as_run(graph, self.runtime or "", self.precision) for path, graph in self.plain.items()}
        self.measured = list(dict.fromkeys(pair.file for table in tables for pair in table))

    def refused(self, kinds: Sequence[str]) -> dict[Path, str]:
        """Networks with an operation of a kind that was not measured, which a model must not price: why."""
        found = {}
        for path in self.files:
            unknown = sorted({kind_of(op) for op in self.executed[path]} - set(kinds))
            if unknown:
                found[path] = f"no measured network has an operation of kind {unknown[0]}"
        return found


# -- from whole networks ---------------------------------------------------------------------------------------------------


def _by_networks(
    nets: _Networks, own: Sequence[Pair], sources: Mapping[str, Sequence[Pair]], choose: int, coverage: float
) -> dict[str, Any]:  # fmt: skip
    learned = nets.measured or nets.files  # with nothing measured, all kinds are as unknown
    kinds = sorted({kind_of(op) for path in learned for op in nets.executed[path]})
    refused = nets.refused(kinds)
    paths = [path for path in nets.executed if path not in refused]
    readings = {"all": graph_columns([nets.executed[path] for path in paths], kinds, lanes=nets.lanes)[0]}
    row = {path: number for number, path in enumerate(paths)}
    rows, latency = np.array([row[pair.file] for pair in own], dtype=int), np.array([pair.latency_ms for pair in own])
    prior = _prior(readings, {name: [(row[p.file], p.latency_ms) for p in pairs] for name, pairs in sources.items()})
    wanted = [path for path in nets.files if path not in refused]
    at = np.array([row[path] for path in wanted], dtype=int)
    said, judgement = {}, None
    if len(own) and len(wanted):
        found = intervals(readings, rows, latency, at, prior=prior, coverage=coverage)
        said = {path: _figures(*three) for path, three in zip(wanted, zip(found.centre, found.low, found.high, strict=True), strict=True)}
    if len(own):
        judgement = cross_judge({"all": readings["all"][rows]}, latency, prior=prior)
    return {
        "judgement": None if judgement is None else judgement.to_json(),
        "verdict": _verdict(judgement, "networks"),
        "predicted": _told(nets, own, said, refused),
        "next": [str(paths[n]) for n in _next(readings, rows, latency, at, prior, choose)] if choose else [],
    }


def _prior(readings: Readings, sources: Mapping[str, Sequence[tuple[int, float]]]) -> Prior | None:
    """What the other devices have in common, each known on networks of its own."""
    if not sources:
        return None
    tables = {name: np.full(len(readings["all"]), np.nan) for name in sources}
    for name, known in sources.items():
        for row, latency in known:
            tables[name][row] = latency
    return learn_prior(readings, tables, sample=None)


def _next(
    readings: Readings, rows: Ints, latency: Floats, at: Ints, prior: Prior | None, count: int
) -> list[int]:  # fmt: skip
    """Rows of the networks to measure next, among those to predict."""
    candidates = {"all": readings["all"][at]}
    left = [number for number, row in enumerate(at) if row not in set(rows.tolist())]
    if not left:
        raise UserError("next: expected networks that were not measured yet among those to predict, but all of them were, or are refused.")
    if not 1 <= count <= len(left):
        raise UserError(f"next: expected 1 to {len(left)}, the networks that were not measured, but got {count}.")
    if len(rows):
        model = fit_additive({"all": readings["all"][rows]}, latency, prior)
    else:
        model = expectation(prior or vague_prior(candidates))
    taken = np.setdiff1d(np.arange(len(at)), left)
    return [int(at[number]) for number in most_telling(model, candidates, count, measured=taken)]


# -- from single operations ------------------------------------------------------------------------------------------------


def _by_operations(nets: _Networks, own: Sequence[Pair], ops: Sequence[Op], latency_ms: Floats) -> dict[str, Any]:
    """Sums over the operations of networks as they stand, since operations were measured one by one: as measured, else as learned."""
    counts = Counter(kind_of(op) for op in ops)
    common = [number for number, op in enumerate(ops) if counts[kind_of(op)] >= ENOUGH]
    if not common:
        raise UserError(f"ops: expected at least {ENOUGH} measured operations of a kind, but got {max(counts.values())} at most.")
    model = fit_ops([ops[number] for number in common], latency_ms[common]).with_measured(ops, latency_ms)

    def lacking(path: Path) -> str | None:
        kind = next((kind_of(op) for op in nets.plain[path] if not model.knows(op)), None)
        return (
            kind and f"of kind {kind} it has an operation that was not measured, and to learn from {ENOUGH} are needed, not {counts[kind]}"
        )

    refused = {path: why for path in nets.files if (why := lacking(path)) is not None}
    lost = next(((pair.file, why) for pair in own if (why := lacking(pair.file)) is not None), None)
    if lost is not None:
        raise UserError(f"pairs: expected networks of operations that can be priced, but got {lost[0]}: {lost[1]}.")
    if own:
        model = model.calibrated([nets.plain[pair.file] for pair in own], np.array([pair.latency_ms for pair in own]))
    learned = [ops[number] for number in common]
    judgement = _judge_networks(model, nets, own) if own else _judge_operations(learned, latency_ms[common], counts)
    wanted = [path for path in nets.files if path not in refused]
    figures = model.predict([nets.plain[path] for path in wanted]).tolist() if wanted else []
    told = {path: _figures(ms) for path, ms in zip(wanted, figures, strict=True)}
    return {
        "operations": len(ops), "judgement": None if judgement is None else judgement.to_json(),
        "verdict": _verdict(judgement, "networks" if own else "operations that were learned, not looked up,"),
        "predicted": _told(nets, own, told, refused), "next": [],
    }  # fmt: skip


def _judge_networks(model: OpModel, nets: _Networks, own: Sequence[Pair]) -> Judgement:
    graphs, measured = [nets.plain[pair.file] for pair in own], np.array([pair.latency_ms for pair in own])
    guess = np.empty(len(own))
    for held in np.array_split(np.random.default_rng(0).permutation(len(own)), min(_FOLDS, len(own))):
        kept = np.setdiff1d(np.arange(len(own)), held)
        guess[held] = model.calibrated([graphs[i] for i in kept], measured[kept]).predict([graphs[i] for i in held])
    return judge(guess, measured)


def _judge_operations(ops: Sequence[Op], latency_ms: Floats, counts: Mapping[str, int]) -> Judgement | None:
    """Kind by kind in folds, where so many were measured that enough are left."""
    guess = np.full(len(ops), np.nan)
    for kind in [kind for kind, count in counts.items() if count - -(-count // _FOLDS) >= ENOUGH]:
        rows = np.array([number for number, op in enumerate(ops) if kind_of(op) == kind])
        # What differs only in its activation looks alike to the model: it is left out together.
        _, alike = np.unique(op_features([ops[i] for i in rows]), axis=0, return_inverse=True)
        fold = np.random.default_rng(0).permutation(alike.max() + 1)[alike] % _FOLDS
        for held in [rows[fold == number] for number in range(_FOLDS) if (fold == number).any()]:
            kept = np.setdiff1d(rows, held)
            if len(kept) < ENOUGH:
                continue
            guess[held] = fit_ops([ops[i] for i in kept], latency_ms[kept]).op_latency([ops[i] for i in held])[0]
    judged = np.isfinite(guess)
    return judge(guess[judged], latency_ms[judged]) if judged.any() else None


# -- telling ---------------------------------------------------------------------------------------------------------------


def _figures(centre: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    ends = [float(end) if end is not None and 0 < end < math.inf else None for end in (low, high)]
    return {"latency_ms": float(centre), "low_ms": ends[0], "high_ms": ends[1]}


def _told(
    nets: _Networks, own: Sequence[Pair], said: Mapping[Path, Mapping[str, Any]], refused: Mapping[Path, str]
) -> list[dict[str, Any]]:  # fmt: skip
    nothing = {"latency_ms": None, "low_ms": None, "high_ms": None}
    known = {pair.file: pair.latency_ms for pair in own}
    return [
        {"file": str(path), **said.get(path, nothing), "measured_ms": known.get(path), "refused": refused.get(path)} for path in nets.files
    ]


def _verdict(judgement: Judgement | None, what: str) -> str:
    return "too few were measured to judge it" if judgement is None else judgement.sentence().replace("networks", what)
