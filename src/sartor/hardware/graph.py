"""Op graphs: a network as the runtime executes it, with batch norm and activations folded into the op before them.

The op graph is the narrow waist of `sartor.hardware`: costs, memory and the latency table read it and nothing else.
`trace` makes one from a plain torch module; a search space makes single ops directly (see `sartor.hardware.cost.Factor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from sartor.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]

KINDS = ("conv", "linear", "pool", "maxpool", "avgpool", "se", "add", "mul", "concat", "act", "resize", "other")
#: Bytes of a value at a precision.
BYTES = {"int8": 1, "int16": 2, "fp16": 2, "bf16": 2, "fp32": 4}
ACTS = ("", "relu", "relu6", "hardswish", "hardsigmoid", "swish", "sigmoid", "affine")


def _text(shape: Shape) -> str:
    return "x".join(str(size) for size in shape)


@dataclass(frozen=True)
class Op:
    """One fused operation on feature maps of one image.

    Shapes are (channels, height, width); vectors are (features, 1, 1). `in_shape` of an `add` or `mul` is the shape of each operand;
    of a `concat` it is the joined shape, i.e. its channels are those of all operands together.

    conv: convolution + folded batch norm + activation `act`. linear: the same for a fully connected layer.
    se: squeeze-excite branch *including* its multiplication; `hidden` is the squeezed width, `act` the gate (default hardsigmoid).
    pool: global average. act: an activation that nothing absorbs ("affine" is a lone batch norm). resize: bilinear or nearest.
    other: an operator of a foreign network without a kind of its own; `label` is its name, `own_macs` and `own_params` its counts.
    A conv with two inputs adds the second to its sum before the activation (only in graphs lowered by `sartor.hardware.fusion`).
    """

    kind: str
    in_shape: Shape
    out_shape: Shape
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: str = ""
    inputs: tuple[int, ...] = ()  # indices of producers in the graph; -1 is the graph's input
    name: str = ""
    hidden: int = 0  # se only: width of the squeezed layer
    dilation: int = 1
    label: str = ""  # other only
    own_macs: int = 0  # other only
    own_params: int = 0  # other only
    dtype: str = ""  # of the output, as numpy names it; empty where the graph is not bound to a precision

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"expected Op.kind to be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.act not in ACTS:
            raise UserError(f"expected Op.act to be one of {', '.join(a or repr(a) for a in ACTS)}, got {self.act!r}")
        if self.kind == "se" and self.hidden < 1:
            raise UserError(f"expected Op.hidden (width of the squeezed layer) of at least 1 for an se op, got {self.hidden}")

    @cached_property
    def signature(self) -> str:
        """Short, stable text that names the op's cost: two ops with one signature cost the same, whatever their names and places.

        `conv:16x14x14>48x14x14:k1s1g1:relu`, `se:48x14x14:h12:hardsigmoid`, `add:16x14x14`.
        """
        same = self.in_shape == self.out_shape
        parts = [self.kind, _text(self.in_shape) if same and self.kind != "conv" else f"{_text(self.in_shape)}>{_text(self.out_shape)}"]
        if self.kind == "se":
            parts += [f"h{self.hidden}", self.act or "hardsigmoid"]
            return ":".join(parts)
        if self.kind in ("conv", "maxpool", "avgpool"):
            groups = f"g{self.groups}" if self.kind == "conv" else ""
            parts.append(f"k{self.kernel}s{self.stride}{groups}" + (f"d{self.dilation}" if self.dilation > 1 else ""))
        if self.kind == "concat" and len(self.inputs) > 2:
            parts.append(f"n{len(self.inputs)}")
        if self.kind == "other":
            parts += [self.label, f"m{self.own_macs}p{self.own_params}"]
        if self.kind == "conv" and len(self.inputs) > 1:
            parts.append("add")
        if self.act:
            parts.append(self.act)
        return ":".join(parts)

    @property
    def _weights(self) -> int:
        if self.kind == "conv":
            return self.in_shape[0] // self.groups * self.kernel**2 * self.out_shape[0]
        if self.kind == "linear":
            return self.in_shape[0] * self.out_shape[0]
        return 2 * self.in_shape[0] * self.hidden if self.kind == "se" else 0

    @property
    def _biases(self) -> int:
        if self.kind in ("conv", "linear"):
            return self.out_shape[0]
        if self.kind == "se":
            return self.in_shape[0] + self.hidden
        return 2 * self.in_shape[0] if self.act == "affine" else 0

    @property
    def params(self) -> int:
        """Parameters as delivered: weights and one bias per output channel, batch norm folded in."""
        return self.own_params if self.kind == "other" else self._weights + self._biases

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image; every other op counts 0."""
        if self.kind == "other":
            return self.own_macs
        return self._weights * (self.out_shape[1] * self.out_shape[2] if self.kind == "conv" else 1)

    def traffic(self, bytes_per_value: float = 1, bytes_per_weight: float = 1) -> float:
        """Bytes that one run moves at least: every operand and weight read once, the output written once (biases count 4 bytes).

        A window that touches only part of its input (stride over kernel) reads that part.
        """
        read = prod(self.in_shape) * min(1.0, (self.kernel / self.stride) ** 2)
        if self.kind in ("add", "mul"):
            read *= max(2, len(self.inputs))
        if self.kind == "conv" and len(self.inputs) > 1:
            read += prod(self.out_shape)
        if self.kind == "se":
            read += prod(self.in_shape) + 2 * (self.in_shape[0] + self.hidden)  # the map is read again for the product
        weights, biases = (self.own_params, 0) if self.kind == "other" else (self._weights, self._biases)
        return (read + prod(self.out_shape)) * bytes_per_value + weights * bytes_per_weight + biases * 4


@dataclass(frozen=True)
class OpGraph:
    """Ops in execution order. `ops[i].inputs` are indices below i, or -1 for the graph's input; empty means the op before."""

    ops: tuple[Op, ...]
    input_shape: Shape

    def __post_init__(self) -> None:
        for index, op in enumerate(self.ops):
            if any(not -1 <= source < index for source in op.inputs):
                raise UserError(f"expected inputs of op {index} ({op.kind}) to lie in -1..{index - 1}, got {op.inputs}")

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def sources(self, index: int) -> tuple[int, ...]:
        """Producers of op `index`; -1 is the graph's input."""
        return self.ops[index].inputs or (index - 1,)

    def consumers(self, index: int) -> tuple[int, ...]:
        """Ops that read the output of op `index` (-1: the graph's input); none means it leaves the network."""
        return tuple(reader for reader in range(len(self.ops)) if index in self.sources(reader))

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def params(self) -> int:
        return sum(op.params for op in self.ops)


def trace(module: nn.Module, input_shape: Sequence[int]) -> OpGraph:
    """The op graph of a plain torch module for one image of `input_shape` (C, H, W), fused as a runtime fuses it.

    The module is traced symbolically on the meta device: no arithmetic is done and its weights are not touched.
    Raises UserError for a module that torch.fx cannot trace and for a layer without an op kind.
    """
    from sartor.hardware._fx import build

    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"expected input_shape (channels, height, width) of positive sizes, got {tuple(input_shape)}")
    return OpGraph(tuple(build(module, (shape[0], shape[1], shape[2]))), (shape[0], shape[1], shape[2]))
