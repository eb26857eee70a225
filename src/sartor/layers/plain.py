"""Plain torch counterparts of the searchable blocks: what `extract` builds. They know nothing of architectures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018): `x * gate(expand(relu(reduce(mean(x)))))`, shape `(batch, channels, H, W)`."""

    def __init__(self, channels: int, squeezed: int, gate: str = "hardsigmoid") -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate: nn.Module = nn.Hardsigmoid() if gate == "hardsigmoid" else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(torch.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Bottleneck(nn.Module):
    """Features, attention, linear projection, residual."""

    def __init__(self, features: nn.Module, se: nn.Module, project: nn.Module, residual: bool) -> None:
        super().__init__()
        self.features, self.project, self.residual = features, project, residual
        self.se = None if isinstance(se, nn.Identity) else se

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        return x + y if self.residual else y


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class GhostFeatures(nn.Module):
    """Primary features and cheap ones made from them, concatenated; both may then be downsampled."""

    def __init__(
        self, primary: nn.Module, cheap: nn.Module, down_primary: nn.Module | None = None, down_cheap: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.primary, self.cheap, self.down_primary, self.down_cheap = primary, cheap, down_primary, down_cheap

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        b = self.cheap(a)
        if self.down_primary is not None and self.down_cheap is not None:
            a, b = self.down_primary(a), self.down_cheap(b)
        return torch.cat((a, b), 1)


class DenseFeatures(nn.Module):
    """The input and new features beside it (DenseNet, Huang et al. 2017), concatenated."""

    def __init__(self, grow: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.grow, self.shortcut = grow, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.shortcut(x), self.grow(x)), 1)


class Resize(nn.Module):
    """Bilinear resize of the input to a square of `size` pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Channels `(batch, groups * n, H, W)` in the order in which each group gives one in turn (Zhang et al. 2018, ShuffleNet)."""
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):  # and stays so
        rows = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups).transpose(3, 4)
        return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class PartialBranch(nn.Module):
    """`branch` on the first 1/k of the channels, the others beside it, then a channel shuffle of k groups."""

    def __init__(self, branch: nn.Module, k: int) -> None:
        super().__init__()
        self.branch, self.k = branch, k

    def forward(self, x: Tensor) -> Tensor:
        part = x.shape[1] // self.k
        mixed, rest = self.branch(x[:, :part]), x[:, part:]
        if mixed.shape[-1] != rest.shape[-1]:
            rest = F.max_pool2d(rest, 2, 2)
        return shuffle_channels(torch.cat((mixed, rest), 1), self.k)
