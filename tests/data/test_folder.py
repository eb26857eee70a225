from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sartor.data import folder as folder_module
from sartor.data import load
from sartor.errors import UserError


def draw(path: Path, value: int, *, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    """An image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)


def fill(root: Path, n: int = 5, classes: tuple[str, ...] = ("ant", "bee"), start: int = 0, **options: object) -> None:
    for number in range(n):
        for label, name in enumerate(classes):
            draw(root / name / f"{number}.png", start + 10 * number + label, **options)  # type: ignore[arg-type]


def test_one_folder_per_class_is_split_and_labelled(tmp_path: Path) -> None:
    fill(tmp_path / "bugs", 10)
    data = load(tmp_path / "bugs")
    assert data.name == "bugs" and data.classes == ("ant", "bee") and data.input_shape == (3, 4, 6)
    assert (len(data.train), len(data.validation), data.test_size) == (14, 2, 4)
    values = []
    for split in (data.train, data.validation, data.read_test()):
        assert (split.raw[:, 0, 0, 0] % 10).tolist() == split.labels.tolist()
        values += split.raw[:, 0, 0, 0].tolist()
    assert sorted(values) == sorted(10 * n + label for n in range(10) for label in range(2))


def test_given_splits_are_kept_and_alternative_names_understood(tmp_path: Path) -> None:
    fill(tmp_path / "train", 4)
    fill(tmp_path / "valid", 2, start=100)
    fill(tmp_path / "test", 3, start=200)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), data.test_size) == (8, 4, 6)
    assert data.read_test().raw.min() == 200 and set(data.validation.raw.ravel()) == {100, 101, 110, 111}


def test_nested_files_are_found_and_others_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    draw(tmp_path / "ant" / "deeper" / "x.PNG", 5)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"")
    (tmp_path / "__MACOSX").mkdir()
    data = load(tmp_path)
    assert data.classes == ("ant", "bee") and len(data.train) + len(data.validation) + data.test_size == 11


def test_grey_stays_grey_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    fill(tmp_path, 4, mode="L")
    draw(tmp_path / "ant" / "deep.png", 0x8123, mode="I;16")
    data = load(tmp_path)
    values = [split.raw for split in (data.train, data.validation, data.read_test())]
    assert data.input_shape == (1, 4, 6) and max(raw.max() for raw in values) == 0x81


def test_one_coloured_image_makes_the_set_rgb_and_transparency_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, 4, mode="L")
    draw(tmp_path / "bee" / "t.png", 9, mode="RGBA")
    assert load(tmp_path).input_shape == (3, 4, 6)


def test_images_lying_on_their_side_are_turned(tmp_path: Path) -> None:
    fill(tmp_path, 5, size=(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "ant" / "side.jpg", exif=exif)
    assert load(tmp_path).input_shape == (3, 6, 4)


def test_mixed_sizes_are_refused_unless_a_size_is_given(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    draw(tmp_path / "bee" / "large.png", 50, size=(40, 20))
    with pytest.raises(
        UserError,
        match=r"2 sizes \(10 of 11 images are 6x4, bee/large.png is not\); --input-size resizes them \(size= in Python\), for example 4",
    ):
        load(tmp_path)
    data = load(tmp_path, size=(8, 5))
    assert data.input_shape == (3, 8, 5)
    assert load(tmp_path, size=8).input_shape == (3, 8, 8)
    everything = np.concatenate([split.raw for split in (data.train, data.validation, data.read_test())])
    assert 50 in everything[:, 0, 0, 0], "an image of one colour keeps its colour when resized"


def test_broken_images_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "ant" / "empty.png").write_bytes(b"")
    (tmp_path / "bee" / "text.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"2 files cannot be decoded: ant/empty.png, bee/text.jpg; repair or remove"):
        load(tmp_path)
    for path in (tmp_path / "ant" / "empty.png", tmp_path / "bee" / "text.jpg"):
        path.unlink()
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)).save(buffer, "PNG")
    (tmp_path / "ant" / "cut.png").write_bytes(buffer.getvalue()[:70])
    with pytest.raises(UserError, match=r"1 file cannot be decoded: ant/cut.png"):
        load(tmp_path)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="expected one folder of images per class"):
        load(tmp_path / "none")
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected images .* got none"):
        load(tmp_path / "hollow")
    fill(tmp_path / "one", 5, classes=("ant",))
    with pytest.raises(UserError, match="two classes"):
        load(tmp_path / "one")
    fill(tmp_path / "few", 2)
    with pytest.raises(UserError, match='class "ant" has 2'):
        load(tmp_path / "few")
    fill(tmp_path / "new" / "train", 5)
    fill(tmp_path / "new" / "test", 1, classes=("ant", "cow"))
    with pytest.raises(UserError, match=r"class cow is not among the training classes \(ant, bee\)"):
        load(tmp_path / "new")


def test_more_pixels_than_memory_should_take_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 5)
    monkeypatch.setattr(folder_module, "LARGEST_BYTES", 10 * 6 * 4 * 3 - 1)
    with pytest.raises(UserError, match="pass a smaller size="):
        load(tmp_path)
    assert load(tmp_path, size=3).input_shape == (3, 3, 3)
