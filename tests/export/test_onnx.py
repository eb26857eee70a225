"""The fp32 file says what the module says, and needs nothing beside it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from sartor.errors import UserError
from sartor.export.files import write_atomic
from sartor.export.onnx import accept_pixels, input_facts, to_onnx
from sartor.export.quantize import quantize

SHAPE = (3, 16, 16)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["logits"], {"input": images})[0]


def test_equals_the_module_for_every_batch_size(net: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    path = to_onnx(net, SHAPE, tmp_path / "model.onnx")
    for count in (1, 7):
        part = images[:count]
        np.testing.assert_allclose(run(path, part), net(torch.from_numpy(part)).detach().numpy(), atol=2e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # no external data, no temporary file


def test_batch_norm_is_folded_and_the_graph_is_lean(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    kinds = [n.op_type for n in onnx.load(str(to_onnx(nets["mobile_v3"], SHAPE, tmp_path / "m.onnx"))).graph.node]
    assert not {"BatchNormalization", "Identity"} & set(kinds)
    assert kinds.count("HardSwish") == 5


def test_the_resize_does_not_compute_its_size_at_run_time(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    kinds = [n.op_type for n in onnx.load(str(to_onnx(nets["ghost_pools"], SHAPE, tmp_path / "m.onnx"))).graph.node]
    assert kinds[0] == "Resize"
    assert not {"Shape", "Slice"} & set(kinds)


def test_modes_are_restored_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 256, 2)).train()
    net[1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(net, SHAPE, tmp_path / "m.onnx")
    assert [m.training for m in net] == [True, False, True, True, True]
    assert capfd.readouterr() == ("", "")


def test_needs_no_onnxscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), SHAPE, tmp_path / "m.onnx").is_file()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("kind", ["unit", "uint8"])
def test_a_file_that_takes_pixels_equals_normalising_by_hand(
    nets: dict[str, nn.Module], tmp_path: Path, kind: str, quantised: bool
) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalised = ((raw / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))).astype(np.float32)
    plain = to_onnx(nets["relu6"], SHAPE, tmp_path / "plain.onnx")
    if quantised:
        plain = quantize(plain, normalised, tmp_path / "int8.onnx", method="minmax")
    path = accept_pixels(plain, tmp_path / "pixels.onnx", mean, std, pixels=kind)
    given = raw if kind == "uint8" else (raw / 255).astype(np.float32)
    difference = np.abs(run(path, given) - run(plain, normalised))
    # A value on the edge between two integers may fall on either side.
    assert (difference.mean() < 0.003) if quantised else (difference.max() < 1e-4)
    assert input_facts(path) == {
        "shape": [3, 16, 16],
        "dtype": "uint8" if kind == "uint8" else "float32",
        "pixels": kind,
        "mean": mean,
        "std": std,
    }
    assert input_facts(plain)["pixels"] is None
    with pytest.raises(UserError, match="pixels already"):
        accept_pixels(path, path, mean, std)


def test_normalisation_at_export_survives_quantisation(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).random((32, *SHAPE), np.float32)
    path = to_onnx(nets["relu6"], SHAPE, tmp_path / "m.onnx", mean=[0.5], std=[0.25])
    np.testing.assert_allclose(run(path, pixels), nets["relu6"](torch.from_numpy((pixels - 0.5) / 0.25)).detach().numpy(), atol=2e-5)
    assert input_facts(quantize(path, pixels, tmp_path / "q.onnx", method="minmax"))["pixels"] == "unit"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5]}, "together"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "1 or 3 values"),
        ({"mean": [0.5], "std": [0.0]}, "positive"),
        ({"mean": [0.5], "std": [1.0], "pixels": "int"}, "uint8"),
    ],
)
def test_wrong_normalisation_is_refused(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        to_onnx(nn.Conv2d(3, 4, 1), SHAPE, tmp_path / "m.onnx", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3, 16), (3, 0, 16)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="input_shape"):
        to_onnx(nn.Conv2d(3, 4, 1), shape, tmp_path / "m.onnx")  # type: ignore[arg-type]


def test_a_module_that_does_not_fit_names_itself_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Conv2d cannot be exported for input"):
        to_onnx(nn.Conv2d(5, 4, 1), SHAPE, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "deep" / "file", "old")

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
