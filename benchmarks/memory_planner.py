"""The memory planner against what ONNX Runtime's arena holds for the same networks.

    python benchmarks/memory_planner.py --out runs/memory            # 20 networks, fp32 and int8
    python benchmarks/memory_planner.py --out runs/memory --nets 2   # a quick look

Five figures for each network, in bytes of activations for one image, its input and output not counted (they are the caller's):

planned    `sartor.hardware.arena.place` on the ops that the runtime runs for the graph traced from torch (`sartor.hardware.fusion`).
predicted  the same as the runtime places them: a buffer of the same shape that is free is taken over, anything else is placed when it is
           made, and neither looks ahead, so that fragments are included.
lowered    `predicted` on the nodes that the runtime really runs (its optimised graph, with its layouts, reorders and type conversions).
arena      the single block that the runtime's memory pattern asks its arena for, read from the runtime's own log.
workspace  what its kernels ask for beside it while they run (accumulators of an int8 convolution, for one): no activation, not planned.

predicted against arena is the comparison, planned the memory that a planner which looks ahead needs. Where predicted is off by more than
10 %, lowered tells whether the placement or the runtime's own nodes make the difference, and the tensors alive at the runtime's peak are
listed beside those of the plan. Finished networks are kept in `<out>/memory.json`: the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SIZES = (32, 64, 96, 160)
SPACES = ("mobile", "catalogue", "once-for-all", "mobilenet-v2", "mobilenet-v3-small", "mnasnet-a1", "fbnet-c")
ALIGNMENT = 64
# What ONNX Runtime's CPU kernels declare as in place (a convolution accumulates over the map it adds) or as a mere view of their input.
# Its sums and products are not: their result takes a buffer of its own, or one of its shape that is free.
IN_PLACE = frozenset({"act", "sum"})
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_KINDS = dict.fromkeys(("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", *_VIEWS), "act")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "memory.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for number in range(options.nets):
        for precision in options.precisions:
            key = f"{number}:{precision}"
            if key not in rows:
                rows[key] = compare(number, precision)
                path.with_suffix(".tmp").write_text(json.dumps(rows, indent=1))
                os.replace(path.with_suffix(".tmp"), path)
            show(rows[key])
    for precision in options.precisions:
        found = [rows[f"{n}:{precision}"] for n in range(options.nets)]
        counts = {what: sum(abs(r[what] / r["arena"] - 1) <= 0.1 for r in found) for what in ("predicted", "lowered", "planned")}
        said = ", ".join(f"{what} {count}" for what, count in counts.items())
        print(f"{precision}: of {len(found)} networks, within 10 % of the arena: {said}")


def show(row: dict[str, Any]) -> None:
    off = row["predicted"] / row["arena"] - 1
    figures = "  ".join(f"{what} {row[what]:>9,}" for what in ("planned", "predicted", "lowered", "arena", "workspace"))
    print(f"{row['name']:34} {row['precision']}  {figures}  {off:+.1%}")
    if abs(off) > 0.1:
        for title, alive in (("plan", row["plan_peak"]), ("runtime", row["runtime_peak"])):
            print(f"    {title:8} at {alive['op']}: " + ", ".join(f"{name} {size:,}" for name, size in alive["tensors"]))


def compare(number: int, precision: str) -> dict[str, Any]:
    """Plan, export and run one network."""
    import numpy as np
    import torch

    from sartor.export.onnx import to_onnx
    from sartor.export.quantize import quantize
    from sartor.hardware import trace
    from sartor.hardware.fusion import executed
    from sartor.spaces import build

    rng = np.random.default_rng(number)
    name, size = SPACES[number % len(SPACES)], int(rng.choice(SIZES))
    shape = (3, size, size)
    torch.manual_seed(number)
    net = build(name, shape, 10)
    module = net.extract(net.space.sample(rng)).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        file = to_onnx(module, shape, folder / "fp32.onnx")
        if precision == "int8":
            file = quantize(file, rng.standard_normal((8, *shape)).astype(np.float32), folder / "int8.onnx", method="minmax")
        arena, workspace = arena_bytes(file, shape)
        lowered, sizes = runtime_graph(file, shape)
    graph = executed(trace(module, shape), "onnxruntime", precision)
    (planned, predicted), plan_peak = plan(graph, 4 if precision == "fp32" else 1)
    (_, own), runtime_peak = plan(lowered, 1, sizes)
    return {
        "name": f"{name} {size}x{size}", "precision": precision, "planned": planned, "predicted": predicted, "lowered": own, "arena": arena,
        "workspace": workspace, "plan_peak": plan_peak, "runtime_peak": runtime_peak,
    }  # fmt: skip


def plan(graph: Any, bytes_per_value: int, labels: list[str] | None = None) -> tuple[list[int], dict[str, Any]]:
    """Bytes of the arena, placed with and without looking ahead, and what is alive at the op where most is."""
    from sartor.hardware.arena import place
    from sartor.hardware.memory import timeline

    outside = (-1, len(graph) - 1)
    ways = (
        place(graph, bytes_per_value, alignment=ALIGNMENT, in_place=IN_PLACE, external=outside, online=online) for online in (False, True)
    )
    sizes = [arena.bytes for arena in ways]
    moments = timeline(graph, bytes_per_value, in_place=IN_PLACE, external=outside)
    most = max(moments, key=lambda m: m.bytes)

    def named(index: int) -> str:
        return labels[index] if labels is not None else graph.ops[index].name or graph.ops[index].kind

    return sizes, {"op": named(most.op), "tensors": [[named(t), size] for t, size in most.tensors]}


def runtime_graph(file: Path, shape: tuple[int, int, int]) -> tuple[Any, list[str]]:
    """The nodes that the runtime runs as an op graph whose sizes are bytes, and their names."""
    import numpy as np
    import onnx

    from sartor.hardware import Op, OpGraph
    from sartor.hardware.local import LocalDevice

    device = LocalDevice()
    text = device.optimise(file.read_bytes())
    model = onnx.load_from_string(text)
    graph = model.graph
    given = {tensor.name for tensor in graph.initializer}
    source = next(value.name for value in graph.input if value.name not in given)
    names = [node.output[0] for node in graph.node]
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    known = {value.name for value in graph.output}
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    arrays = device.values(model.SerializeToString(), names, {source: x})
    made = {source: -1}
    ops, labels = [], []
    for index, node in enumerate(graph.node):
        inputs = tuple(made[name] for name in node.input if name in made) or (-1,)
        made_here = arrays[node.output[0]]
        height, width = made_here.shape[2:] if made_here.ndim == 4 else (1, 1)
        before = (x.nbytes, 1, 1) if inputs[0] < 0 else ops[inputs[0]].out_shape
        kind = _KINDS.get(node.op_type, "conv" if node.op_type in ("Conv", "FusedConv") else "other")
        act = "relu" if kind == "act" else ""
        ops.append(Op(kind, before, (made_here.nbytes // (height * width), height, width), act=act, inputs=inputs, label=node.op_type))
        made[node.output[0]] = index
        labels.append(node.op_type)
    return OpGraph(tuple(ops), (x.nbytes, 1, 1)), labels


def arena_bytes(file: Path, shape: tuple[int, int, int]) -> tuple[int, int]:
    """The block that the runtime's memory pattern asks for at the beginning of its second run, and what its kernels ask for afterwards as
    workspace, from its log; in a process of its own for the log's sake."""
    command = [sys.executable, __file__, "--child", str(file), json.dumps(shape)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    after = found.stderr.split("SECOND RUN", 1)[1]
    sizes = [int(size) for size in re.findall(r"Extending BFCArena for Cpu.*?num_bytes: (\d+)", after)]
    if not sizes:
        raise RuntimeError(f"the runtime's log shows no extension of its arena:\n{found.stderr[-2000:]}")
    return sizes[0], sum(sizes[1:])


def _child(file: str, shape: list[int]) -> None:
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(1)
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))  # as much as is asked for, no powers of two
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x = {session.get_inputs()[0].name: np.zeros((1, *shape), np.float32)}
    run = ort.RunOptions()
    run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run(None, x, run)  # records the pattern, then gives everything back
    os.write(2, b"SECOND RUN\n")
    session.run(None, x, run)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
