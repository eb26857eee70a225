"""A run whose strategy is a method with weights of its own (DARTS, GDAS, SPOS ...): it searches, and what it derives becomes the trials."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sartor.arch import Arch
from sartor.evaluators.supernet import SupernetEvaluator
from sartor.hardware.device import cores
from sartor.job.context import Job
from sartor.job.explore import batch_size, candidate, for_seconds, save_weights
from sartor.job.method_settings import doctor_notes, doctor_of, rank_notes, search_method
from sartor.job.state import write_json
from sartor.methods import BY_EPOCH
from sartor.recipes.evaluate import shared_accuracy
from sartor.recipes.stops import SKIPS
from sartor.store import Store
from sartor.trial import Proposal, Trial

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
        accuracy = functools.partial(shared_accuracy(job.data.validation), result.net)
    listed = Listed(candidates(job, result))
    least = min(len(listed.proposals), 8)
    with Store(job.folder / "history.sqlite") as store:
        evaluate = candidate(job, accuracy)
        return for_seconds(job, "explore", listed, evaluate, store, job.plan.explore, (least, len(listed.proposals)), 1)


def _carry_out(job: Job) -> Any:
    """The method, resumable by its checkpoint, and by the sub-nets that SPOS, OFA and BigNAS have evaluated; afterwards it trains nothing
    more. The weights that sub-nets inherit, where they can, are saved as those of any supernet."""
    request = job.request
    settings: dict[str, Any] = {
        "seconds": job.plan.supernet + job.plan.screen,
        "augment": job.policy,
        "seed": request.seed,
        "checkpoint": job.folder / "checkpoints" / "search.safetensors",
        "progress": job.progress,
    }
    if batch_size(job) < 64:
        settings["batch"] = batch_size(job)
    doctor = doctor_of(job) if "supernet" not in job.state else None
    with job.state.timing("supernet"):
        torch.set_num_threads(job.state["sizing"]["threads"])
        with _evaluated(job) as known:
            result, missed = search_method(job, {**settings, **known}, doctor)
    if "supernet" not in job.state:
        inherited = _same_weights(result.net, job.net)
        notes = [f"{request.strategy}: {note.rstrip('.')}." for note in (*result.notes, *missed)]
        trajectory = getattr(result, "trajectory", ())
        if getattr(result, "stopped", None):
            notes.append(f"{request.strategy} ended early at {result.stopped.rstrip('.')}.")
        if doctor is not None:
            notes += [f"{request.strategy}: {found}" for found in doctor_notes(job, doctor, trajectory)]
        if trajectory:
            write_trajectory(job, trajectory)
        with job.state.timing("ranks"):
            notes += [f"{request.strategy}: {found}" for found in rank_notes(job, result.net)]
        if inherited:
            job.net.load_state_dict(result.net.state_dict())
            save_weights(job.net, job.folder / "checkpoints" / "supernet.safetensors")
        facts = {"steps": result.steps, "start": "supernet" if inherited else "scratch", "notes": notes}
        job.state.put("supernet", facts)
    elif job.state["supernet"]["start"] == "supernet":
        job.net.load_state_dict(result.net.state_dict())
    job.net.eval()
    return result


@contextmanager
def _evaluated(job: Job) -> Iterator[dict[str, Any]]:
    """What a method that evaluates sub-nets had evaluated when the run was interrupted, and where it keeps what it evaluates. A search that
    was over stays so; one whose supernet is no longer there, and is trained anew, has evaluated nothing."""
    if job.request.strategy in BY_EPOCH:
        yield {}
        return
    checkpoints = job.folder / "checkpoints"
    if not any(checkpoints.glob("search*.safetensors")):
        for part in checkpoints.glob("evaluated.sqlite*"):
            part.unlink()
    with Store(checkpoints / "evaluated.sqlite") as store:
        store.bind(job.net.space, job.request.seed)
        known = {"history": list(store.trials(job.net.space)), "on_trial": store.add}
        yield known | ({"spent": math.inf} if "supernet" in job.state and known["history"] else {})


def _same_weights(found: torch.nn.Module, own: torch.nn.Module) -> bool:
    """Whether the searched network is the run's network, so that sub-nets can start from its weights."""
    theirs = {name: t.shape for name, t in found.state_dict().items()}
    return theirs == {name: t.shape for name, t in own.state_dict().items()}


# -- what is measured --------------------------------------------------------------------------------------------------------


def candidates(job: Job, result: Any) -> list[Proposal]:
    """What the method derived, the last epoch first; what a one-shot method found best; the other options of choices that were held; draws
    from what was learned."""
    found: dict[Arch, dict[str, Any]] = {job.canonical(result.arch): {"origin": "derived"}}
    for snapshot in reversed(getattr(result, "trajectory", ())):
        arch = job.canonical(snapshot.arch)
        if snapshot.validation_loss is not None or arch not in found:
            found.setdefault(arch, {"origin": "derived", "epoch": snapshot.epoch})

    def order(trial: Trial) -> tuple[float, float]:
        return job.goals.excess(job.predicted(trial.arch)), -trial.metrics.get("accuracy", 0.0)

    evaluated = sorted(getattr(result, "trials", ()), key=order)
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
    return frozenset(name for name, options in space.choices.items() if not SKIPS.isdisjoint(map(str, options)))


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
