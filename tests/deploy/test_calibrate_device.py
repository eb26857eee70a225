"""`sartor devices calibrate`: what a user measured makes the model of a described device better, in profiles and searches alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sartor.cli import main
from sartor.deploy.calibrate_device import FEWEST, MOST, read_pairs
from sartor.hardware.devices import find
from sartor.hardware.kept import load_roofline
from sartor.hardware.modelled import ModelledDevice
from sartor.hardware.onnx_graph import onnx_graph
from sartor.hardware.roofline import Parameters, Roofline

from .random_nets import network

BOARD = "raspberry-pi-4"
TRUTH = Parameters(dense=0.2, pointwise=0.75, depthwise=0.04, efficiency=1.2, op_us=12, call_us=150)
# A second process: it profiles, and searches as far as pricing a network.
AGAIN = """
import json, sys
from pathlib import Path
from sartor.job.context import Job
from sartor.request import SearchRequest
from sartor.cli import main
job = Job(SearchRequest(data="digits", device=sys.argv[2], precision="fp32", out=sys.argv[3]), Path(sys.argv[3]))
print(json.dumps(job.table.model.to_json()), flush=True)
main(["profile", sys.argv[1], "--device", sys.argv[2], "--json"])
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "devices"))
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def truth(file: Path) -> float:
    """The latency of a file on a board whose parameters are not those that its device file leads to."""
    return replace(Roofline.of(find(BOARD), "fp32"), parameters=TRUTH).predict(onnx_graph(file))


def written(folder: Path, rows: Sequence[tuple[object, object]], header: str = "file,latency_ms") -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *(f"{file},{latency}" for file, latency in rows)]) + "\n")
    return path


def errors(files: Sequence[Path]) -> float:
    """Mean relative error of what a search and a profile say of the files."""
    clocks = ModelledDevice(find(BOARD)).measure_many(files)
    return float(np.mean([abs(clock.p50 / truth(file) - 1) for clock, file in zip(clocks, files, strict=True)]))


def test_ten_measured_networks_make_the_others_better_in_every_later_process(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [network(own / f"{seed}.onnx", seed) for seed in range(18)]
    known, others = files[:10], files[10:]
    pairs = written(own, [(file.name, truth(file)) for file in known])
    before = errors(others)
    assert main(["devices", "calibrate", BOARD, "--pairs", str(pairs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert errors(others) < 0.1 < 0.3 < before
    assert found["networks"] == 10 and found["precision"] == "fp32" and Path(found["kept"]).is_file()
    assert found["after"]["mape"] < 0.15 < found["before"]["mape"] and found["after"]["kendall_tau"] > 0.8
    assert 1 < found["within_factor"] < 2
    kept = load_roofline(BOARD, "fp32")
    assert kept is not None and kept.quality is not None and kept.networks == 10
    command = [sys.executable, "-c", AGAIN, str(others[0]), BOARD, str(own / "run")]
    told = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=True).stdout
    model, profiled = told.split("\n", 1)
    record = json.loads(profiled)
    assert json.loads(model) == record["roofline"]["model"] == kept.to_json()
    assert record["roofline"]["latency_ms"] == pytest.approx(truth(others[0]), rel=0.2)
    assert any("calibrated on 10 networks" in note for note in record["notes"]) and not any("not calibrated" in n for n in record["notes"])
    assert main(["devices", "calibrate", BOARD, "--pairs", str(pairs)]) == 0  # from the device file again, not from the last fit
    shown = capsys.readouterr().out
    assert "Kept in" in shown and "within 10 %" in shown and load_roofline(BOARD, "fp32") == kept


def test_latencies_without_order_are_not_called_good(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random latencies about what the file says: no fit is better than the file, and what cannot be judged is called unknown."""
    files = [network(own / f"{seed}.onnx", seed) for seed in range(10)]
    plain, rng = Roofline.of(find(BOARD), "fp32"), np.random.default_rng(0)
    noisy = written(own, [(file, plain.predict(onnx_graph(file)) * float(rng.lognormal(0, 0.7))) for file in files])
    assert main(["devices", "calibrate", BOARD, "--pairs", str(noisy), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] is None and found["after"]["grade"] == "poor" and load_roofline(BOARD, "fp32") is None
    assert main(["devices", "calibrate", BOARD, "--pairs", str(noisy)]) == 1
    shown = capsys.readouterr().out
    assert "It is not kept" in shown and "tells less well than the device file" in " ".join(shown.split())
    four = written(own, [(file, truth(file)) for file in files[:FEWEST]])
    assert main(["devices", "calibrate", BOARD, "--pairs", str(four), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["grade"] == "unknown" and found["within_factor"] is None


def test_columns_may_be_more_and_in_any_order(own: Path) -> None:
    (own / "p.csv").write_text("\ufeffnote, latency_ms, file\n" + "".join(f"x, {n + 1}.5, sub/{n}.onnx\n" for n in range(4)))
    pairs = read_pairs(own / "p.csv", FEWEST, MOST)
    assert [pair.latency_ms for pair in pairs] == [1.5, 2.5, 3.5, 4.5] and pairs[0].file == (own / "sub" / "0.onnx").resolve()


@pytest.mark.parametrize(
    ("header", "rows", "options", "words"),
    [
        ("file,ms", [("0.onnx", 1)] * 4, [], ["columns file and latency_ms", "latency_ms is not among"]),
        ("file,latency_ms", [], [], [f"{FEWEST} to {MOST} measured networks", "got 0"]),
        ("file,latency_ms", [(f"{n}.onnx", 1) for n in range(3)], [], ["got 3"]),
        ("file,latency_ms", [(f"{n}.onnx", 1) for n in range(101)], [], ["got 101"]),
        ("file,latency_ms", [(f"{n}.onnx", -1) for n in range(4)], [], ["above 0 in row 1", "'-1'"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("3.onnx", "nan")], [], ["row 4", "'nan'"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("3.onnx", "fast")], [], ["row 4", "'fast'"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("", 1)], [], ["an ONNX file in row 4"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("0.onnx", 1)], [], ["0.onnx has several"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("none.onnx", 1)], [], ["none.onnx", "does not exist"]),
        ("file,latency_ms", [*[(f"{n}.onnx", 1) for n in range(3)], ("pairs.csv", 1)], [], ["pairs.csv", "ONNX file"]),
        ("file,latency_ms", [(f"{n}.onnx", 1) for n in range(4)], ["--precision", "int8"], ["only int8 files", "is fp32"]),
        ("file,latency_ms", [(f"{n}.onnx", 1) for n in range(4)], ["--threads", "9"], ["at most 4", "got 9"]),
        ("file,latency_ms", [(f"{n}.onnx", 1) for n in range(4)], ["--threads", "0"], ["threads: expected at least 1", "got 0"]),
    ],
)
def test_bad_pairs_are_said_in_a_sentence(
    own: Path, header: str, rows: list[tuple[str, object]], options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        network(own / f"{seed}.onnx", seed)
    assert main(["devices", "calibrate", BOARD, "--pairs", str(written(own, rows, header)), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert load_roofline(BOARD, "fp32") is None


@pytest.mark.parametrize(("device", "words"), [("host", "this machine"), ("raspbery-pi-4", "did you mean"), ("stm32f746", "fp32")])
def test_bad_devices_are_said_in_a_sentence(own: Path, device: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = find("stm32f746")
    pairs = written(own, [(network(own / f"{seed}.onnx", seed).name, 1) for seed in range(4)])
    if device == spec.name:  # a file without the peak that the networks need
        from sartor.hardware.devices.text import write

        write(spec.model_copy(update={"peak_ops_per_s": {"int8": 1e8}}), own / "devices")
    assert main(["devices", "calibrate", device, "--pairs", str(pairs)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said


def test_a_file_that_cannot_be_read_is_said_in_a_sentence(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "binary.csv").write_bytes(b"file,latency_ms\n\xff\xfe,1\n")
    for path in (own / "nowhere.csv", own, own / "binary.csv"):
        assert main(["devices", "calibrate", BOARD, "--pairs", str(path)]) == 2
        assert "a CSV file that can be read" in capsys.readouterr().err
