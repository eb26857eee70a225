"""A card states what is in the record, and its recipe for loading the model works as printed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from sartor.deploy.card import plain, write_card
from sartor.deploy.verify import verify
from sartor.errors import UserError
from sartor.export.onnx import accept_pixels
from sartor.goals import Limit
from sartor.hardware.measure import Measurement

DATA = {
    "name": "digits", "classes": [str(i) for i in range(10)], "input_shape": [1, 8, 8], "train": 1200, "validation": 200, "test": 397,
    "mean": np.array([0.305], np.float32), "std": np.array([0.376], np.float32),
}  # fmt: skip
DEVICE = {
    "name": "host",
    "cpu": "Some CPU",
    "runtime": "onnxruntime",
    "version": ort.__version__,
    "precision": "int8",
    "threads": 1,
    "batch": 1,
}
TIMED = Measurement(0.11, 0.12, 0.14, 0.118, 0.123, 900, 0.12, 0.01, True)


@pytest.fixture
def record(exported) -> dict[str, Any]:
    measured = verify(exported.files, exported.net, (exported.images, exported.labels), measure=lambda _: TIMED)
    layer = {"name": "stem", "kind": "conv", "in": [1, 8, 8], "out": [16, 8, 8], "kernel": 3, "stride": 1, "groups": 1, "act": "hardswish"}
    return {
        "name": "s03", "origin": "search", "arch": {"s1.width": 24}, **measured,
        "predicted": {"latency_ms": 0.125, "accuracy": np.float32(0.9)},
        "validation": {"accuracy": 0.9, "accuracy_fp32": 0.9}, "training": {"from": "supernet", "epochs": 6, "seconds": 3.2}, "front": True,
        "layers": [{**layer, "macs": 9216, "params": 144, "latency_us": 3.1}],
    }  # fmt: skip


@pytest.fixture
def folder(exported, tmp_path: Path) -> Path:
    shutil.copy(exported.files.int8, tmp_path / "model.onnx")
    return tmp_path


def test_card_states_the_figures(record: dict[str, Any], folder: Path) -> None:
    limits = [Limit("latency_ms", 0.1), Limit("file_bytes", 1e6), Limit("latency_ms", 0.2, "p90")]
    path = write_card(record, folder, data=DATA, device=DEVICE, limits=limits, versions={"sartor": "0.1.0"})
    text = path.read_text(encoding="utf-8")
    assert path.name == "card.md"
    for expected in (
        "# s03", "digits, images of 1x8x8", "found by architecture search", "Some CPU", "The series was noisy", "median of 900 runs",
        "| latency_ms (ms) | 0.1200 | 0.1250 | `latency_ms<=0.1` | **no**, by 20.0% |", "| `latency_ms_p90<=0.2` | yes |",
        f"| accuracy (fraction) | {record['metrics']['accuracy']:.4f} | 0.9000 |", "mean [0.305], std [0.376]", "`s1.width=24`",
        "0 in float", "| stem | conv | 1x8x8 | 16x8x8 | 3 / 1 / 1 | hardswish | 9,216 | 144 | 3.1 |", "sartor 0.1.0",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("\n# ") == 0  # one title
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "card.md", "model.onnx"]


def test_card_json_is_the_record(record: dict[str, Any], folder: Path) -> None:
    record["metrics"]["macs"] = float("nan")
    write_card(record, folder, data=DATA, device=DEVICE)
    stored = json.loads((folder / "card.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert stored["metrics"].pop("macs") is None
    expected = plain({**record, "metrics": {k: v for k, v in record["metrics"].items() if k != "macs"}})
    assert stored == expected
    assert stored["predicted"]["accuracy"] == pytest.approx(0.9)


@pytest.mark.parametrize("pixels", [None, "uint8"])
def test_the_printed_recipe_loads_the_model(
    record: dict[str, Any], folder: Path, exported, pixels: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pixels:
        accept_pixels(folder / "model.onnx", folder / "model.onnx", [0.305], [0.376], pixels="uint8")
    text = write_card(record, folder, data=DATA, device=DEVICE).read_text(encoding="utf-8")
    assert ("normalisation is inside the file" in text) == bool(pixels)
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) == 3
    raw = np.round((exported.images * 0.376 + 0.305) * 255).clip(0, 255).astype(np.uint8)
    names = {"images": raw if pixels else exported.images}
    monkeypatch.chdir(folder)
    exec(found[1], names)
    assert (names["logits"].argmax(1) == exported.labels).mean() == pytest.approx(record["metrics"]["accuracy"], abs=0.02)


def test_a_card_written_before_the_test_says_so(record: dict[str, Any], folder: Path) -> None:
    """A run that was stopped leaves models whose accuracy is that of the validation images."""
    assert "on the test images, which were read once" in write_card(record, folder, data=DATA, device=DEVICE).read_text()
    del record["test"], record["difference"]
    text = write_card(record, folder, data=DATA, device=DEVICE).read_text()
    assert "on the *validation* images; the test images have not been read yet" in text and "read once" not in text


@pytest.mark.parametrize(
    ("dtype", "words"), [("uint8", "pixels 0..255 divided by 255"), ("float32", "pixels from -2.5 to 40 as in the training data")]
)
def test_a_card_says_which_scale_is_normalised(record: dict[str, Any], folder: Path, dtype: str, words: str) -> None:
    """Arrays of floats are normalised on their own scale, which need not be 0..1."""
    text = write_card(record, folder, data={**DATA, "dtype": dtype, "range": [-2.5, 40.0]}, device=DEVICE).read_text()
    assert f"per channel, {words}, mean [0.305], std [0.376]" in text


def test_a_bare_record_makes_a_card(folder: Path) -> None:
    text = write_card({"name": "b", "file": "models/b/model.onnx", "metrics": {"accuracy": 0.5}}, folder, data={}, device={}).read_text()
    assert "0.5000" in text
    assert "model.py" not in text
    (folder / "model.py").touch()
    assert (
        "model.py" in write_card({"name": "b", "file": "model.onnx", "metrics": {"accuracy": 0.5}}, folder, data={}, device={}).read_text()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": ""}, "'name'"), ({"metrics": {}}, "'metrics'"), ({"file": "models/x/other.onnx"}, "export the model first")],
)
def test_incomplete_records_are_refused(record: dict[str, Any], folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_card({**record, **change}, folder, data=DATA, device=DEVICE)
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]
