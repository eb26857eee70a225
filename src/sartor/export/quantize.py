"""Static post-training quantisation to int8 for onnxruntime: QDQ format, uint8 activations, int8 weights per channel."""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sartor.errors import UserError
from sartor.export.calibrate import METHODS, Method, observe
from sartor.export.files import write_atomic
from sartor.export.legalise import attribute, legalise, session
from sartor.export.qdq import MOVES, Builder, plan, quantise_weight

MAX_CALIBRATION = 512
# Images on which the calibration methods are compared.
MAX_CHOICE = 256

# Names in onnxruntime's optimised graphs, besides QLinear...: integer kernels, and operators that compute nothing.
_INTEGER = frozenset({"QGemm", "NhwcMaxPool", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"})
_NEUTRAL = MOVES - {"MaxPool"} | {
    "QuantizeLinear",
    "DequantizeLinear",
    "ReorderInput",
    "ReorderOutput",
    "Identity",
    "Shape",
    "Gather",
    "Cast",
}


def quantize(
    fp32_path: str | Path,
    calibration: NDArray[np.float32],
    out: str | Path,
    *,
    method: Method | Literal["auto"] = "auto",
    reduce_range: bool | None = None,
) -> Path:
    """Write the int8 version of an fp32 ONNX file.

    `calibration` (n, C, H, W) holds training images as the file takes them; 512 of them, spread evenly, are used. `method` sets the
    range of an activation: its extremes ("minmax"), the 0.01 and 99.99 percentiles ("percentile"), the range with least squared
    error ("mse"), or "auto": whichever agrees best with fp32 on the calibration images.

    x86 processors without VNNI add two uint8 * int8 products in 16 bits, which saturates and ruins results silently. `reduce_range`
    keeps weights within 7 bits, which cannot saturate, in all layers but depthwise convolutions, whose kernels do not. None asks
    this machine (:func:`saturates`); say True or False when the file is for another.

    What was chosen, and each layer's weight error, is kept in the file (:func:`quantisation`). Raises UserError for calibration
    images of a wrong shape, an unknown method, or a file that onnxruntime cannot load.
    """
    if method != "auto" and method not in METHODS:
        raise UserError(f"quantize: method must be auto, {', '.join(METHODS)}, got {method!r}.")
    source = _load(fp32_path)
    images = _checked(source, calibration)
    reduced = saturates() if reduce_range is None else reduce_range
    legal = legalise(source)
    steps = plan(legal)
    if not any(steps.integer):
        raise UserError(
            f"quantize: {fp32_path} holds no convolution or linear layer with constant weights, so there is nothing to quantise."
        )
    observed = observe(legal, steps.quantised, images)

    def limit(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
        depthwise = node.op_type == "Conv" and shape[1] == 1 and attribute(node, "group", 1) == shape[0]
        return 64 if reduced and not depthwise else 127

    candidates: dict[Method, Builder] = {m: Builder(steps, observed, m, limit) for m in (METHODS if method == "auto" else (method,))}
    models = {m: builder.build() for m, builder in candidates.items()}
    chosen, scores = _choose(models, session(legal), images[:: -(-len(images) // MAX_CHOICE)])
    model = models[chosen]
    noted = {p.key: p.value for p in source.metadata_props}
    facts = {
        "method": chosen,
        "reduce_range": reduced,
        "images": len(images),
        "scores": scores,
        "weight_error": candidates[chosen].weight_error,
    }
    helper.set_model_props(model, {**noted, "sartor.quantisation": json.dumps(facts)})
    onnx.checker.check_model(model)
    return write_atomic(out, model.SerializeToString())


def quantisation(path: str | Path) -> dict[str, Any]:
    """What :func:`quantize` noted in the file: method, reduce_range, images, scores {method: {agreement, error}} on the calibration
    images, and weight_error {layer: norm(W - Q(W)) / norm(W)}. Raises UserError for a file that it did not write."""
    model = _load(path)
    noted = {p.key: p.value for p in model.metadata_props}.get("sartor.quantisation")
    if noted is None:
        raise UserError(f"{path} was not quantised by sartor: it carries no sartor.quantisation entry.")
    facts: dict[str, Any] = json.loads(noted)
    return facts


def weight_error(weight: NDArray[np.float32], *, bits: int = 8, axis: int = 0) -> float:
    """Relative error norm(W - Q(W)) / norm(W) (Euclidean) of symmetric rounding to `bits` with one scale per slice along `axis`."""
    if bits < 2 or bits > 8:
        raise UserError(f"weight_error: bits must be 2 to 8, got {bits}.")
    integers, scale = quantise_weight(np.asarray(weight, np.float32), axis, 2 ** (bits - 1) - 1)
    norm = float(np.linalg.norm(weight))
    shape = [-1 if i == axis else 1 for i in range(np.ndim(weight))]
    return float(np.linalg.norm(integers * scale.reshape(shape) - weight)) / norm if norm else 0.0


def int8_report(path: str | Path) -> dict[str, Any]:
    """What onnxruntime on this machine makes of a file, read from the graph that it optimised.

    Returns int8_ops and float_op_count (numbers of operators that compute), float_ops (their types), conversions (QuantizeLinear and
    DequantizeLinear that remain, the one at the input included), ops {type: number}.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = str(Path(folder) / "optimised.onnx")
        session(_load(path), saved=optimised)
        graph = onnx.load(optimised).graph
    ops = Counter(node.op_type for node in graph.node)
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}

    def on_integers(node: onnx.NodeProto) -> bool:
        pool = node.op_type == "MaxPool" and types.get(node.input[0]) in (TensorProto.UINT8, TensorProto.INT8)
        return pool or node.op_type.startswith("QLinear") or node.op_type in _INTEGER

    computing = [node for node in graph.node if node.op_type not in _NEUTRAL]
    floats = [node.op_type for node in computing if not on_integers(node)]
    return {
        "int8_ops": len(computing) - len(floats),
        "float_op_count": len(floats),
        "float_ops": sorted(set(floats)),
        "conversions": ops["QuantizeLinear"] + ops["DequantizeLinear"],
        "ops": dict(sorted(ops.items())),
    }


@functools.cache
def saturates() -> bool:
    """Whether onnxruntime's uint8 * int8 kernels saturate on this machine: tried on a convolution whose exact result is known."""
    channels, value = 64, 200
    exact = channels * 255 * 127
    constants = {
        "scale": np.float32(1),
        "zero": np.uint8(0),
        "w": np.full((16, channels, 1, 1), 127, np.int8),
        "w_scale": np.ones(16, np.float32),
        "w_zero": np.zeros(16, np.int8),
        "y_scale": np.float32(exact / value),
    }
    node = helper.make_node("QLinearConv", ["x", "scale", "zero", "w", "w_scale", "w_zero", "y_scale", "zero"], ["y"], kernel_shape=[1, 1])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, channels, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 16, 4, 4])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = session(model).run(None, {"x": np.full((1, channels, 4, 4), 255, np.uint8)})[0]
    return bool(np.any(result != value))


def _choose(
    models: dict[Method, onnx.ModelProto], reference: Any, images: NDArray[np.float32]
) -> tuple[Method, dict[str, dict[str, float]]]:
    """The model that names the same class as fp32 most often; ties go to the smaller relative error of the logits."""
    truth = _logits(reference, images)
    scores: dict[Method, dict[str, float]] = {}
    for method, model in models.items():
        got = _logits(session(model), images)
        error = float(np.linalg.norm(got - truth) / max(float(np.linalg.norm(truth)), 1e-12))
        scores[method] = {"agreement": float((got.argmax(1) == truth.argmax(1)).mean()), "error": error}
    best = max(scores, key=lambda m: (scores[m]["agreement"], -scores[m]["error"]))
    return best, {str(m): score for m, score in scores.items()}


def _logits(running: Any, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.float32]:
    name = running.get_inputs()[0].name
    parts = [running.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts).reshape(len(images), -1)


def _load(path: str | Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; an ONNX file was expected.") from None
    except Exception as error:  # protobuf's own class is not public
        raise UserError(f"{path} is no ONNX file: {error}") from error


def _checked(model: onnx.ModelProto, calibration: NDArray[np.float32]) -> NDArray[np.float32]:
    expected = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    images = np.asarray(calibration)
    if images.ndim != len(expected) + 1 or len(images) == 0 or any(e and e != s for e, s in zip(expected, images.shape[1:], strict=True)):
        wanted = ", ".join(str(e) for e in expected)
        raise UserError(
            f"quantize: calibration must be images of shape (n, {wanted}) with n >= 1, as the file's input, got {images.shape}."
        )
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    images = np.ascontiguousarray(images[:: -(-len(images) // MAX_CALIBRATION)], dtype=dtype)
    if not np.isfinite(images).all():
        raise UserError("quantize: calibration holds values that are not finite; remove or repair those images.")
    return images
