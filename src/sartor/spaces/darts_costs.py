"""Costs of the DARTS space as factors over few choices each: an edge costs what its operation does, wherever it leads.

One thing couples choices: a convolution at a cell's input takes in the ReLU behind it if nothing else reads its result.
"""

from __future__ import annotations

from collections.abc import Callable

from sartor.arch import Arch
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op, OpGraph
from sartor.layers.primitives import PRIMITIVES, activated
from sartor.spaces.darts_cell import NODES, edge_name, inputs_name, pairs
from sartor.spaces.darts_graph import CellShapes, edge_ops

Indices = tuple[int, ...]


def cell_factors(cell: CellShapes, kind: str) -> list[Factor]:
    """Factors of one cell of a network whose pools are normalised: its edges and the convolutions at its inputs; the rest is the same for
    every architecture (:func:`constant_factor`)."""
    found = [_edge(cell, kind, source, target) for target in NODES for source in range(target)]
    return found + [_input(cell, kind, source) for source in (0, 1) if not (source == 0 and cell.after_reduction)]


def _edge(cell: CellShapes, kind: str, source: int, target: int) -> Factor:
    """An edge's operation. The ReLU of one that a convolution at the input may take in is counted there."""
    shape, stride = cell.source(source), 2 if cell.reduction and source < 2 else 1
    counted = not (target == 2 and not (source == 0 and cell.after_reduction))
    present = [source in pair for pair in pairs(target)]

    def ops(indices: Indices) -> tuple[Op, ...]:
        if len(indices) > 1 and not present[indices[1]]:
            return ()
        return edge_ops(PRIMITIVES[indices[0]], shape, stride, pool_norm=True, relu=counted)

    name = edge_name(kind, source, target)
    return Factor((name, inputs_name(kind, target)) if len(present) > 1 else (name,), ops)


def _input(cell: CellShapes, kind: str, source: int) -> Factor:
    """The convolution at an input, with or without the ReLU of the edge to node 2, which is always there."""
    shape, stride = cell.inputs[source], 2 if cell.reduction else 1
    out = (cell.channels, *cell.source(source)[1:])

    def ops(indices: Indices) -> tuple[Op, ...]:
        alone = not any(source in pairs(target)[option] for target, option in zip(NODES[1:], indices[1:], strict=True))
        relu = activated(PRIMITIVES[indices[0]], stride)
        conv = Op("conv", shape, out, inputs=(-1,), name="conv", act="relu" if relu and alone else "")
        return (conv, Op("act", out, out, inputs=(0,), name="relu", act="relu")) if relu and not alone else (conv,)

    return Factor((edge_name(kind, source, 2), *(inputs_name(kind, target) for target in NODES[1:])), ops)


def constant_factor(graph: Callable[[Arch], OpGraph], arch: Arch, factors: list[Factor]) -> Factor:
    """What the others leave of a network's ops, the same for every architecture: found at one."""
    counted: dict[str, int] = {}
    for factor in factors:
        for op in factor.at(tuple(arch[name] for name in factor.scope)):
            counted[op.signature] = counted.get(op.signature, 0) + 1
    rest = []
    for op in graph(arch):
        if counted.get(op.signature, 0):
            counted[op.signature] -= 1
        else:
            rest.append(op)
    return Factor((), lambda indices: tuple(rest))


__all__ = ["cell_factors", "constant_factor"]
