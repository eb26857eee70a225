"""NAS-Bench-201: strings, numbers, and the facts that were published of it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.benchmarks import table
from sartor.benchmarks.nasbench201 import (
    CELLS,
    CHOICES,
    DATASETS,
    EDGES,
    OPS,
    SPACE,
    arch_of,
    cells,
    connected,
    from_string,
    index_of,
    to_string,
)
from sartor.errors import UserError

indices = st.integers(0, CELLS - 1)


@given(indices)
def test_number_and_string_and_architecture_are_one(index: int) -> None:
    arch = arch_of(index)
    assert arch in SPACE
    assert index_of(arch) == index
    assert from_string(to_string(arch)) == arch


def test_the_numbers_cover_the_space() -> None:
    assert sorted(SPACE.index(arch_of(index)) for index in range(CELLS)) == list(range(CELLS))
    assert len({tuple(row) for row in cells()}) == CELLS == 5**6


def test_the_spelling_is_the_benchmarks() -> None:
    assert to_string(arch_of(0)) == "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert from_string(to_string(arch_of(6111)) + "\n") == arch_of(6111)


@pytest.mark.parametrize(
    "text",
    ["", "|none~0|", "|none~0|+|none~0|none~1|+|none~0|none~1|conv~2|", "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|"],
)
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected a cell"):
        from_string(text)


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(UserError, match="edge23"):
        index_of(dict.fromkeys(CHOICES[:-1], 0))
    with pytest.raises(UserError, match="edge01"):
        index_of({**dict.fromkeys(CHOICES, 0), "edge01": 5})
    with pytest.raises(UserError, match="15624"):
        arch_of(CELLS)


PUBLISHED_BEST = {"cifar10": (94.37, 6111), "cifar100": (73.51, 9930), "imagenet16": (47.31, 857)}


@pytest.mark.parametrize("data", DATASETS)
def test_published_optima(data: str) -> None:
    accuracy = table("nasbench201").column(f"{data}_test_200")
    assert (round(float(accuracy.max()), 2), int(accuracy.argmax())) == PUBLISHED_BEST[data]


def test_341_cells_are_not_connected_and_learned_nothing() -> None:
    assert (~connected()).sum() == 341
    for data, chance in (("cifar10", 10.0), ("cifar100", 1.0), ("imagenet16", 0.8333)):
        accuracy = table("nasbench201").column(f"{data}_test_200")
        assert (accuracy[~connected()] == chance).all()
    assert table("nasbench201").column("cifar10_test_200")[connected()].min() > 40


@given(indices)
def test_connected_means_a_path(index: int) -> None:
    arch = arch_of(index)
    used = {edge for edge, choice in zip(EDGES, CHOICES, strict=True) if OPS[arch[choice]] != "none"}
    paths = [[(0, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]]
    assert connected()[index] == any(used.issuperset(path) for path in paths)


def test_published_local_maxima() -> None:
    """17, 23 and 34 cells are better than all that differ in one operation (White et al. 2021 count them so)."""
    place = cells() @ 5 ** np.arange(5, -1, -1)
    for data, count in (("cifar10", 17), ("cifar100", 23), ("imagenet16", 34)):
        grid = np.empty(CELLS)
        grid[place] = table("nasbench201").column(f"{data}_test_200")
        grid = grid.reshape(*[5] * 6)
        best = np.ones_like(grid, dtype=bool)
        for axis in range(6):
            ordered = np.sort(grid, axis=axis)
            top, second = (np.take(ordered, [k], axis=axis) for k in (-1, -2))
            best &= (grid == top) & (top > second)
        assert best.sum() == count


def test_parameters_follow_from_the_operations() -> None:
    """Of each convolution in five cells at 16, 32 and 64 channels, weights and batch norm; the rest of the network is the same."""
    per_op = {"nor_conv_3x3": 9, "nor_conv_1x1": 1}
    cost = np.array([5 * sum(per_op.get(op, 0) * c * c + 2 * c * (op in per_op) for c in (16, 32, 64)) for op in OPS])
    params = table("nasbench201").column("cifar10_params")
    assert set(params - cost[cells()].sum(axis=1)) == {73306.0}


def test_strings_in_the_order_of_the_edges() -> None:
    spelled = re.findall(r"~(\d)", to_string(arch_of(1)))
    assert [int(source) for source in spelled] == [source for source, _ in EDGES]
