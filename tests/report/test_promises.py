"""Whether a promise is told as it was measured."""

from __future__ import annotations

from typing import Any

import pytest

from sartor.report.promises import asked, check, closest, delivered, keeps_all, overall, tightest

Result = dict[str, Any]


def words(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "high", "verdict", "slack"),
    [(1.0, 1.1, "kept", 0.5), (1.95, 2.05, "narrow", 0.025), (2.0, 2.0, "kept", 0.0), (2.2, 2.3, "broken", -0.1)],
)
def test_a_latency_limit(value: float, high: float, verdict: str, slack: float) -> None:
    found = check({"name": "s", "latency": {"p50": value, "low": value, "high": high}}, "latency_ms", 2.0, "p50")
    assert (found.verdict, found.value) == (verdict, value)
    assert found.slack == pytest.approx(slack)


def test_a_lower_bound_has_slack_upwards() -> None:
    assert check({"metrics": {"accuracy": 0.99}}, "accuracy", 0.9, "p50").slack == pytest.approx(0.1)
    assert check({"metrics": {"accuracy": 0.89}}, "accuracy", 0.9, "p50").verdict == "broken"


def test_what_was_not_measured_is_not_kept() -> None:
    result = {
        "limits": [{"metric": "latency_ms", "bound": 2.0, "statistic": "p90"}],
        "models": [{"name": "s", "metrics": {"latency_ms": 1.0}}],
    }
    assert not keeps_all(result["models"][0], result)
    assert "not measured" in delivered(result)


def test_overall_is_the_worst_and_tightest_the_nearest() -> None:
    found = [check({"name": str(v), "metrics": {"params": v}}, "params", 100, "p50") for v in (10, 99, 50)]
    assert overall(found) == "kept"
    assert (best := tightest(found)) is not None
    assert best.model == "99"
    assert overall([*found, check({}, "params", 100, "p50")]) == "unmeasured"
    assert overall([*found, check({}, "params", 100, "p50"), check({"metrics": {"params": 101}}, "params", 100, "p50")]) == "broken"


def test_headline(result: Result) -> None:
    assert words(asked(result)) == (
        "Networks for digits (10 classes, 1×8×8 inputs) of highest accuracy and lowest latency on host (int8), "
        "with latency (p90) at most 0.310 ms and peak memory at most 16.0 KB."
    )
    assert (
        words(delivered(result)) == "6 networks, from 94.17 % accuracy at 0.0410 ms to 98.33 % at 0.270 ms. Every network keeps all limits."
    )
    assert closest(result) is None


def test_a_broken_promise_is_said(result: Result) -> None:
    result["limits"][0]["bound"] = 0.2
    assert "5 of 6 keep every limit: a promise is broken." in delivered(result)
    result["limits"][0]["bound"] = 0.04
    assert "0 of 6" in delivered(result)
    assert words(closest(result) or "") == (
        "Closest: s00, which misses latency (p90) at most 0.0400 ms: 0.0459 ms measured (14.8 % beyond the limit)."
    )


def test_a_run_without_networks() -> None:
    assert "before the run stopped" in delivered({"status": "partial"})
    assert delivered({"status": "infeasible", "refused": [{"name": "a"}, {"name": "b"}]}) == (
        "No network was delivered; 2 candidates were refused (reasons below)."
    )
    assert "no limit" in asked({})
