"""PyTorch module to a LiteRT (TensorFlow Lite) model (`.tflite`), fp32 or int8. Needs the extra `litert`."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import redirect_stdout
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

    Input and output keep torch's layout (batch, C, H, W) and float32; the model converts inside. An int8 hard-swish leaves LiteRT's
    fast delegate: prefer ReLU and ReLU6 for this target. Raises UserError without the extra, and for a module that cannot be converted.
    """
    from sartor.export.pt2e import quantised, ready, require

    require({"litert_torch": "litert-torch"}, "litert", "to_tflite")
    import litert_torch
    import torch

    plain, example = ready(module, input_shape, batch)
    try:
        # The converter tells of its progress on standard output, which belongs to whoever calls.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            if calibration is None:
                edge = litert_torch.convert(plain, (example,))
            else:
                from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
                from litert_torch.quantize.quant_config import QuantConfig

                quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
                int8 = quantised(plain, example, quantizer, calibration, fold_quantize=False)
                edge = litert_torch.convert(int8, (example,), quant_config=QuantConfig(pt2e_quantizer=quantizer))
            file = Path(folder) / "model.tflite"
            edge.export(str(file))
            content = file.read_bytes()
    except UserError:
        raise
    except Exception as error:  # the converter raises classes of its own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"to_tflite: {type(module).__name__} cannot be converted for input {tuple(input_shape)}: {reason}") from error
    return write_atomic(path, content)
