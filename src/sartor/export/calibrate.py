"""Ranges of activations from calibration images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from sartor.export.legalise import session

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")

# Values kept per tensor for percentiles and histograms, and the floats that one batch of activations may hold (128 MB).
SAMPLE = 1 << 17
BATCH_VALUES = 1 << 25


@dataclass(frozen=True)
class Observed:
    """What calibration saw of one tensor: extremes over all images, an even sample of its values, its mean per channel (axis 1)."""

    low: float
    high: float
    sample: NDArray[np.float32]
    mean: NDArray[np.float64]

    def range(self, method: Method) -> tuple[float, float]:
        """(low, high) that 8 bits shall cover, 0 included: zero padding and ReLU need an exact zero."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            inner = np.percentile(self.sample, (0.01, 99.99))
            low, high = max(low, min(float(inner[0]), 0.0)), min(high, max(float(inner[1]), 0.0))
        elif method == "mse":
            low, high = _least_squares(self.sample, low, high)
        return low, high


def observe(model: onnx.ModelProto, tensors: list[str], images: NDArray[np.float32], batch: int = 64) -> dict[str, Observed]:
    """Run `images` (n, C, H, W) through `model` and watch `tensors`; memory is bounded by shrinking the batch."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = {value.name for value in probe.graph.input}
    present = {value.name for value in probe.graph.output} | inputs
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in present)
    running = session(probe)
    name = running.get_inputs()[0].name
    wanted = [t for t in tensors if t not in inputs]

    def outputs(part: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(wanted, running.run(wanted, {name: part}), strict=True)) | {t: part for t in tensors if t in inputs}

    one = outputs(images[:1])
    batch = int(np.clip(BATCH_VALUES // max(sum(value.size for value in one.values()), 1), 1, batch))
    lows: dict[str, float] = dict.fromkeys(tensors, np.inf)
    highs: dict[str, float] = dict.fromkeys(tensors, -np.inf)
    samples: dict[str, list[NDArray[np.float32]]] = {t: [] for t in tensors}
    sums: dict[str, NDArray[np.float64]] = {t: np.zeros(one[t].shape[1] if one[t].ndim > 1 else 1) for t in tensors}
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        share = max(1, SAMPLE * len(part) // len(images))
        for tensor, value in outputs(part).items():
            lows[tensor], highs[tensor] = min(lows[tensor], float(value.min())), max(highs[tensor], float(value.max()))
            flat = value.reshape(-1)
            # An odd stride walks through all positions and channels instead of hitting the same column again and again.
            samples[tensor].append(flat[:: (flat.size // share) | 1].copy())
            if value.ndim > 1:
                sums[tensor] += (
                    value.mean(axis=tuple(range(2, value.ndim)), dtype=np.float64).sum(axis=0) if value.ndim > 2 else value.sum(axis=0)
                )
    return {t: Observed(lows[t], highs[t], np.concatenate(samples[t]), sums[t] / len(images)) for t in tensors}


def _least_squares(sample: NDArray[np.float32], low: float, high: float, steps: int = 40) -> tuple[float, float]:
    """Shrink [low, high] by the factor with the least mean squared quantisation error (Nagel et al. 2021, White Paper on Neural Network
    Quantization, section 3.1, equation 7), found on a histogram."""
    if high - low <= 0:
        return low, high
    counts, edges = np.histogram(sample, bins=2048, range=(low, high))
    centres, counts = ((edges[1:] + edges[:-1]) / 2)[counts > 0], counts[counts > 0]
    factors = np.linspace(0.25, 1.0, steps)[:, None]
    scale = factors * (high - low) / 255
    zero = np.round(-low * factors / scale)
    error = (scale * (np.clip(np.round(centres / scale) + zero, 0, 255) - zero) - centres) ** 2 @ counts
    best = float(factors[int(np.argmin(error)), 0])
    return low * best, high * best
