"""PyTorch module to a LiteRT (TensorFlow Lite) model (`.tflite`), fp32 or int8. Needs the extra `litert`."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.export.files import write_atomic

if TYPE_CHECKING:
    from torch import nn


def to_tflite(
    module: nn.Module, input_shape: tuple[int, int, int], path: str | Path, calibration: NDArray[np.float32] | None = None, *,
    batch: int = 1,
) -> Path:  # fmt: skip
    """Write `module` as a `.tflite` model with a fixed batch; with `calibration` images (n, C, H, W) as static int8 per channel.

    Input and output keep torch's layout (batch, C, H, W); of an int8 model they are int8 as well, and so is all in between. Prefer ReLU and
    ReLU6 for this target: its convolutions take them in. Raises UserError without the extra, and for a module that cannot be converted.
    """
    from sartor.export.pt2e import images_for, ready, require

    require({"litert_torch": "litert-torch", "ai_edge_quantizer": "ai-edge-quantizer"}, "litert", "to_tflite")
    import litert_torch
    import torch

    plain, example = ready(module, input_shape, batch)
    images = None if calibration is None else images_for(example, calibration)
    try:
        # The converter and the quantiser tell of their progress on standard output and error, which belong to whoever calls.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            warnings.simplefilter("ignore")
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.tflite"
                litert_torch.convert(plain, (example,)).export(str(file))
                content = file.read_bytes() if images is None else _integer(file, images)
    except Exception as error:  # the converter raises classes of its own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"to_tflite: {type(module).__name__} cannot be converted for input {tuple(input_shape)}: {reason}") from error
    return write_atomic(path, content)


def _integer(file: Path, images: list[NDArray[np.float32]]) -> bytes:
    """A float model in int8. Torch's own way leaves sums in float between two conversions; this one works on LiteRT's operators."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    (name, signature), *_ = Interpreter(model_path=str(file)).get_signature_list().items()
    work = quantizer.Quantizer(str(file), recipe.static_wi8_ai8())
    seen = work.calibrate({name: [{signature["inputs"][0]: image} for image in images]}, num_threads=1)
    return bytes(work.quantize(seen, enable_progress_report=False).quantized_model)
