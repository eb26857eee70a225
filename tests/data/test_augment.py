from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.data import Policy, default_policy, load, mixup
from sartor.errors import UserError


def batch(n: int = 16, channels: int = 2, height: int = 6, width: int = 5) -> np.ndarray:
    """Every value different and none zero, so that a pixel can be traced back to its place."""
    return np.arange(1, n * channels * height * width + 1, dtype=np.float32).reshape(n, channels, height, width)


@settings(max_examples=30)
@given(pad=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 999))
def test_crop_and_flip_give_a_shifted_and_perhaps_mirrored_original_with_zeros_around(pad: int, flip: bool, seed: int) -> None:
    images = batch()
    kept = images.copy()
    out = Policy(pad=pad, flip=flip)(images, np.random.default_rng(seed))
    np.testing.assert_array_equal(images, kept)
    assert out.shape == images.shape and out.dtype == np.float32
    around = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for one, whole in zip(out, around, strict=True):
        windows = [whole[:, y : y + 6, x : x + 5] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        if flip:
            windows += [window[:, :, ::-1] for window in windows]
        assert any(np.array_equal(one, window) for window in windows)


def test_all_shifts_and_both_directions_occur_evenly() -> None:
    images = np.tile(batch(1, 1, 4, 4), (6000, 1, 1, 1))
    out = Policy(pad=1, flip=True)(images, np.random.default_rng(0))
    kinds, counts = np.unique(out.reshape(6000, -1), axis=0, return_counts=True)
    assert len(kinds) == 18
    assert counts.min() > 6000 / 18 * 0.75 and counts.max() < 6000 / 18 * 1.25


@settings(max_examples=30)
@given(side=st.integers(1, 7), seed=st.integers(0, 999))
def test_cutout_zeroes_one_clipped_square_in_all_channels(side: int, seed: int) -> None:
    images = batch()
    out = Policy(cutout=side)(images, np.random.default_rng(seed))
    for one, original in zip(out, images, strict=True):
        gone = one == 0
        assert (gone == gone[:1]).all()
        rows, columns = gone[0].any(axis=1), gone[0].any(axis=0)
        np.testing.assert_array_equal(gone[0], np.outer(rows, columns))
        assert 1 <= rows.sum() <= side and 1 <= columns.sum() <= side
        assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1
        np.testing.assert_array_equal(one[~gone], original[~gone])


def test_a_cutout_centre_reaches_every_pixel() -> None:
    out = Policy(cutout=1)(np.ones((4000, 1, 3, 4), np.float32), np.random.default_rng(0))
    hits = (out == 0).sum(axis=0)[0]
    assert hits.sum() == 4000 and hits.min() > 4000 / 12 * 0.75
    out = Policy(cutout=3)(np.ones((4000, 1, 5, 5), np.float32), np.random.default_rng(0))
    hits = (out == 0).sum(axis=0)[0]
    np.testing.assert_allclose(hits, hits[::-1, ::-1], rtol=0.15, err_msg="the square is centred")


def test_policies_are_golden_for_a_seed() -> None:
    policy = Policy(pad=2, flip=True, cutout=2)
    first, second = (policy(batch(), np.random.default_rng(11)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert float(first.astype(np.float64).sum()) == 256230.0


def test_the_empty_policy_changes_nothing_and_returns_a_copy() -> None:
    images = batch()
    out = Policy()(images, np.random.default_rng(0))
    np.testing.assert_array_equal(out, images)
    assert not np.shares_memory(out, images)


@settings(max_examples=30)
@given(alpha=st.floats(0.05, 5), seed=st.integers(0, 999))
def test_mixup_mixes_image_and_label_by_the_same_share(alpha: float, seed: int) -> None:
    labels = np.arange(16) % 5
    flat = np.eye(5, dtype=np.float32)[labels]
    # the image of a class is its one-hot vector, so the mixed image must equal the mixed target
    mixed, targets = mixup(flat.reshape(16, 5, 1, 1), labels, 5, np.random.default_rng(seed), alpha)
    np.testing.assert_allclose(mixed.reshape(16, 5), targets, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert mixed.dtype == targets.dtype == np.float32 and (targets >= 0).all()
    assert (targets[np.arange(16), labels] > 0).any()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="alpha"):
        mixup(batch(), np.zeros(16, np.int64), 2, np.random.default_rng(0), 0.0)
    with pytest.raises(UserError, match="pad and cutout"):
        Policy(pad=-1)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "policy"),
    [
        ("cifar10", (32, 32, 3), np.uint8, Policy(4, True, 8)),
        ("fashion-mnist", (28, 28), np.uint8, Policy(2, True)),
        ("photos", (64, 48, 3), np.uint8, Policy(6, True)),
        ("scans", (32, 32), np.uint8, Policy(4)),
        ("sensor", (6, 1, 50), np.float32, Policy()),
    ],
)
def test_default_policies(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: type, policy: Policy) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, *shape)).astype(dtype)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(12) % 2, name=np.array(name))
    assert default_policy(load(tmp_path / "a.npz")) == policy


def test_digits_are_never_mirrored() -> None:
    assert default_policy(load("digits")) == Policy(pad=1)
