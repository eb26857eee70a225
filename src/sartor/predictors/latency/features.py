"""What the learned latency models read: counts of operations that cost time, under several readings of what a runtime executes.

A runtime that knows nothing of zeros executes every operation of a cell. One that eliminates dead code drops operations whose result never
reaches the output; one that folds constants drops those that no input reaches. Which of these a device does is not known beforehand, so
every reading is offered and the measurements decide (`sartor.predictors.latency.additive`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.cells import CellSpace
from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph

Floats = NDArray[np.float64]
Readings = Mapping[str, Floats]
"""Reading -> columns `(n, columns)`; every reading has the same columns, the first of which is the fixed cost."""

READINGS = ("all", "needed", "fed", "live")


def operations(space: CellSpace, archs: Sequence[Mapping[str, int]]) -> NDArray[np.int64]:
    """Operation of every edge `(n, edges)`, edges in the space's order."""
    return np.array([[arch[name] for name in space.edges] for arch in archs], dtype=np.int64).reshape(len(archs), len(space.edges))


def cell_readings(space: CellSpace, ops: NDArray[np.int64], *, none: str = "none") -> dict[str, Floats]:
    """Fixed cost and the number of edges with each operation but `none`, `(n, operations)`, under four readings.

    Args:
        ops: operation of every edge `(n, edges)`, see :func:`operations`.
        none: the operation that carries nothing.

    Returns:
        `all`: every edge counts. `needed`: edges whose result reaches the output. `fed`: edges that the input reaches. `live`: both. Under
        `needed` and `live` a cell whose output does not depend on its input has no fixed cost: what lies before it is dead as well.

    Raises:
        UserError: where `ops` does not fit the space.
    """
    labels = next(iter(space.choices.values()))
    if ops.ndim != 2 or ops.shape[1] != len(space.edges) or (ops.size and not 0 <= ops.min() <= ops.max() < len(labels)):
        raise UserError(f"expected the operations of {len(space.edges)} edges, numbers 0..{len(labels) - 1}, got an array {ops.shape}")
    edges = list(space.edges.values())
    nodes = 1 + max(target for _, target in edges)
    carries = ops != labels.index(none)
    reached, wanted = np.zeros((len(ops), nodes), dtype=bool), np.zeros((len(ops), nodes), dtype=bool)
    reached[:, 0], wanted[:, -1] = True, True
    for i in sorted(range(len(edges)), key=lambda i: edges[i][0]):
        reached[:, edges[i][1]] |= carries[:, i] & reached[:, edges[i][0]]
    for i in sorted(range(len(edges)), key=lambda i: -edges[i][1]):
        wanted[:, edges[i][0]] |= carries[:, i] & wanted[:, edges[i][1]]
    fed = carries & reached[:, [source for source, _ in edges]]
    needed = carries & wanted[:, [target for _, target in edges]]
    connected, always = reached[:, -1].astype(float), np.ones(len(ops))
    masks = {"all": (carries, always), "needed": (needed, connected), "fed": (fed, always), "live": (fed & needed, connected)}
    kinds = [number for number, label in enumerate(labels) if label != none]
    return {name: np.column_stack([fixed, *(((ops == kind) & mask).sum(1) for kind in kinds)]) for name, (mask, fixed) in masks.items()}


def one_hot(ops: NDArray[np.int64], options: int) -> Floats:
    """Which operation is on which edge, `(n, edges * options)`."""
    return (ops[:, :, None] == np.arange(options)).reshape(len(ops), -1).astype(float)


_TOLD = ("count", "macs", "values", "full_macs")  # of each kind of op; the last where lanes are known
_WEIGHTED = ("dense", "depthwise", "grouped", "linear", "pointwise")


def kind_of(op: Op) -> str:
    """Kind of an op as kernels differ: convolutions are pointwise, depthwise, grouped or dense."""
    if op.kind != "conv":
        return op.kind
    if op.groups > 1:
        return "depthwise" if op.groups == op.in_shape[0] else "grouped"
    return "pointwise" if op.kernel == 1 else "dense"


def moved_values(op: Op) -> int:
    """Values that an op reads and writes: its operands, its weights and its result."""
    operands = 2 if op.kind in ("add", "mul") else 1
    return operands * int(np.prod(op.in_shape)) + op.params + int(np.prod(op.out_shape))


def graph_columns(
    graphs: Sequence[OpGraph], kinds: Sequence[str] | None = None, *, lanes: int = 1
) -> tuple[Floats, tuple[str, ...], tuple[str, ...]]:
    """Net-level features of op graphs: fixed cost, and for each kind of op its number, multiply-accumulates and moved values.

    Args:
        kinds: kinds of :func:`kind_of` that get columns; by default those that occur.
        lanes: 32-bit values (and accumulators) of a vector. Above 1, kinds with weights also get their multiply-accumulates with the lanes
            that a number of output channels leaves empty counted in.

    Returns:
        columns `(n, c)`, their names, and the kinds. Columns that are zero by nature (multiply-accumulates
        of a pooling) stay, so that two calls with the same kinds agree.

    Raises:
        UserError: for an op whose kind is not among `kinds`: a model that never saw it must not price it.
    """
    seen = sorted({kind_of(op) for graph in graphs for op in graph})
    chosen = tuple(seen if kinds is None else kinds)
    unknown = [kind for kind in seen if kind not in chosen]
    if unknown:
        raise UserError(
            f"expected only ops of the kinds the model learned from ({', '.join(chosen)}), got {unknown[0]}: measure such networks"
        )
    told = {kind: _TOLD[: 4 if lanes > 1 and kind in _WEIGHTED else 3] for kind in chosen}
    names = ("fixed", *(f"{kind}_{what}" for kind in chosen for what in told[kind]))
    where = {kind: names.index(f"{kind}_count") for kind in chosen}
    columns = np.zeros((len(graphs), len(names)))
    columns[:, 0] = 1.0
    for row, graph in zip(columns, graphs, strict=True):
        for op in graph:
            kind = kind_of(op)
            filled = op.out_shape[0] / (-(-op.out_shape[0] // lanes) * lanes)
            count = len(told[kind])
            row[where[kind] : where[kind] + count] += (1.0, op.macs, moved_values(op), op.macs / filled)[:count]
    return columns, names, chosen
