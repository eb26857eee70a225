"""The four ways of choosing keep to their rules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sartor import pareto
from sartor.report.decisions import ACCURACY_FLOOR, candidates, decisions

Result = dict[str, Any]


def picks(result: Result) -> dict[str, list[str]]:
    return {d.key: [p.name for p in d.ranking] for d in decisions(result)}


def test_the_winners(result: Result) -> None:
    found = picks(result)
    assert {key: names[0] for key, names in found.items()} == {
        "real-time": "s00",
        "battery-size": "s00",
        "quality": "s05",
        "balanced": "s02",
    }
    assert all(sorted(names) == [f"s0{i}" for i in range(6)] for names in found.values())


def test_speed_is_not_bought_below_the_floor(result: Result) -> None:
    result["models"][0]["metrics"]["accuracy"] = ACCURACY_FLOOR * 0.9833 - 1e-6
    found = picks(result)
    assert found["real-time"] == ["s01", "s02", "s03", "s04", "s05", "s00"]
    assert found["battery-size"][0] == "s01"


def test_the_tail_decides_real_time(result: Result) -> None:
    result["models"][0]["latency"]["p90"] = 0.3
    assert picks(result)["real-time"][0] == "s01"


def test_no_network_wins_by_a_cost_that_was_not_measured(result: Result) -> None:
    del result["models"][5]["metrics"]["file_bytes"]
    del result["models"][5]["latency"]["cpu_ms"]
    assert picks(result)["battery-size"][0] == "s00"
    reason = next(d for d in decisions(result) if d.key == "battery-size").ranking[0].reason
    assert "CPU" not in reason
    assert "peak memory" in reason


def test_a_lead_within_sampling_error_is_said(result: Result) -> None:
    quality = next(d for d in decisions(result) if d.key == "quality")
    assert "less than the sampling error of 360 test images" in quality.ranking[0].reason
    result["data"]["test"] = 1_000_000
    assert "sampling error" not in next(d for d in decisions(result) if d.key == "quality").ranking[0].reason


def test_what_breaks_a_limit_or_lies_behind_the_front_is_not_recommended(result: Result) -> None:
    result["limits"][0]["bound"] = 0.2
    assert "s05" not in picks(result)["quality"]
    result["models"][2]["front"] = False
    assert "s02" not in picks(result)["balanced"]
    result["models"].append({**copy.deepcopy(result["models"][4]), "name": "slow"})
    result["models"][-1]["metrics"]["accuracy"] = 0.9
    for model in result["models"]:
        model.pop("front")
    assert [result["models"][i]["name"] for i in candidates(result)] == ["s00", "s01", "s02", "s03", "s04"]


def test_nothing_to_choose() -> None:
    assert picks({}) == {"real-time": [], "battery-size": [], "quality": [], "balanced": []}


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=12, unique=True))
def test_balanced_agrees_with_the_knee(points: list[tuple[int, int]]) -> None:
    models = [{"name": str(i), "metrics": {"accuracy": a / 100, "latency_ms": t / 10}} for i, (a, t) in enumerate(points)]
    F = np.array([[-m["metrics"]["accuracy"], m["metrics"]["latency_ms"]] for m in models])
    knee = pareto.knee(F)
    front = F[pareto.front(F)]
    span = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), 1.0)
    scaled = ((F - front.min(axis=0)) / span).sum(axis=1)
    chosen = int(picks({"models": models})["balanced"][0])
    assert knee is not None
    assert abs(scaled[chosen] - scaled[knee]) < 1e-9  # the same depth; of equally deep points either may come first
