"""What a method with weights of its own is told by a run: its limits and costs, and the doctor that watches it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError
from sartor.goals import Limit, metric_of
from sartor.hardware.graph import Op
from sartor.job.context import Job
from sartor.job.explore import batch_size
from sartor.methods import BY_EPOCH, GRADIENT, METHODS
from sartor.predictors.latency.composite import weighted_price
from sartor.recipes.doctor import Doctor, Finding, diagnose, guard
from sartor.recipes.evaluate import shared_accuracy

if TYPE_CHECKING:
    from sartor.recipes.cost_term import Cost

#: Methods that do not keep all weights of the network that they are given.
_ANEW = dict.fromkeys(("pc-darts", "drnas"), "; operations on part of the channels begin anew")
_ANEW |= {"p-darts": "; its later stages begin anew"}
_IMAGES = 500  # validation images on which the doctor looks at what is derived after an epoch


def refuse_unfit(job: Job) -> None:
    """Refuse a space that the method cannot search, before anything is measured.

    Raises:
        UserError: saying why.
    """
    if job.request.strategy == "ofa":
        from sartor.recipes.shrinking import stages

        stages(job.net.space)


def search_method(job: Job, settings: Mapping[str, Any], doctor: Doctor | None) -> tuple[Any, list[str]]:
    """Carry the run's method out under the run's limits; returns its result, and notes: what it began with, what it did not do."""
    name, method, given = job.request.strategy, METHODS[job.request.strategy], dict(settings)
    costs, notes = Costs(job), list[str]()
    if job.request.weights is not None:
        notes.append(_started(job, job.request.weights, given))
    if doctor is not None:
        given |= {"on_epoch": doctor, "evaluate": shared_accuracy(job.data.validation, images=_IMAGES)}
    if job.request.guard:
        given["stops"] = [guard(job.net.space)]
    if name not in BY_EPOCH:
        limits, figures = predicted_limits(job)
        return method(job.net, job.data, limits=limits, costs=figures, **given), notes
    limit = _limit(job, costs, notes)
    if name not in GRADIENT:
        return method(job.net, job.data, **limit, **given), notes
    if name in ("fbnet", "proxylessnas") and "latency_ms" in costs.asked:
        try:
            method = functools.partial(method, cost=costs["latency_ms"])
        except UserError as error:  # it cannot be told of a mixture
            notes.append(f"its loss has no latency: {error}")
    if not limit:
        return method(job.net, job.data, **given), notes
    from sartor.methods.limits import limited

    return limited(method, job.net, job.data, **limit, **given), notes


def _started(job: Job, weights: str, given: dict[str, Any]) -> str:
    """Let the method begin with the weights of a file, and say what was taken of them.

    Raises:
        UserError: if the file cannot be read or nothing in it fits.
    """
    from sartor.recipes.checkpoint import load_weights

    report = load_weights(job.net, weights)  # again: where the space was fitted to a device or a time, the network is a new one
    if job.request.strategy == "bignas":
        given["initial"] = weights  # its blocks begin as the identity where it is told of none
    unfit = f", {len(report.missing)} have none there" if report.missing else ""
    in_part = f", {len(report.partial)} in part" if report.partial else ""
    anew = _ANEW.get(job.request.strategy, "")
    return f"its weights began as those of {Path(weights).name}: {len(report.loaded)} tensors{in_part}{unfit}{anew}"


def _limit(job: Job, costs: Costs, notes: list[str]) -> dict[str, Any]:
    """The limits as settings of a method that derives architectures, with a note where they are not pressed for."""
    from sartor.methods.derivation import Derivation
    from sartor.methods.limits import goal_limit
    from sartor.recipes.cost_term import Cost

    if not job.goals.limits:
        return {}
    metrics = ("latency_ms" if limit.metric == "throughput" else limit.metric for limit in job.goals.limits)
    found = goal_limit(job.goals, [costs[name] for name in dict.fromkeys(metrics) if name in costs], job.predicted)
    if found:
        return found
    why = "none of the limits is a sum over operations, which the loss could press for"
    if any(limit.key in job.predicted(job.canonical(job.net.smallest)) for limit in job.goals.limits):
        free = Cost("nothing", [], constant=1.0)  # always kept: what is derived is bounded by the figures alone
        bounded: dict[str, Any] = {"cost": free, "target": 1.0, "accept": lambda arch: job.goals.excess(job.predicted(arch)) == 0.0}
        try:
            Derivation(job.net.space, **bounded)({})
        except UserError:  # which is no proof that there is none: the run has looked for the cheapest itself
            pass
        else:
            notes.append(f"{why}: what is derived keeps them all the same")
            return bounded
    notes.append(f"{why}: they are judged afterwards")
    return {}


def predicted_limits(job: Job) -> tuple[list[Limit], list[Predicted]]:
    """Limits that can be judged without training, and the figures that judge them: for searches that take single architectures."""
    known = job.predicted(job.canonical(job.net.smallest))
    limits = [limit for limit in job.goals.limits if limit.key in known]
    return limits, [Predicted(limit.key, job.predicted) for limit in limits if limit.key not in ("params", "macs")]


@dataclass(frozen=True)
class Predicted:
    """One of the figures that are predicted of an architecture, as a cost."""

    name: str
    figures: Callable[[Mapping[str, int]], Mapping[str, float]]

    def __call__(self, arch: Mapping[str, Any]) -> float:
        return float(self.figures(arch)[self.name])


class Costs:
    """Expected costs by metric, each made when it is asked for: one that is learned takes seconds."""

    def __init__(self, job: Job) -> None:
        self._job, self._found = job, dict[str, "Cost"]()
        self._sums = {name: (price, constant) for name, price, constant in additive(job)}
        self.asked = {
            *job.goals.objectives,
            *("latency_ms" if m == "throughput" else m for m in (limit.metric for limit in job.goals.limits)),
        }

    def __contains__(self, name: str) -> bool:
        return name in self._sums or name in ("params", "macs")

    def __getitem__(self, name: str) -> Cost:
        from sartor.recipes.cost_term import Cost

        if name not in self._found:
            space, factors = self._job.net.space, self._job.factors
            if name in self._sums:
                price, constant = self._sums[name]
                self._found[name] = Cost.of_factors(space, factors, price, name=name, constant=constant, unit=metric_of(name).unit)
            else:
                self._found[name] = Cost.of_params(space, factors) if name == "params" else Cost.of_macs(space, factors)
        return self._found[name]


def additive(job: Job) -> list[tuple[str, Callable[[Op], float], float]]:
    """What sums over the ops of a network, as (metric, price of an op, constant): latencies, and what is made of sums of them."""
    shape = job.data.input_shape
    found: list[tuple[str, Callable[[Op], float], float]] = [("latency_ms", job.price, job.table.session_ms(shape))]
    found += [(device.asked.metric, device.price, device.table.session_ms(shape)) for device in job.further]
    if job.further:
        weights = {"latency_ms": 1.0, **{device.asked.metric: device.asked.weight for device in job.further}}
        constant = math.fsum(weights[name] * session for name, _, session in found)
        found.append(("weighted_latency_ms", weighted_price({name: price for name, price, _ in found}, weights), constant))
    if job.composite is not None:
        price = job.composite.price(job.price, bytes_per_value=job.bytes_per_value)
        found.append(("composite_cost", price, job.composite.gamma * found[0][2]))
    return found


# -- the doctor -------------------------------------------------------------------------------------------------------------


def doctor_of(job: Job) -> Doctor | None:
    """One that watches the run's method and tells what it finds at once; None for methods without epochs to judge."""
    if job.request.strategy not in BY_EPOCH:
        return None

    def tell(finding: Finding) -> None:
        job.progress(f"doctor, {finding.kind}: {finding.seen} {finding.advice.rstrip('.')}", 1, 1)

    return Doctor(job.net.space, tell=tell)


def doctor_notes(job: Job, doctor: Doctor, trajectory: Sequence[Any]) -> list[str]:
    """What the doctor found, and whether it had passed by the end."""
    lasting = {finding.kind for finding in diagnose(trajectory, job.net.space)} | {"saturated"}  # which is judged early on alone
    passed = " It had passed by the end of the search."
    if not doctor.findings:
        return doctor.report()
    return [f"{finding}{'' if finding.kind in lasting else passed}" for finding in doctor.findings]


def rank_notes(job: Job, net: Any) -> list[str]:
    """Shared against stand-alone accuracy of as many networks as the user asked for, each trained for about as long as a delivered one."""
    from sartor.recipes.doctor import probe_ranks, rank_disorder

    count = job.request.check_ranks
    if not count:
        return []
    seconds = job.plan.finish / max(1, job.request.models)
    training: dict[str, Any] = {"seconds": seconds, "batch": batch_size(job), "augment": job.policy, "progress": job.progress}
    try:
        found = probe_ranks(net, job.data, nets=count, seed=job.request.seed, **training)
    except UserError as error:  # partial channels, or too few networks in the space: the search itself is none the worse for it
        return [f"ranks were not checked: {str(error).rstrip('.')}."]
    tau, finding = found.kendall_tau, rank_disorder(found)
    told = f"shared and stand-alone accuracy of {found.n} networks, each trained alone for {seconds:.0f} s: Kendall's tau {tau.value:.2f}"
    return [f"{told} [{tau.low:.2f}, {tau.high:.2f}].", *([f"{finding.kind}: {finding.seen} {finding.advice}"] if finding else [])]
