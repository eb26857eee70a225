"""Blocks of every kind with every choice open, and mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sartor.layers import KINDS, Choice, Width
from sartor.layers.blocks import BlockConfig, Hidden

CHOICES = {
    "in": (8, 12, 16),
    "out": (8, 16, 24),
    "kernel": (3, 5, 7),
    "expand": (1, 2, 3),
    "act": ("relu", "hardswish", "relu6"),
    "se": (False, True),
}
SHAPES = ("residual", "reducing", "widening")  # widths tied at stride 1; stride 2; another width at stride 1


def block_of(kind: str, shape: str, *, expands: tuple[float | Hidden, ...] = CHOICES["expand"], **more: Any) -> Any:
    """A block of `kind` whose widths, kernel, expansion, activation and squeeze-excite are all choices. Seeded."""
    torch.manual_seed(0)
    inputs = Width.of(Choice("in", CHOICES["in"]))
    outputs = inputs if shape == "residual" else Width.of(Choice("out", CHOICES["out"]))
    config = BlockConfig(
        inputs,
        outputs,
        2 if shape == "reducing" else 1,
        Choice("kernel", CHOICES["kernel"]),
        Choice("expand", expands),
        Choice("act", CHOICES["act"]),
        Choice("se", CHOICES["se"]),
        **more,
    )
    block = KINDS[kind](config)
    with torch.no_grad():  # transforms that are the identity, norms that are one and zero biases would hide mistakes
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() else 0.0))
    return block


def cases() -> list[tuple[str, str]]:
    """Every kind in every shape it can take: a skip ties its widths."""
    return [(kind, shape) for kind in KINDS for shape in SHAPES if kind != "skip" or shape == "residual"]


def used(block: Any) -> list[str]:
    """Names of the choices that the block reads."""
    return list(dict.fromkeys(c.name for c in block.choices() if not c.fixed))


def images(arch: Mapping[str, int], hw: tuple[int, int] = (7, 9), batch: int = 4) -> Tensor:
    """Inputs `(batch, width of the block, H, W)`, seeded."""
    return torch.randn(batch, CHOICES["in"][arch["in"]], *hw, generator=torch.Generator().manual_seed(1))


def one_hot(arch: Mapping[str, int]) -> dict[str, dict[int, float]]:
    return {name: {index: 1.0} for name, index in arch.items()}


def train_mode(module: nn.Module) -> nn.Module:
    """Batch statistics, no dropout."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    return module
