from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from sartor.hardware.kept import save_roofline
from sartor.hardware.roofline import Roofline
from sartor.report.hardware_section import hardware, write_pictures


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with one delivered network."""
    monkeypatch.setenv("SARTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SARTOR_DEVICES", str(tmp_path / "devices"))
    weight = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 8, 6, 6])))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="first")], "g", [x], [y], [weight])
    (tmp_path / "run/models/s0 1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, str(tmp_path / "run/models/s0 1/model.onnx"))
    save(model, str(tmp_path / "outside.onnx"))
    return tmp_path / "run"


def result(**fields: Any) -> dict[str, Any]:
    models = [{"name": "s0 1", "origin": "search", "file": "models/s0 1/model.onnx"}]
    return {"models": models, "device": {"name": "host", "fingerprint": "abc", "threads": 1}, **fields}


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_memory_always_and_a_roofline_where_a_model_is_kept(run: Path) -> None:
    assert names(write_pictures(run, result())) == ["memory_s0_1.png"]
    save_roofline(Roofline(1e11, 1e10, "fp32"), "abc")
    assert names(write_pictures(run, result())) == ["memory_s0_1.png", "roofline_s0_1.png"]
    page = str(hardware(result(), run))
    assert "plots/memory_s0_1.png" in page and "plots/roofline_s0_1.png" in page and "s0 1" in page


def test_a_described_device_has_a_roofline_of_its_file(run: Path) -> None:
    told = result(device={"name": "raspberry-pi-4", "threads": 4})
    assert names(write_pictures(run, told)) == ["memory_s0_1.png", "roofline_s0_1.png"]


def test_stale_pictures_go_and_foreign_files_stay_unread(run: Path) -> None:
    write_pictures(run, result())
    gone = result(models=[{"name": "other", "origin": "search", "file": "../outside.onnx"}, {"name": "none", "file": None}])
    assert write_pictures(run, gone) == [] and list((run / "plots").iterdir()) == []
    assert str(hardware(gone, run)) == "" and write_pictures(run / "nowhere", {}) == []


def test_a_name_cannot_become_markup(run: Path) -> None:
    told = result(models=[{"name": "<b>x</b>", "origin": "search", "file": "models/s0 1/model.onnx"}])
    write_pictures(run, told)
    assert "<b>" not in str(hardware(told, run))


def test_the_limit_is_drawn(run: Path) -> None:
    (before,) = write_pictures(run, result())
    plain = before.read_bytes()
    (after,) = write_pictures(run, result(limits=[{"metric": "peak_bytes", "bound": 1024.0, "statistic": "p50"}]))
    assert after.read_bytes() != plain
