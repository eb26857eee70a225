from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.data import load
from sartor.data.npz import _layout
from sartor.errors import UserError

LABELS = np.arange(30) % 3


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, *shape)).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [
        ((8, 7), (1, 8, 7)),
        ((8, 7, 3), (3, 8, 7)),
        ((3, 8, 7), (3, 8, 7)),
        ((8, 7, 1), (1, 8, 7)),
        ((1, 8, 7), (1, 8, 7)),
        ((6, 8, 50), (6, 8, 50)),
        ((6, 1, 50), (6, 1, 50)),
    ],
)
def test_layouts(tmp_path: Path, shape: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
    images = pixels(*shape)
    data = load(save(tmp_path / "a.npz", x_train=images, y_train=LABELS, x_test=images, y_test=LABELS))
    assert data.input_shape == input_shape and data.name == "a"
    expected = images.transpose(0, 3, 1, 2) if len(shape) == 3 and input_shape != shape else images.reshape(30, *input_shape)
    np.testing.assert_array_equal(data.read_test().raw, expected)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3))
def test_the_layout_rule_is_what_the_page_says(shape: list[int]) -> None:
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if first and last:
        with pytest.raises(UserError, match="cannot be told"):
            _layout((5, *shape), Path("a.npz"))
    else:
        assert _layout((5, *shape), Path("a.npz")) == ("NHWC" if last else "NCHW")


def test_the_layout_key_wins_and_names_are_taken(tmp_path: Path) -> None:
    images = pixels(3, 9, 4)
    path = save(tmp_path / "a.npz", x=images, y=LABELS, layout=np.array("NHWC"), name=np.array("cats"), classes=np.array(["x", "y", "z"]))
    data = load(path)
    assert data.input_shape == (4, 3, 9) and data.name == "cats" and data.classes == ("x", "y", "z")


def test_own_splits_are_used_and_missing_ones_carved(tmp_path: Path) -> None:
    data = load(save(tmp_path / "a.npz", x_train=pixels(4, 5), y_train=LABELS, x_val=pixels(4, 5)[:9], y_val=LABELS[:9]))
    assert (len(data.train), len(data.validation), data.test_size) == (24, 9, 6)


def test_float_pixels_stay_float(tmp_path: Path) -> None:
    series = np.random.default_rng(0).normal(0, 40, (30, 6, 1, 50))
    data = load(save(tmp_path / "a.npz", x=series, y=LABELS))
    assert data.train.raw.dtype == np.float32 and data.input_shape == (6, 1, 50)
    np.testing.assert_allclose(data.train.images().mean(axis=(0, 2, 3)), 0, atol=1e-5)


BAD = [
    ({"images": pixels(4, 5)}, "expected the keys x_train and y_train"),
    ({"x_train": pixels(4, 5)}, "expected the keys x_train and y_train"),
    ({"x_train": pixels(4, 5), "y_train": LABELS, "x_val": pixels(4, 5)}, "expected the keys"),
    ({"x_train": pixels(4, 5), "y_train": LABELS, "x_valid": pixels(4, 5), "y_valid": LABELS}, "got x_train, x_valid, y_train, y_valid"),
    ({"x": pixels(20), "y": LABELS}, "a sensor series of C channels and T steps is (n, C, 1, T)"),
    ({"x": pixels(2, 2, 2, 2), "y": LABELS}, "got shape (30, 2, 2, 2, 2)"),
    ({"x": pixels(1, 9, 3), "y": LABELS}, "add the key layout"),
    ({"x": pixels(8, 8), "y": LABELS, "layout": np.array("HWC")}, 'layout must be "NCHW" or "NHWC", got "HWC"'),
    ({"x": pixels(8, 8), "y": LABELS, "classes": np.array(["a", "a", "b"])}, "classes must be a list of different texts"),
    ({"x": pixels(8, 8), "y": LABELS, "name": np.array([1, 2])}, "name must be one text"),
    ({"x_train": pixels(8, 8), "y_train": LABELS, "x_test": pixels(8), "y_test": LABELS}, "x_test: must be (n, height, width)"),
    ({"x_train": pixels(8, 8), "y_train": LABELS, "x_test": pixels(8, 9), "y_test": LABELS}, "images must be (1, 8, 8)"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_wrong_contents_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load(save(tmp_path / "a.npz", **arrays))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    ragged = np.array([np.zeros(2), np.zeros(3)] * 15, dtype=object)
    with pytest.raises(UserError, match="pickled Python objects"):
        load(save(tmp_path / "a.npz", x=ragged, y=LABELS))


def test_damaged_files_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", x=pixels(8, 8), y=LABELS).read_bytes()
    path = tmp_path / "a.npz"
    for end in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.npz: .*damaged"):
            load(path)
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match="damaged"):
        load(path)
    np.save(tmp_path / "b", pixels(8, 8))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(UserError, match=r"expected a \.npz archive, got something else"):
        load(tmp_path / "b.npz")
