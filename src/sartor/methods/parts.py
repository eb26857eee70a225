"""What the methods are put together from: a network's relaxation, its policy, budgets in stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.layers.partial import copied, fixed_norms, partial_channels, skip_dropout
from sartor.policies import Dirichlet, Gumbel, Policy, Sigmoid, Softmax
from sartor.policies.base import Derive
from sartor.recipes.alternation import Adam
from sartor.recipes.bilevel import ARCHITECTURE, WEIGHTS, SearchData, SearchResult, search_bilevel
from sartor.recipes.checkpoint import load_weights
from sartor.recipes.modifiers import Anchor, ZeroOne, decaying_skip_dropout, keep_candidates, limit_skips
from sartor.recipes.stops import rising_eigenvalue, stable_ranking, too_many_skips
from sartor.recipes.trajectory import Snapshot

P = TypeVar("P", bound=Policy)
BUDGETS = ("epochs", "steps", "seconds")


def relaxed_space(net: Any) -> tuple[Space, tuple[str, ...]]:
    """The space a policy mixes over, and notes on choices that cannot be mixed: these are settled at the largest network's option.

    A network whose mixtures have other choices than its architectures gives them as `relaxed`, with `derive(strengths) -> Arch` beside it.
    """
    own = getattr(net, "relaxed", None)
    if own is not None:
        return own, ()
    space: Space = net.space
    settled = {name: [space.choices[name][net.largest[name]]] for name in _unmixable(net)}
    notes = tuple(f"choice '{name}' cannot be mixed; the search holds it at {labels[0]}" for name, labels in settled.items())
    return (space.restrict(settled) if settled else space), notes


def _unmixable(net: Any) -> list[str]:
    """Choices of which the network refuses a mixture; found once, as it takes a pass for each."""
    known: list[str] | None = net.__dict__.get("_unmixable")
    if known is not None:
        return known
    x, rng, found = torch.zeros(2, *net.input_shape), np.random.default_rng(0), []
    tried = [net.space.sample(rng) for _ in range(32)]
    with torch.no_grad():
        for name, allowed in net.space.allowed.items():
            at = next((arch for arch in tried if name in net.space.active(arch)), None)
            if len(allowed) > 1 and at is not None:
                try:
                    net(x, {**at, name: dict.fromkeys(allowed, 1.0 / len(allowed))})
                except UserError:
                    found.append(name)
    net.__dict__["_unmixable"] = found
    return found


def incoming_edges(net: Any) -> Sequence[Sequence[str]] | None:
    """The choices that enter each node of the network's cells, if it says so (`incoming`): what edge normalisation needs."""
    found: Sequence[Sequence[str]] | None = getattr(net, "incoming", None)
    return found


def make_policy(kind: type[P], net: Any, *, seed: int = 0, space: Space | None = None, **settings: Any) -> P:
    """The policy of a network; `space` narrows what it mixes over."""
    settings.setdefault("derive", getattr(net, "derive", None))
    return kind(space if space is not None else relaxed_space(net)[0], seed=seed, **settings)


def with_defaults(given: Mapping[str, Any], **paper: Any) -> dict[str, Any]:
    """The paper's settings under those that the caller gave; one budget replaces another."""
    if any(given.get(name) is not None for name in BUDGETS):
        paper = {name: value for name, value in paper.items() if name not in BUDGETS}
    return {**paper, **given}


def search(net: Any, begun: nn.Module, policy: Policy, data: SearchData, *notes: str, **settings: Any) -> SearchResult:
    """:func:`search_bilevel` on `begun`, a copy of `net`, with notes on what was modified and on choices that cannot be mixed."""
    result = search_bilevel(begun, policy, data, **settings)
    return replace(result, notes=(*result.notes, *notes, *relaxed_space(net)[1]))


def partial_if_possible(net: nn.Module, k: int, *, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """:func:`partial_channels`, or the network as it is with a note where nothing in it can take part. Narrower operations have new
    weights, which follow from the seed alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return partial_channels(net, k), ()
    except UserError as error:
        return net, (f"{error}; the search runs on all channels",)


def skip_dropout_if_possible(net: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """:func:`skip_dropout`, or the network as it is with a note where it has no skip connections to choose."""
    try:
        return skip_dropout(net), ()
    except UserError as error:
        return net, (f"{error}; the search runs without",)


def without(space: Space, label: str) -> Space:
    """The space without the option `label`, where a choice has others."""
    keep = {
        name: [options[i] for i in space.allowed[name] if options[i] != label]
        for name, options in space.choices.items()
        if label in options and len(space.allowed[name]) > 1
    }
    return space.restrict(keep) if keep else space


def derivation(net: Any) -> Derive:
    """The network's own rule from strengths to an architecture, or the strongest option of every choice."""
    own: Derive | None = getattr(net, "derive", None)
    return own if own is not None else strongest(net.space)


# -- stages ----------------------------------------------------------------------------------------------------------------


def stage_settings(settings: Mapping[str, Any], before: Sequence[SearchResult], stages: int) -> dict[str, Any]:
    """Settings of the stage after those that are done: its part of the budget, a checkpoint of its own, epochs that are told counted on."""
    found, stage, done = dict(settings), len(before), tuple(before)
    for name in BUDGETS:
        if found.get(name) is not None:
            found[name] = found[name] / stages if name != "steps" else max(1, round(found[name] / stages))
    if found.get("checkpoint") is not None:
        path = Path(found["checkpoint"])
        found["checkpoint"] = path.with_name(f"{path.stem}-stage{stage + 1}{path.suffix}")
    found["name"] = f"{found.get('name', 'search')} {stage + 1}/{stages}"
    tell = found.get("on_epoch")
    if tell is not None:
        found["on_epoch"] = lambda snapshot: tell(_counted_on(snapshot, done, stages))
    return found


def _counted_on(snapshot: Snapshot, before: Sequence[SearchResult], stages: int) -> Snapshot:
    """An epoch of a stage as one of the whole search."""
    epochs, steps = sum(len(r.trajectory) for r in before), sum(r.steps for r in before)
    fraction = (len(before) + snapshot.fraction) / stages
    return replace(snapshot, epoch=epochs + snapshot.epoch, step=steps + snapshot.step, fraction=fraction)


def joined(results: Sequence[SearchResult], stages: int, arch: Arch | None = None) -> SearchResult:
    """Stages as one search: epochs and steps counted on, the last stage's network and policy; `arch` if another is to be derived.

    `results` are fewer than `stages` where a stop ended the search: it ends the whole of it, not its stage alone.
    """
    trajectory = tuple(_counted_on(s, results[:number], stages) for number, r in enumerate(results) for s in r.trajectory)
    last, before = results[-1], sum(len(r.trajectory) for r in results[:-1])
    stopped = last.stopped
    if stopped is not None and before:
        stopped = f"epoch {len(trajectory)}, in stage {len(results)} of {stages}: {stopped.partition(': ')[2]}"
    return replace(
        last,
        arch=arch or last.arch,
        trajectory=trajectory,
        steps=sum(r.steps for r in results),
        seconds=math.fsum(r.seconds for r in results),
        stopped=stopped,
        notes=tuple(dict.fromkeys(note for r in results for note in r.notes)),
        by_rule=arch is not None,
        epoch=before + last.epoch if last.epoch is not None else None,
    )


def derived_strengths(result: SearchResult) -> dict[str, int | Mapping[int, float]]:
    """The strengths at the epoch whose architecture was taken, settled choices too: of the policy as it is, unless a stop went back."""
    strengths: dict[str, int | Mapping[int, float]] = dict(result.policy.strengths())
    if result.epoch is not None and result.epoch < len(result.trajectory):
        strengths.update(result.trajectory[result.epoch - 1].strengths)
    return strengths


def carry_over(source: Policy, target: Policy) -> None:
    """The parameters of one policy as the start of another over the same choices, whose candidates may be fewer."""
    rows = [source.row[name] for name in target.names]
    with torch.no_grad():
        target.alpha.copy_(source.alpha[rows, : target.alpha.shape[1]])
        if source.beta is not None and target.beta is not None:
            target.beta.copy_(source.beta[rows])


def normal_cell(name: str) -> bool:
    """Whether a choice belongs to a normal cell, or to the only kind of cell there is."""
    return not name.startswith("reduc")


def strongest(space: Space) -> Derive:
    """The plain rule of derivation: the strongest option of every choice."""

    def derive(strengths: Mapping[str, int | Mapping[int, float]]) -> Arch:
        return space.canonical({n: v if isinstance(v, int) else max(v, key=v.__getitem__) for n, v in strengths.items()})

    return derive


__all__ = [
    "ARCHITECTURE", "WEIGHTS", "Adam", "Anchor", "Dirichlet", "Gumbel", "SearchData", "SearchResult", "Sigmoid", "Softmax", "ZeroOne",
    "carry_over", "copied", "decaying_skip_dropout", "derivation", "derived_strengths", "fixed_norms", "incoming_edges", "joined",
    "keep_candidates", "limit_skips", "load_weights", "make_policy", "normal_cell", "partial_channels", "partial_if_possible",
    "relaxed_space", "replace", "rising_eigenvalue", "search", "search_bilevel", "skip_dropout", "skip_dropout_if_possible",
    "stable_ranking", "stage_settings", "strongest", "too_many_skips", "with_defaults", "without",
]  # fmt: skip
