"""PyTorch module to a self-contained fp32 ONNX file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.errors import UserError
from sartor.export.files import write_atomic

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

# HardSwish is an operator since 14, per-channel DequantizeLinear since 13; 17 is read by every onnxruntime this project accepts.
OPSET = 17


def to_onnx(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write `module` as one fp32 ONNX file: input "input" (batch, C, H, W), output "logits" (batch, classes), batch dynamic.

    Evaluation mode; a BatchNorm behind a convolution is folded into it. With `mean` and `std` (one value, or one per channel) the
    file normalises by itself and takes raw pixels in [0, 1]; without, it takes what the module takes. The TorchScript exporter is
    used because it is ten times faster than the one built on torch.export and needs no further package.

    Raises UserError when the module cannot be exported or `mean` / `std` do not fit `input_shape`.
    """
    import torch
    from onnx import checker, load_model_from_string

    if len(input_shape) != 3 or any(size < 1 for size in input_shape):
        raise UserError(f"to_onnx: input_shape must be three positive sizes (C, H, W), got {tuple(input_shape)!r}.")
    wrapped = module if mean is None and std is None else _normalised(module, input_shape[0], mean, std)
    reference = next(iter(wrapped.parameters()), None)
    example = torch.zeros(1, *input_shape, device=None if reference is None else reference.device)
    buffer = io.BytesIO()
    try:
        with _evaluating(wrapped), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapped,
                (example,),
                buffer,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        model = load_model_from_string(buffer.getvalue())
        drop_identities(model)
        checker.check_model(model, full_check=True)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError, checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"to_onnx: {type(module).__name__} cannot be exported for input {tuple(input_shape)}: {reason} "
            "Use fixed sizes and ordinary torch layers in its forward."
        ) from error
    return write_atomic(path, model.SerializeToString())


def drop_identities(model: onnx.ModelProto) -> None:
    """Remove, in place, Identity nodes (the exporter leaves one for every pair of equal weights) unless they make a graph output."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every sub-module's own mode restored after (they may differ: frozen BatchNorm)."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _normalised(module: nn.Module, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    import torch
    from torch import nn

    if mean is None or std is None:
        raise UserError("to_onnx: mean and std must be given together, or neither.")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(f"to_onnx: {name} must hold 1 or {channels} values (one per input channel), got {len(values)}.")
    if min(std) <= 0:
        raise UserError(f"to_onnx: std must be positive, got {list(std)}.")

    class Normalised(nn.Module):
        # Not folded into the first convolution: its zero padding means "the mean pixel" only after normalisation.
        def __init__(self) -> None:
            super().__init__()
            self.net = module
            self.register_buffer("scale", 1 / torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
            shift = torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
            self.register_buffer("shift", -shift.view(1, -1, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images * self.scale + self.shift)
            return logits

    wrapped = Normalised()
    reference = next(iter(module.parameters()), None)
    return wrapped if reference is None else wrapped.to(reference.device)
