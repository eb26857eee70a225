"""`sartor profile` of a board over there: measured by its agent, and nothing that the agent cannot do is passed over in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sartor.cli import main
from sartor.hardware.devices import find
from sartor.hardware.dvfs import scale
from sartor.hardware.onnx_graph import onnx_graph

from .running import Running, agent, token_file


def conv_net(path: Path) -> Path:
    """A convolution with ReLU as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.full((8, 3, 3, 3), 0.1, np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4), helper.make_node("Relu", ["y"], ["z"], name="relu")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, 16, 16]) for name, size in (("x", 3), ("z", 8))]
    graph = helper.make_graph(nodes, "net", [ends[0]], [ends[1]], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device folder and a cache of the test's own."""
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "devices"))
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def added(running: Running, token: Path) -> None:
    assert main(["devices", "add", "board", "--url", running.url, "--token-file", str(token), "--like", "raspberry-pi-4"]) == 0


def test_a_board_is_profiled_through_its_agent(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, token = conv_net(away / "net.onnx"), token_file(away / "secret")
    with agent(away / "work", "--token-file", str(token)) as running:
        added(running, token)
        capsys.readouterr()
        assert main(["profile", str(file), "--device", "board", "--json", "--out", str(away / "out")]) == 0
        record = json.loads(capsys.readouterr().out)
        assert main(["profile", str(file), "--device", "board"]) == 0
        said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert record["device"] == {"name": "board", "measured": True}
    assert record["latency"]["runs"] >= 100 and record["latency"]["p50"] > 0 and record["layers"] == []
    assert any("agent of board times whole networks" in note for note in record["notes"])
    assert record["graph"]["macs"] == 16 * 16 * 8 * 27 and record["roofline"]["ops"]
    assert "95 % interval" in said and "never measured" not in said
    page = (away / "out" / "profile.html").read_text()
    assert "95 % interval" in page and "which was not measured" not in page
    # The agent is the only one that can measure: gone, there is a sentence and no figure.
    path = next((away / "devices").glob("board*.toml"))
    text = path.read_text()
    path.write_text(text.replace("[agent]\n", "[agent]\npatience_s = 1.5\n"))
    assert path.read_text() != text
    assert main(["profile", str(file), "--device", "board", "--json"]) == 2
    found = capsys.readouterr()
    assert "device board: it does not answer" in found.err and not found.out


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("board", ["--runtime", "openvino"], "runtime: expected none for the device board, for its agent measures with onnxruntime"),
        ("board", ["--sweep"], "sweep: expected none for the device board"),
        ("board", ["--precision", "fp32"], "precision: expected none for the device board"),
        ("raspberry-pi-4", ["--runtime", "openvino"], "it is only described"),
        ("raspberry-pi-4", ["--batch", "8"], "batch: expected 1 for the device raspberry-pi-4"),
        ("raspberry-pi-4", ["--sweep"], "sweep: expected none"),
    ],
)
def test_what_only_this_machine_can_do_is_refused(
    device: str, options: list[str], words: str, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, token = conv_net(away / "net.onnx"), token_file(away / "secret")
    if device == "board":
        with agent(away / "work", "--token-file", str(token)) as running:
            added(running, token)
    assert main(["profile", str(file), "--device", device, *options]) == 2  # before anybody is asked: the agent is gone
    assert words in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_described_device_was_never_measured(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = conv_net(away / "net.onnx")
    assert main(["profile", str(file), "--device", "stm32f746", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["latency"] is None and record["device"] == {"name": "stm32f746", "measured": False}
    assert record["runtime"] == "tflite-micro" and record["roofline"]["latency_ms"] > 0
    assert any(note.startswith("No latency of") and "was measured" in note for note in record["notes"])


def test_energy_and_the_states_of_the_clock_are_told(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the device's file: at its top clock the time is the roofline's, and the state that is called best has the least E·T."""
    file = conv_net(away / "net.onnx")
    for threads in (1, 4):
        assert main(["profile", str(file), "--device", "raspberry-pi-4", "--threads", str(threads), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        energy, states = record["energy"], record["energy"]["states"]
        assert [state["mhz"] for state in states] == [600, 1000, 1500] and energy["validated"] is False
        assert states[-1]["latency_ms"] == pytest.approx(record["roofline"]["latency_ms"])
        assert energy["total_mj"] == pytest.approx(states[-1]["total_mj"]) == pytest.approx(energy["dynamic_mj"] + energy["static_mj"])
        power_w = threads / 4 * 3.2 * 0.86**2 * 1.5  # C·V²·f of the cores that work
        assert energy["dynamic_mj"] == pytest.approx(power_w * record["roofline"]["latency_ms"])
        assert energy["static_mj"] == pytest.approx(2.1 * record["roofline"]["latency_ms"])
        assert all(state["edp_mj_ms"] == pytest.approx(state["total_mj"] * state["latency_ms"]) for state in states)
        assert energy["best_mhz"] == min(states, key=lambda state: state["edp_mj_ms"])["mhz"]
        points = scale(onnx_graph(file), find("raspberry-pi-4"), "fp32", threads=threads)  # the manual says that these are the same
        assert [point.energy.total_mj for point in points] == pytest.approx([state["total_mj"] for state in states])
        assert [point.latency_ms for point in points] == pytest.approx([state["latency_ms"] for state in states])
    assert main(["profile", str(file), "--device", "raspberry-pi-4", "--out", str(away / "out")]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Modelled energy" in said and "no power meter has confirmed it" in said and "the least at" in said
    assert "Modelled energy" in (away / "out" / "profile.html").read_text()
    assert main(["profile", str(file), "--device", "jetson-nano", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["energy"]["states"] == [] and record["energy"]["best_mhz"] is None and record["energy"]["total_mj"] > 0
    assert main(["profile", str(file), "--device", "stm32f746", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["energy"] is None and any(note.startswith("There is no energy") for note in record["notes"])
