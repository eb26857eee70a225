"""A real agent in a process of its own, and orders for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sartor.hardware.spec import AgentAddress, DeviceSpec

TOKEN = "a-token-of-the-tests-0123456789"


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def children(self) -> list[int]:
        """Processes that the agent started and that are still there."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.glob("*") for pid in (task / "children").read_text().split()]

    def uploads(self) -> list[Path]:
        """What lies in the folders of orders."""
        return [path for base in self.folder.glob("sartor-agent-*") for path in base.iterdir()]


def start(folder: Path, *arguments: str, port: int = 0) -> Running:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sartor.agent", "--port", str(port), "--folder", str(folder), "--quiet", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "listening on" in line:
            return Running(process, line.split()[-1], folder, arguments)
    raise AssertionError(f"the agent ended with {process.wait()}")


@contextmanager
def agent(folder: Path, *arguments: str) -> Iterator[Running]:
    running = start(folder, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(15)
        assert running.process.stdout is not None
        running.process.stdout.close()


def token_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "token"
    path.write_text(TOKEN + "\n")
    return path


def spec_of(running: Running, token: Path | None = None, patience_s: float = 30.0, certificate: Path | None = None) -> DeviceSpec:
    files = {"token_file": token, "certificate": certificate}
    given = {name: str(path) for name, path in files.items() if path is not None}
    address = AgentAddress.model_validate({"url": running.url, "patience_s": patience_s, **given})
    return DeviceSpec(
        name="board", title="a board", kind="cpu", runtime="onnxruntime", precisions=("int8", "fp32"), cores=1, agent=address,
        sources={"cores": "estimate: a test"},
    )  # fmt: skip


def model(size: int = 4, nodes: Sequence[object] | None = None, weights: Sequence[object] = ()) -> bytes:
    """A small ONNX model: y = -x, or of the nodes given."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes or [helper.make_node("Neg", ["x"], ["y"])]), "test", [ends[0]], [ends[1]], list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def endless() -> bytes:
    """A model that goes round 2**40 times."""
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("Neg", ["v"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4]),
        ],
        [helper.make_tensor_value_info("on_out", TensorProto.BOOL, []), helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [1, 4])],
    )
    weights = [numpy_helper.from_array(np.array(2**40, np.int64), "trips"), numpy_helper.from_array(np.array(True), "yes")]
    return model(4, [helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)], weights)


def hungry() -> bytes:
    """A model that wants 64 GB for one tensor."""
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(np.array([2**34], np.int64), "size"), numpy_helper.from_array(np.array([0], np.int64), "axis")]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], axes=[1], keepdims=0),
        helper.make_node("Expand", ["top", "size"], ["all"]),
        helper.make_node("ReduceSum", ["all", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model(4, nodes, weights)


def outside() -> bytes:
    """A model whose weights are said to lie in a file of the system."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    return model(4, [helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
