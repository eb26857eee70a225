"""Op graphs written down one op after the other, with the shapes that they lead to and the parameters that torch counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sartor.hardware.graph import Op, Shape


class OpWriter:
    """Ops so far, and the parameters that torch counts: weights, and two per channel of a batch normalisation."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.shapes: list[Shape] = []
        self.numel = 0

    def add(self, kind: str, name: str, inputs: tuple[int, ...], in_shape: Shape, out_shape: Shape, **fields: Any) -> int:
        self.ops.append(Op(kind, in_shape, out_shape, inputs=inputs, name=name, **fields))
        self.shapes.append(out_shape)
        return len(self.ops) - 1

    def conv(
        self, name: str, source: int, outputs: int, *, shape: Shape | None = None, norm: bool = True, stride: int = 1, **fields: Any
    ) -> int:
        channels, height, width = shape or self.shapes[source]
        out = (outputs, -(-height // stride), -(-width // stride))
        index = self.add("conv", name, (source,), (channels, height, width), out, stride=stride, **fields)
        self.numel += self.ops[index].params - outputs + (2 * outputs if norm else 0)
        return index

    def relu(self, name: str, source: int) -> int:
        return self.add("act", name, (source,), self.shapes[source], self.shapes[source], act="relu")


def absorbed(ops: Sequence[Op]) -> list[Op]:
    """A ReLU runs in the convolution or addition before it, where nothing else reads that one's result."""
    readers = Counter(source for op in ops for source in op.inputs)
    number = {-1: -1}
    kept: list[Op] = []
    for index, op in enumerate(ops):
        source = op.inputs[0]
        if op.act == "relu" and op.kind == "act" and readers[source] == 1 and kept[number[source]].kind in ("conv", "add"):
            number[index] = number[source]
            kept[number[source]] = replace(kept[number[source]], act=op.act)
            continue
        number[index] = len(kept)
        kept.append(replace(op, inputs=tuple(number[one] for one in op.inputs)))
    return kept


__all__ = ["OpWriter", "absorbed"]
