"""Is a limit attainable at all? Asked before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.goals import Limit, metric_of
from sartor.job.context import Job
from sartor.job.further import OWN, all_timings

#: Limits on these are judged here, from the cheapest architecture; limits on accuracy are judged on trained nets, at the end.
_COSTS = ("throughput", "peak_bytes", "file_bytes", "params", "macs", "flash_bytes", "energy_mj", "edp")
#: So are these, when it was exported and timed.
_TIMED = ("latency_ms", "weighted_latency_ms", "worst_latency", "composite_cost", "merit")
#: Below this share of the predicted minimum a limit is out of reach without asking the clock; above the inverse it is not.
_SURE = 0.5


class Unattainable(UserError):
    """A limit that no architecture of the space keeps."""


def check_attainable(job: Job) -> None:
    """Refuse limits that not even the cheapest architecture of the space keeps.

    The cheapest is found by coordinate descent over the choices, on the cost model; for latencies, what follows from them, and file size it
    is then exported and measured. For merit every guess counts as right.

    Raises:
        Unattainable: naming the limit and the best attainable figure.
    """
    for limit in job.goals.limits:
        if metric_of(limit.metric).name not in (*_COSTS, *_TIMED):
            continue
        value = attainable(job, limit)
        if limit.excess({limit.key: value}) > 0:
            where = limit.metric.partition("@")[2] or job.device["cpu"]
            raise Unattainable(
                f"the limit {limit} is out of reach: the best that space '{job.request.space}' attains on {where} "
                f"for {job.data.name} is {limit.key} = {value:.4g}; relax the limit to that, or choose another space or input size."
            )


def attainable(job: Job, limit: Limit) -> float:
    """Best figure of the limit's metric over the space, as far as coordinate descent finds it."""
    metric = "latency_ms" if limit.metric == "throughput" else limit.metric
    cost: Callable[[Arch], float] = lambda arch: _cost(job, arch, metric)  # noqa: E731
    best = cheapest(job, cost)
    if metric_of(metric).name not in (*_TIMED, "file_bytes"):
        return cost(best)
    module = job.net.extract(best).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = job.export(module, Path(folder), quick=True)
        if metric == "file_bytes":
            return float(file.stat().st_size)
        bound = 1e3 / limit.bound if limit.metric == "throughput" else limit.bound
        sure = limit.metric != "merit" and cost(best) < _SURE * bound
        clocks = job.everywhere([file], 0.3 if sure else 1.0, judged=True)[0]
    energies = job.energies(job.dynamic_mj(best), clocks[OWN].p50)
    return job.derive({**job.graph_figures(module), **all_timings(clocks), **energies, "accuracy": 1.0})[limit.key]


def cheapest(job: Job, cost: Callable[[Arch], float]) -> Arch:
    """Coordinate descent from the smallest architecture: each choice in turn takes its cheapest option, until nothing improves."""
    space = job.net.space
    best: Arch = job.net.smallest
    lowest = cost(best)
    improved = True
    while improved:
        improved = False
        for neighbour in space.neighbours(best):
            value = cost(neighbour)
            if value < lowest:
                best, lowest, improved = neighbour, value, True
                break
    return best


def _cost(job: Job, arch: Mapping[str, int], metric: str) -> float:
    if metric == "latency_ms":
        ops = [op for factor in job.factors for op in factor.at(tuple(arch[name] for name in factor.scope))]
        return job.table.predict(ops, measure_missing=True)
    if "@" in metric or metric in ("energy_mj", "edp", *_TIMED):
        ops = [op for factor in job.factors for op in factor.at(tuple(arch[name] for name in factor.scope))]
        for table in (job.table, *(device.table for device in job.further)):
            table.ensure(ops, input_shapes=[job.data.input_shape])
        figures = job.derive({**job.predicted(arch), "accuracy": 1.0})
        return -figures["merit"] if metric == "merit" else figures[metric]
    if metric == "flash_bytes":
        return job.flash_bytes(arch)
    costs = job.net.costs(arch)
    return float(costs["params"] if metric == "file_bytes" else costs[metric] * (job.bytes_per_value if metric == "peak_bytes" else 1))
