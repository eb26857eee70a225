"""Accuracy of a module on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.arch import Arch
from sartor.recipes.splits import TrainingSplit


def count_correct(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Number of images (of `logits` (batch, classes), `labels` (batch,)) whose class is the first, and among the first five."""
    k = min(5, logits.shape[1])
    hits = logits.topk(k, dim=1).indices == labels[:, None]
    return int(hits[:, 0].sum()), int(hits.sum())


def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """``{"accuracy", "top5"}``, fractions, of `module` in eval mode (its mode is restored)."""
    mode = module.training
    module.eval()
    first = five = total = 0
    with torch.inference_mode():
        for x, y in batches:
            a, b = count_correct(module(x), y)
            first, five, total = first + a, five + b, total + len(y)
    module.train(mode)
    return {"accuracy": first / max(total, 1), "top5": five / max(total, 1)}


def validation_accuracy(module: nn.Module, split: TrainingSplit, *, batch: int = 256, channels_last: bool = True) -> dict[str, float]:
    """:func:`accuracy` over all images of a split."""
    return accuracy(module, tensors(split, batch, channels_last=channels_last))


def shared_accuracy(split: Any, *, images: int = 1000, batch: int = 128) -> Callable[[nn.Module, Arch], dict[str, float]]:
    """``accuracy(net, arch) -> {"accuracy", "top5"}`` on the first `images` of a split, by the network's weights and batch statistics.

    It needs nothing but ``net(x, arch)``, hence also serves networks that no sub-net can be taken out of (partial channels).
    """
    count = min(len(split), images)
    count -= count > 1 and count % batch == 1  # one image has no statistics of its own
    shown = split.subset(np.arange(count))

    def evaluate(net: nn.Module, arch: Arch) -> dict[str, float]:
        def of(x: Tensor) -> Tensor:
            logits: Tensor = net(x, arch)
            return logits

        mode, first, five = net.training, 0, 0
        net.eval()
        with torch.no_grad():
            for x, y in tensors(shown, batch):
                a, b = count_correct(of(x), y)
                first, five = first + a, five + b
        net.train(mode)
        return {"accuracy": first / max(len(shown), 1), "top5": five / max(len(shown), 1)}

    return evaluate


def tensors(split: TrainingSplit, batch: int, *, channels_last: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a split, in order, as tensors."""
    for images, labels in split.batches(batch):
        yield as_input(images, channels_last=channels_last), torch.from_numpy(labels)


def as_input(images: Any, *, channels_last: bool = True) -> Tensor:
    """Float images as a tensor, (n, C, H, W) in channels_last memory format if asked."""
    x = torch.from_numpy(images)
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


def first_images(split: TrainingSplit, count: int, *, seed: int = 0, batch: int = 256, channels_last: bool = True) -> list[Tensor]:
    """About `count` images of a split, drawn without replacement, not augmented, in batches: for calibrating batch normalisation."""
    found: list[Tensor] = []
    have = 0
    for images, _ in split.batches(min(batch, count), np.random.default_rng([seed, 2]), None, len(split) >= min(batch, count)):
        found.append(as_input(images, channels_last=channels_last))
        have += len(images)
        if have >= count:
            break
    return found
