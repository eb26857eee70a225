"""The tables that come with the package: what was published, exactly, with its origin."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sartor.benchmarks import catalogue, fbnet, ofa, table
from sartor.benchmarks.tables import FOLDER, MISSING
from sartor.errors import UserError

ROWS = {
    "nasbench201": 15625,
    "nasbench201_latency": 15625,
    "nasbench201_latency_1999": 1999,
    "fbnet": 5000,
    "fbnet_blocks": 23,
    "ofa": 5000,
    "ofa_accuracy": 2373,
}


def test_every_table_says_where_it_comes_from() -> None:
    assert set(catalogue()) == set(ROWS)
    for found in catalogue().values():
        assert "github.com/" in found.source and found.citation
        assert "MIT" in found.licence or found.licence == "Apache-2.0"


@pytest.mark.parametrize("name", ROWS)
def test_every_column_is_there(name: str) -> None:
    found = table(name)
    assert found.rows == ROWS[name]
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(found.columns)
        assert all(arrays[column].itemsize in MISSING for column in arrays)
    for column in found.columns.values():
        values = found.column(column.name)
        assert len(values) == found.rows and column.description
        assert not values.flags.writeable
        assert np.nanmin(values) >= 0
    # One column has gaps: what the Edge TPU's compiler refused.
    gaps = {column: int(np.isnan(found.column(column)).sum()) for column in found.columns}
    assert {column: count for column, count in gaps.items() if count} == ({"hwnb_edgetpu": 259} if name.endswith("1999") else {})


def test_together_they_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6


# Figures as their sources print them; `==`, as nothing may be lost.
PRINTED = [
    ("nasbench201", "cifar10_test_200", 0, 85.8633),
    ("nasbench201", "cifar10_val_12", 0, 63.364),
    ("nasbench201", "imagenet16_val_12", 0, 18.4667),
    ("nasbench201", "cifar100_params", 1, 808276),
    ("nasbench201", "imagenet16_macs", 2, 19648000),
    ("nasbench201_latency", "raspi4", 0, 10.482),
    ("nasbench201_latency", "1080ti_1", 0, 10.754),
    ("nasbench201_latency", "titan_rtx_256", 1, 26.513),
    ("nasbench201_latency_1999", "nnmeter_cortexA76", 0, 16.45),
    ("fbnet", "gold_6226", 1, 97.48),
    ("ofa", "v100_64", 1, 14.929),
    ("ofa_accuracy", "top1", 0, 75.458),
]


@pytest.mark.parametrize(("name", "column", "row", "printed"), PRINTED)
def test_figures_are_those_printed(name: str, column: str, row: int, printed: float) -> None:
    assert table(name).column(column)[row] == printed


def test_smallest_published_latency_keeps_all_its_digits() -> None:
    assert table("nasbench201_latency").column("pixel3").min() == 0.0032769


def test_unknown_names_are_said() -> None:
    with pytest.raises(UserError, match="did you mean 'raspi4'"):
        table("nasbench201_latency").column("raspi")
    with pytest.raises(UserError, match="unknown table 'nb'; tables: nasbench201, "):
        table("nb")


def test_fbnet_block_table_reproduces_the_published_sums() -> None:
    published = table("fbnet")
    for row in range(0, 5000, 25):
        arch = fbnet.arch_of(row)
        for device in fbnet.TABULATED:
            assert fbnet.latency_ms(arch, device) == pytest.approx(published.column(device)[row], abs=7e-4)
    assert fbnet.SPACE.size == 9**22
    with pytest.raises(UserError, match="not for 'gold_6226'"):
        fbnet.latency_ms(fbnet.arch_of(0), "gold_6226")


def test_fbnet_skips_cost_nothing() -> None:
    skips = fbnet.SPACE.canonical(dict.fromkeys(fbnet.CHOICES, fbnet.BLOCKS.index("skip")))
    assert fbnet.latency_ms(skips, "raspi4") == 7.79819


def test_ofa_space_is_the_published_one() -> None:
    assert ofa.SPACE.size == 25 * 21_758_655_492_572_485_851
    for name in ("ofa", "ofa_accuracy"):
        found = [ofa.arch_of(row, name) for row in range(0, table(name).rows, 20)]
        assert all(arch in ofa.SPACE for arch in found)
    labels = ofa.SPACE.labels(ofa.arch_of(0))
    assert labels["resolution"] == 204 and [labels[f"unit{unit}.depth"] for unit in range(5)] == [2, 2, 2, 2, 3]
    assert labels["unit4.block2.kernel"] == 5 and "unit4.block3.kernel" not in labels
    assert math.isclose(table("ofa_accuracy").column("top1").max(), 77, abs_tol=1.5)
