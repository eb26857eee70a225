from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.benchmarks import nasbench201
from sartor.cells import CellSpace
from sartor.errors import UserError
from sartor.hardware.graph import Op, OpGraph
from sartor.predictors.latency.features import READINGS, cell_readings, graph_columns, kind_of, moved_values, one_hot, operations

OPS = nasbench201.OPS


def readings(**edges: str) -> dict[str, list[float]]:
    arch = {choice: OPS.index(edges.get(choice, "none")) for choice in nasbench201.CHOICES}
    found = cell_readings(nasbench201.SPACE, operations(nasbench201.SPACE, [arch]))
    return {name: columns[0].tolist() for name, columns in found.items()}


def test_what_each_reading_leaves_out() -> None:
    # 0 -> 1 leads nowhere; 2 -> 3 has no input; 0 -> 3 is the cell.
    found = readings(edge01="nor_conv_3x3", edge23="nor_conv_1x1", edge03="avg_pool_3x3")
    assert found == {  # fixed cost, skip, 1x1, 3x3, pool
        "all": [1, 0, 1, 1, 1],
        "needed": [1, 0, 1, 0, 1],
        "fed": [1, 0, 0, 1, 1],
        "live": [1, 0, 0, 0, 1],
    }


def test_without_a_path_nothing_before_the_cell_is_needed() -> None:
    found = readings(edge01="nor_conv_3x3", edge23="nor_conv_1x1")
    assert found["needed"] == [0, 0, 1, 0, 0] and found["live"] == [0, 0, 0, 0, 0] and found["all"][0] == found["fed"][0] == 1


@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_live_is_what_is_both_fed_and_needed_and_connected_cells_have_some(ops: list[int]) -> None:
    found = cell_readings(nasbench201.SPACE, np.array([ops]))
    counts = {name: columns[0, 1:] for name, columns in found.items()}
    assert set(found) == set(READINGS)
    assert (counts["live"] <= np.minimum(counts["fed"], counts["needed"])).all() and (
        counts["all"] >= np.maximum(counts["fed"], counts["needed"])
    ).all()
    arch = dict(zip(nasbench201.CHOICES, ops, strict=True))
    live = nasbench201.SPACE.features([nasbench201.arch_of(nasbench201.index_of(arch))])["counts"][
        0
    ]  # an implementation of its own, by paths
    assert counts["live"].tolist() == live.tolist()
    connected = bool(nasbench201.connected()[nasbench201.index_of(arch)])
    assert (counts["live"].sum() > 0) == connected == (found["needed"][0, 0] == 1)


def test_edges_may_be_named_in_any_order() -> None:
    ops = nasbench201.cells()[::311]
    shuffled = [4, 1, 5, 0, 3, 2]
    space = CellSpace({nasbench201.CHOICES[i]: nasbench201.EDGES[i] for i in shuffled}, OPS)
    one, other = cell_readings(nasbench201.SPACE, ops), cell_readings(space, ops[:, shuffled])
    assert all((one[name] == other[name]).all() for name in READINGS)


def test_operations_of_another_space_are_refused() -> None:
    with pytest.raises(UserError, match="6 edges"):
        cell_readings(nasbench201.SPACE, np.zeros((3, 5), dtype=int))
    with pytest.raises(UserError, match=r"0\.\.4"):
        cell_readings(nasbench201.SPACE, np.full((3, 6), 5))


def test_one_hot_marks_the_operation_of_each_edge() -> None:
    hot = one_hot(np.array([[2, 0]]), 3)
    assert hot.tolist() == [[0, 0, 1, 1, 0, 0]]


CONV = Op("conv", (8, 4, 4), (16, 4, 4), kernel=3)
DEPTHWISE = Op("conv", (8, 4, 4), (8, 4, 4), kernel=3, groups=8)
ADD = Op("add", (8, 4, 4), (8, 4, 4))


def test_graph_columns_count_work_and_traffic_by_kind() -> None:
    graph = OpGraph((CONV, CONV, DEPTHWISE, ADD), (8, 4, 4))
    columns, names, kinds = graph_columns([graph])
    figures = dict(zip(names, columns[0].tolist(), strict=True))
    assert kinds == ("add", "dense", "depthwise")
    assert figures["fixed"] == 1 and figures["dense_count"] == 2 and figures["add_macs"] == 0
    assert figures["dense_macs"] == 2 * 16 * 8 * 9 * 16 and figures["depthwise_macs"] == 8 * 9 * 16
    assert figures["add_values"] == 3 * 8 * 16 == moved_values(ADD)
    assert moved_values(CONV) == 8 * 16 + (16 * 8 * 9 + 16) + 16 * 16
    with pytest.raises(UserError, match="depthwise"):
        graph_columns([graph], kinds=("add", "dense"))


def test_lanes_that_a_width_leaves_empty_count() -> None:
    """16 of 32 lanes hold a dense result, so that it costs twice its work; a sum has no work to fill them with."""
    columns, names, _ = graph_columns([OpGraph((CONV, ADD), (8, 4, 4))], lanes=32)
    figures = dict(zip(names, columns[0].tolist(), strict=True))
    assert figures["dense_full_macs"] == 2 * figures["dense_macs"] and "add_full_macs" not in figures
    assert set(names) - set(graph_columns([OpGraph((CONV, ADD), (8, 4, 4))])[1]) == {"dense_full_macs"}


def test_kinds_follow_the_kernels_of_runtimes() -> None:
    grouped = Op("conv", (8, 4, 4), (16, 4, 4), kernel=3, groups=2)
    pointwise = Op("conv", (8, 4, 4), (16, 4, 4))
    assert [kind_of(op) for op in (CONV, DEPTHWISE, grouped, pointwise, ADD)] == ["dense", "depthwise", "grouped", "pointwise", "add"]
