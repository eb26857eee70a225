from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.cells import CellSpace
from sartor.searchers.embedding import Embedding

SPACE = Space(
    {"kind": ["a", "b", "c"], "width": [8, 32, 16, 64], "k": [3, 5, 7], "flag": [False, True], "only": [1]},
    {"k": {"kind": ["b", "c"]}},
)


def distances(embedding: Embedding, one: Arch, other: Arch) -> dict[str, float]:
    a, b = embedding.rows([one, other])
    squares = np.bincount(embedding.group, weights=(a - b) ** 2, minlength=len(embedding.names))
    return dict(zip(embedding.names, squares.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, SPACE.size - 1), st.integers(0, SPACE.size - 1))
def test_distances_by_choice(first: int, second: int) -> None:
    """Hamming for names and flags, rank differences for numbers (widths are 8, 16, 32, 64 by rank), 1 to what is switched off."""
    one, other = SPACE.at(first), SPACE.at(second)
    found = distances(Embedding(SPACE), one, other)
    assert set(found) == {"kind", "width", "k", "flag"}
    assert found["kind"] == pytest.approx(float(one["kind"] != other["kind"]))
    assert found["flag"] == pytest.approx(float(one["flag"] != other["flag"]))
    rank = [0, 2, 1, 3]
    assert found["width"] == pytest.approx(abs(rank[one["width"]] - rank[other["width"]]) / 3)
    on = [arch["kind"] != 0 for arch in (one, other)]
    expected = abs(one["k"] - other["k"]) / 2 if all(on) else float(any(on))
    assert found["k"] == pytest.approx(expected)


def test_a_restricted_space_has_the_columns_of_what_is_left() -> None:
    small = SPACE.restrict({"width": [8, 64], "flag": [True]})
    embedding = Embedding(small)
    assert embedding.names == ["kind", "width", "k"]
    one, other = small.from_labels({"kind": "a", "width": 8, "flag": True}), small.from_labels({"kind": "a", "width": 64, "flag": True})
    assert distances(embedding, one, other) == pytest.approx({"kind": 0, "width": 1, "k": 0})


def test_features_are_groups_of_mean_squared_distance_one() -> None:
    space = CellSpace({"a": (0, 1), "b": (1, 2), "c": (0, 2)}, ["none", "skip_connect", "conv"])
    embedding = Embedding(space)
    assert embedding.names == ["a", "b", "c", "live", "counts", "work", "load", "spelled", "paths"] and embedding.choices == 3
    assert [embedding.names[i] for i in embedding.cost_features] == ["work", "load", "spelled"]
    sums = [[embedding.names[embedding.group[column]] for column in columns] for columns in embedding.cost_sums]
    assert sums == [["load"] * 2, ["spelled"] * 2, ["counts"] * 2]
    assert [embedding.names[i] for i in embedding.executed] == ["work", "load"]
    own = Embedding(space, space.features)
    assert own.cost_features == () == own.cost_sums  # whoever brings features of his own says nothing about costs
    rows = embedding.rows(list(space))
    for group in range(3, 9):
        block = rows[:, embedding.group == group]
        assert 2 * block.var(axis=0).sum() == pytest.approx(1.0, rel=0.15)  # the scale comes from a sample
    assert embedding.rows([]).shape == (0, len(embedding.group))


def test_own_features_take_the_place_of_the_space_s() -> None:
    space = CellSpace({"a": (0, 1)}, ["none", "skip_connect", "conv"])
    own = Embedding(space, lambda archs: {"mine": np.array([[arch["a"]] for arch in archs]), "constant": np.ones((len(archs), 2))})
    assert own.names == ["a", "mine"]
