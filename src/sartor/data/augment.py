"""Augmentation of small images, in NumPy, on normalised batches: what is filled in is zero, the training mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.data.dataset import Dataset, Floats
from sartor.errors import UserError


@dataclass(frozen=True)
class Policy:
    """Random crop, horizontal flip and cutout, in that order; call it with a batch.

    Attributes:
        pad: zero pixels added on every side before a window of the old size is cut at random: a shift by up to `pad` pixels.
        flip: mirror left to right with probability one half.
        cutout: side of the zeroed square, clipped at the border (DeVries and Taylor 2017, "Improved regularization of convolutional
            neural networks with cutout", section 3.2); 0 for none.
    """

    pad: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0 or self.cutout < 0:
            raise UserError(f"augmentation: pad and cutout are pixels from 0, got {self.pad} and {self.cutout}")

    def __call__(self, images: Floats, rng: np.random.Generator) -> Floats:
        """A changed copy of (b, C, H, W) float32 images; the same generator state gives the same result."""
        out = _crop_flip(images, rng, self.pad, self.flip) if self.pad or self.flip else images.copy()
        if self.cutout:
            _cut_out(out, rng, self.cutout)
        return out


def _crop_flip(images: Floats, rng: np.random.Generator, pad: int, flip: bool) -> Floats:
    count, channels, height, width = images.shape
    shifts = rng.integers(0, 2 * pad + 1, (count, 2)) if pad else np.zeros((count, 2), np.int64)
    mirror = np.less(rng.random(count), 0.5) if flip else np.zeros(count, np.bool_)
    padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), np.float32)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    out = np.empty_like(images)
    # one slice per image costs what one fancy index into all windows of the batch does, and mirrors in the same copy
    for number, ((top, left), mirrored) in enumerate(zip(shifts.tolist(), mirror.tolist(), strict=True)):
        window = padded[number, :, top : top + height, left : left + width]
        out[number] = window[:, :, ::-1] if mirrored else window
    return out


def _cut_out(images: Floats, rng: np.random.Generator, side: int) -> None:
    """Zero one square per image, in place; its centre is anywhere, so that it may lie partly outside."""
    count, _, height, width = images.shape
    tops = rng.integers(0, height, (count, 1)) - side // 2
    lefts = rng.integers(0, width, (count, 1)) - side // 2
    rows = (np.arange(height) >= tops) & (np.arange(height) < tops + side)
    columns = (np.arange(width) >= lefts) & (np.arange(width) < lefts + side)
    images *= ~(rows[:, :, None] & columns[:, None, :])[:, None]


def mixup(images: Floats, labels: NDArray[np.int64], classes: int, rng: np.random.Generator, alpha: float = 0.2) -> tuple[Floats, Floats]:
    """Mix each image and its label with another of the batch (Zhang et al. 2018, "mixup", section 2).

    ``x = l x_i + (1 - l) x_j`` with one ``l ~ Beta(alpha, alpha)`` per pair.

    Args:
        images: (b, C, H, W) float32.
        labels: (b,) integers.
        classes: width of the targets.

    Returns:
        Mixed images (b, C, H, W), and targets (b, classes) float32 whose rows sum to 1.
    """
    if alpha <= 0:
        raise UserError(f"mixup: alpha must be above 0, got {alpha}")
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    partner = rng.permutation(len(images))
    weight = share.reshape(-1, 1, 1, 1)
    targets = np.zeros((len(images), classes), np.float32)
    rows = np.arange(len(images))
    targets[rows, labels] = share
    targets[rows, labels[partner]] += 1 - share
    return weight * images + (1 - weight) * images[partner], targets


def default_policy(dataset: Dataset) -> Policy:
    """A mild policy for the kind of images, by the data set's name and else by its shape and pixel type.

    Digits are shifted but never mirrored, Fashion-MNIST is mirrored and shifted, CIFAR-10 also gets cutout; other RGB images are
    mirrored and shifted, other grey ones only shifted, and float sources (sensor series) are left alone.
    """
    _, height, width = dataset.input_shape
    pad = round(min(height, width) / 8)
    if dataset.name == "cifar10":
        # 8 of 32 pixels where the paper takes 16: it trains wide networks for 200 epochs; small ones and few epochs overfit less
        return Policy(pad=pad, flip=True, cutout=round(min(height, width) / 4))
    if dataset.name == "fashion-mnist":
        return Policy(pad=min(pad, 2), flip=True)
    if dataset.name == "digits":
        return Policy(pad=1)
    if dataset.train.raw.dtype != np.uint8:
        return Policy()
    return Policy(pad=pad, flip=dataset.input_shape[0] == 3)
