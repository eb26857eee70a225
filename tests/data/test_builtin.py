from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sartor.data import builtin, catalogue, load
from sartor.errors import UserError


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is found but what the test puts into the returned folder, which is $SARTOR_DATA."""
    root = tmp_path / "store"
    root.mkdir()
    monkeypatch.setattr(builtin, "places", lambda name: [root / name, root])
    return root


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def put_fashion(root: Path, *, zipped: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 60), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 6, 5)).astype(np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(n) % 10
    for name, array in arrays.items():
        (root / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return arrays


def cifar_files(per_file: int = 20) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    files = {}
    for name in names:
        records = rng.integers(0, 256, (per_file, 3073)).astype(np.uint8)
        records[:, 0] = np.arange(per_file) % 10
        files[name] = records.tobytes()
    return files


def put_cifar_archive(root: Path, files: dict[str, bytes]) -> Path:
    path = root / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_digits_are_whole_balanced_and_scaled() -> None:
    data = load("digits")
    assert (len(data.train), len(data.validation), data.test_size) == (1294, 144, 359)
    assert data.input_shape == (1, 8, 8) and data.classes == tuple("0123456789")
    assert data.train.raw.min() == 0 and data.train.raw.max() == 1
    shares = np.bincount(data.train.labels) / len(data.train)
    assert shares.min() > 0.09 and shares.max() < 0.11
    assert data.fingerprint == load("digits").fingerprint != load("digits", seed=1).fingerprint


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_idx_files_are_read_to_the_pixel(nowhere: Path, zipped: bool) -> None:
    arrays = put_fashion(nowhere, zipped=zipped)
    data = load("fashion-mnist")
    np.testing.assert_array_equal(data.read_test().raw[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.read_test().labels, arrays["t10k-labels-idx1-ubyte"])
    known = {image.tobytes(): label for image, label in zip(*list(arrays.values())[:2], strict=True)}
    assert [known[image.tobytes()] for image in data.train.raw] == data.train.labels.tolist()
    assert len(data.classes) == 10 and data.classes[9] == "ankle boot"


def test_a_missing_file_hides_the_set_and_the_message_says_how_to_get_it(nowhere: Path) -> None:
    put_fashion(nowhere)
    (nowhere / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"fashion-mnist: not found .*looked in .*store.*dataset-fashion-mnist"):
        load("fashion-mnist")


def damage(data: bytes, how: str) -> bytes:
    content = gzip.decompress(data)
    return {
        "cut": data[: len(data) // 2],
        "no gzip": b"<html>",
        "short": gzip.compress(content[:-3]),
        "no idx": gzip.compress(b"hello, world"),
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [("cut", "damaged or cut short"), ("no gzip", "gzip"), ("short", "promises 1800 bytes"), ("no idx", "expected an idx file")],
)
def test_damaged_idx_files_are_named(nowhere: Path, how: str, message: str) -> None:
    put_fashion(nowhere)
    path = nowhere / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte.gz.*{message}"):
        load("fashion-mnist")


def test_cifar10_folder_and_archive_give_the_same_images(nowhere: Path, tmp_path: Path) -> None:
    files = cifar_files()
    folder = nowhere / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    first = load("cifar10")
    assert first.input_shape == (3, 32, 32) and len(first.train) + len(first.validation) == 100 and first.test_size == 20
    record = np.frombuffer(files["test_batch.bin"], np.uint8)[:3073]
    np.testing.assert_array_equal(first.read_test().raw[0].ravel(), record[1:])
    for path in folder.iterdir():
        path.unlink()
    put_cifar_archive(nowhere, files)
    assert load("cifar10").fingerprint == first.fingerprint


def test_damaged_cifar10_is_named(nowhere: Path) -> None:
    files = cifar_files()
    path = put_cifar_archive(nowhere, {**files, "data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    with pytest.raises(UserError, match=r"data_batch_2\.bin: expected whole records of 3073 bytes"):
        load("cifar10")
    put_cifar_archive(nowhere, {name: data for name, data in files.items() if name != "data_batch_4.bin"})
    with pytest.raises(UserError, match=r"data_batch_4\.bin missing"):
        load("cifar10")
    put_cifar_archive(nowhere, files)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="damaged or cut short"):
        load("cifar10")


def test_the_pickled_version_of_cifar10_is_never_opened(nowhere: Path) -> None:
    (nowhere / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match=r"cifar-10-batches-py is the python version, which holds pickles.*cifar-10-binary.tar.gz"):
        load("cifar10")


def test_catalogue_tells_what_is_here(nowhere: Path) -> None:
    before = {entry.name: entry for entry in catalogue()}
    assert before["digits"].found and not before["fashion-mnist"].found and before["fashion-mnist"].where == ""
    assert "dataset-fashion-mnist" in before["fashion-mnist"].how
    put_fashion(nowhere)
    after = {entry.name: entry for entry in catalogue()}
    assert after["fashion-mnist"].found and after["fashion-mnist"].where == str(nowhere)


def test_places_are_searched_from_the_users_wish_to_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARTOR_DATA", "/wish")
    monkeypatch.setenv("HOME", "/home/someone")
    assert [str(place) for place in builtin.places("x")] == [
        "/wish/x", "/wish", "/home/someone/.cache/sartor/data/x", "data/x", "/usr/share/datasets/x",
    ]  # fmt: skip


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "sklearn", "PIL", "scipy", "onnx")
    code = f"import sys, sartor.data; sartor.data.catalogue(); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(builtin.BUILTINS["fashion-mnist"].locate() is None, reason="Fashion-MNIST is not installed")
def test_the_real_fashion_mnist() -> None:
    data = load("fashion-mnist")
    assert (len(data.train), len(data.validation), data.test_size, data.input_shape) == (54_000, 6_000, 10_000, (1, 28, 28))
    assert np.bincount(data.train.labels).tolist() == [5400] * 10
    assert data.mean[0] == pytest.approx(0.2860, abs=1e-3) and data.std[0] == pytest.approx(0.3530, abs=1e-3)
