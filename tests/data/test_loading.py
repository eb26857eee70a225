from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sartor.data import load
from sartor.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare_cifar10.py"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "fashion",
            r'"fashion" is no known data set \(did you mean "fashion-mnist"\?\): give digits, fashion-mnist, cifar10, an image folder',
        ),
        ("CIFAR10", 'did you mean "cifar10"'),
        ("xyzzy", '"xyzzy" is no known data set: give digits'),
        ("missing.npz", "no such file or folder"),
        ("some/folder", "no such file or folder"),
        (".", "expected one folder of images per class"),
        ("table.csv", "expected an image folder or a .npz file"),
    ],
)
def test_unknown_specs_say_what_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=message):
        load(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "validation must be a share"),
        ({"validation": 1.0}, "validation must be a share"),
        ({"validation": float("nan")}, "validation must be a share"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"limit": 0}, "limit must be at least two images for each of the 10 classes"),
        ({"limit": 50.0}, "limit must be a whole number"),
        ({"size": 0}, "size must be one whole number"),
        ({"size": (8, 8, 3)}, "size must be one whole number"),
        ({"size": 10**6}, "size must be one whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("digits", **options)  # type: ignore[arg-type]


def test_options_reach_the_data_set() -> None:
    data = load("digits", seed=5, validation=0.25, limit=400, size=12)
    assert (len(data.train), len(data.validation), data.test_size, data.input_shape) == (300, 100, 359, (1, 12, 12))


def sheets(folder: Path) -> np.ndarray:
    """Two training sheets and a test sheet whose tiles hold their own class and number; returns the first sheet's tiles."""
    tiles = np.zeros((1000, 32, 32, 3), np.uint8)
    tiles[..., 0] = (np.arange(1000) // 100).reshape(-1, 1, 1)
    tiles[..., 1] = (np.arange(1000) % 100).reshape(-1, 1, 1)
    tiles[:, 0, 1, 2] = 255
    sheet = tiles.reshape(50, 20, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1600, 640, 3)
    for name in ("train_00", "train_01", "test_00"):
        Image.fromarray(sheet).save(folder / f"{name}.webp", lossless=True)
    return tiles


def test_prepare_cifar10_makes_a_balanced_file_that_loads_as_cifar10(tmp_path: Path) -> None:
    tiles = sheets(tmp_path)
    out = tmp_path / "new" / "cifar10.npz"
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(out), "--train", "1500", "--test", "1000"]
    subprocess.run(command, check=True, capture_output=True)
    data = load(out)
    assert data.name == "cifar10" and data.classes[9] == "truck" and data.input_shape == (3, 32, 32)
    assert len(data.train) + len(data.validation) == 1500
    assert np.bincount(np.concatenate([data.train.labels, data.validation.labels])).tolist() == [150] * 10
    np.testing.assert_array_equal(data.train.raw[:, 0, 5, 5], data.train.labels)
    np.testing.assert_array_equal(data.read_test().raw.transpose(0, 2, 3, 1), tiles)
    assert [path.name for path in out.parent.iterdir()] == ["cifar10.npz"]


def test_prepare_cifar10_refuses_wrong_counts(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("prepare_cifar10", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="multiple of 10 up to 0, got 20"):
        module.read_part(tmp_path, "train", 20)
