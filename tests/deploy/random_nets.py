"""Small networks of random widths as ONNX files, for what models of latency learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save


def network(path: Path, seed: int, pool: bool = False) -> Path:
    """Blocks of a pointwise, a depthwise and a dense convolution, of random widths, as an fp32 ONNX file."""
    rng = np.random.default_rng(seed)
    size, width = int(rng.choice([12, 24, 40])), 3
    nodes, weights, last = [], [], "x"
    if pool:
        nodes.append(helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        last = "m"
    for block in range(int(rng.integers(1, 4))):
        out = 8 * int(rng.integers(1, 9))
        for kind, shape in (("p", (out, width, 1, 1)), ("d", (out, 1, 3, 3)), ("c", (out, out, 3, 3)))[: int(rng.integers(1, 4))]:
            name = f"{kind}{block}"
            weights.append(numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), f"w_{name}"))
            pads = [shape[-1] // 2] * 4
            nodes.append(helper.make_node("Conv", [last, f"w_{name}"], [f"y_{name}"], pads=pads, group=out if kind == "d" else 1))
            nodes.append(helper.make_node("Relu", [f"y_{name}"], [f"z_{name}"]))
            last = f"z_{name}"
        width = out
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["g"]))
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size]),
            helper.make_tensor_value_info("g", TensorProto.FLOAT, ["n", width, 1, 1])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path
