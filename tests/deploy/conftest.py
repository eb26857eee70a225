"""A small net trained on the digits that scikit-learn holds, exported once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sartor.deploy.verify import Files
from sartor.export.onnx import to_onnx
from sartor.export.quantize import quantize


@dataclass(frozen=True)
class Exported:
    net: nn.Module
    files: Files
    calibration: np.ndarray
    images: np.ndarray  # (397, 1, 8, 8)
    labels: np.ndarray


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = ((pixels.reshape(-1, 1, 8, 8) / 16 - 0.305) / 0.376).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    x, y = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    for _ in range(6):
        for batch in torch.randperm(1400).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    folder: Path = tmp_path_factory.mktemp("exported")
    fp32 = to_onnx(net.eval(), (1, 8, 8), folder / "model_fp32.onnx")
    int8 = quantize(fp32, images[:1400], folder / "model.onnx")
    return Exported(net, Files(int8, fp32), images[:1400], images[1400:], labels[1400:].astype(np.int64))
