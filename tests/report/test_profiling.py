from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from sartor.cli import main
from sartor.errors import UserError
from sartor.hardware import Op, OpGraph
from sartor.hardware.devices import find
from sartor.hardware.devices.text import write
from sartor.hardware.kept import load_roofline, save_roofline
from sartor.hardware.memory import timeline
from sartor.hardware.probing import PROBED
from sartor.hardware.roofline import REACHED, Roofline
from sartor.hardware.runtimes import Setup
from sartor.hardware.spec import DeviceSpec
from sartor.report.hardware_plots import memory_png, roofline_png, scatter_png
from sartor.report.profile_page import profile_page, write_profile
from sartor.report.profiling import profile

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, with a roofline of this machine in it, so that nothing has to be probed."""
    from sartor.hardware.device import host

    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "devices"))
    save_roofline(Roofline(1e11, 1e10, "fp32", name="host"), host("fp32").fingerprint)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions with a residual sum, pooled and classified; one operator of no kind."""
    rng = np.random.default_rng(0)
    weights = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (5, 16)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
        helper.make_node("Conv", ["z", "b"], ["v"], name="second", pads=[1] * 4),
        helper.make_node("Add", ["v", "z"], ["w"], name="sum"),
        helper.make_node("GlobalAveragePool", ["w"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "c"], ["g"], name="fc", transB=1),
        helper.make_node("Softmax", ["g"], ["s"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 24, 24])],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name) for name, shape in weights.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("profile") / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_profile_tells_measured_and_modelled_apart(file: Path) -> None:
    record = profile(file, setup=Setup(), seconds=0.05).record
    assert record["device"] == {"name": "host", "measured": True} and record["latency"]["runs"] >= 100
    assert record["graph"]["foreign"] == ["Softmax"] and record["graph"]["precision"] == "fp32"
    assert record["graph"]["macs"] == 24 * 24 * 16 * (27 + 144) + 16 * 5
    ops = {op["name"]: op for op in record["roofline"]["ops"]}
    assert ops["second"]["flops"] == 2 * 24 * 24 * 16 * 144
    assert ops["first"]["measured_us"] > 0 and ops["second"]["measured_us"] > 0
    assert sum(layer["latency_us"] for layer in record["layers"]) == pytest.approx(1e3 * record["latency"]["p50"], rel=0.01)
    assert any("not calibrated" in note for note in record["notes"]) and record["table"] is None
    # The first map lives on for the residual sum: input of the sum, both operands and its output.
    assert record["memory"]["peak_bytes"] == 4 * 3 * 16 * 24 * 24
    json.dumps(record, allow_nan=False)


def test_a_device_without_agent_is_modelled_and_says_so(file: Path, tmp_path: Path) -> None:
    found = profile(file, setup=Setup(), device="raspberry-pi-4")
    assert found.record["latency"] is None and not found.record["device"]["measured"]
    assert found.record["roofline"]["latency_ms"] > 0
    page = write_profile(tmp_path / "out", found)[0].read_text()
    assert "was not measured" in page and "Modelled latency" in page


def test_the_page_stands_alone(file: Path, tmp_path: Path) -> None:
    found = profile(file, setup=Setup(), seconds=0.05, limit_bytes=20_000)
    written = write_profile(tmp_path / "out", found)
    assert {path.name for path in written} == {"profile.html", "roofline.png", "layers.png", "memory.png", "predicted_vs_measured.png"}
    assert all(path.read_bytes().startswith(PNG) for path in written[1:])
    page = written[0].read_text()
    assert "over the limit of 20,000" in page and "<script" not in page and "http://" not in page and "https://" not in page
    hostile = profile_page({**found.record, "file": "<b>net</b>.onnx", "notes": ["<script>alert(1)</script>"]}, ["roofline"])
    assert "<b>" not in hostile and "<script" not in hostile


def test_a_stale_picture_is_removed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "predicted_vs_measured.png").write_bytes(b"old")
    write_profile(tmp_path, profile(file, setup=Setup(), device="raspberry-pi-4"))
    assert not (tmp_path / "predicted_vs_measured.png").exists()


def test_the_command_line_writes_and_prints(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(file), "--json", "--device", "raspberry-pi-4", "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["roofline"]["ops"] and str(tmp_path / "out" / "profile.html") in record["files"]
    assert main(["profile", str(file), "--device", "raspberry-pi-4", "--limit", "peak_bytes=1KB"]) == 0
    assert "over the limit of 1,0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runtime", "tensorrt"], "runtime: expected one of"),
        (["--runtime", "litert"], "expected a .tflite file"),
        (["--precision", "fp16"], "expected a precision that onnxruntime has"),
        (["--device", "nowhere"], "there is none called"),
        (["--limit", "latency_ms=2"], "expected peak_bytes"),
        (["--shape", "3by4"], "expected sizes such as"),
        (["--threads", "0"], "threads of at least 1"),
        (["--threads", "100000"], "threads: expected at most"),
        (["--device", "raspberry-pi-4", "--threads", "9"], "threads: expected at most 4, the cores of raspberry-pi-4, but got 9"),
    ],
)
def test_bad_options_are_refused(file: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(file), *options]) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_had_has_a_reason(file: Path) -> None:
    for setup, device, words in (
        (Setup(), "host", "none was measured yet for fp32 and 1 thread(s)"),
        (Setup(batch=2), "host", "of onnxruntime and 2 image(s)"),
        (Setup(), "raspberry-pi-4", "nothing is measured on raspberry-pi-4"),
    ):
        record = profile(file, setup=setup, device=device, seconds=0.05).record
        assert record["table"] is None and sum(words in note for note in record["notes"]) == 1


@pytest.mark.parametrize("content", [b"{}", b"", b"\x08\x09"])
def test_a_file_that_is_no_onnx_is_refused_for_a_described_device_too(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "n.onnx").write_bytes(content)
    for device in ("host", "raspberry-pi-4"):
        assert main(["profile", str(tmp_path / "n.onnx"), "--device", device]) == 2
        said = capsys.readouterr()
        assert not said.out and "n.onnx" in said.err and said.err.count("\n") == 1


def test_what_devices_probe_measured_comes_before_what_an_earlier_profile_probed(file: Path, cache: Path) -> None:
    """The fixture keeps a roofline of this machine, as an earlier profile would have."""
    assert profile(file, setup=Setup(), seconds=0.05).record["roofline"]["model"]["peak_ops_per_s"] == 1e11
    source = {"peak_ops_per_s": f"{PROBED} with onnxruntime", "bandwidth_bytes_per_s": f"{PROBED} with onnxruntime"}
    figures = {"peak_ops_per_s": {"fp32": 2e11, "int8": 4e11}, "bandwidth_bytes_per_s": 3e10}
    spec = find("host")
    probed = DeviceSpec.model_validate({**spec.model_dump(exclude_unset=True), **figures, "sources": {**spec.sources, **source}})
    write(probed, cache.parent / "devices")
    model = profile(file, setup=Setup(), seconds=0.05).record["roofline"]["model"]
    assert model["peak_ops_per_s"] == pytest.approx(2e11 / spec.cores) and model["bandwidth_bytes_per_s"] == 3e10
    assert model["parameters"]["dense"] == REACHED.dense and model["parameters"]["efficiency"] == REACHED.efficiency == 1.0


def test_pictures_repeat_and_refuse_emptiness() -> None:
    ops = (Op("conv", (8, 16, 16), (16, 16, 16), kernel=3), Op("pool", (16, 16, 16), (16, 1, 1)), Op("linear", (16, 1, 1), (10, 1, 1)))
    graph, model = OpGraph(ops, (8, 16, 16)), Roofline(1e11, 1e10)
    assert roofline_png(model, model.times(graph)) == roofline_png(model, model.times(graph)) != roofline_png(model, model.times(graph)[:1])
    assert memory_png(timeline(graph)) != memory_png(timeline(graph), 4096)
    assert scatter_png([1, 2, 3], [1, 2, 4]).startswith(PNG)
    for wrong in ([], [1.0, 2.0]):
        with pytest.raises(UserError, match="equally many positive"):
            scatter_png([1.0][: len(wrong)], wrong)
    with pytest.raises(UserError, match="convolutions or linear"):
        roofline_png(model, model.times(OpGraph(ops[1:2], (16, 16, 16))))
    with pytest.raises(UserError, match="got none"):
        memory_png([])


def test_a_kept_roofline_is_read_back_and_rubbish_is_not(cache: Path) -> None:
    model = Roofline(2e11, 3e10, "int8", name="board")
    path = save_roofline(model, "board", 2)
    assert load_roofline("board", "int8", 2) == model and load_roofline("board", "int8", 1) is None
    path.write_text("{}")
    assert load_roofline("board", "int8", 2) is None
