"""Op graphs written down one op after the other, with the shapes that they lead to and the parameters that torch counts."""

from __future__ import annotations

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


__all__ = ["OpWriter"]
