"""A result of a device that was not at hand says so, wherever its figures are shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sartor.report.html import page
from sartor.report.promises import MODELLED, checks, closest, limit_words, modelled, modelled_metric
from sartor.report.terminal import console, print_result


def _printed(result: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_result(result, Path("run"), console(stream))
    return stream.getvalue()


def test_modelled_figures_are_marked_and_measured_ones_are_not(result: dict[str, Any]) -> None:
    assert not modelled(result) and "not at hand" not in page(result) + _printed(result)
    result["device"] = {**result["device"], "measured": False}
    assert modelled(result)
    assert MODELLED in page(result) and "modelled, not measured" in page(result)
    assert "Not measured:" in _printed(result) and "measured on the exported files" not in _printed(result)


def _with_devices(result: dict[str, Any]) -> dict[str, Any]:
    """The same run with a board that was measured and a described one, which is slower and has a limit that the slowest network breaks."""
    result["platforms"] = [
        {"name": "board", "cpu": "Cortex", "measured": True, "weight": 1.0, "limit_ms": None},
        {"name": "pixel-3", "cpu": "Kryo", "measured": False, "weight": 2.0, "limit_ms": 0.5},
    ]
    for model in (*result["models"], *result["baselines"]):
        own = model["metrics"]["latency_ms"]
        there = {"board": (1.5 * own, 1.6 * own, 900, True), "pixel-3": (2 * own, 2 * own, 0, False)}
        model["platforms"] = {
            name: {"p50": p50, "low": p50, "high": high, "runs": runs, "measured": measured}
            for name, (p50, high, runs, measured) in there.items()
        }
        model["metrics"] |= {f"latency_ms@{name}": p50 for name, (p50, *_) in there.items()}
        model["metrics"] |= {"latency_ms_p90@board": 1.7 * own, "weighted_latency_ms": 6.5 * own, "weighted_latency_ms_quiet": 6.4 * own}
    result["limits"] += [{"metric": "latency_ms@pixel-3", "bound": 0.5, "statistic": "p50"}]
    result["limits"] += [{"metric": "latency_ms@board", "bound": 0.42, "statistic": "p50"}]
    return result


def test_every_devices_latency_is_told_and_only_the_described_one_is_marked(result: dict[str, Any]) -> None:
    found = _with_devices(result)
    shown, text = _printed(found), page(found)
    assert not modelled(found) and "not at hand" not in text + shown
    assert "board ms (measured)" in shown and "pixel-3 ms (modelled)" in shown and "weighted ms" in shown
    assert "Latency on pixel-3" in text and "Further device pixel-3" in text and "Kryo; modelled, not measured; weight 2" in text
    assert (
        "latency_ms_p90@board" not in text.partition('id="result"')[0]
        and "weighted_latency_ms_quiet" not in text.partition('id="result"')[0]
    )
    assert {m for m in ("latency_ms", "latency_ms@board", "latency_ms@pixel-3", "weighted_latency_ms") if modelled_metric(found, m)} == {
        "latency_ms@pixel-3", "weighted_latency_ms",
    }  # fmt: skip


def test_a_promise_on_one_device_is_held_against_its_own_latency(result: dict[str, Any]) -> None:
    found = _with_devices(result)
    slowest, verdicts = found["models"][-1], {}
    for model in found["models"]:
        verdicts[model["name"]] = {one.metric: one.verdict for one in checks(model, found)}
    assert verdicts[slowest["name"]]["latency_ms@pixel-3"] == "broken"  # 0.54 ms
    assert verdicts[slowest["name"]]["latency_ms@board"] == "narrow"  # 0.405 ms, whose interval reaches to 0.432
    assert set(verdicts["s00"].values()) == {"kept"}
    found["models"] = [slowest]
    assert "Latency on pixel-3 (median) at most" in str(limit_words("latency_ms@pixel-3", 0.5, "p50"))
    near = closest(found)
    assert near is not None and "0.540\u00a0ms modelled" in near
