"""What the exporters for ExecuTorch and LiteRT share: a checked module with an example and checked images; ExecuTorch's int8 graph."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.errors import UserError

MAX_CALIBRATION = 64  # images: the prepared graph runs in eager mode, one by one


def require(packages: dict[str, str], extra: str, what: str) -> None:
    """Raises UserError when one of `packages` (as imported -> as called) is not installed."""
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{what} needs {missing[0]}, which is not installed: install it with  pip install 'sartor[{extra}]'.")


def ready(module: nn.Module, input_shape: tuple[int, int, int], batch: int) -> tuple[nn.Module, Tensor]:
    """A copy on the CPU in evaluation mode, and an example (batch, C, H, W). Raises UserError for a shape that is not positive."""
    if len(input_shape) != 3 or min(input_shape) < 1 or batch < 1:
        raise UserError(f"expected a positive batch and input_shape (C, H, W), got {batch} and {tuple(input_shape)!r}.")
    return copy.deepcopy(module).cpu().eval(), torch.zeros(batch, *input_shape)


def images_for(example: Tensor, calibration: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """At most `MAX_CALIBRATION` of the calibration images (n, C, H, W), spread over them, each filling the example's batch.

    Raises UserError for images that do not fit the example.
    """
    images = np.asarray(calibration, np.float32)
    if images.ndim != 4 or not len(images) or images.shape[1:] != tuple(example.shape[1:]):
        raise UserError(f"expected calibration images (n, {', '.join(map(str, example.shape[1:]))}), got an array of shape {images.shape}.")
    step = max(1, len(images) // MAX_CALIBRATION)
    return [np.repeat(images[start : start + 1], len(example), 0) for start in range(0, step * (len(images) // step), step)]


def quantised(module: nn.Module, example: Tensor, quantizer: Any, calibration: NDArray[np.float32]) -> nn.Module:
    """The module's exported graph with int8 observers run over calibration images (n, C, H, W) and converted (torchao, pt2e).

    Raises UserError for images that do not fit the example.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    images = images_for(example, calibration)
    prepared = prepare_pt2e(torch.export.export(module, (example,), strict=False).module(), quantizer)
    with torch.no_grad():
        for image in images:
            prepared(torch.from_numpy(image))
    found: nn.Module = convert_pt2e(prepared)
    return found
