from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sartor.errors import UserError
from sartor.hardware import Op, OpGraph, trace
from sartor.hardware._lower import lower, lower_input, quantize_default
from sartor.hardware.calibrate import GROUPS, Calibration, Pair, fit
from sartor.hardware.device import host
from sartor.hardware.table import Entry, LatencyTable

from .nets import export, random_net

OPS = [
    Op("conv", (16, 8, 8), (32, 8, 8), act="relu"),
    Op("conv", (32, 8, 8), (32, 4, 4), kernel=3, stride=2, groups=32, act="hardswish"),
    Op("se", (32, 4, 4), (32, 4, 4), hidden=8),
    Op("add", (16, 8, 8), (16, 8, 8)),
    Op("pool", (32, 4, 4), (32, 1, 1)),
    Op("linear", (32, 1, 1), (10, 1, 1)),
    Op("maxpool", (16, 8, 8), (16, 4, 4), kernel=2, stride=2),
    Op("avgpool", (16, 8, 8), (16, 8, 8), kernel=3),
    Op("concat", (16, 8, 8), (16, 8, 8)),
    Op("mul", (16, 8, 8), (16, 8, 8)),
    Op("resize", (3, 8, 8), (3, 4, 4)),
    *[Op("act", (16, 8, 8), (16, 8, 8), act=act) for act in ("relu", "relu6", "hardswish", "hardsigmoid", "swish", "sigmoid", "affine")],
]


def _lower_all(precision: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for size in {op.in_shape[1:] for op in OPS}:
        group = [op for op in OPS if op.in_shape[1:] == size]
        found.update({op.signature: kernel.node_types for op, kernel in zip(group, lower(group, precision), strict=True)})
    return found


def test_int8_ops_become_the_runtimes_integer_nodes() -> None:
    found = _lower_all("int8")
    assert found[OPS[0].signature] == ("QLinearConv",)  # the ReLU lives in the quantisation of the output
    assert found[OPS[1].signature] == ("QLinearConv", "DequantizeLinear", "HardSigmoid", "QuantizeLinear", "QLinearMul")
    assert found[OPS[2].signature][:3] == ("QLinearGlobalAveragePool", "QLinearConv", "QLinearConv")
    assert found[OPS[3].signature] == ("QLinearAdd",)
    assert found[OPS[4].signature] == ("QLinearGlobalAveragePool",)
    assert "QGemm" in found[OPS[5].signature]
    assert lower_input((3, 16, 16), "int8").node_types == ("QuantizeLinear", "Transpose")


def test_fp32_ops_are_cut_out_with_their_fusions() -> None:
    found = _lower_all("fp32")
    assert found[OPS[0].signature] == ("Conv",)  # the activation is an attribute of it
    assert found[OPS[3].signature] == ()  # the addition is fused into the convolution before it
    assert "Gemm" in found[OPS[5].signature]


@pytest.mark.parametrize("seed", [0, 4])
def test_cut_nodes_are_those_of_the_real_network(seed: int, tmp_path: Path) -> None:
    """Every node type of the exported network's optimised graph occurs exactly as often as in the cuts of its ops."""
    import onnx
    import onnxruntime as ort

    module, shape = random_net(seed)
    export(module, shape, str(tmp_path / "fp32.onnx"))
    model = onnx.load(tmp_path / "fp32.onnx")
    model.graph.input[0].name = "x"  # the name that the default quantiser feeds
    for node in model.graph.node:
        node.input[:] = ["x" if name == "input" else name for name in node.input]
    onnx.save(model, tmp_path / "fp32.onnx")
    quantize_default(tmp_path / "fp32.onnx", np.zeros((1, *shape), np.float32), tmp_path / "int8.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    real = sorted(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    graph = trace(module, shape)
    cut = [kind for op in graph for kernel in lower([op], "int8") for kind in kernel.node_types]
    assert sorted([*cut, *lower_input(shape, "int8").node_types]) == real


def test_ensure_measures_each_signature_once_and_keeps_it(tmp_path: Path) -> None:
    path, said = tmp_path / "table.sqlite", []
    ops = OPS[:4]
    table = LatencyTable(path, seconds=0.002)
    added = table.ensure([*ops, *ops], input_shapes=[(3, 16, 16)] * 2, progress=lambda *what: said.append(what))
    assert added == 5 and said[-1][0] == "latency table" and said[-1][1] == said[-1][2] >= 5
    assert all(table.entries[op.signature].us > 0 and table.entries[op.signature].kind == "measured" for op in ops)
    graph = OpGraph((OPS[0],), (16, 8, 8))
    with pytest.raises(UserError, match="input"):
        table.predict(graph)
    assert table.predict(graph, measure_missing=True) == pytest.approx(
        (table.entries[OPS[0].signature].us + table.entries["input:16x8x8"].us) / 1e3
    )
    table.close()
    again = LatencyTable(path)
    assert again.entries == table.entries and again.ensure(ops) == 0


def test_missing_ops_are_refused_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"linear:32x1x1>10x1x1.*ensure"):
        LatencyTable(tmp_path / "t.sqlite").price(OPS[5])


def test_fused_ops_are_entries_that_cost_nothing(tmp_path: Path) -> None:
    table = LatencyTable(tmp_path / "t.sqlite", host("fp32"), seconds=0.002)
    table.ensure([OPS[3]])
    assert table.entries[OPS[3].signature] == Entry(OPS[3].signature, 0.0, 0.0, 0, "fused", False)


def test_other_identity_schema_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    LatencyTable(path).close()
    with pytest.raises(UserError, match="of this device"):
        LatencyTable(path, host("fp32"))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(UserError, match="schema 99"):
        LatencyTable(path)
    (tmp_path / "text.sqlite").write_text("this is no database, whatever its name says" * 50)
    with pytest.raises(UserError, match="can be opened"):
        LatencyTable(tmp_path / "text.sqlite")


def test_a_table_of_another_device_predicts_nothing_new(tmp_path: Path) -> None:
    table = LatencyTable(tmp_path / "t.sqlite", replace(host(), cpu="another"))
    with pytest.raises(UserError, match="run there"):
        table.ensure([OPS[0]])


def test_build_survives_kill(tmp_path: Path) -> None:
    script = (
        "import sys; from sartor.hardware.table import LatencyTable; from sartor.hardware import Op\n"
        "ops = [Op('conv', (8, 4, 4), (8 * n, 4, 4)) for n in range(1, 200)]\n"
        "LatencyTable(sys.argv[1], seconds=0.002).ensure(ops, progress=lambda *what: print(*what, flush=True))\n"
    )
    path = tmp_path / "t.sqlite"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[2] == "8":
                break
        os.kill(process.pid, signal.SIGKILL)
    table = LatencyTable(path)
    assert 8 <= len(table.entries) < 199
    assert all(entry.us > 0 for entry in table.entries.values())


def _pairs(rng: np.random.Generator, factors: np.ndarray, count: int = 30, noise: float = 0.01) -> list[Pair]:
    terms = rng.uniform(0.05, 1, (count, len(GROUPS))) * np.array([1, 1, 0.5, 0.5, 0.1, 0.05])
    return [Pair(row, float(row @ factors * rng.normal(1, noise))) for row in terms]


def test_calibration_recovers_factors_and_judges_itself() -> None:
    truth = np.array([1.5, 0.8, 1.2, 1.0, 1.0, 1.0])
    found = fit(_pairs(np.random.default_rng(0), truth))
    assert found.factors["pointwise"] == pytest.approx(1.5, abs=0.1) and found.factors["depthwise"] == pytest.approx(0.8, abs=0.1)
    assert found.quality is not None and found.quality.within == 1.0 and found.quality.mape < 0.03 and found.quality.tau > 0.9
    assert Calibration.from_json(found.to_json()) == found


def test_calibration_without_structure_is_one_common_factor() -> None:
    found = fit(_pairs(np.random.default_rng(1), np.full(6, 1.7), count=6, noise=0.1))
    assert all(factor == pytest.approx(1.7, rel=0.2) for factor in found.factors.values())


def test_calibration_is_never_negative_and_needs_four_networks() -> None:
    rng = np.random.default_rng(2)
    found = fit([Pair(rng.uniform(0, 1, 6), float(rng.uniform(0.1, 2))) for _ in range(12)])
    assert min(found.factors.values()) >= 0
    with pytest.raises(UserError, match="at least 4"):
        fit([Pair(np.ones(6), 1.0)] * 3)
    with pytest.raises(UserError, match="positive"):
        fit([Pair(np.ones(6), 0.0)] * 5)


def test_calibration_of_a_table_scales_predictions_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    graphs = [OpGraph((OPS[0],) * count, (16, 8, 8)) for count in (1, 2, 3, 4, 6)]
    table = LatencyTable(path, seconds=0.002)
    plain = [table.predict(graph, measure_missing=True) for graph in graphs]
    table.calibrate([(graph, 2 * value) for graph, value in zip(graphs, plain, strict=True)])
    assert table.predict(graphs[2]) == pytest.approx(2 * plain[2], rel=1e-6)
    table.close()
    assert LatencyTable(path).predict(graphs[2]) == pytest.approx(2 * plain[2], rel=1e-6)
