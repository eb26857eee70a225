"""The multi-branch space: units of parallel branches of searchable kinds, whose outputs are added or concatenated (the family of Inception,
Szegedy et al. 2015, "Going Deeper with Convolutions", CVPR, with every branch a choice).

A unit has B branches. The first has one of M kinds, each other one of them or none, so that no unit is empty. The live branches are added,
or concatenated and brought back to the unit's width by a 1x1 convolution (N = 2 ways), and pass an activation. With W widths there are
(M (M + 1)^(B - 1) N W)^U networks of U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.extract import Net
from sartor.layers.base import Chain, Searchable
from sartor.layers.choice import AnyArch, Choice, Width, mix
from sartor.layers.conv import ConvBNAct, ElasticLinear

NONE = "none"
KINDS = ("conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")
JOINS = ("add", "concat")


def size_of(units: int, branches: int, kinds: int = len(KINDS), widths: int = 3, joins: int = len(JOINS)) -> int:
    """Number of architectures."""
    return int((kinds * (kinds + 1) ** (branches - 1) * joins * widths) ** units)


def to_string(space: Space, arch: Mapping[str, int]) -> str:
    """One word a unit: ``add(conv_3x3,none,max_pool_3x3)/32``, with the width at the end."""
    labels = space.labels(space.canonical(arch))
    words = []
    for u in range(sum(name.endswith(".join") for name in space.choices)):
        count = sum(name.startswith(f"unit{u}.branch") for name in space.choices)
        kinds = ",".join(str(labels[f"unit{u}.branch{b}"]) for b in range(count))
        words.append(f"{labels[f'unit{u}.join']}({kinds})/{labels[f'unit{u}.width']}")
    return " ".join(words)


def from_string(space: Space, text: str) -> Arch:
    """Inverse of :func:`to_string`.

    Raises:
        UserError: for another form, and options that the space does not have.
    """
    labels: dict[str, str | int] = {}
    for u, word in enumerate(text.split()):
        join, opened, rest = word.partition("(")
        kinds, closed, width = rest.partition(")/")
        if not opened or not closed or not width.isdigit():
            raise UserError(f"expected units such as add(conv_3x3,none)/32, got {word[:80]!r}")
        labels |= {f"unit{u}.join": join, f"unit{u}.width": int(width)}
        labels |= {f"unit{u}.branch{b}": kind for b, kind in enumerate(kinds.split(","))}
    return space.from_labels(labels)


def operation(kind: str, inputs: Width, outputs: Width, stride: int) -> nn.Module:
    """What a branch of a kind does, `(batch, inputs, H, W)` to `(batch, outputs, H / stride, W / stride)`; it ends without activation."""
    if kind == "avg_pool_3x3":
        return Chain(nn.AvgPool2d(3, stride, 1, count_include_pad=False), ConvBNAct(inputs, outputs, act="none"))
    if kind == "max_pool_3x3":
        return Chain(nn.MaxPool2d(3, stride, 1), ConvBNAct(inputs, outputs, act="none"))
    kernel = int(kind[-1])
    if kind.startswith("sep"):
        return Chain(ConvBNAct(inputs, inputs, kernel, stride, depthwise=True), ConvBNAct(inputs, outputs, act="none"))
    return ConvBNAct(inputs, outputs, kernel, stride, act="none")


class Branch(Searchable):
    """One branch: the chosen operation, with weights of its own for each kind."""

    def __init__(self, kind: Choice, inputs: Width, outputs: Width, stride: int) -> None:
        super().__init__()
        self.kind = kind
        # "none" keeps its place in the list, so that an option's index is its position.
        made = (nn.Identity() if option == NONE else operation(option, inputs, outputs, stride) for option in kind.options)
        self.options = nn.ModuleList(made)

    def live(self, arch: AnyArch) -> bool:
        """Whether it is there, if only in part."""
        return any(self.kind.options[i] != NONE for i in self.kind.support(arch))

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        value = self.kind.value(arch)
        if isinstance(value, Mapping):
            value = {i: weight for i, weight in value.items() if self.kind.options[i] != NONE}

        def term(index: int) -> Tensor:
            out: Tensor = self.options[index](x, arch)
            return out

        return mix(value, term)


class Unit(Searchable):
    """Parallel branches, joined; see the module."""

    def __init__(self, number: int, inputs: Width, widths: Sequence[int], kinds: Sequence[str], branches: int, stride: int) -> None:
        super().__init__()
        name = f"unit{number}"
        width = Choice(f"{name}.width", tuple(widths))
        self.width = Width.of(width)
        self.join = Choice(f"{name}.join", JOINS)
        chosen = [Choice(f"{name}.branch{b}", tuple(kinds) if b == 0 else (NONE, *kinds)) for b in range(branches)]
        self.branches = nn.ModuleList(Branch(kind, inputs, self.width, stride) for kind in chosen)
        # A branch that is not there has no channels, and so no columns in the weight.
        segments = [Width((kind, width), lambda kind, channels: 0 if kind == NONE else channels) for kind in chosen]
        self.project = ConvBNAct(segments, width, act="none")

    def forward(self, x: Tensor, arch: AnyArch, drop_path: float = 0.0) -> Tensor:
        branches: Any = self.branches
        found: list[Tensor] = [branch(x, arch) for branch in branches if branch.live(arch)]

        def joined(index: int) -> Tensor:
            if self.join.options[index] == "add":
                total = found[0]
                for part in found[1:]:
                    total = total + part
                return total
            out: Tensor = self.project(torch.cat(found, dim=1) if len(found) > 1 else found[0], arch)
            return out

        return torch.relu(mix(self.join.value(arch), joined))


class BranchNet(Net):
    """A stem, `units` units in three stages (stride 2 at the start of the second and third), pool and classifier; pictures (C, H, W).

    Args:
        units: U; they are shared out evenly over the stages.
        branches: B.
        widths, kinds: options of every unit.

    Raises:
        UserError: for numbers below 1, and unknown kinds.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        units: int = 6,
        branches: int = 3,
        widths: Sequence[int] = (16, 32, 48),
        kinds: Sequence[str] = KINDS,
        stem: int = 16,
    ) -> None:
        super().__init__(input_shape, classes)
        if min(units, branches, stem) < 1:
            raise UserError(f"branches: units, branches and stem must be at least 1, got {units}, {branches} and {stem}")
        unknown = next((kind for kind in kinds if kind not in KINDS), None)
        if unknown is not None:
            raise UserError(f"branches: unknown kind '{unknown}'; kinds: {', '.join(KINDS)}")
        self.stem = ConvBNAct(self.input_shape[0], stem, 3)
        made: list[Unit] = []
        stage = [3 * u // units for u in range(units)]
        for u in range(units):
            inputs = made[-1].width if made else Width.of(stem)
            made.append(Unit(u, inputs, widths, kinds, branches, 2 if u and stage[u] != stage[u - 1] else 1))
        self.units = nn.ModuleList(made)
        self.classifier = ElasticLinear(made[-1].width, self.classes)

    def forward(self, x: Tensor, arch: AnyArch) -> Tensor:  # type: ignore[override]  # Net passes drop_path to those that take it
        x = self.stem(x, arch)
        for unit in self.units:
            x = unit(x, arch)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), arch)  # type: ignore[no-any-return]


__all__ = ["KINDS", "Branch", "BranchNet", "Unit", "from_string", "size_of", "to_string"]
