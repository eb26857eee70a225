from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sartor.data import load
from sartor.errors import UserError

MODULE = """
import numpy as np
from PIL import Image
from sartor.data import load

class Pairs:
    classes = ["ant", "bee"]
    def __init__(self, n, kind, size=(5, 6)):
        self.n, self.kind, self.size = n, kind, size
    def __len__(self):
        return self.n
    def __getitem__(self, number):
        height, width = self.size
        pixels = np.full((height, width, 3), number, np.uint8)
        pixels[..., 2] = 200
        image = {"pil": lambda: Image.fromarray(pixels), "hwc": lambda: pixels, "hw": lambda: pixels[..., 0],
                 "tensor": lambda: tensor(pixels), "mixed": lambda: pixels[: 5 + number % 2]}[self.kind]()
        return image, (number % 2 if self.kind != "tensor" else label(number % 2))

def tensor(pixels):
    import torch
    return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))

def label(value):
    import torch
    return torch.tensor(value)

def pil(): return Pairs(20, "pil"), Pairs(6, "pil")
def hwc(): return Pairs(20, "hwc"), Pairs(4, "hwc"), Pairs(6, "hwc")
def hw(): return Pairs(20, "hw")
def tensors(): return Pairs(20, "tensor"), Pairs(6, "tensor")
def mixed(): return Pairs(20, "mixed", (6, 6)), Pairs(6, "mixed", (6, 6))
def thin(): return [(np.full((3, 1, 9), n, np.uint8), n % 2) for n in range(20)]
def ready(): return load("digits", seed=3)
def unclear(): return Pairs(20, "hwc", (4, 6))
def nothing(): return None
def stream(): return (iter([]), iter([]))
def four(): return (1, 2, 3, 4)
def empty(): return Pairs(0, "hw"), Pairs(0, "hw")
def arrays(): return np.zeros((20, 4, 4)), np.zeros(20)
def texts(): return [(np.zeros((4, 4)), "cat")] * 20
def halves(): return [(np.zeros((4, 4)), 0.5)] * 20
def kind(): return Pairs
class Endless(Pairs):
    def __len__(self): raise RuntimeError("a stream has no end")
def endless(): return Endless(20, "hw")
def fails(): raise KeyError("path")
def leaves(): raise SystemExit(0)
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, with all of the above in it."""
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


@pytest.mark.parametrize(
    ("function", "shape", "sizes"), [("pil", (3, 5, 6), (18, 2, 6)), ("hwc", (3, 5, 6), (20, 4, 6)), ("hw", (1, 5, 6), (14, 2, 4))]
)
def test_map_style_data_sets(here: str, function: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    before = list(sys.path)
    data = load(f"{here}:{function}")
    assert sys.path == before
    assert data.input_shape == shape and data.name == function and data.classes == ("ant", "bee")
    assert (len(data.train), len(data.validation), data.test_size) == sizes
    assert data.train.raw.dtype == np.uint8
    assert (data.train.raw[:, 0, 0, 0] % 2).tolist() == data.train.labels.tolist()
    if shape[0] == 3:
        assert (data.train.raw[:, 2] == 200).all()


def test_tensors_have_channels_first_and_keep_their_floats(here: str) -> None:
    data = load(f"{here}:tensors")
    assert data.input_shape == (3, 5, 6) and data.train.raw.dtype == np.float32
    np.testing.assert_allclose(data.train.raw[:, 2], 200 / 255, rtol=1e-6)
    assert (np.rint(data.train.raw[:, 0, 0, 0] * 255) % 2).tolist() == data.train.labels.tolist()


def test_channels_first_arrays_and_plain_lists(here: str) -> None:
    assert load(f"{here}:thin").input_shape == (3, 1, 9)


def test_a_ready_dataset_keeps_its_splits_and_normalisation(here: str) -> None:
    ready, own = load(f"{here}:ready"), load("digits", seed=3)
    assert ready.name == "digits" and ready.mean == pytest.approx(own.mean) and ready.test_reads == 0
    assert sorted(ready.validation.raw.sum(axis=(1, 2, 3))) == sorted(own.validation.raw.sum(axis=(1, 2, 3)))
    assert ready.test_size == own.test_size
    assert len(load(f"{here}:ready", limit=200).train) < 200


def test_mixed_sizes_need_a_size(here: str) -> None:
    with pytest.raises(UserError, match=r"item 1 is \(3, 6, 6\) and the first \(3, 5, 6\); resize them with --input-size"):
        load(f"{here}:mixed")
    assert load(f"{here}:mixed", size=7).input_shape == (3, 7, 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", "module no_such_module cannot be imported"),
        ("{here}:pill", "has no function pill; did you mean {here}:pil?"),
        ("{here}:number", "has no function number"),
        ("{here}:nothing", "must return a sartor Dataset, or map-style .*got NoneType"),
        ("{here}:stream", "must return a sartor Dataset, or map-style"),
        ("{here}:unclear", r"which axis of \(4, 6, 3\) holds the channels cannot be told"),
        ("{here}:four", r"got \(int, int, int, int\)"),
        ("{here}:empty", "got an empty data set"),
        ("{here}:arrays", r"items must be pairs \(image, label\), item 0 is a ndarray"),
        ("{here}:texts", "labels must be whole numbers"),
        ("{here}:halves", "labels must be whole numbers"),
        ("{here}:kind", "must return a sartor Dataset, or map-style .*got type"),
        ("{here}:endless", "train split: its length failed with RuntimeError: a stream has no end"),
        ("{here}:fails", "the function failed with KeyError: 'path'"),
        ("{here}:leaves", "the function failed with SystemExit: 0"),
    ],
)
def test_wrong_functions_are_refused(here: str, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("{here}", here)):
        load(spec.replace("{here}", here))


def test_a_module_that_fails_to_import_is_told_from_a_missing_one(here: str) -> None:
    Path(f"{here}_bad.py").write_text("import numpy as np\nnp.no_such_thing\n")
    with pytest.raises(UserError, match=r"cannot be imported \(AttributeError"):
        load(f"{here}_bad:f")
