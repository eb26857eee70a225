from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.data.dataset import Dataset
from sartor.data.source import Source, assemble
from sartor.errors import UserError


def pair(n: int, classes: int = 3, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose two pixels spell their own number, so that a split can be traced back."""
    number = np.arange(first, first + n)
    images = np.stack([number % 256, number // 256], axis=1).astype(np.uint8).reshape(n, 1, 1, 2)
    return images, number % classes


def numbers(split) -> list[int]:  # type: ignore[no-untyped-def]
    return (split.raw[:, 0, 0, 0].astype(int) + 256 * split.raw[:, 0, 0, 1].astype(int)).tolist()


def make(
    source: Source, *, seed: int = 0, validation: float = 0.1, limit: int | None = None, size: tuple[int, int] | None = None
) -> Dataset:
    return assemble(source, seed=seed, validation=validation, limit=limit, size=size)


@given(n=st.integers(30, 400), classes=st.integers(2, 6), share=st.floats(0.02, 0.9), seed=st.integers(0, 99))
def test_the_three_splits_are_disjoint_complete_and_stratified(n: int, classes: int, share: float, seed: int) -> None:
    data = make(Source("toy", pair(n, classes)), seed=seed, validation=share)
    parts = [numbers(split) for split in (data.train, data.validation, data.read_test())]
    assert sorted(number for part in parts for number in part) == list(range(n))
    for split, part in zip((data.train, data.validation, data.read_test()), parts, strict=True):
        assert [number % classes for number in part] == split.labels.tolist()
        assert set(split.labels) == set(range(classes))
    rest = n - data.test_size
    assert len(data.validation) == min(max(round(share * rest), classes), rest - classes)


def test_a_carved_test_split_is_the_same_for_every_seed_and_the_validation_split_is_not() -> None:
    one, two = (make(Source("toy", pair(300)), seed=seed) for seed in (1, 2))
    assert numbers(one.read_test()) == numbers(two.read_test())
    assert len(one.read_test()) == 60
    assert set(numbers(one.validation)) != set(numbers(two.validation))
    assert numbers(one.train) == numbers(make(Source("toy", pair(300)), seed=1).train)


def test_the_sources_own_test_and_validation_splits_stay_whole() -> None:
    test, held = pair(50, first=1000), pair(40, first=2000)
    data = make(Source("toy", pair(200), test=test), limit=60)
    assert numbers(data.read_test()) == list(range(1000, 1050))
    assert len(data.train) + len(data.validation) == 60
    data = make(Source("toy", pair(200), held, test), validation=0.5)
    assert sorted(numbers(data.validation)) == list(range(2000, 2040)) and len(data.train) == 200
    assert numbers(data.validation) != list(range(2000, 2040)), "validation is in random order"


@given(st.integers(6, 500), st.booleans())
def test_limit_is_kept_with_every_class_present(limit: int, held: bool) -> None:
    data = make(Source("toy", pair(240), pair(60, first=1000) if held else None, pair(30, first=2000)), limit=limit)
    total = 300 if held else 240
    assert len(data.train) + len(data.validation) == min(limit, total)
    assert set(data.train.labels) == {0, 1, 2}
    assert data.test_size == 30
    if not held:
        assert set(data.validation.labels) == {0, 1, 2}


def test_a_limit_keeps_a_rare_class_in_train_and_validation() -> None:
    images, _ = pair(200)
    rare = Source("toy", (images, (np.arange(200) < 3).astype(int)), test=pair(9, classes=2))
    data = make(rare, limit=20)
    assert np.bincount(data.train.labels).tolist() == [17, 1] and np.bincount(data.validation.labels).tolist() == [1, 1]


def test_mean_and_std_come_from_training_images_alone() -> None:
    held, test = pair(30), pair(30)
    plain = make(Source("toy", pair(60), held, test))
    bright = make(Source("toy", pair(60), (held[0] + 200, held[1]), (test[0] + 200, test[1])))
    np.testing.assert_array_equal(plain.mean, bright.mean)
    np.testing.assert_allclose(plain.mean, (pair(60)[0] / 255).mean(), rtol=1e-6)


def test_a_prefix_of_a_sorted_source_holds_all_classes() -> None:
    images = np.zeros((300, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(300) % 256
    data = make(Source("toy", (images, np.repeat([0, 1, 2], 100)), test=(images[:3], np.array([0, 1, 2]))))
    assert set(data.train.labels[:30]) == {0, 1, 2}


def test_resize_changes_every_split_and_keeps_the_type() -> None:
    for dtype in (np.uint8, np.float32):
        images = np.random.default_rng(0).integers(0, 255, (30, 2, 6, 6)).astype(dtype)
        data = make(Source("toy", (images, np.arange(30) % 2)), size=(3, 4))
        assert {split.shape for split in (data.train, data.validation, data.read_test())} == {(2, 3, 4)}
        assert data.train.raw.dtype == dtype
        whole = make(Source("toy", (images, np.arange(30) % 2)))
        np.testing.assert_allclose(data.train.raw.mean(), whole.train.raw.mean(), rtol=0.05)


def test_splits_of_different_sizes_need_a_size() -> None:
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 255, (30, 1, side, side)).astype(np.uint8) for side in (9, 6))
    mixed = Source("toy", (large, np.arange(30) % 2), test=(small, np.arange(30) % 2))
    with pytest.raises(UserError, match=r"test split: images must be .* --input-size"):
        make(mixed)
    assert make(mixed, size=(4, 4)).read_test().shape == (1, 4, 4)
    with pytest.raises(UserError, match="test split: images must be of 1 channels as in training"):
        make(replace(mixed, test=(np.repeat(small, 3, axis=1), np.arange(30) % 2)), size=(4, 4))


def test_wide_integers_keep_one_scale_over_all_splits() -> None:
    wide = np.arange(60).reshape(60, 1, 1, 1).astype(np.int16) * 100
    data = make(Source("toy", (wide, np.arange(60) % 2), test=(wide[:2], np.array([0, 1]))))
    assert data.read_test().raw.dtype == np.float32
    assert data.read_test().raw.ravel().tolist() == [0, 100]


def source(**changes: object) -> Source:
    return replace(Source("toy", pair(30), pair(9), pair(9)), **changes)  # type: ignore[arg-type]


def nan_pair() -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((30, 1, 1, 2))
    images[7, 0, 0, 1] = np.nan
    return images, np.arange(30) % 3


IMAGES = pair(30)[0]
BAD = [
    (source(train=(IMAGES[:0], np.zeros(0, int))), "train split: expected images, got an empty array"),
    (source(train=(IMAGES, np.zeros(30, int))), "at least two classes are needed, got one only"),
    (source(train=(IMAGES, np.arange(30) % 3 - 1)), "labels must be from 0 to classes-1, got -1"),
    (source(train=(IMAGES, np.arange(30) % 3 * 10**12)), "got 2000000000000 among 30 images"),
    (source(train=(IMAGES, np.arange(30) % 3 + 0.5)), "labels must be whole numbers"),
    (source(train=(IMAGES, np.array([np.nan] * 30))), "labels must be whole numbers"),
    (source(train=(IMAGES, np.array(["cat"] * 30))), "labels must be whole numbers"),
    (source(train=(IMAGES, np.eye(3)[np.arange(30) % 3])), "argmax"),
    (source(train=(IMAGES, np.arange(29) % 3)), "got 30 images and 29 labels"),
    (source(train=(IMAGES, np.arange(30) % 3 + 1)), "class 0 has 0 (1 such classes); labels must start at 0"),
    (source(train=(IMAGES, np.array([0] * 29 + [1]))), "every class needs at least 2 training images to be split, class 1 has 1"),
    (source(train=(IMAGES, np.array([0] * 28 + [1, 1])), validation=None, test=None), "at least 3 training images"),
    (source(train=nan_pair()), "NaN or infinity in 1 images (number 7 first)"),
    (source(train=(IMAGES.astype(complex), np.arange(30) % 3)), "pixels must be numbers"),
    (source(train=(np.full((30, 1, 1, 2), 1e300), np.arange(30) % 3)), "NaN or infinity"),
    (source(classes=("a", "b")), "labels must be from 0 to 1 for the 2 named classes, got 2"),
    (source(classes=("a", "b", "c", "d")), 'class "d" has 0'),
    (source(test=(pair(9)[0], np.full(9, 3))), "test split: labels must be from 0 to 2 as in training, got 3"),
    (source(validation=(pair(9)[0], np.full(9, -2))), "validation split: labels must be from 0 to 2 as in training, got -2"),
    (
        source(test=(np.zeros((9, 1, 2, 2), np.uint8), np.zeros(9, int))),
        "images must be (1, 1, 2) (channels, height, width) as in training",
    ),
    (source(test=(pair(9)[0] / 255, pair(9)[1])), "all splits must have pixels of one kind"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_unfit_arrays_are_refused_with_the_reason(bad: Source, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make(bad)


def test_a_limit_below_two_images_per_class_is_refused() -> None:
    with pytest.raises(UserError, match="limit must be at least two images for each of the 3 classes, 6, got 5"):
        make(source(), limit=5)


def test_column_labels_and_whole_floats_are_understood() -> None:
    images, labels = pair(30)
    assert sorted(make(Source("toy", (images, labels[:, None].astype(float)))).train.labels)[-1] == 2
