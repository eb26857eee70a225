"""The search space of a network, found in its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sartor.arch import Space
from sartor.errors import UserError
from sartor.layers.base import ElasticDepth, OneOf, Searchable
from sartor.layers.blocks import Hidden
from sartor.layers.choice import Choice, Width

Guards = dict[str, set[int]]  # choice -> option indices under which a layer runs


def space_of(net: nn.Module) -> Space:
    """The search space of `net`: the choices that its layers read, and those that it keeps as attributes for its own branches.

    A choice that only layers inside some options of a `OneOf`, or beyond some depth of an `ElasticDepth`, read exists only where they run.
    What Python branches decide cannot be seen: name it in a `conditions` attribute of the network, {choice: {parent: [labels]}}.

    Raises:
        UserError: if two choices of one name have different options, or there is no choice at all.
    """
    choices: dict[str, tuple[Any, ...]] = {}
    places: dict[str, str] = {}
    guards: dict[str, Guards] = {}
    for choice, path, under in _readers(net, "", {}):
        if choice.fixed:
            continue
        labels = tuple(_label(option) for option in choice.options)
        if choice.name not in choices:
            choices[choice.name], places[choice.name] = labels, path
            guards[choice.name] = {parent: set(indices) for parent, indices in under.items()}
            continue
        if choices[choice.name] != labels:
            here, there = path or "the network", places[choice.name] or "the network"
            raise UserError(
                f"choice '{choice.name}' has options {list(choices[choice.name])} in {there} but {list(labels)} in {here}; "
                "give one of them another name"
            )
        known = guards[choice.name]  # the weakest condition that covers all readers
        guards[choice.name] = {parent: known[parent] | set(indices) for parent, indices in under.items() if parent in known}
    if not choices:
        raise UserError(
            f"{type(net).__name__} has no choices: build it from searchable layers, with a Choice of two or more options in some"
        )
    conditions: dict[str, dict[str, Sequence[Any]]] = {}
    for name, parents in guards.items():
        kept = {p: [choices[p][i] for i in sorted(ids)] for p, ids in parents.items() if p != name and len(ids) < len(choices[p])}
        if kept:
            conditions[name] = dict(kept)
    for name, given in getattr(net, "conditions", {}).items():
        conditions[name] = {**conditions.get(name, {}), **given}
    return Space(choices, conditions)


def _readers(module: nn.Module, path: str, under: Guards) -> Iterator[tuple[Choice, str, Guards]]:
    """Every choice that `module` or a module inside reads, with the place and the guards under which it is read."""
    for value in vars(module).values():
        for found in value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else (value,):
            if isinstance(found, Choice):
                yield found, path, under
            elif isinstance(found, Width):
                yield from ((c, path, under) for c in found.scope)
    if isinstance(module, Searchable):
        yield from ((c, path, under) for c in module.choices())
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if isinstance(module, OneOf) and child is module.options and not module.choice.fixed:
            for number, option in enumerate(module.options):
                yield from _readers(option, f"{inside}.{number}", _within(under, module.choice.name, {number}))
        elif isinstance(module, ElasticDepth) and child is module.blocks and not module.depth.fixed:
            for number, block in enumerate(module.blocks):
                deeper = {i for i, depth in enumerate(module.depth.options) if depth > number}
                yield from _readers(block, f"{inside}.{number}", _within(under, module.depth.name, deeper))
        else:
            yield from _readers(child, inside, under)


def _within(under: Guards, name: str, indices: set[int]) -> Guards:
    return {**under, name: under.get(name, indices) & indices}


def _label(option: Any) -> Any:
    return f"{option.channels}ch" if isinstance(option, Hidden) else option
