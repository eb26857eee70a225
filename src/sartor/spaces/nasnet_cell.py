"""Cells of NASNet: their space, and how they are spelled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.layers.choice import Choice

OPS = ("identity", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "avg_pool_3x3", "max_pool_3x3")
COMBINERS = ("add", "concat")
KINDS = ("normal", "reduce")
BLOCKS = 5


def size_of(blocks: int = BLOCKS, ops: int = len(OPS), combiners: int = len(COMBINERS)) -> int:
    """Number of cells of one kind: prod_i (i + 2)^2 M^2 N."""
    return math.prod((i + 2) ** 2 * ops**2 * combiners for i in range(blocks))


def states(block: int) -> tuple[str, ...]:
    """Hidden states that a block may take: the output of the cell before the last, that of the last, and the earlier blocks."""
    return ("input0", "input1", *(f"block{i}" for i in range(block)))


@dataclass(frozen=True)
class Block:
    """``combine(op1(in1), op2(in2))`` by the names of states, operations and combiners."""

    in1: str
    op1: str
    in2: str
    op2: str
    combine: str = "add"

    def __str__(self) -> str:
        return f"{self.combine}({self.op1}({self.in1}),{self.op2}({self.in2}))"


Cell = tuple[Block, ...]
_BLOCK = re.compile(r"(\w+)\((\w+)\((\w+)\),(\w+)\((\w+)\)\)")


def make_space(blocks: int = BLOCKS, ops: Sequence[str] = OPS, combiners: Sequence[str] = COMBINERS) -> Space:
    """The space of pairs of a normal and a reduction cell; its size is ``size_of(...) ** 2``."""
    return Space({choice.name: choice.options for kind in KINDS for i in range(blocks) for choice in _choices(kind, i, ops, combiners)})


def _choices(kind: str, i: int, ops: Sequence[str], combiners: Sequence[str]) -> tuple[Choice, ...]:
    parts = {"in1": states(i), "op1": ops, "in2": states(i), "op2": ops, "combine": combiners}
    return tuple(Choice(f"{kind}.b{i}.{part}", tuple(options)) for part, options in parts.items())


def encode(space: Space, normal: Cell, reduce: Cell) -> Arch:
    """The architecture of two cells.

    Raises:
        UserError: for states, operations or combiners that the space does not have, and another number of blocks.
    """
    labels = {
        f"{kind}.b{i}.{part}": getattr(block, part)
        for kind, cell in zip(KINDS, (normal, reduce), strict=True)
        for i, block in enumerate(cell)
        for part in ("in1", "op1", "in2", "op2", "combine")
        if f"{kind}.b{i}.{part}" in space.choices or part != "combine"
    }
    return space.from_labels(labels)


def decode(space: Space, arch: Mapping[str, int]) -> tuple[Cell, Cell]:
    """Inverse of :func:`encode`: the normal and the reduction cell."""
    labels: Mapping[str, Any] = space.labels(space.canonical(arch))
    count = sum(name.startswith("normal.") and name.endswith(".in1") for name in space.choices)

    def block(kind: str, i: int) -> Block:
        return Block(*(str(labels[f"{kind}.b{i}.{part}"]) for part in ("in1", "op1", "in2", "op2", "combine")))

    normal, reduce = (tuple(block(kind, i) for i in range(count)) for kind in KINDS)
    return normal, reduce


def to_string(cell: Cell) -> str:
    """``add(sep_conv_3x3(input1),identity(input1)) ...``, one block after the other."""
    return " ".join(map(str, cell))


def from_string(text: str) -> Cell:
    """Inverse of :func:`to_string`.

    Raises:
        UserError: for anything else.
    """
    cell = []
    for word in text.split():
        found = _BLOCK.fullmatch(word)
        if found is None:
            raise UserError(f"expected blocks such as add(identity(input0),conv_3x3(input1)), got {word[:80]!r}")
        combine, op1, in1, op2, in2 = found.groups()
        cell.append(Block(in1, op1, in2, op2, combine))
    return tuple(cell)


NASNET_A = (
    from_string(
        "add(sep_conv_3x3(input1),identity(input1)) add(sep_conv_3x3(input0),sep_conv_5x5(input1)) "
        "add(avg_pool_3x3(input1),identity(input0)) add(avg_pool_3x3(input0),avg_pool_3x3(input0)) "
        "add(sep_conv_5x5(input0),sep_conv_3x3(input0))"
    ),
    from_string(
        "add(sep_conv_7x7(input0),sep_conv_5x5(input1)) add(max_pool_3x3(input1),sep_conv_7x7(input0)) "
        "add(avg_pool_3x3(input1),sep_conv_5x5(input0)) add(max_pool_3x3(input1),sep_conv_3x3(block0)) "
        "add(avg_pool_3x3(block0),identity(block1))"
    ),
)
"""NASNet-A, normal and reduction cell (figure 4 of the paper)."""
