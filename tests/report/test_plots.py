"""The pictures: which are drawn, that they are the same each time, and that they show what was measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sartor.errors import UserError
from sartor.report.plots import layers_png, pareto_png, predicted_png, search_png, write_plots

Result = dict[str, Any]
SEARCH = (0, 114, 178)


def pixels(png: bytes | None, color: tuple[int, int, int]) -> int:
    """How many pixels have just this colour."""
    assert png is not None
    return int((np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == color).all(axis=2).sum())


def test_all_pictures(result: Result, trials: list[dict[str, Any]], tmp_path: Path) -> None:
    result["models"] = result["models"][:2]
    written = write_plots(tmp_path, result, trials)
    names = ["pareto.png", "predicted_vs_measured.png", "search.png", "layers_s00.png", "layers_s01.png"]
    assert [p.relative_to(tmp_path / "plots").as_posix() for p in written] == names
    first = {p: p.read_bytes() for p in written}
    write_plots(tmp_path, result, trials)
    assert {p: p.read_bytes() for p in written} == first
    with Image.open(written[0]) as picture:
        assert picture.size == (1200, 780)
        assert "Software" not in picture.info


def test_what_is_no_longer_true_is_removed(result: Result, trials: list[dict[str, Any]], tmp_path: Path) -> None:
    result["models"] = result["models"][:2]
    write_plots(tmp_path, result, trials)
    result["models"].pop()
    del result["models"][0]["predicted"]
    result["baselines"] = []
    assert [p.name for p in write_plots(tmp_path, result, None)] == ["pareto.png", "layers_s00.png"]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["layers_s00.png", "pareto.png"]
    assert write_plots(tmp_path, {}, None) == []
    assert list((tmp_path / "plots").iterdir()) == []


def test_each_part_of_the_front_is_drawn(result: Result, trials: list[dict[str, Any]]) -> None:
    whole = pareto_png(result, trials)
    assert pixels(whole, SEARCH) > 1000
    assert pixels(whole, (199, 80, 0)) > 1000
    result["models"] = []
    without = pareto_png(result, trials)
    assert pixels(without, SEARCH) == 0
    assert pixels(without, (199, 80, 0)) > 1000
    result["baselines"] = []
    assert pareto_png(result, trials) is None


def test_a_limit_on_an_axis_is_drawn(result: Result) -> None:
    assert pixels(pareto_png(result), (168, 50, 10)) == 0  # p90 and memory are on no axis
    result["limits"] = [{"metric": "latency_ms", "bound": 0.2, "statistic": "p50"}]
    assert pixels(pareto_png(result), (168, 50, 10)) > 100


def test_bars_are_as_long_as_the_times() -> None:
    def area(*times: float) -> int:
        return pixels(layers_png({"name": "n", "layers": [{"name": "a", "latency_us": t} for t in times]}), SEARCH)

    assert area(10, 10) == pytest.approx(2 * area(10, 0.001), rel=0.12)
    assert area(10, 5) == pytest.approx(1.5 * area(10, 0.001), rel=0.12)


def test_holes_are_not_drawn(result: Result) -> None:
    assert layers_png({"name": "n"}) is None
    assert layers_png({"name": "n", "layers": [{"name": "a", "kind": "conv"}]}) is None
    assert layers_png({"name": "n", "layers": [{"name": "a", "macs": 5}, {"name": "$x_", "macs": None}]}) is not None
    assert search_png(result, []) is None
    assert predicted_png({}) is None


def test_hostile_names_stay_in_the_folder_and_draw(result: Result, tmp_path: Path) -> None:
    result["models"] = result["models"][:2]
    result["models"][0]["name"] = "../../$\\frac{$ <b>" + 200 * "w"
    result["objectives"] = ["accuracy"]
    written = write_plots(tmp_path, result, None)
    assert {p.parent for p in written} == {tmp_path / "plots"}
    assert len(written) == 2 + 2


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plots").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write pictures"):
        write_plots(tmp_path, {}, None)
