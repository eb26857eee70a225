"""A run whose strategy is a method with weights of its own (DARTS, GDAS, SPOS ...): it searches, and what it derives becomes the trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sartor.arch import Arch
from sartor.evaluators.supernet import SupernetEvaluator
from sartor.goals import metric_of
from sartor.hardware.device import cores
from sartor.hardware.graph import Op
from sartor.job.context import Job
from sartor.job.explore import batch_size, candidate, for_seconds, save_weights
from sartor.job.state import write_json
from sartor.methods import GRADIENT, METHODS
from sartor.predictors.latency.composite import weighted_price
from sartor.recipes.evaluate import as_input, count_correct
from sartor.store import Store
from sartor.trial import Proposal, Trial

if TYPE_CHECKING:
    from sartor.recipes.cost_term import Cost

TRAJECTORY = "trajectory.json"
_MOST = 60  # candidates measured at most
_DRAWN = 16  # of them drawn from what was learned, beside what was derived


def search(job: Job) -> list[Trial]:
    """Run the method, then measure what it derived, epoch by epoch, and architectures next to it: the trials of the run's history."""
    result = _carry_out(job)
    torch.set_num_threads(cores())
    start = job.state["supernet"]["start"]
    accuracy: Callable[[Arch], dict[str, float]]
    if start == "supernet":
        accuracy = SupernetEvaluator(job.net, job.data, seed=job.request.seed)
    else:
        result.net.eval()
        accuracy = shared_accuracy(result.net, job)
    listed = Listed(candidates(job, result))
    least = min(len(listed.proposals), 8)
    with Store(job.folder / "history.sqlite") as store:
        evaluate = candidate(job, accuracy)
        return for_seconds(job, "explore", listed, evaluate, store, job.plan.explore, (least, len(listed.proposals)), 1)


def _carry_out(job: Job) -> Any:
    """The method, resumable by its checkpoint; afterwards it only reads that. The weights that sub-nets inherit, where they can, are
    saved as those of any supernet."""
    request = job.request
    method = METHODS[request.strategy]
    settings: dict[str, Any] = {
        "seconds": job.plan.supernet + job.plan.screen,
        "augment": job.policy,
        "seed": request.seed,
        "checkpoint": job.folder / "checkpoints" / "search.safetensors",
        "progress": job.progress,
    }
    if batch_size(job) < 64:
        settings["batch"] = batch_size(job)
    with job.state.timing("supernet"):
        torch.set_num_threads(job.state["sizing"]["threads"])
        result = _limited(job, method, settings) if request.strategy in GRADIENT else method(job.net, job.data, **settings)
    if "supernet" not in job.state:
        inherited = _same_weights(result.net, job.net)
        notes = [f"{request.strategy}: {note}." for note in result.notes]
        trajectory = getattr(result, "trajectory", ())
        if getattr(result, "stopped", None):
            notes.append(f"{request.strategy} ended early at {result.stopped}.")
        if trajectory:
            notes += _diagnosis(job, trajectory)
            write_trajectory(job, trajectory)
        if inherited:
            job.net.load_state_dict(result.net.state_dict())
            save_weights(job.net, job.folder / "checkpoints" / "supernet.safetensors")
        facts = {"steps": result.steps, "start": "supernet" if inherited else "scratch", "notes": notes}
        job.state.put("supernet", facts)
    elif job.state["supernet"]["start"] == "supernet":
        job.net.load_state_dict(result.net.state_dict())
    job.net.eval()
    return result


def _limited(job: Job, method: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """A gradient method under the run's limits: pressed for in the loss, kept by every derivation."""
    from sartor.methods.limits import goal_limit, limited
    from sartor.recipes.doctor import guard

    if job.request.guard:
        settings = {**settings, "stops": [guard(job.net.space)]}
    if not job.goals.limits:
        return method(job.net, job.data, **settings)
    limit = goal_limit(job.goals, _costs(job), job.predicted)
    return limited(method, job.net, job.data, **limit, **settings) if limit else method(job.net, job.data, **settings)


def _costs(job: Job) -> list[Cost]:
    """Expected costs of what there are limits on: one that is learned takes seconds."""
    from sartor.recipes.cost_term import Cost

    space, factors, limited = job.net.space, job.factors, {limit.metric for limit in job.goals.limits}
    wanted = {"latency_ms" if metric == "throughput" else metric for metric in limited}
    found = [
        Cost.of_factors(space, factors, price, name=name, constant=constant, unit=metric_of(name).unit)
        for name, price, constant in additive(job)
        if name in wanted
    ]
    if "params" in limited:
        found.append(Cost.of_params(space, factors))
    if "macs" in limited:
        found.append(Cost.of_macs(space, factors))
    return found


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


def _diagnosis(job: Job, trajectory: Sequence[Any]) -> list[str]:
    from sartor.recipes.doctor import diagnose

    return [f"{job.request.strategy}: {finding}" for finding in diagnose(trajectory, job.net.space)]


def _same_weights(found: torch.nn.Module, own: torch.nn.Module) -> bool:
    """Whether the searched network is the run's network, so that sub-nets can start from its weights."""
    theirs = {name: t.shape for name, t in found.state_dict().items()}
    return theirs == {name: t.shape for name, t in own.state_dict().items()}


def shared_accuracy(net: torch.nn.Module, job: Job) -> Callable[[Arch], dict[str, float]]:
    """Accuracy on validation images with the weights of a network that cannot be extracted from (partial channels), by batch statistics."""
    split = job.data.validation
    images = split.subset(np.arange(min(len(split), 1000)))

    def accuracy(arch: Arch) -> dict[str, float]:
        first = five = 0
        with torch.no_grad():
            for x, y in images.batches(128):
                a, b = count_correct(net(as_input(x), arch), torch.from_numpy(y))
                first, five = first + a, five + b
        return {"accuracy": first / max(len(images), 1), "top5": five / max(len(images), 1)}

    return accuracy


# -- what is measured --------------------------------------------------------------------------------------------------------


def candidates(job: Job, result: Any) -> list[Proposal]:
    """What the method derived, the last epoch first; what a one-shot method found best; the other options of choices that were held; draws
    from what was learned."""
    found: dict[Arch, dict[str, Any]] = {job.canonical(result.arch): {"origin": "derived"}}
    for snapshot in reversed(getattr(result, "trajectory", ())):
        arch = job.canonical(snapshot.arch)
        if snapshot.validation_loss is not None or arch not in found:
            found.setdefault(arch, {"origin": "derived", "epoch": snapshot.epoch})
    evaluated = sorted(getattr(result, "trials", ()), key=lambda t: -t.metrics.get("accuracy", 0.0))
    for trial in evaluated[: _MOST // 2]:
        found.setdefault(job.canonical(trial.arch), {"origin": "evaluated"})
    for arch in [a for a, meta in found.items() if meta["origin"] == "derived"][:8]:
        for name in _held(job, result):
            for other in job.net.space.neighbours(arch, only=name):
                found.setdefault(other, {"origin": "resized", "choice": name})
    for arch in _draws(job, result):
        found.setdefault(arch, {"origin": "drawn"})
    return [Proposal(arch, meta=meta) for arch, meta in list(found.items())[:_MOST]]


def _held(job: Job, result: Any) -> list[str]:
    """Choices that the method could not mix and held at one option."""
    policy = getattr(result, "policy", None)
    space = job.net.space
    if policy is None or set(policy.space.choices) != set(space.choices):
        return []
    return [name for name in space.choices if len(policy.space.allowed[name]) == 1 < len(space.allowed[name]) and name not in _cells(space)]


def _cells(space: Any) -> frozenset[str]:
    """Choices of operations: candidates dropped on purpose, not held."""
    return frozenset(name for name, options in space.choices.items() if "skip_connect" in options)


def _draws(job: Job, result: Any) -> list[Arch]:
    policy = getattr(result, "policy", None)
    if policy is None or set(policy.space.choices) != set(job.net.space.choices):
        return []
    generator = torch.Generator().manual_seed(job.request.seed)
    return [job.canonical(policy.draw(generator)) for _ in range(_DRAWN)]


class Listed:
    """A searcher that proposes a list, in order."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self.proposals = tuple(proposals)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        done = {t.arch for t in history} | {p.arch for p in pending}
        return [p for p in self.proposals if p.arch not in done][:n]


def write_trajectory(job: Job, trajectory: Sequence[Any]) -> None:
    """The course of the search with option labels instead of indices: what the report draws."""
    choices: Mapping[str, Sequence[Any]] = {**job.net.space.choices, **getattr(getattr(job.net, "relaxed", None), "choices", {})}
    epochs = []
    for snapshot in trajectory:
        row = snapshot.to_json()
        row["strengths"] = {
            name: {str(choices[name][index]): weight for index, weight in options.items()} for name, options in snapshot.strengths.items()
        }
        row["arch"] = {name: str(label) for name, label in job.net.space.labels(snapshot.arch).items()}
        epochs.append(row)
    write_json(job.folder / TRAJECTORY, {"schema": 1, "strategy": job.request.strategy, "epochs": epochs})
