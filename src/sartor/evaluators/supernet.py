"""Accuracy of sub-nets with the supernet's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.bn import calibrate_bn
from sartor.recipes.evaluate import accuracy, first_images, tensors
from sartor.recipes.splits import TrainingData


class Extractable(Protocol):
    """What the evaluator needs of a network."""

    space: Space
    input_shape: tuple[int, int, int]

    def extract(self, arch: Mapping[str, int]) -> nn.Module: ...


class SupernetEvaluator:
    """``evaluator(arch) -> {"accuracy", "top5", "params", "macs"}``: accuracies are fractions of the validation images.

    A sub-net is extracted as a plain module, its batch normalisation is calibrated on training images and folded into the convolutions,
    and the result is run over the validation images. Images are normalised once and kept in memory; results are cached by canonical
    architecture (forget them with :meth:`clear` after training the supernet further).

    Args:
        calibration: number of training images for batch normalisation.
        images: number of validation images, a seeded subset that is the same for all architectures (1000: a standard error of about one
            point at 90 %, less between two nets, whose errors coincide); None for all.
        batch: images per forward pass; 64 keeps the activations of small nets in the cache and is the fastest on CPUs.

    Attributes:
        images: number of validation images that are looked at.

    Raises:
        UserError: if there are no validation images.
    """

    def __init__(
        self,
        net: Extractable,
        data: TrainingData,
        *,
        calibration: int = 512,
        images: int | None = 1000,
        batch: int = 64,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        if len(data.validation) == 0:
            raise UserError("the dataset has no validation images, so sub-nets cannot be compared; load it with validation= above 0")
        self.net, self.channels_last = net, channels_last
        self._calibration = first_images(data.train, calibration, seed=seed, batch=batch, channels_last=channels_last)
        self._validation = subset(list(tensors(data.validation, batch, channels_last=channels_last)), images, batch, seed)
        self.images = sum(len(y) for _, y in self._validation)
        self._cache: dict[Arch, dict[str, float]] = {}

    def __call__(self, arch: Mapping[str, int]) -> dict[str, float]:
        key = self.net.space.canonical(arch)
        if key not in self._cache:
            module = self.net.extract(key)
            known = getattr(self.net, "costs", None)  # spaces that count without a network spare a trace
            macs = float(known(key)["macs"]) if known else self._macs(module)
            self._cache[key] = self._evaluate(module, macs)
        return dict(self._cache[key])

    def evaluate_module(self, module: nn.Module) -> dict[str, float]:
        """The same metrics for a plain module, whose batch-normalisation statistics are overwritten."""
        return self._evaluate(module, self._macs(module))

    def _evaluate(self, module: nn.Module, macs: float) -> dict[str, float]:
        costs = {"params": float(sum(p.numel() for p in module.parameters())), "macs": macs}
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub omits the keyword-only form
        calibrate_bn(module, self._calibration)
        return {**accuracy(fold_bn(module), self._validation), **costs}

    def _macs(self, module: nn.Module) -> float:
        from sartor.hardware import trace

        return float(sum(op.macs for op in trace(module, self.net.input_shape).ops))

    def clear(self) -> None:
        """Forget cached results."""
        self._cache.clear()


def subset(batches: list[tuple[Tensor, Tensor]], count: int | None, batch: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """`count` seeded images (all if None) of `batches`, cut into new batches."""
    if count is None or count >= sum(len(y) for _, y in batches):
        return batches
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    picked = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:count]
    return list(zip(x[picked].split(batch), y[picked].split(batch), strict=True))


def fold_bn(module: nn.Module) -> nn.Module:
    """Fold each batch normalisation that follows a convolution in an `nn.Sequential` into it, in place, for inference.

    Only this pattern is sure to be one producer and one consumer; other normalisations stay, and still compute the same.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    module.eval()
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            for i in range(len(parent) - 1):
                conv, norm = parent[i], parent[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent[i] = fuse_conv_bn_eval(conv, norm)
                    parent[i + 1] = nn.Identity()
    return module
