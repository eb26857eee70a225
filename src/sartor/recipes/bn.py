"""Batch-normalisation statistics of a sub-net.

A sub-net sliced from a supernet has no statistics of its own, and those of another sub-net would be wrong (Yu & Huang 2019, Universally
Slimmable Networks, section 3.3): they are measured anew, on training images, after extraction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sartor.errors import UserError

Images = Tensor | np.ndarray


def calibrate_bn(module: nn.Module, images: Images | Iterable[Images], *, batch: int = 256) -> nn.Module:
    """Reset and measure the running statistics of every batch normalisation in `module`, in place; returns it in eval mode.

    The statistics are the mean over batches, weighted by batch size, of the batch mean and of the unbiased batch variance: the cumulative
    average that ``momentum=None`` gives, but right for batches of unequal size too. Dropout stays off. Other state is untouched.

    Args:
        images: training images (n, C, H, W), cut into batches of at most `batch`, or an iterable of ready batches.

    Raises:
        UserError: if there are no images.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    try:
        with torch.inference_mode():
            for x in _batches(images, batch):
                seen += len(x)
                for norm in norms:
                    norm.momentum = len(x) / seen
                module(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()
    if seen == 0:
        raise UserError("calibrating batch normalisation needs at least one training image, got none")
    return module


def _batches(images: Images | Iterable[Images], size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor | np.ndarray):
        # equal parts rather than a small rest, whose variance would be a poor estimate
        parts = -(-len(images) // size) if len(images) else 0
        bounds = [round(i * len(images) / parts) for i in range(parts + 1)] if parts else []
        images = [images[a:b] for a, b in itertools.pairwise(bounds)]
    for x in images:
        yield torch.from_numpy(x) if isinstance(x, np.ndarray) else x
