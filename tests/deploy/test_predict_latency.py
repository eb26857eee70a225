"""`sartor predict`: latencies from a few measured networks, from other devices and from single operations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.cli import main
from sartor.deploy.predict_command import short_names
from sartor.deploy.predict_latency import _Networks
from sartor.hardware.device import host
from sartor.hardware.devices import find
from sartor.hardware.onnx_graph import onnx_graph
from sartor.hardware.roofline import Parameters, Roofline
from sartor.hardware.table import LatencyTable

from .random_nets import network

COUNT = 48
DEVICES = {
    "board": Parameters(dense=0.2, pointwise=0.75, depthwise=0.04, efficiency=1.2, op_us=12, call_us=150),
    "phone": Parameters(dense=0.3, pointwise=0.6, depthwise=0.05, efficiency=1.0, op_us=10, call_us=100),
    "tablet": Parameters(dense=0.25, pointwise=0.7, depthwise=0.03, efficiency=0.9, op_us=14, call_us=120),
}
Nets = list[Path]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    folder = tmp_path_factory.mktemp("nets")
    return [network(folder / f"{seed}.onnx", seed) for seed in range(COUNT)]


def model(device: str) -> Roofline:
    return replace(Roofline.of(find("raspberry-pi-4"), "fp32"), parameters=DEVICES[device])


def latency(file: Path, device: str = "board") -> float:
    """What a device takes for a file, with noise of 2 % that belongs to the two."""
    noise = np.random.default_rng((int(file.stem), len(device))).normal(0, 0.02)
    return model(device).predict(onnx_graph(file)) * float(np.exp(noise))


def table(path: Path, files: Sequence[Path], device: str = "board") -> str:
    path.write_text("\n".join(["file,latency_ms", *(f"{file},{latency(file, device)}" for file in files)]) + "\n")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def errors(found: dict[str, Any], device: str = "board") -> np.ndarray:
    """Relative errors on networks that were not measured."""
    unseen = [one for one in found["predicted"] if one["measured_ms"] is None]
    return np.array([abs(one["latency_ms"] / latency(Path(one["file"]), device) - 1) for one in unseen])


def test_thirty_measured_networks_tell_the_others_and_how_sure_that_is(
    nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, unseen = nets[:36], nets[36:]
    found = run(capsys, *nets, "--pairs", table(tmp_path / "a.csv", known), "--next", 3)
    assert np.median(errors(found)) < 0.05 and found["learned_from"] == 36 and found["precision"] == "fp32"
    assert found["judgement"]["count"] == 36 and found["judgement"]["kendall_tau"] > 0.85
    told = {Path(one["file"]): one for one in found["predicted"]}
    assert all(told[file]["measured_ms"] == pytest.approx(latency(file)) for file in known)
    held = [told[file]["low_ms"] <= latency(file) <= told[file]["high_ms"] for file in unseen]
    assert sum(held) >= 0.75 * len(unseen)
    widths = [told[file]["high_ms"] / told[file]["low_ms"] for file in unseen]
    assert 1.02 < np.median(widths) < 1.6
    narrower = run(capsys, *nets, "--pairs", tmp_path / "a.csv", "--coverage", 0.6)
    assert np.median([one["high_ms"] / one["low_ms"] for one in narrower["predicted"][36:]]) < np.median(widths)
    assert len(set(found["next"])) == 3 and {Path(file) for file in found["next"]} <= set(unseen)


def test_other_devices_make_six_measurements_go_further(nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = table(tmp_path / "board.csv", nets[:6])
    others = [table(tmp_path / f"{name}.csv", nets, name) for name in ("phone", "tablet")]
    alone = run(capsys, *nets, "--pairs", pairs)
    helped = run(capsys, *nets, "--pairs", pairs, "--other", others[0], "--other", others[1])
    assert helped["others"] == ["phone", "tablet"]
    assert errors(helped).mean() < 0.6 * errors(alone).mean()
    assert all(one["high_ms"] is None for one in helped["predicted"])  # six cannot promise nine of ten


def test_what_to_measure_first_serves_better_than_any_ten(nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [Path(file) for file in run(capsys, *nets, "--next", 10)["next"]]
    assert len(set(chosen)) == 10 and set(chosen) <= set(nets)
    best = errors(run(capsys, *nets, "--pairs", table(tmp_path / "chosen.csv", chosen))).mean()
    drawn = []
    for seed in range(5):
        some = [nets[i] for i in np.random.default_rng(seed).choice(COUNT, 10, replace=False)]
        drawn.append(errors(run(capsys, *nets, "--pairs", table(tmp_path / "drawn.csv", some))).mean())
    assert best < np.median(drawn)


def test_an_operation_that_was_never_measured_is_refused_not_guessed(
    nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = network(tmp_path / "99.onnx", 99, pool=True)
    pairs = table(tmp_path / "a.csv", nets[:12])
    first, second = run(capsys, odd, nets[20], "--pairs", pairs)["predicted"]
    assert "kind maxpool" in first["refused"] and first["latency_ms"] is None
    assert second["refused"] is None and second["latency_ms"] > 0
    assert main(["predict", str(odd), str(nets[20]), "--pairs", pairs]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "maxpool" in shown and "held-out networks" in shown


def test_single_operations_add_up_and_whole_networks_correct_them(nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = model("board")
    ops = {op.signature: board.price(op) for file in nets for op in onnx_graph(file)}
    csv = tmp_path / "ops.csv"
    csv.write_text("op,latency_ms\n" + "".join(f"{name},{ms}\n" for name, ms in list(ops.items())[::2]))
    alone = run(capsys, *nets, "--ops", csv)
    assert alone["operations"] == len(list(ops)[::2]) and "operations" in alone["verdict"] and alone["judgement"]["within_10"] > 0.5
    pairs = table(tmp_path / "a.csv", nets[:15])
    corrected = run(capsys, *nets, "--ops", csv, "--pairs", pairs)
    assert np.median(errors(corrected)) < 0.06 and "networks" in corrected["verdict"]
    # The fixed cost of a call is no operation's: only whole networks tell of it.
    smallest = min(nets[15:], key=latency)
    told = [next(one for one in found["predicted"] if one["file"] == str(smallest)) for found in (alone, corrected)]
    missing = [one["latency_ms"] / latency(smallest) for one in told]
    assert missing[0] < 0.9 < missing[1]


def test_measured_operations_are_looked_up_and_repeated_ones_judge_nobody(
    nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, rng = model("board"), np.random.default_rng(0)
    ops = {op.signature: board.price(op) * float(rng.lognormal(0, 0.8)) for file in nets for op in onnx_graph(file)}
    lines = [f"{name},{ms}\n" for name, ms in ops.items()]
    (tmp_path / "once.csv").write_text("op,latency_ms\n" + "".join(lines))
    (tmp_path / "often.csv").write_text("op,latency_ms\n" + "".join(lines * 6))
    once, often = (run(capsys, *nets[:5], "--ops", tmp_path / f"{name}.csv") for name in ("once", "often"))
    assert once["judgement"] == often["judgement"] and once["judgement"]["grade"] == "poor"  # noise is no knowledge
    for one in once["predicted"]:
        assert one["latency_ms"] == pytest.approx(sum(ops[op.signature] for op in onnx_graph(Path(one["file"]))))
    few = "".join(line for line in lines if not line.startswith("pool")) + next(line for line in lines if line.startswith("pool"))
    (tmp_path / "few.csv").write_text("op,latency_ms\n" + few)
    told = run(capsys, *nets, "--ops", tmp_path / "few.csv")["predicted"]
    refused = [one["refused"] for one in told if one["refused"]]
    assert 0 < len(refused) < len(told) and "of kind pool" in refused[0] and "5 are needed, not 1" in refused[0]
    assert main(["predict", str(next(one["file"] for one in told if one["refused"])), "--ops", str(tmp_path / "few.csv")]) == 0
    assert "5 are needed, not 1" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_device_tells_how_wide_its_vectors_are_and_how_its_runtime_fuses(
    nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch runs every activation on its own, which is an operation more."""
    assert _Networks(nets, [], None, None).lanes == 1
    assert _Networks(nets, [], "raspberry-pi-4", None).lanes == find("raspberry-pi-4").lanes["fp32"]
    fused, alone = (_Networks(nets, [], "raspberry-pi-4", runtime) for runtime in (None, "torch"))
    assert not any(op.kind == "act" for op in fused.executed[nets[0]]) and any(op.kind == "act" for op in alone.executed[nets[0]])
    pairs = table(tmp_path / "a.csv", nets[:12])
    plain, named = (run(capsys, *nets, "--pairs", pairs, *more) for more in ((), ("--device", "raspberry-pi-4", "--runtime", "torch")))
    assert (plain["runtime"], named["runtime"]) == (None, "torch") and named["predicted"] != plain["predicted"]


def test_files_of_one_name_are_told_apart() -> None:
    assert short_names(["/a/x/model.onnx", "/a/y/model.onnx"]) == {"/a/x/model.onnx": "x/model.onnx", "/a/y/model.onnx": "y/model.onnx"}
    assert short_names(["/a/x.onnx", "/a/y.onnx"]) == {"/a/x.onnx": "x.onnx", "/a/y.onnx": "y.onnx"}


def test_a_latency_table_serves_networks_of_its_precision_only(nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops = [op for file in nets[:6] for op in onnx_graph(file)]
    for precision in ("fp32", "int8"):
        measured = LatencyTable(tmp_path / f"{precision}.sqlite", host(precision, 1), seconds=0.001)
        if precision == "fp32":
            measured.ensure(ops)
        measured.close()
    found = run(capsys, *nets[:6], "--ops", tmp_path / "fp32.sqlite")
    told = [one["latency_ms"] for one in found["predicted"] if one["refused"] is None]
    assert found["operations"] >= 5 and told and min(told) > 0
    assert main(["predict", str(nets[0]), "--ops", str(tmp_path / "int8.sqlite")]) == 2
    assert "is one of int8" in capsys.readouterr().err


def test_mistakes_are_said_in_one_sentence(nets: Nets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, pairs = str(nets[0]), table(tmp_path / "a.csv", nets[:12])
    other = table(tmp_path / "b.csv", nets[:12], "phone")
    (tmp_path / "short.csv").write_text(f"file,latency_ms\n{net},1\n")
    (tmp_path / "ops.csv").write_text("op,latency_ms\nconv:nonsense,1\n")
    (tmp_path / "few.csv").write_text("op,latency_ms\nadd:16x14x14,1\n")
    (tmp_path / "no.sqlite").write_bytes(b"SQLite format 3\0no")
    (tmp_path / "comma.csv").write_text("file,latency_ms\n" + f"{net},1,26\n" * 4)
    (tmp_path / "twice.csv").write_text("file,latency_ms,latency_ms\n" + f"{net},1,2\n" * 4)
    (tmp_path / "nul.csv").write_text("file,latency_ms\n" + "a\0b,1\n" * 4)
    (tmp_path / "long.csv").write_text("file,latency_ms\n" + f"{'x' * 5000},1\n" * 4)
    (tmp_path / "huge.csv").write_text("file,latency_ms\n" + f"{net},1e308\n" * 4)
    (tmp_path / "mine.csv").write_text("file,latency_ms\n" + "".join(f"{file},{3 * latency(file)}\n" for file in nets[:12]))
    (tmp_path / "zero.csv").write_text("op,latency_ms\nconv:16x4x4>16x4x4:k1s1g0,1\n")
    (tmp_path / "no.onnx").write_text("no")
    for arguments, said in (
        ([net], "expected --pairs or --ops"),
        ([net, "--pairs", str(tmp_path / "none.csv")], "none.csv"),
        ([net, "--pairs", str(tmp_path / "short.csv")], "4 to 5,000 measured networks"),
        ([net, "--pairs", pairs, "--other", other], "at least 2 devices"),
        ([net, "--pairs", pairs, "--other", other, "--other", other], "different names"),
        ([net, "--pairs", pairs, "--coverage", "1.5"], "coverage"),
        ([net, "--pairs", pairs, "--next", "1"], "not measured yet"),
        ([str(nets[20]), "--pairs", pairs, "--next", "2"], "expected 1 to 1"),
        ([net, "--ops", str(tmp_path / "ops.csv")], "a signature such as"),
        ([net, "--ops", str(tmp_path / "few.csv")], "at least 5 measured operations"),
        ([net, "--ops", str(tmp_path / "no.sqlite")], "latency table"),
        ([net, "--ops", str(tmp_path / "few.csv"), "--next", "1"], "none of --next"),
        ([net, "--ops", str(tmp_path / "few.csv"), "--device", "host"], "none of --next"),
        ([net, "--ops", str(tmp_path / "zero.csv")], "a signature such as"),
        ([net, "--pairs", str(tmp_path / "comma.csv")], "decimal commas"),
        ([net, "--pairs", str(tmp_path / "twice.csv")], "different names"),
        ([net, "--pairs", str(tmp_path / "nul.csv")], "nul.csv"),
        ([net, "--pairs", str(tmp_path / "long.csv")], "long.csv"),
        ([net, "--pairs", str(tmp_path / "huge.csv")], "twelve days"),
        ([net, "--pairs", pairs, "--other", other, "--other", str(tmp_path / "mine.csv")], "your own"),
        ([net, "--pairs", pairs, "--other", other, "--other", str(tmp_path / "short.csv")], "other: expected 4"),
        ([net, "--pairs", pairs, "--runtime", "nonesuch"], "fusion rules"),
        (["x" * 5000, "--pairs", pairs], "FILE.onnx"),
        ([str(tmp_path / "no.onnx"), "--pairs", pairs], "no.onnx"),
        ([net, "--pairs", pairs, "--device", "nonesuch"], "nonesuch"),
    ):
        assert main(["predict", *arguments]) == 2, arguments
        told = capsys.readouterr().err
        assert said in told and len(told.strip().splitlines()) == 1 and "Traceback" not in told, told
