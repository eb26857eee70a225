"""Figures derived from a result: who won, what a step costs, how well it was predicted, how the front grew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor import pareto
from sartor.report.analysis import beaten_by, comparison, exchanges, hypervolume_curve, prediction_words, predictions

Result = dict[str, Any]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.14, "won"), (0.86, "lost"), (1.004, "level"), (0.996, "level"), (None, "unmeasured")])
def test_the_verdict_is_honest(result: Result, ratio: float | None, verdict: str) -> None:
    result["comparison"].update(ratio=ratio, hypervolume={})
    found = comparison(result)
    assert found.verdict == verdict
    assert ("The search won" in found.words) == (verdict == "won")
    assert ("14.0 % less hypervolume" in found.words) == (verdict == "lost")


def test_speed_at_the_ladders_best(result: Result) -> None:
    assert "(97.78\u00a0%), the fastest searched network that reaches it is 3.59 times as fast" in comparison(result).words
    result["comparison"]["speedup_at_ladder_best"] = 0.8
    assert "slower, at 0.800 times the speed" in comparison(result).words
    result["comparison"]["speedup_at_ladder_best"] = None
    assert "No searched network reaches" in comparison(result).words


def test_a_missing_ratio_is_worked_out(result: Result) -> None:
    del result["comparison"]["ratio"]
    assert comparison(result).ratio == pytest.approx(0.0431 / 0.0378)
    result["comparison"]["hypervolume"]["ladder"] = 0.0
    assert comparison(result).verdict == "unmeasured"


def test_beaten_by(result: Result) -> None:
    large = result["baselines"][3]
    assert beaten_by(large, result) == ["s03", "s04", "s05"]
    large["metrics"]["accuracy"] = 0.999
    assert beaten_by(large, result) == []
    assert beaten_by({"name": "x"}, result) is None


def test_trade_offs_are_normalised_between_neighbours() -> None:
    rows = [("a", 0.8, 1.0), ("b", 0.9, 2.0), ("dominated", 0.85, 3.0), ("c", 0.99, 3.0)]
    models = [{"name": n, "metrics": {"accuracy": a, "latency_ms": t}} for n, a, t in reversed(rows)]
    steps = exchanges({"models": models})
    assert [(s.a, s.b) for s in steps] == [("a", "b"), ("b", "c")]
    assert [s.rate for s in steps] == pytest.approx([0.125 / 1.0, 0.1 / 0.5])
    assert exchanges({"models": models[:1]}) == []


def test_predictions_beside_measurements(result: Result) -> None:
    found = [p for p in predictions(result) if p.metric == "latency_ms"]
    assert len(found) == 11
    assert all(p.error == pytest.approx(0.06) for p in found)
    assert prediction_words(found).replace("\u00a0", " ") == (
        "mean absolute relative error 6.0 % over 11 networks, bias +6.0 % and rank agreement (Kendall τ) 1.00"
    )
    assert prediction_words([]) == "not measured"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=2, max_size=40))
def test_the_curve_is_the_hypervolume_of_what_came_before(points: list[tuple[float, float]]) -> None:
    trials = [{"metrics": {"accuracy": a, "latency_ms": t}, "status": "complete"} for a, t in points]
    F = np.array([[-a, t] for a, t in points])
    total = pareto.hypervolume(F, F.max(axis=0))
    curve = hypervolume_curve({}, trials)
    if total <= 0:
        assert curve is None
        return
    assert curve is not None
    assert curve.trials == list(range(1, len(points) + 1))
    assert curve.share == pytest.approx([pareto.hypervolume(F[:n], F.max(axis=0)) / total for n in curve.trials], abs=1e-9)


def test_failed_and_forbidden_trials_gain_nothing(trials: list[dict[str, Any]]) -> None:
    plain = hypervolume_curve({}, trials)
    assert plain is not None
    wonder = {"status": "failed", "metrics": {"accuracy": 1.0, "latency_ms": 0.001}}
    extended = hypervolume_curve({}, [*trials, wonder], points=1000)
    assert extended is not None
    assert extended.share[-1] == extended.share[-2]
    # A limit that every trial keeps but one: the curve is that of the others.
    forbidden = {**wonder, "status": "complete"}
    limited = {"limits": [{"metric": "accuracy", "bound": 0.5, "statistic": "p50"}, {"metric": "latency_ms", "bound": 1.0}]}
    assert hypervolume_curve(limited, trials) == plain
    forbidden["metrics"] = {"accuracy": 0.4, "latency_ms": 0.001}
    again = hypervolume_curve(limited, [*trials, forbidden], points=1000)
    assert again is not None
    assert again.share[-1] == again.share[-2]
    assert hypervolume_curve({}, None) is None
