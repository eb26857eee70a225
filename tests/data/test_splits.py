from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sartor.data.splits import stratified

class_sizes = st.lists(st.integers(2, 40), min_size=2, max_size=8)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@given(class_sizes, st.floats(0.0, 1.0), st.integers(0, 1000))
def test_partition_keeps_every_class_on_both_sides_and_shares_within_one_image(sizes: list[int], share: float, seed: int) -> None:
    labels = labels_of(sizes)
    count = round(share * len(labels))
    picked, rest = stratified(labels, count, np.random.default_rng(seed))
    assert sorted([*picked, *rest]) == list(range(len(labels)))
    taken = np.bincount(labels[picked], minlength=len(sizes))
    assert (taken >= 1).all() and (taken < sizes).all()
    low, high = len(sizes), len(labels) - len(sizes)
    assert len(picked) == min(max(count, low), high)
    ideal = np.array(sizes) * count / len(labels)
    if ((ideal >= 1) & (ideal <= np.array(sizes) - 1)).all():
        assert (np.abs(taken - ideal) < 1).all()


def test_same_generator_state_same_choice_and_another_seed_another() -> None:
    labels = labels_of([30, 30, 30])
    first, second, other = (stratified(labels, 9, np.random.default_rng(seed))[0].tolist() for seed in (4, 4, 5))
    assert first == second != other


def test_picked_images_come_in_random_order_not_by_class() -> None:
    labels = np.repeat(np.arange(5), 100)
    for part in stratified(labels, 250, np.random.default_rng(0)):
        assert set(labels[part[:40]]) == set(range(5))


def test_golden_choice() -> None:
    picked, _ = stratified(np.tile(np.arange(4), 10), 8, np.random.default_rng(0))
    assert picked.tolist() == [34, 27, 11, 37, 24, 1, 2, 4]


def test_a_class_may_be_absent_and_may_be_taken_whole() -> None:
    picked, rest = stratified(np.array([0, 0, 2, 2]), 4, np.random.default_rng(0), least=2, leave=0)
    assert len(picked) == 4 and len(rest) == 0
