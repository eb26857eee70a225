"""Rewrites an fp32 ONNX graph, exactly, into the operators that have integer kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from sartor.errors import UserError

FLOAT = onnx.TensorProto.FLOAT


def legalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """An equal fp32 model in which everything that can run on integers is spelled so that it will.

    HardSwish becomes x * HardSigmoid(x) (QLinearMul); a HardSigmoid that ends a convolution or linear layer (squeeze-excite) moves into its
    weights and leaves a Clip to [0, 1], which costs nothing once the output is uint8; the mean over height and width becomes
    GlobalAveragePool; a BatchNormalization that has no convolution before it becomes a depthwise 1x1 convolution; division and
    subtraction of constants become multiplication and addition. Constants are folded by onnxruntime's basic optimisations.
    """
    working = onnx.ModelProto()
    working.CopyFrom(model)
    _split_hardswish(working)
    working = _fold(working)
    inferred = onnx.shape_inference.infer_shapes(working)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in [*inferred.graph.value_info, *inferred.graph.input]
        if v.type.tensor_type.shape.dim
    }
    graph = working.graph
    weights = {i.name: i for i in graph.initializer}
    consumers = Counter(name for node in graph.node for name in node.input)
    consumers.update(value.name for value in graph.output)
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if (
            node.op_type == "HardSigmoid"
            and consumers[node.input[0]] == 1
            and _fold_hardsigmoid(node, makers.get(node.input[0]), weights, graph)
        ):
            nodes.append(
                helper.make_node("Clip", [node.input[0], _scalar(graph, 0.0), _scalar(graph, 1.0)], [node.output[0]], name=node.name)
            )
        elif node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4 and _reduced_axes(node, weights) in ((2, 3), (-2, -1)):
            nodes += _global_pool(node)
        elif node.op_type == "BatchNormalization" and ranks.get(node.input[0]) == 4 and all(name in weights for name in node.input[1:]):
            nodes.append(_depthwise(node, weights, graph))
        elif node.op_type in ("Div", "Sub") and node.input[1] in weights and weights[node.input[1]].data_type == FLOAT:
            value = numpy_helper.to_array(weights[node.input[1]])
            name = f"{node.output[0]}/constant"
            graph.initializer.append(numpy_helper.from_array((1 / value if node.op_type == "Div" else -value).astype(np.float32), name))
            nodes.append(
                helper.make_node("Mul" if node.op_type == "Div" else "Add", [node.input[0], name], [node.output[0]], name=node.name)
            )
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return working


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of attribute `name` of `node`, or `default`."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def session(model: onnx.ModelProto | str, *, saved: str | None = None, basic: bool = False) -> ort.InferenceSession:
    """An onnxruntime CPU session with one thread; with `saved` the optimised graph is written there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if basic:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if saved is not None:
        options.optimized_model_filepath = saved
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a private class per error code
        what = model if isinstance(model, str) else "the model"
        raise UserError(f"onnxruntime cannot load {what}: {' '.join(str(error).split())[:300]} Export the model again.") from error


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "folded.onnx")
        session(model, saved=path, basic=True)
        folded = onnx.load(path)
    # onnxruntime lists every domain it knows; a file should ask only for what it uses.
    used = {node.domain for node in folded.graph.node}
    imports = [i for i in folded.opset_import if i.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    return folded


def _split_hardswish(model: onnx.ModelProto) -> None:
    nodes = []
    for node in model.graph.node:
        if node.op_type != "HardSwish":
            nodes.append(node)
            continue
        gate = f"{node.output[0]}/gate"
        nodes.append(helper.make_node("HardSigmoid", [node.input[0]], [gate], name=f"{node.name}/gate", alpha=1 / 6, beta=0.5))
        nodes.append(helper.make_node("Mul", [node.input[0], gate], [node.output[0]], name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _fold_hardsigmoid(
    node: onnx.NodeProto, maker: onnx.NodeProto | None, weights: dict[str, onnx.TensorProto], graph: onnx.GraphProto
) -> bool:
    """Make `maker` compute alpha * y + beta, so that a Clip to [0, 1] is all that remains of the HardSigmoid; False where it cannot."""
    if maker is None or maker.op_type not in ("Conv", "Gemm") or maker.input[1] not in weights:
        return False
    if len(maker.input) > 2 and maker.input[2] not in weights:
        return False
    if maker.op_type == "Gemm" and (attribute(maker, "alpha", 1.0), attribute(maker, "beta", 1.0), attribute(maker, "transA", 0)) != (
        1.0,
        1.0,
        0,
    ):
        return False
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    weight = numpy_helper.to_array(weights[maker.input[1]])
    outputs = weight.shape[1] if maker.op_type == "Gemm" and not attribute(maker, "transB", 0) else weight.shape[0]
    bias = numpy_helper.to_array(weights[maker.input[2]]) if len(maker.input) > 2 else np.zeros(outputs, np.float32)
    scaled = (weight * np.float32(alpha), bias * np.float32(alpha) + np.float32(beta))
    del maker.input[1:]
    for suffix, value in zip(("weight", "bias"), scaled, strict=True):
        # A new name: the same weights may serve another layer.
        name = f"{maker.output[0]}/{suffix}"
        tensor = numpy_helper.from_array(value.astype(np.float32), name)
        graph.initializer.append(tensor)
        weights[name] = tensor
        maker.input.append(name)
    return True


def _reduced_axes(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> tuple[int, ...]:
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1] in weights:
        axes = numpy_helper.to_array(weights[node.input[1]]).tolist()
    return tuple(sorted(int(a) for a in axes or ()))


def _global_pool(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if attribute(node, "keepdims", 1):
        return [helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)]
    pooled = f"{node.output[0]}/pooled"
    return [
        helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name),
        helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}/flatten", axis=1),
    ]


def _depthwise(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], graph: onnx.GraphProto) -> onnx.NodeProto:
    gamma, beta, mean, variance = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input[1:5])
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    names = [f"{node.output[0]}/weight", f"{node.output[0]}/bias"]
    for name, value in zip(names, (factor.reshape(-1, 1, 1, 1), beta - mean * factor), strict=True):
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return helper.make_node("Conv", [node.input[0], *names], [node.output[0]], name=node.name, group=len(factor), kernel_shape=[1, 1])


def _scalar(graph: onnx.GraphProto, value: float) -> str:
    name = f"constant/{value}"
    if all(i.name != name for i in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return name
