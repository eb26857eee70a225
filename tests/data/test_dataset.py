from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.data.dataset import Dataset, Split, statistics


def grey(n: int = 20, seed: int = 0, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, 5, 4)).astype(np.uint8)


def split(n: int = 20, seed: int = 0) -> Split:
    raw = grey(n, seed)
    return Split(raw, np.arange(n) % 3, *statistics(raw))


def dataset(seed: int = 0, **changes: np.ndarray) -> Dataset:
    train = split(20, seed)
    test = Split(changes.get("test_raw", grey(8, seed + 2)), changes.get("test_labels", np.arange(8) % 3), train.mean, train.std)
    return Dataset("toy", train, split(6, seed + 1), test, ("a", "b", "c"), train.mean, train.std)


@pytest.mark.parametrize("raw", [grey(1500), np.random.default_rng(1).normal(50, 9, (1500, 3, 4, 4)).astype(np.float32)])
def test_training_images_come_out_with_zero_mean_and_unit_variance_per_channel(raw: np.ndarray) -> None:
    images = Split(raw, np.zeros(len(raw), int), *statistics(raw)).images().astype(np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), 1, atol=1e-4)


def test_uint8_is_scaled_to_one_before_mean_and_std() -> None:
    raw = grey()
    mean, std = statistics(raw)
    np.testing.assert_allclose(mean, (raw / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, (raw / 255).std(axis=(0, 2, 3)))
    reference = (raw / 255 - np.array([0.5, 0.25]).reshape(2, 1, 1)) / np.array([0.2, 0.1]).reshape(2, 1, 1)
    images = Split(raw, np.zeros(20, int), np.array([0.5, 0.25]), np.array([0.2, 0.1])).images()
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, reference, atol=1e-5)


@pytest.mark.parametrize("value", [np.uint8(77), np.float32(0.1), np.float32(0.0), np.float32(-1e6)])
def test_a_constant_channel_becomes_zero(value: np.generic) -> None:
    raw = np.full((3000, 1, 3, 3), value)
    images = Split(raw, np.zeros(3000, int), *statistics(raw)).images()
    np.testing.assert_allclose(images, 0, atol=0.07 if abs(float(value)) > 1e5 else 1e-5)


@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_one_pass_of_batches_is_every_image_once_with_its_label(n: int, size: int, shuffle: bool) -> None:
    raw = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    one = Split(raw, np.arange(n), np.zeros(1), np.ones(1))
    seen = []
    for images, labels in one.batches(size, np.random.default_rng(n) if shuffle else None):
        assert images.shape == (len(labels), 1, 1, 1) and images.dtype == np.float32 and labels.dtype == np.int64
        np.testing.assert_array_equal(images.ravel(), labels)
        seen += labels.tolist()
    assert (sorted(seen) if shuffle else seen) == list(range(n))
    full = list(one.batches(size, drop_last=True))
    assert len(full) == n // size and all(len(labels) == size for _, labels in full)


def test_batches_depend_on_the_generator_alone_and_change_nothing_stored() -> None:
    one = split()
    before = one.raw.copy(), one.labels.copy()

    def run(seed: int) -> list[np.ndarray]:
        out = []
        for images, labels in one.batches(7, np.random.default_rng(seed), lambda x, rng: x + rng.random()):
            out += [images.copy(), labels.copy()]
            images[:], labels[:] = 0, 0
        return out

    for images, labels in one.batches(7):
        images[:], labels[:] = 0, 0
    first, second, other = run(1), run(1), run(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert np.array_equal(one.raw, before[0]) and np.array_equal(one.labels, before[1])


def test_slices_and_index_arrays_agree_with_subset() -> None:
    one = split()
    index = np.array([3, 1, 9])
    np.testing.assert_array_equal(one.images(index), one.images()[index])
    np.testing.assert_array_equal(one.subset(index).images(), one.images(index))
    np.testing.assert_array_equal(one.images(slice(2, 5)), one.images()[2:5])
    assert one.subset(slice(2, 5)).labels.tolist() == [2, 0, 1]


def test_misuse_of_batches_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="batch size"):
        split().batches(0)
    with pytest.raises(ValueError, match="rng"):
        split().batches(4, augment=lambda x, rng: x)


@pytest.mark.parametrize(
    ("raw", "labels", "mean", "std"),
    [
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2), np.zeros(1), np.ones(1)),
        (np.zeros((2, 1, 3, 3)), np.zeros(2), np.zeros(1), np.ones(1)),
        (np.zeros((2, 1, 3, 3), np.uint8), np.zeros(3), np.zeros(1), np.ones(1)),
        (np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2), np.zeros(1), np.zeros(1)),
        (np.zeros((2, 2, 3, 3), np.uint8), np.zeros(2), np.zeros(1), np.ones(1)),
    ],
)
def test_split_refuses_arrays_that_do_not_fit(raw: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        Split(raw, labels, mean, std)


def test_the_test_split_is_counted_and_not_reachable_by_accident() -> None:
    data = dataset()
    with pytest.raises(RuntimeError, match="read_test"):
        _ = data.test
    assert data.test_reads == 0
    _ = data.fingerprint, data.test_size, data.summary(), repr(data)
    assert data.test_reads == 0
    assert len(data.read_test()) == data.test_size == 8
    data.read_test()
    assert data.test_reads == 2


def test_summary_is_the_data_block_of_the_result_file() -> None:
    assert dataset().summary() == {
        "name": "toy", "classes": ["a", "b", "c"], "input_shape": [2, 5, 4], "train": 20, "validation": 6, "test": 8,
    }  # fmt: skip


def test_fingerprint_changes_with_any_pixel_or_label_and_only_then() -> None:
    base = dataset()
    assert base.fingerprint == dataset().fingerprint == "515b91a37c9c9002"
    pixel = grey(8, 2)
    pixel[-1, -1, -1, -1] ^= 1
    labels = np.arange(8) % 3
    labels[-1] = 0
    prints = {base.fingerprint, dataset(test_raw=pixel).fingerprint, dataset(test_labels=labels).fingerprint, dataset(seed=5).fingerprint}
    assert len(prints) == 4


def test_splits_of_different_shapes_are_refused() -> None:
    one = split()
    other = Split(np.zeros((2, 2, 4, 4), np.uint8), np.zeros(2), one.mean, one.std)
    with pytest.raises(ValueError, match="different image shapes"):
        Dataset("toy", one, one, other, ("a", "b", "c"), one.mean, one.std)
