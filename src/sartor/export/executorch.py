"""PyTorch module to an ExecuTorch program (`.pte`) for its XNNPACK kernels, fp32 or int8. Needs the extra `executorch`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sartor.errors import UserError
from sartor.export.files import write_atomic

if TYPE_CHECKING:
    from torch import nn


def to_executorch(
    module: nn.Module, input_shape: tuple[int, int, int], path: str | Path, calibration: NDArray[np.float32] | None = None, *,
    batch: int = 1,
) -> Path:  # fmt: skip
    """Write `module` as an ExecuTorch program with a fixed batch; with `calibration` images (n, C, H, W) as static int8 per channel.

    Lowering takes 10 to 30 s a network. Raises UserError without the extra, and for a module that cannot be exported or lowered.
    """
    from sartor.export.pt2e import quantised, ready, require

    require({"executorch": "executorch", "torchao": "torchao"}, "executorch", "to_executorch")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    plain, example = ready(module, input_shape, batch)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if calibration is not None:
                from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

                quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
                plain = quantised(plain, example, quantizer, calibration)
            exported = torch.export.export(plain, (example,), strict=False)
            program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    except UserError:
        raise
    except Exception as error:  # the exporter and the delegate raise classes of their own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"to_executorch: {type(module).__name__} cannot be lowered for input {tuple(input_shape)}: {reason}") from error
    return write_atomic(path, bytes(program.buffer))
