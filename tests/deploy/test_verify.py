"""What verification says is what the files do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sartor.deploy.verify import Files, _Tally, accuracy_of, broken, verify
from sartor.errors import UserError
from sartor.export.onnx import accept_pixels, to_onnx
from sartor.goals import Limit
from sartor.hardware.measure import measure


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def test_record_of_a_trained_net(exported) -> None:
    limits = [
        Limit("accuracy", 0.5),
        Limit("latency_ms", 1e-6, "p90"),
        Limit("file_bytes", 100.0),
        Limit("params", 1e6),
        Limit("macs", 1e9),
    ]
    record = verify(
        exported.files, exported.net, (exported.images, exported.labels), limits=limits, known={"params": 4000.0},
        measure=lambda file: measure(file, seconds=0.05), batch=100,
    )  # fmt: skip
    int8, fp32 = (logits_of(path, exported.images) for path in (exported.files.int8, exported.files.fp32))
    with torch.no_grad():
        truth = exported.net(torch.from_numpy(exported.images)).numpy()
    metrics, test, difference = record["metrics"], record["test"], record["difference"]
    assert metrics["accuracy"] == test["accuracy"] == pytest.approx((int8.argmax(1) == exported.labels).mean())
    assert test["accuracy_fp32"] == pytest.approx((fp32.argmax(1) == exported.labels).mean())
    assert test["accuracy"] > 0.85
    assert test["accuracy"] >= test["accuracy_fp32"] - 0.02
    assert difference["agreement_int8"] == pytest.approx((int8.argmax(1) == fp32.argmax(1)).mean())
    assert difference["agreement_int8"] > 0.97
    assert difference["max_abs_fp32"] == pytest.approx(np.abs(truth - fp32)[:64].max(), abs=1e-5)
    assert difference["max_abs_fp32"] < 1e-4
    top5 = (np.argsort(-int8, 1, kind="stable")[:, :5] == exported.labels[:, None]).any(1).mean()
    assert metrics["top5"] == test["top5"] == pytest.approx(top5)
    assert metrics["file_bytes"] == exported.files.int8.stat().st_size
    assert metrics["params"] == 4000
    assert metrics["latency_ms"] == record["latency"]["p50"]
    assert metrics["latency_ms_p10"] <= metrics["latency_ms"] <= metrics["latency_ms_p90"]
    assert metrics["throughput"] == pytest.approx(1000 / metrics["latency_ms"])
    assert record["latency"].keys() >= {"p10", "p50", "p90", "low", "high", "runs", "cpu_ms", "drift", "noisy"}
    assert record["int8"]["float_ops"] == []
    # macs was never given, so that limit counts as broken; the worst come first, and the two that hold are not named.
    assert [b["limit"].split("<")[0] for b in record["broken"]] == ["macs", "latency_ms_p90", "file_bytes"]
    assert record["broken"][0]["value"] is None
    assert record["broken"][2]["excess"] == pytest.approx(metrics["file_bytes"] / 100 - 1)


def test_a_net_that_is_not_the_file_is_found_out(exported) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    record = verify(exported.files, other, (exported.images, exported.labels), measure=None)
    assert record["difference"]["max_abs_fp32"] > 0.1
    assert "latency" not in record
    assert "latency_ms" not in record["metrics"]
    assert other.training


def test_batches_give_what_arrays_give(exported) -> None:
    file, images, labels = exported.files.int8, exported.images, exported.labels
    whole = accuracy_of(file, images, labels)
    assert accuracy_of(file, images, labels, batch=7) == whole
    assert accuracy_of(file, ((images[i : i + 50], labels[i : i + 50]) for i in range(0, len(images), 50))) == whole
    batches = [(images[i : i + 50], labels[i : i + 50]) for i in range(0, len(images), 50)]
    first, second = (verify(exported.files, exported.net, test, measure=None) for test in ((images, labels), batches))
    assert first["test"] == second["test"]


@pytest.mark.parametrize("kind", ["unit", "uint8"])
def test_files_that_take_pixels_are_given_pixels(exported, tmp_path: Path, kind: str) -> None:
    paths = [
        accept_pixels(path, tmp_path / path.name, [0.305], [0.376], pixels=kind) for path in (exported.files.int8, exported.files.fp32)
    ]
    record = verify(Files(*paths), exported.net, (exported.images, exported.labels), measure=None)
    plain = verify(exported.files, exported.net, (exported.images, exported.labels), measure=None)
    # 8-bit pixels round the 17 grey levels of the digits by up to half a step.
    assert record["difference"]["max_abs_fp32"] < (1e-4 if kind == "unit" else 0.2)
    assert record["test"]["accuracy"] == pytest.approx(plain["test"]["accuracy"], abs=0.01)


def constant_file(path: Path, logits: list[float]) -> Path:
    """A file that returns `logits` for every image."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "zero"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["logits"]),
    ]
    size = len(logits)
    graph = helper.make_graph(
        nodes, "constant",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(np.zeros((4, size), np.float32), "zero"), numpy_helper.from_array(np.array(logits, np.float32), "bias")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_accuracy_of_known_answers(tmp_path: Path) -> None:
    file = constant_file(tmp_path / "c.onnx", [0, 6, 5, 4, 3, 2, 1])
    images = np.zeros((7, 1, 2, 2), np.float32)
    assert accuracy_of(file, images, np.arange(7)) == {"accuracy": 1 / 7, "top5": 5 / 7}
    equal = constant_file(tmp_path / "e.onnx", [0.0] * 7)
    assert accuracy_of(equal, images, np.arange(7)) == {"accuracy": 1 / 7, "top5": 5 / 7}


@given(st.integers(0, 100_000), st.integers(2, 12), st.integers(1, 5))
def test_top5_is_the_stable_order(seed: int, classes: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, levels, (30, classes)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, 30)
    tally = _Tally()
    tally.add(logits, labels)
    order = np.argsort(-logits, 1, kind="stable")
    scores = tally.scores()
    assert scores["accuracy"] == (order[:, 0] == labels).mean()
    assert scores["top5"] == (order[:, :5] == labels[:, None]).any(1).mean()


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_broken_limits_are_those_over_their_bound(value: float, bound: float) -> None:
    found = broken([Limit("latency_ms", bound)], {"latency_ms": value})
    assert bool(found) == (value > bound)
    if found:
        assert found[0].excess == pytest.approx(value / bound - 1)
        assert "on the exported file" in str(found[0])


def test_limits_without_a_figure_are_broken() -> None:
    assert str(broken([Limit("latency_ms", 2.0)], {})[0]) == "latency_ms<=2: not measured"
    assert broken([Limit("accuracy", 0.5)], {"accuracy": float("nan")})[0].value is None


def test_unfit_test_data_is_refused(exported, tmp_path: Path) -> None:
    images, labels = exported.images[:4], exported.labels[:4]
    with pytest.raises(UserError, match="none"):
        accuracy_of(exported.files.int8, images[:0], labels[:0])
    with pytest.raises(UserError, match="labels from 0 to 9"):
        accuracy_of(exported.files.int8, images, np.array([0, 1, 2, 10]))
    with pytest.raises(UserError, match="4 images and 3 labels"):
        accuracy_of(exported.files.int8, images, labels[:3])
    with pytest.raises(UserError):
        accuracy_of(tmp_path / "none.onnx", images, labels)


def test_export_of_the_verified_net_is_repeatable(exported, tmp_path: Path) -> None:
    again = to_onnx(exported.net, (1, 8, 8), tmp_path / "again.onnx")
    np.testing.assert_array_equal(logits_of(again, exported.images), logits_of(exported.files.fp32, exported.images))
