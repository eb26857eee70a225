"""What the runtime makes of an op: its own optimised nodes, cut out of an optimised probe, to be timed in isolation."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sartor.errors import UserError
from sartor.hardware._probe import END, SOURCE, input_probe, probe
from sartor.hardware.graph import Op, Shape

if TYPE_CHECKING:
    import onnx

    from sartor.hardware.target import Bench

Quantize = Callable[[Path, np.ndarray, Path], object]
"""`sartor.export.quantize`: fp32 file, calibration images (n, C, H, W), int8 file to write."""

SHARED_BYTES = 64  # initialisers up to this size (scales, zero points) are shared by the copies of an op


@dataclass(frozen=True)
class Kernel:
    """The optimised nodes of one op, the arrays they read and the values of the tensors that enter."""

    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]
    feeds: dict[str, np.ndarray]
    opsets: tuple[onnx.OperatorSetIdProto, ...]

    @property
    def node_types(self) -> tuple[str, ...]:
        return tuple(node.op_type for node in self.nodes)

    def replicate(self, copies: int) -> bytes:
        """A model that runs the op `copies` times on the same input, each copy with weights of its own."""
        from onnx import TensorProto, helper, numpy_helper

        arrays = {tensor.name: tensor for tensor in self.initializers}
        nodes, weights = [], list(self.initializers)
        for copy in range(copies):
            names = {name: f"{name}~{copy}" for node in self.nodes for name in node.output if name}
            for tensor in self.initializers:
                if copy and len(tensor.raw_data) > SHARED_BYTES:
                    names[tensor.name] = f"{tensor.name}~{copy}"
                    weights.append(_renamed(arrays[tensor.name], names[tensor.name]))
            for number, node in enumerate(self.nodes):
                twin = type(node)()
                twin.CopyFrom(node)
                twin.name = f"{copy}~{number}"
                twin.input[:] = [names.get(name, name) for name in node.input]
                twin.output[:] = [names.get(name, name) for name in node.output]
                nodes.append(twin)
        # Nothing reads the copies' outputs, so their memory is reused at once, as in a network. The runtime wants one output.
        nodes.append(helper.make_node("Identity", ["one~"], ["done~"]))
        weights.append(numpy_helper.from_array(np.zeros(1, np.float32), "one~"))
        inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for name, v in self.feeds.items()]
        outputs = [helper.make_tensor_value_info("done~", TensorProto.FLOAT, [1])]
        graph = helper.make_graph(nodes, "copies", inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=list(self.opsets), ir_version=9).SerializeToString()


def lower(ops: Sequence[Op], precision: str, quantize: Quantize | None = None, seed: int = 0, bench: Bench | None = None) -> list[Kernel]:
    """Optimised nodes of each op as the device's runtime makes them (default: this machine's); an op fused away has no nodes.

    The ops must share height and width of their inputs.
    """
    bench = bench or _here()
    optimised = _optimise(probe(ops, seed), precision, (1, *ops[0].in_shape[1:]), quantize, bench)
    return _cut(optimised, [op.kind == "linear" for op in ops], (1, *ops[0].in_shape[1:]), bench)


def lower_input(shape: Shape, precision: str, quantize: Quantize | None = None, bench: Bench | None = None) -> Kernel:
    """Optimised nodes between a network's input of `shape` and its first convolution."""
    bench = bench or _here()
    return _cut(_optimise(input_probe(shape), precision, shape, quantize, bench), [False], shape, bench)[0]


def _here() -> Bench:
    from sartor.hardware.local import LocalDevice

    return LocalDevice()


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    twin = type(tensor)()
    twin.CopyFrom(tensor)
    twin.name = name
    return twin


def _optimise(model: onnx.ModelProto, precision: str, shape: Shape, quantize: Quantize | None, bench: Bench) -> onnx.ModelProto:
    import onnx

    if precision == "int8":
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            onnx.save(model, folder / "fp32.onnx")
            images = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
            (quantize or quantize_default)(folder / "fp32.onnx", images, folder / "int8.onnx")
            file = (folder / "int8.onnx").read_bytes()
    else:
        file = model.SerializeToString()
    return onnx.load_from_string(bench.optimise(file))


def quantize_default(fp32: Path, images: np.ndarray, out: Path) -> None:
    """Static int8 QDQ: QUInt8 activations, QInt8 weights per channel, min-max ranges."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = fp32.with_name("prepared.onnx")
    with _quiet():
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _cut(model: onnx.ModelProto, last: Sequence[bool], shape: Shape, bench: Bench) -> list[Kernel]:
    """Cuts the nodes of every op out of an optimised probe: ancestors of the op's end that are no ancestors of its sources."""
    nodes = list(model.graph.node)
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}

    def ancestors(start: set[int]) -> set[int]:
        found, queue = set(start), list(start)
        while queue:
            before = {made_by[name] for name in nodes[queue.pop()].input if name in made_by}
            queue.extend(before - found)
            found |= before
        return found

    def named(prefix: str) -> set[int]:
        return {i for i, node in enumerate(nodes) if node.name.startswith(prefix) and "Conv" in node.op_type}

    cuts: list[list[int]] = []
    for number, is_last in enumerate(last):
        sources = named(f"{SOURCE}{number}_")
        ends = {made_by[model.graph.output[number].name]} if is_last else named(f"{END}{number}_")
        if not ends:
            raise UserError(
                f"expected the runtime to keep the convolution {END}{number}_ of a probe, got nodes {[n.name for n in nodes][:8]}"
            )
        inside = ancestors(ends) - (set() if is_last else ends) - ancestors(sources)
        cuts.append(sorted(inside))
    # "x" itself enters where nothing stands before the op.
    entering = [sorted({name for index in cut for name in nodes[index].input if name and name not in arrays
                        and made_by.get(name, -1) not in cut}) for cut in cuts]  # fmt: skip
    values = _values(model, sorted({name for names in entering for name in names}), shape, bench)
    kernels = []
    for cut, names in zip(cuts, entering, strict=True):
        used = sorted({name for index in cut for name in nodes[index].input if name in arrays})
        kernels.append(
            Kernel(tuple(nodes[i] for i in cut), tuple(arrays[n] for n in used), {n: values[n] for n in names}, tuple(model.opset_import))
        )
    return kernels


def _values(model: onnx.ModelProto, names: Sequence[str], shape: Shape, bench: Bench) -> dict[str, np.ndarray]:
    """Values of inner tensors of an optimised model for a random input: their shapes and types are in no file."""
    from onnx import helper

    x = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
    inner = [name for name in names if name != "x"]
    if not inner:
        return {"x": x}
    twin = type(model)()
    twin.CopyFrom(model)
    known = {value.name for value in twin.graph.output}
    twin.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner if name not in known)
    return {"x": x, **bench.values(twin.SerializeToString(), inner, {"x": x})}
