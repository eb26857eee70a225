"""PyTorch module to a self-contained fp32 ONNX file."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sartor.errors import UserError
from sartor.export.files import write_atomic

if TYPE_CHECKING:
    import onnx
    from torch import nn

# HardSwish is an operator since 14, per-channel DequantizeLinear since 13; 17 is read by every onnxruntime this project accepts.
OPSET = 17
Pixels = Literal["unit", "uint8"]
_NOTE = "sartor.input"


def to_onnx(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pixels: Pixels = "unit",
) -> Path:
    """Write `module` as one fp32 ONNX file: input "input" (batch, C, H, W), output "logits" (batch, classes), batch dynamic.

    Evaluation mode; a BatchNorm behind a convolution is folded into it. With `mean` and `std` the file takes pixels (see
    :func:`accept_pixels`); without, it takes what the module takes. The TorchScript exporter is used because it is ten times
    faster than the one built on torch.export and needs no further package.

    Raises UserError when the module cannot be exported or `mean` and `std` do not fit `input_shape`.
    """
    import torch
    from onnx import checker, load_model_from_string

    if len(input_shape) != 3 or any(size < 1 for size in input_shape):
        raise UserError(f"to_onnx: input_shape must be three positive sizes (C, H, W), got {tuple(input_shape)!r}.")
    reference = next(iter(module.parameters()), None)
    example = torch.zeros(1, *input_shape, device=None if reference is None else reference.device)
    buffer = io.BytesIO()
    try:
        with _evaluating(module), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter writes to any file object
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        model = load_model_from_string(buffer.getvalue())
        drop_identities(model)
        fix_resizes(model)
        if mean is not None or std is not None:
            _prepend_normalisation(model, mean, std, pixels)
        checker.check_model(model, full_check=True)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError, checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"to_onnx: {type(module).__name__} cannot be exported for input {tuple(input_shape)}: {reason} "
            "Use fixed sizes and ordinary torch layers in its forward."
        ) from error
    return write_atomic(path, model.SerializeToString())


def accept_pixels(
    path: str | Path, out: str | Path, mean: Sequence[float], std: Sequence[float], *, pixels: Pixels = "unit"
) -> Path:  # fmt: skip
    """Write `out`: the same file (fp32 or int8), but it normalises by itself, `(x - mean) / std` per channel.

    Its input is then float32 in [0, 1] (`pixels="unit"`) or the uint8 values 0..255 of an image file (`pixels="uint8"`); `mean` and
    `std` are on the 0..1 scale, one value or one per channel. Two or three cheap operators are added; nothing is calibrated again. They
    are not folded into the first convolution, whose zero padding means "the mean pixel" only after normalisation.

    Raises UserError where the values do not fit the file, or the file normalises already.
    """
    import onnx

    model = onnx.load(str(path))
    if input_facts(path)["pixels"] is not None:
        raise UserError(f"accept_pixels: {path} takes pixels already.")
    _prepend_normalisation(model, mean, std, pixels)
    onnx.checker.check_model(model)
    return write_atomic(out, model.SerializeToString())


def input_facts(path: str | Path) -> dict[str, Any]:
    """What the file takes: shape [C, H, W], dtype, pixels ("unit", "uint8", None for normalised values); mean and std if it normalises."""
    import onnx

    model = onnx.load(str(path))
    value = model.graph.input[0]
    noted = {p.key: p.value for p in model.metadata_props}.get(_NOTE)
    return {
        "shape": [d.dim_value for d in value.type.tensor_type.shape.dim][1:],
        "dtype": str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
        **(json.loads(noted) if noted else {"pixels": None, "mean": None, "std": None}),
    }


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


def fix_resizes(model: onnx.ModelProto) -> None:
    """Give, in place, each Resize of images constant scales instead of sizes that are computed from the batch size on every run."""
    import numpy as np
    from onnx import numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    graph = model.graph
    for node in graph.node:
        before, after = (shapes.get(name, []) for name in (node.input[0], node.output[0])) if node.op_type == "Resize" else ([], [])
        if len(node.input) < 4 or len(before) != 4 or len(after) != 4 or before[1] != after[1] or not all(before[1:] + after[1:]):
            continue
        scales = np.array([1, 1, after[2] / before[2], after[3] / before[3]], np.float32)
        # The runtime rounds size * scale down, in float32.
        if [int(np.float32(size) * scale) for size, scale in zip(before[2:], scales[2:], strict=True)] != after[2:]:
            continue
        name = f"{node.output[0]}/scales"
        graph.initializer.append(numpy_helper.from_array(scales, name))
        image = node.input[0]
        del node.input[:]
        node.input.extend([image, "", name])
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [i for i in graph.initializer if i.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


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


def _prepend_normalisation(model: onnx.ModelProto, mean: Sequence[float] | None, std: Sequence[float] | None, pixels: str) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if mean is None or std is None:
        raise UserError("mean and std must be given together, or neither.")
    if pixels not in ("unit", "uint8"):
        raise UserError(f"pixels must be 'unit' (float32 in 0..1) or 'uint8' (0..255), got {pixels!r}.")
    graph = model.graph
    value = graph.input[0]
    channels = value.type.tensor_type.shape.dim[1].dim_value
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(f"{name} must hold 1 or {channels} values (one per input channel), got {len(values)}.")
    if min(std) <= 0:
        raise UserError(f"std must be positive, got {list(std)}.")
    centre, spread = (np.asarray(v, np.float64).reshape(1, -1, 1, 1) for v in (mean, std))
    unit = 255.0 if pixels == "uint8" else 1.0
    graph.initializer.append(numpy_helper.from_array((1 / (unit * spread)).astype(np.float32), "pixels/scale"))
    graph.initializer.append(numpy_helper.from_array((-centre / spread).astype(np.float32), "pixels/shift"))
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == value.name:
                node.input[i] = "pixels/normalised"
    taken = value.name
    front = []
    if pixels == "uint8":
        value.type.tensor_type.elem_type = TensorProto.UINT8
        front.append(helper.make_node("Cast", [taken], ["pixels/float"], name="pixels/float", to=TensorProto.FLOAT))
        taken = "pixels/float"
    front.append(helper.make_node("Mul", [taken, "pixels/scale"], ["pixels/scaled"], name="pixels/scale"))
    front.append(helper.make_node("Add", ["pixels/scaled", "pixels/shift"], ["pixels/normalised"], name="pixels/shift"))
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    props = {p.key: p.value for p in model.metadata_props}
    note = {"pixels": pixels, "mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    helper.set_model_props(model, {**props, _NOTE: json.dumps(note)})
