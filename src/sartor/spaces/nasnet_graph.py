"""The op graph of a network of NASNet cells, written down from its two cells: what :func:`sartor.hardware.trace` finds in the extracted
network, a hundred times faster. There the wiring of a whole network is one trace, and hardly any two architectures share it."""

from __future__ import annotations

from collections.abc import Sequence

from sartor.hardware.graph import OpGraph, Shape
from sartor.spaces.nasnet_cell import Block, Cell
from sartor.spaces.op_writer import OpWriter, absorbed


def op_graph(
    cells: dict[str, Cell], kinds: Sequence[str], input_shape: Shape, classes: int, *, channels: int
) -> tuple[OpGraph, int]:  # fmt: skip
    """The op graph of the network, and its number of parameters in torch; `cells` by kind, `kinds` of the network's cells in order."""
    w = OpWriter()
    stem = w.conv("stem", -1, channels, shape=input_shape, kernel=3)
    outputs = {-2: stem, -1: stem}
    for k in sorted(_needed(cells, kinds)):
        cell = cells[kinds[k]]
        width = channels << kinds[: k + 1].count("reduce")
        states: dict[str, int] = {}
        for i, source in enumerate((k - 2, k - 1)):
            if any(f"input{i}" in (block.in1, block.in2) for block in cell):
                stride = 1 << kinds[max(source + 1, 0) : k].count("reduce")
                states[f"input{i}"] = w.conv(f"prepare.{k}.{i}", w.relu(f"prepare.{k}.{i}.relu", outputs[source]), width, stride=stride)
        for number, block in enumerate(cell):
            states[f"block{number}"] = _block(w, f"cells.{k}.block{number}", block, states, reduction=kinds[k] == "reduce")
        outputs[k] = _joined(w, f"cells.{k}.cat", [states[name] for name in _loose(cell)])
    last = w.relu("relu", outputs[len(kinds) - 1])
    width = w.shapes[last][0]
    pooled = w.add("pool", "pool", (last,), w.shapes[last], (width, 1, 1))
    w.conv("classifier", pooled, classes, norm=False)
    return OpGraph(tuple(absorbed(w.ops)), input_shape), w.numel + classes  # the classifier has a bias


def _needed(cells: dict[str, Cell], kinds: Sequence[str]) -> set[int]:
    """Cells whose output reaches the classifier."""
    found = {len(kinds) - 1}
    for k in range(len(kinds) - 1, -1, -1):
        if k in found:
            taken = {name for block in cells[kinds[k]] for name in (block.in1, block.in2)}
            found |= {source for i, source in enumerate((k - 2, k - 1)) if source >= 0 and f"input{i}" in taken}
    return found


def _loose(cell: Cell) -> list[str]:
    taken = {name for block in cell for name in (block.in1, block.in2)}
    return [f"block{i}" for i in range(len(cell)) if f"block{i}" not in taken]


def _joined(w: OpWriter, name: str, parts: Sequence[int]) -> int:
    if len(parts) == 1:
        return parts[0]
    shape = (sum(w.shapes[part][0] for part in parts), *w.shapes[parts[0]][1:])
    return w.add("concat", name, tuple(parts), shape, shape)


def _block(w: OpWriter, name: str, block: Block, states: dict[str, int], *, reduction: bool) -> int:
    sides = []
    for side, op, source in ((1, block.op1, block.in1), (2, block.op2, block.in2)):
        stride = 2 if reduction and source.startswith("input") else 1
        sides.append(_operation(w, f"{name}.op{side}", op, states[source], stride))
    if block.combine == "add":
        shape = w.shapes[sides[0]]
        return w.add("add", f"{name}.add", (sides[0], sides[1]), shape, shape)
    width = w.shapes[sides[0]][0]
    return w.conv(f"{name}.join", w.relu(f"{name}.join.relu", _joined(w, f"{name}.cat", (sides[0], sides[1]))), width)


def _operation(w: OpWriter, name: str, op: str, source: int, stride: int) -> int:
    if op == "identity" and stride == 1:
        return source
    channels, height, width = w.shapes[source]
    if op.endswith("pool_3x3"):
        out = (channels, -(-height // stride), -(-width // stride))
        return w.add(f"{op[:3]}pool", name, (source,), w.shapes[source], out, kernel=3, stride=stride)
    kernel = 1 if op == "identity" else int(op[-1])
    if not op.startswith("sep"):
        return w.conv(name, w.relu(f"{name}.relu", source), channels, kernel=kernel, stride=stride)
    for step in (stride, 1):
        spatial = w.conv(f"{name}.depthwise", w.relu(f"{name}.relu", source), channels, norm=False,
                         kernel=kernel, stride=step, groups=channels)  # fmt: skip
        source = w.conv(f"{name}.pointwise", spatial, channels)
    return source


__all__ = ["op_graph"]
