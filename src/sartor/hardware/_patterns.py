"""Patterns of several ops that a graph shows as one: gated activations and squeeze-excite branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from sartor.hardware.graph import Op

GATED = {"sigmoid": "swish", "hardsigmoid": "hardswish"}  # x * gate(x)
ABSORBS = ("conv", "linear", "add")  # kinds that take a following activation in


def merge(ops: Sequence[Op], outputs: Collection[int] = ()) -> list[Op]:
    """Replaces x * sigmoid(x) by swish, x * hardsigmoid(x) by hardswish and pool -> conv/linear + act -> conv/linear + gate -> mul by `se`.

    `outputs` are the ops whose value leaves the network: nothing that changes such a value is merged. Indices are renumbered.
    """
    return _merge_squeeze_excite(_merge_gates(list(ops), set(outputs)))


def _merge_gates(ops: list[Op], outputs: set[int]) -> list[Op]:
    readers = Counter(source for op in ops for source in op.inputs)
    gone: dict[int, int] = {}  # index -> what stands for it
    for index, op in enumerate(ops):
        if op.kind != "mul" or len(op.inputs) != 2:
            continue
        for x, gate in (op.inputs, op.inputs[::-1]):
            if gate < 0 or ops[gate].kind != "act" or ops[gate].act not in GATED or ops[gate].inputs != (x,) or readers[gate] != 1:
                continue
            act = GATED[ops[gate].act]
            gone[gate] = x
            if x >= 0 and ops[x].kind in ABSORBS and not ops[x].act and readers[x] == 2 and x not in outputs:
                ops[x] = replace(ops[x], act=act)
                gone[index] = x
            else:
                ops[index] = Op("act", op.out_shape, op.out_shape, act=act, inputs=(x,), name=op.name, dtype=op.dtype)
            break
    return _renumber(ops, gone)


def _merge_squeeze_excite(ops: list[Op]) -> list[Op]:
    readers = Counter(source for op in ops for source in op.inputs)
    gone: dict[int, int] = {}
    merged = list(ops)
    for index, op in enumerate(ops):
        if op.kind != "mul" or len(op.inputs) != 2:
            continue
        branch = next((found for gate, x in (op.inputs[::-1], op.inputs) if (found := _branch(ops, readers, gate, x))), None)
        if branch is None:
            continue
        expand, pool = ops[branch[0]], ops[branch[2]]
        merged[index] = Op(
            "se", op.out_shape, op.out_shape, act=expand.act, inputs=pool.inputs, name=op.name, hidden=expand.in_shape[0], dtype=op.dtype
        )
        gone.update(dict.fromkeys(branch, -1))
    return _renumber(merged, gone)


def _branch(ops: Sequence[Op], readers: Counter[int], gate: int, x: int) -> tuple[int, int, int] | None:
    """(expand, reduce, pool) if `gate` is a squeeze-excite gate of the tensor `x`, else None."""
    if gate < 0 or ops[gate].kind not in ("conv", "linear") or readers[gate] != 1:
        return None
    # In an int8 file the gate's slope lies in its weights, and saturation to 0..1 does the rest.
    if ops[gate].act not in ("sigmoid", "hardsigmoid") and not (ops[gate].act == "" and ops[gate].dtype == "uint8"):
        return None
    reduce = ops[gate].inputs[0]
    if reduce < 0 or ops[reduce].kind not in ("conv", "linear") or readers[reduce] != 1:
        return None
    pool = ops[reduce].inputs[0]
    if pool < 0 or ops[pool].kind != "pool" or readers[pool] != 1 or ops[pool].inputs[0] != x:
        return None
    if prod(ops[gate].out_shape) != ops[pool].in_shape[0]:
        return None
    return gate, reduce, pool


def _renumber(ops: Sequence[Op], gone: dict[int, int]) -> list[Op]:
    number = {-1: -1}
    kept: list[Op] = []
    for index, op in enumerate(ops):
        if index in gone:
            number[index] = number[gone[index]]
        else:
            number[index] = len(kept)
            kept.append(replace(op, inputs=tuple(number[source] for source in op.inputs)))
    return kept
