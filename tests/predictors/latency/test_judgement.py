from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware.calibrate import quality
from sartor.predictors.latency.judgement import judge, judge_quality, wilson

MEASURED = np.geomspace(1, 20, 40)


def off(share: float) -> np.ndarray:
    """Predictions of which `share` are off by half."""
    return MEASURED * np.where(np.arange(40) < share * 40, 1.5, 1.01)


def test_a_good_model_is_called_good() -> None:
    found = judge(off(0.0), MEASURED, low_ms=0.9 * MEASURED, high_ms=1.1 * MEASURED)
    assert found.good and found.within_10 == 1 and found.kendall_tau == 1 and found.coverage == 1 and found.count == 40
    assert found.sentence().startswith("good: 100% of 40") and not found.reasons


@pytest.mark.parametrize(
    ("predicted", "grade", "reason"),
    [
        (off(0.3), "fair", "within 10 %"),
        (off(0.7), "poor", "within 10 %"),
        (np.full(40, 5.0), "poor", "Kendall"),
        (MEASURED[::-1], "poor", "Kendall"),
    ],
)
def test_a_bad_model_is_not(predicted: np.ndarray, grade: str, reason: str) -> None:
    found = judge(predicted, MEASURED)
    assert found.grade == grade and not found.good and reason in found.sentence()


def test_a_constant_ranks_nothing() -> None:
    assert judge(np.full(40, 5.0), MEASURED).kendall_tau == 0


def test_intervals_that_do_not_hold_spoil_the_grade() -> None:
    found = judge(off(0.0), MEASURED, low_ms=1.02 * MEASURED, high_ms=1.1 * MEASURED)
    assert found.grade == "fair" and found.coverage == 0 and "intervals" in found.sentence()


def test_few_networks_prove_nothing() -> None:
    assert judge(MEASURED[:9], MEASURED[:9]).grade == "unknown"
    lucky = MEASURED[:10] * np.where(np.arange(10) > 7, 1.5, 1.0)
    found = judge(lucky, MEASURED[:10])
    assert found.within_10 == 0.8 and found.grade == "fair" and "may be as low as 49%" in found.sentence()


def test_a_model_need_not_be_better_than_a_second_measurement() -> None:
    noisy = off(0.25)
    assert judge(noisy, MEASURED).grade == "fair"
    assert judge(noisy, MEASURED, measured_again_ms=off(0.25)).grade == "good"
    assert "too noisy" in judge(off(0.7), MEASURED, measured_again_ms=off(0.7)).sentence()


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_shrinks(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson(hits / count, count)
    assert 0 <= low <= hits / count <= high <= 1
    wider, narrower = wilson(0.8, 20), wilson(0.8, 2000)
    assert wider[0] < narrower[0] < 0.8 < narrower[1] < wider[1]


def test_wilson_of_eight_in_ten() -> None:
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)


def test_figures_computed_elsewhere_are_judged_alike() -> None:
    for predicted in (off(0.0), off(0.3), np.full(40, 5.0)):
        assert judge_quality(quality(predicted, MEASURED)) == judge(predicted, MEASURED)


def test_it_goes_to_json() -> None:
    assert json.loads(json.dumps(judge(off(0.3), MEASURED).to_json()))["grade"] == "fair"


def test_numbers_that_are_no_latencies_are_refused() -> None:
    with pytest.raises(UserError, match="one prediction for each"):
        judge(MEASURED[:3], MEASURED)
    with pytest.raises(UserError, match="positive latencies"):
        judge(MEASURED, np.zeros(40))
