"""Fused ops from a stream of primitive nodes: what the front ends for ONNX files and exported programs share.

A front end announces how often every value is read and then its nodes in execution order; here batch norms and activations join the op
before them, reshapes disappear, and squeeze-excite branches become one op. `sartor.hardware._fx` follows the same rules.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from sartor.errors import UserError
from sartor.hardware._patterns import ABSORBS, merge
from sartor.hardware.graph import Op, OpGraph, Shape

Dims = tuple[int, ...]


def feature_map(dims: Sequence[int]) -> Shape:
    """(batch, ...) as the (channels, height, width) of one image: missing sizes are 1, more than three are folded into the first."""
    inner = tuple(int(size) for size in dims[1:])
    if len(inner) > 3:
        inner = (prod(inner[:-2]), *inner[-2:])
    padded = (*inner, 1, 1, 1)[:3]
    return padded[0], padded[1], padded[2]


class Assembler:
    """Collects ops. Values are any hashable names; `dims` has the shape, batch first, and `reads` the number of readers of each.

    A graph output counts as a reader. Values never announced as an input or made by a node are constants and must not be passed as sources.
    """

    def __init__(self, dims: Mapping[Hashable, Dims], reads: Mapping[Hashable, int], dtypes: Mapping[Hashable, str] | None = None) -> None:
        self.dims, self.reads, self.dtypes = dims, reads, dtypes or {}
        self.ops: list[Op] = []
        self.producer: dict[Hashable, int] = {}
        self._alone: dict[Hashable, bool] = {}  # the value, and every one between it and its op, has one reader
        self._folded: set[int] = set()
        self.input_shape: Shape | None = None

    def knows(self, value: Hashable) -> bool:
        return value in self.producer

    def input(self, value: Hashable, name: str = "") -> None:
        """An input of the network. Those after the first become ops of their own, so that their bytes count."""
        if self.input_shape is None:
            self.input_shape = feature_map(self.dims[value])
            self._bind(value, -1, fresh=True)
        else:
            shape = feature_map(self.dims[value])
            self.ops.append(Op("other", shape, shape, inputs=(-1,), name=name, label="Input"))
            self._bind(value, len(self.ops) - 1, fresh=True)

    def emit(self, kind: str, out: Hashable, sources: Sequence[Hashable], name: str, **fields: object) -> None:
        """An op of its own. Only the shapes and producers are filled in here; other fields of `Op` are given."""
        shape = feature_map(self.dims[sources[0]])
        if kind == "concat":
            shape = (sum(feature_map(self.dims[source])[0] for source in sources), *shape[1:])
        elif kind in ("add", "mul", "other"):
            shape = max((feature_map(self.dims[source]) for source in sources), key=prod)  # the smaller operand is broadcast
        inputs = tuple(self.producer[source] for source in sources)
        op = Op(kind, shape, feature_map(self.dims[out]), inputs=inputs, name=name, dtype=self.dtypes.get(out, ""), **fields)  # type: ignore[arg-type]  # names of Op's fields
        self.ops.append(op)
        self._bind(out, len(self.ops) - 1, fresh=True)

    def other(self, label: str, outs: Sequence[Hashable], sources: Sequence[Hashable], name: str, macs: int = 0, params: int = 0) -> None:
        """An operator without a kind of its own; the values in `outs` leave it together."""
        self.emit("other", outs[0], sources, name, label=label, own_macs=int(macs), own_params=int(params))
        if len(outs) > 1:
            shapes = [feature_map(self.dims[out]) for out in outs]
            same = len({shape[1:] for shape in shapes}) == 1
            joined = (sum(s[0] for s in shapes), *shapes[0][1:]) if same else (sum(prod(s) for s in shapes), 1, 1)
            self.ops[-1] = replace(self.ops[-1], out_shape=joined)
            for out in outs[1:]:
                self._bind(out, len(self.ops) - 1, fresh=True)

    def alias(self, out: Hashable, source: Hashable) -> None:
        """`out` is `source` under another name or shape: nothing is computed."""
        self._bind(out, self.producer[source], fresh=False, source=source)

    def linear(self, out: Hashable, source: Hashable, features: tuple[int, int], params: int, name: str) -> None:
        """A fully connected layer over the last axis: `linear` for vectors, `other` where it runs over many rows."""
        rows = prod(self.dims[out][1:-1])
        if rows == 1:
            self.emit("linear", out, [source], name)
        else:
            self.other("linear", [out], [source], name, rows * features[0] * features[1], params)

    def activation(self, out: Hashable, source: Hashable, act: str, name: str) -> None:
        """An activation: joins the op before it when nobody else reads that op's value."""
        index = self.producer[source]
        if self._absorbs(source):
            self.ops[index] = replace(self.ops[index], act=act, dtype=self.dtypes.get(out, self.ops[index].dtype))
            self._bind(out, index, fresh=False, source=source)
        else:
            self.emit("act", out, [source], name, act=act)

    def affine(self, out: Hashable, source: Hashable, name: str) -> None:
        """A batch norm, or a product or sum with constants per channel: folded into the weights before it where it can be."""
        index = self.producer[source]
        if self._absorbs(source) and self.ops[index].kind != "add" and index not in self._folded:
            self._folded.add(index)
            self._bind(out, index, fresh=False, source=source)
        elif index >= 0 and self._alone[source] and self.ops[index].kind == "act" and self.ops[index].act == "affine":
            self._bind(out, index, fresh=False, source=source)  # two in a row are one
        else:
            self.emit("act", out, [source], name, act="affine")

    def bias(self, out: Hashable, source: Hashable, count: int, name: str) -> None:
        """A constant sum after a layer: its bias where that has none yet. `other` layers learn its parameters."""
        index = self.producer[source]
        if self._absorbs(source, kinds=("other",)) and self.ops[index].label == "linear":
            self.ops[index] = replace(self.ops[index], own_params=self.ops[index].own_params + count)
            self._bind(out, index, fresh=False, source=source)
        else:
            self.affine(out, source, name)

    def graph(self, outputs: Iterable[Hashable]) -> OpGraph:
        """The finished graph. Raises UserError for a network that computes nothing."""
        if self.input_shape is None or not self.ops:
            raise UserError("expected a network with an input and at least one operation on it, got none")
        leaving = {self.producer[value] for value in outputs if value in self.producer}
        return OpGraph(tuple(merge(self.ops, leaving)), self.input_shape)

    def _absorbs(self, source: Hashable, kinds: Sequence[str] = ABSORBS) -> bool:
        index = self.producer[source]
        return index >= 0 and self._alone[source] and not self.ops[index].act and self.ops[index].kind in kinds

    def _bind(self, value: Hashable, index: int, *, fresh: bool, source: Hashable = None) -> None:
        self.producer[value] = index
        self._alone[value] = self.reads.get(value, 0) == 1 and (fresh or self._alone[source])
