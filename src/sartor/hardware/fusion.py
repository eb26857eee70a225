"""What a runtime makes of an op graph: which activations its kernels take in, which sums a convolution does itself, what it splits.

`executed` rewrites a graph into the ops that a runtime runs; MACs, parameters and the values that leave the network stay the same (a
lone batch norm that runs as a depthwise convolution gains its MACs). The
rules of each runtime were read off its own execution graph, and the tests compare them with it (`observed`). They hold for the versions
tried (ONNX Runtime 1.32 on x86-64, OpenVINO 2026.4, ExecuTorch 1.5, LiteRT 2.3, torch 2.13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph

_ALL = frozenset({"relu", "relu6", "hardswish", "hardsigmoid", "swish", "sigmoid"})
_CLAMPS = frozenset({"relu", "relu6"})
ELEMENTWISE = ("act", "add", "mul")


@dataclass(frozen=True)
class Rules:
    """How a runtime executes, in one precision.

    `conv`, `linear`, `add`: the activations that these kernels take in. `conv_add`: whether a convolution adds a residual itself, "always"
    or only while both operands are in its own blocked layout ("blocked"). `split`: what an activation on its own becomes; "mul" in it
    multiplies by the input. `chains`: an activation joins any elementwise op before it. `affine_as_conv`: a lone batch norm is a
    depthwise 1x1 convolution.
    """

    conv: frozenset[str]
    linear: frozenset[str] = frozenset()
    add: frozenset[str] = frozenset()
    conv_add: str = "never"
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chains: bool = False
    affine_as_conv: bool = False
    confirmed: bool = True  # by the runtime's own execution graph, in this project's tests


_HALVES = {"hardswish": ("hardsigmoid", "mul"), "swish": ("sigmoid", "mul")}
# LiteRT: a hard-sigmoid is a clamp, which the convolution takes in, and one product (none where a convolution reads it: into its weights).
_LITERT = Rules(_CLAMPS, _CLAMPS, _CLAMPS, split={"swish": ("sigmoid", "mul")})
_XNNPACK = Rules(
    _CLAMPS, _CLAMPS, _CLAMPS, split={"hardsigmoid": ("affine", "relu6", "relu6", "hardsigmoid"), "swish": ("sigmoid", "mul")},
    affine_as_conv=True,
)  # fmt: skip
# An int8 convolution saturates at 0 for nothing, and an int8 HardSigmoid lies in the weights before it (sartor.export.quantize).
_SATURATED = _CLAMPS | {"hardsigmoid"}
RULES: dict[tuple[str, str], Rules] = {
    ("onnxruntime", "fp32"): Rules(
        _ALL - {"swish"}, _CLAMPS, frozenset(), "blocked", split={"hardswish": ("hardsigmoid", "mul")}
    ),
    ("onnxruntime", "int8"): Rules(_SATURATED, _SATURATED, _CLAMPS, "never", split=_HALVES, affine_as_conv=True),
    ("openvino", "fp32"): Rules(_ALL - {"hardsigmoid"}, _ALL, _ALL, "always", chains=True),
    ("openvino", "int8"): Rules(_SATURATED, _SATURATED, _ALL, "always", chains=True, affine_as_conv=True),
    ("executorch", "fp32"): _XNNPACK,
    ("executorch", "int8"): replace(_XNNPACK, confirmed=False),
    ("litert", "fp32"): _LITERT,
    ("litert", "int8"): _LITERT,
    ("torch", "fp32"): Rules(frozenset()),
}  # fmt: skip
RULES |= {(name, half): RULES[name, "fp32"] for name, half in (("openvino", "bf16"), ("openvino", "fp16"), ("torch", "bf16"))}


#: Runtimes of device files that fuse as another one does: TensorFlow Lite's kernels all take clamps in, and nothing else.
FAMILY = {"tflite": "litert", "tflite-micro": "litert"}


def rules(runtime: str, precision: str = "fp32") -> Rules:
    """The rules of a runtime. Raises UserError for a pair that there are none for."""
    found = RULES.get((runtime, precision))
    if found is None:
        known = ", ".join(sorted({f"{name} {kind}" for name, kind in RULES}))
        raise UserError(f"expected a runtime and precision with fusion rules ({known}), got {runtime} {precision}")
    return found


def as_run(graph: OpGraph, runtime: str, precision: str) -> OpGraph:
    """The ops that a device's runtime runs for a graph; the graph itself where there are no rules for the runtime."""
    family = FAMILY.get(runtime, runtime)
    return executed(graph, family, precision) if (family, precision) in RULES else graph


def executed(graph: OpGraph, runtime: str = "onnxruntime", precision: str = "fp32") -> OpGraph:
    """The ops that a runtime runs for a graph, in order.

    Squeeze-excite branches become their parts. A convolution that adds a residual has it as its second input. Names are kept, with the
    part after a dot. Raises UserError for a runtime without rules.
    """
    how = rules(runtime, precision)
    lowered = _Lowering(how, graph).run()
    if how.conv_add != "never":
        lowered = _fuse_sums(lowered, graph.input_shape, how)
    if how.chains:
        lowered = _join_chains(lowered)
    return OpGraph(tuple(lowered), graph.input_shape)


class _Lowering:
    """First pass: every op becomes the ops that the rules make of it alone."""

    def __init__(self, how: Rules, graph: OpGraph) -> None:
        self.how, self.graph = how, graph
        self.ops: list[Op] = []
        self.last: dict[int, int] = {-1: -1}  # op of the graph -> op that makes its value

    def run(self) -> list[Op]:
        for index, op in enumerate(self.graph):
            inputs = tuple(self.last[source] for source in self.graph.sources(index))
            self.last[index] = self._squeeze_excite(op, inputs[0]) if op.kind == "se" else self._plain(replace(op, inputs=inputs))
        return self.ops

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1

    def _plain(self, op: Op) -> int:
        if op.kind == "act":
            return self._activation(op, op.inputs[0])
        takes = {"conv": self.how.conv, "linear": self.how.linear, "add": self.how.add}.get(op.kind, frozenset())
        if not op.act or op.act in takes:
            return self._add(op)
        if op.kind == "add" and self.how.conv_add != "never" and op.act in self.how.conv:
            return self._add(op)  # the second pass decides
        bare = self._add(replace(op, act=""))
        return self._activation(Op("act", op.out_shape, op.out_shape, act=op.act, name=op.name, dtype=op.dtype), bare)

    def _activation(self, op: Op, source: int) -> int:
        shape = op.out_shape
        # The graph of an int8 file has its activations in the pieces that it holds already.
        if op.act == "affine" and self.how.affine_as_conv and not op.dtype:
            return self._add(Op("conv", shape, shape, groups=shape[0], inputs=(source,), name=op.name, dtype=op.dtype))
        last = source
        for part in self.how.split.get(op.act, (op.act,)):
            name = op.name if part == op.act else f"{op.name}.{part}"
            if part == "mul":
                last = self._add(Op("mul", shape, shape, inputs=(source, last), name=name, dtype=op.dtype))
            else:
                last = self._add(Op("act", shape, shape, act=part, inputs=(last,), name=name, dtype=op.dtype))
        return last

    def _squeeze_excite(self, op: Op, source: int) -> int:
        channels, point = op.in_shape[0], (op.in_shape[0], 1, 1)
        pooled = self._add(Op("pool", op.in_shape, point, inputs=(source,), name=f"{op.name}.pool", dtype=op.dtype))
        squeezed, inner = pooled, (op.hidden, 1, 1)
        for name, before, after, act in (("reduce", point, inner, "relu"), ("expand", inner, point, op.act or "hardsigmoid")):
            conv = Op("conv", before, after, act=act, inputs=(squeezed,), name=f"{op.name}.{name}", dtype=op.dtype)
            squeezed = self._plain(conv)
        out = (channels, *op.out_shape[1:])
        return self._add(Op("mul", op.in_shape, out, inputs=(source, squeezed), name=op.name, dtype=op.dtype))


def _fuse_sums(ops: list[Op], input_shape: tuple[int, int, int], how: Rules) -> list[Op]:
    """Second pass: a sum joins the convolution that makes one of its operands and that nobody else reads."""
    readers = Counter(source for op in ops for source in op.inputs)
    blocked = _blocked(ops)
    gone: dict[int, int] = {}
    fused: dict[int, Op] = {}
    for index, op in enumerate(ops):
        if op.kind != "add" or len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
            continue
        for source, other in (op.inputs, op.inputs[::-1]):
            if source < 0 or source in gone or ops[source].kind != "conv" or ops[source].act or readers[source] != 1:
                continue
            if len(ops[source].inputs) > 1 or op.in_shape != ops[source].out_shape:
                continue
            if how.conv_add == "blocked" and not (blocked[other] and blocked[source]):
                continue
            made = input_shape if other < 0 else ops[other].out_shape
            if made != op.out_shape:
                continue  # the sum broadcasts
            conv = ops[source]
            fused[index] = replace(conv, inputs=(*conv.inputs, other), act=op.act, dtype=op.dtype)
            gone[source] = index
            break
        else:
            takes = how.add
            if op.act and op.act not in takes:
                fused[index] = op  # kept apart below
    return _rebuild(ops, fused, gone, how)


def _blocked(ops: list[Op]) -> dict[int, bool]:
    """Whether a value is in the blocked layout of ONNX Runtime's convolutions, which only some ops read and write."""
    found = {-1: False}
    for index, op in enumerate(ops):
        if op.kind == "conv":
            found[index] = True
        elif op.kind in ("mul", "resize", "linear", "other"):
            found[index] = False
        else:
            found[index] = all(found[source] for source in op.inputs)
    return found


def _rebuild(ops: list[Op], fused: Mapping[int, Op], gone: Mapping[int, int], how: Rules) -> list[Op]:
    number, kept = {-1: -1}, list[Op]()
    for index, op in enumerate(ops):
        if index in gone:
            continue  # it runs where its sum stood
        op = fused.get(index, op)
        op = replace(op, inputs=tuple(number[source] for source in op.inputs))
        if op.kind == "add" and op.act and op.act not in how.add:
            kept.append(replace(op, act=""))
            op = Op("act", op.out_shape, op.out_shape, act=op.act, inputs=(len(kept) - 1,), name=op.name, dtype=op.dtype)
        kept.append(op)
        number[index] = len(kept) - 1
    return kept


def _join_chains(ops: list[Op]) -> list[Op]:
    """Third pass: an activation joins the elementwise op before it that nobody else reads."""
    readers = Counter(source for op in ops for source in op.inputs)
    number: dict[int, int] = {-1: -1}
    kept: list[Op] = []
    for index, op in enumerate(ops):
        source = op.inputs[0]
        if op.kind == "act" and source >= 0 and ops[source].kind in ELEMENTWISE and readers[source] == 1:
            place = number[source]
            kept[place] = replace(kept[place], act=op.act, name=op.name)
            number[index] = place
            continue
        kept.append(replace(op, inputs=tuple(number[source] for source in op.inputs)))
        number[index] = len(kept) - 1
    return kept


# ------------------------------------------------------------------------------------------------ what runs in truth

_KINDS_ORT = {
    "Conv": "conv", "FusedConv": "conv", "QLinearConv": "conv", "NhwcFusedConv": "conv", "Gemm": "linear", "QGemm": "linear",
    "FusedGemm": "linear", "MatMul": "linear", "FusedMatMul": "linear", "GlobalAveragePool": "pool", "QLinearGlobalAveragePool": "pool",
    "ReduceMean": "pool", "QLinearReduceMean": "pool", "MaxPool": "maxpool", "NhwcMaxPool": "maxpool", "AveragePool": "avgpool",
    "QLinearAveragePool": "avgpool", "Concat": "concat", "QLinearConcat": "concat", "Resize": "resize", "Upsample": "resize",
    **dict.fromkeys(("Add", "Sum", "Mul", "QLinearAdd", "QLinearMul", "Relu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "QuickGelu",
                     "QLinearSigmoid", "BatchNormalization", "QLinearLeakyRelu"), "elementwise"),
}  # fmt: skip
_KINDS_OV = {"Convolution": "conv", "FullyConnected": "linear", "MatMul": "linear", "Reduce": "pool", "Concatenation": "concat",
             "Interpolate": "resize", "Subgraph": "elementwise", "Math": "elementwise", "Eltwise": "elementwise"}  # fmt: skip
_KINDS_OV_PROFILE = {**_KINDS_OV, "GroupConvolution": "conv", "ReduceMean": "pool", "MaxPool": "maxpool", "AvgPool": "avgpool",
                     "Concat": "concat", **dict.fromkeys(("Add", "Multiply", "HSwish", "HardSigmoid", "Relu", "Sigmoid", "Swish", "Clamp"),
                                                         "elementwise")}  # fmt: skip
_KINDS_LITERT = {
    "CONV_2D": "conv", "DEPTHWISE_CONV_2D": "conv", "FULLY_CONNECTED": "linear", "MEAN": "pool", "MAX_POOL_2D": "maxpool",
    "AVERAGE_POOL_2D": "avgpool", "CONCATENATION": "concat", "RESIZE_BILINEAR": "resize", "RESIZE_NEAREST_NEIGHBOR": "resize",
    **dict.fromkeys(("ADD", "MUL", "SUB", "RELU", "RELU6", "RELU_0_TO_1", "HARD_SWISH", "LOGISTIC", "MINIMUM", "MAXIMUM"), "elementwise"),
}  # fmt: skip
_COMPUTES = ("Relu", "Clip", "Hard", "Sigmoid", "Add", "Mul", "BatchNorm")  # in the names that exporters give to nodes


def kinds(graph: OpGraph) -> Counter[str]:
    """How many ops of each kind a graph has; activations, sums and products together are "elementwise"."""
    return Counter("elementwise" if op.kind in ELEMENTWISE else op.kind for op in graph)


def category(node_type: str, runtime: str) -> str:
    """The kind, as in `kinds`, of a node type in a runtime's profile; empty for nodes that only convert, and for unknown ones."""
    return (_KINDS_OV_PROFILE if runtime == "openvino" else _KINDS_ORT).get(node_type, "")


def observed(file: Path | str, runtime: str = "onnxruntime", precision: str = "fp32") -> Counter[str]:
    """How many nodes of each kind a runtime runs for a file of its own, as `kinds`, from the graph that the runtime itself reports.

    Nodes that only convert (layouts, quantisation at the borders) are left out. Raises UserError for runtimes that report no graph.
    """
    if runtime == "onnxruntime":
        return Counter(_KINDS_ORT[kind] for kind in _onnxruntime_nodes(Path(file)) if kind in _KINDS_ORT)
    if runtime == "openvino":
        return _openvino_kinds(file, precision)
    if runtime == "litert":
        return Counter(_KINDS_LITERT[kind] for kind in _litert_ops(Path(file)) if kind in _KINDS_LITERT)
    raise UserError(f"expected a runtime that reports what it runs (onnxruntime, openvino, litert), got {runtime}")


def _onnxruntime_nodes(file: Path) -> list[str]:
    import tempfile

    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def _litert_ops(file: Path) -> list[str]:
    """The operators of LiteRT's interpreter, without the delegate that would show as one of them."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    bare = Interpreter(model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    return [str(op["op_name"]) for op in bare._get_ops_details()]


def _openvino_kinds(file: Path | str, precision: str) -> Counter[str]:
    from sartor.hardware.runtimes.ov import executed as nodes
    from sartor.hardware.runtimes.setup import Setup

    found: Counter[str] = Counter()
    for node in nodes(file, Setup("openvino", precision)):
        if node["type"] == "Pooling":
            found["maxpool" if "MaxPool" in node["fused"] else "avgpool"] += 1
        elif node["type"] in _KINDS_OV:
            kind = _KINDS_OV[node["type"]]
            # Subgraphs that only quantise carry the names of quantisers alone.
            names = [name for name in node["fused"].split(",") if not name.endswith(("/q", "/dq"))]
            if node["type"] != "Subgraph" or any(word in name.split("/")[-1] for name in names for word in _COMPUTES):
                found[kind] += 1
    return found
