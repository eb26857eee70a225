from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.cells import CellSpace
from sartor.errors import UserError

OPS = ("none", "skip_connect", "conv1", "conv3", "pool")
EDGES = {"a": (0, 1), "b": (0, 2), "c": (1, 2), "d": (0, 3), "e": (1, 3), "f": (2, 3)}
CELL = CellSpace(EDGES, OPS)


def cell(**ops: str) -> Arch:
    return CELL.from_labels({**dict.fromkeys(EDGES, "none"), **ops})


def same(one: Arch, other: Arch, *groups: str) -> bool:
    first, second = (CELL.features([arch]) for arch in (one, other))
    return all(np.array_equal(first[group], second[group]) for group in groups)


def paths_by_hand(arch: Arch) -> dict[tuple[str, ...], int]:
    """Follow every path by recursion."""
    labels = CELL.labels(arch)

    def walk(node: int) -> list[tuple[str, ...]]:
        if node == 3:
            return [()]
        found = []
        for name, (source, target) in EDGES.items():
            if source == node and labels[name] != "none":
                step = () if labels[name] == "skip_connect" else (str(labels[name]),)
                found += [(*step, *rest) for rest in walk(target)]
        return found

    every = walk(0)
    return {sequence: every.count(sequence) for sequence in every}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, CELL.size - 1))
def test_path_counts_are_those_of_a_walk(number: int) -> None:
    arch = CELL.at(number)
    row = CELL.features([arch])["paths"][0]
    expected = paths_by_hand(arch)
    assert sorted(row[row > 0]) == sorted(expected.values())
    assert row.sum() == sum(expected.values())
    assert row[0] == expected.get((), 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, CELL.size - 1), st.integers(0, CELL.size - 1))
def test_equal_sequences_have_equal_rows(first: int, second: int) -> None:
    one, other = CELL.at(first), CELL.at(second)
    assert same(one, other, "paths") == (paths_by_hand(one) == paths_by_hand(other))


def test_a_contracted_skip_is_the_same_path() -> None:
    long = cell(a="conv3", e="skip_connect")
    short = cell(d="conv3")
    assert same(long, short, "paths") and not same(long, short, "live")


def test_what_leads_nowhere_does_not_count() -> None:
    assert same(cell(d="conv3", a="pool"), cell(d="conv3"), "live", "counts", "paths")  # node 1 has no way on
    assert same(cell(d="conv3", f="pool"), cell(d="conv3"), "live", "counts", "paths")  # nothing enters node 2
    assert not CELL.features([cell(a="conv3", f="conv3")])["paths"].any()


def test_live_edges_and_counts() -> None:
    found = CELL.features([cell(a="conv3", e="pool", d="conv3", c="conv1")])
    assert found["counts"].tolist() == [[0.0, 0.0, 2.0, 1.0]]  # skip, conv1 (leads nowhere), conv3, pool
    assert found["live"].shape == (1, 6 * 4) and found["live"].sum() == 3
    shapes = {"live": (0, 24), "counts": (0, 4), "work": (0, 24), "load": (0, 4), "spelled": (0, 4), "paths": (0, 40)}
    assert {name: block.shape for name, block in CELL.features([]).items()} == shapes


def test_what_is_applied_to_zeros_is_work_though_it_is_not_live() -> None:
    behind = CELL.features([cell(d="skip_connect", f="conv3")])  # nothing enters node 2, whose edge to the output is computed all the same
    assert behind["load"].tolist() == [[1.0, 0.0, 1.0, 0.0]] and behind["counts"].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    dead = cell(d="skip_connect", a="conv3", c="conv3")
    assert same(dead, cell(d="skip_connect"), "work", "load")  # leads nowhere: not computed
    assert CELL.features([dead])["spelled"].tolist() == [[1.0, 0.0, 2.0, 0.0]]  # but by a runtime that does not look


@settings(max_examples=60, deadline=None)
@given(st.integers(0, CELL.size - 1))
def test_work_is_what_the_output_needs(number: int) -> None:
    """By recursion from the output; what is live is among it."""
    labels = CELL.labels(CELL.at(number))

    def needed(node: int) -> set[str]:
        entering = {name: source for name, (source, target) in EDGES.items() if target == node and labels[name] != "none"}
        return set(entering).union(*(needed(source) for source in entering.values())) if entering else set()

    found = CELL.features([CELL.at(number)])
    at_work = {name for name, on in zip(EDGES, found["work"].reshape(6, 4).any(axis=1), strict=True) if on}
    live = {name for name, on in zip(EDGES, found["live"].reshape(6, 4).any(axis=1), strict=True) if on}
    assert at_work == needed(3) and live <= at_work


def test_it_is_the_space_of_its_choices() -> None:
    plain = Space(dict.fromkeys(EDGES, OPS))
    assert CELL.fingerprint == plain.fingerprint and CELL.size == plain.size
    small = CELL.restrict({"a": ["none", "pool"]})
    assert isinstance(small, CellSpace) and small.size == 2 * 5**5
    assert np.array_equal(small.features([small.at(7)])["paths"], CELL.features([small.at(7)])["paths"])


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="'skip_connect'"):
        CellSpace(EDGES, ("none", "conv"))
    with pytest.raises(UserError, match="'a' must run from a lower"):
        CellSpace({"a": (1, 0)}, OPS)
