"""Reading a result with holes, and writing its numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.report.values import accuracy_error, duration, file_safe, joined, metric_value, number, percent, show, significant


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.9812, "98.12 %"),
        ("latency_ms", 0.0412345, "0.0412 ms"),
        ("peak_bytes", 16384, "16.0 KB"),  # 1 KB = 1024 bytes, as sartor.goals reads limits
        ("params", 1_234_567, "1,235 k"),
        ("latency_ms", 0.0, "0 ms"),
        ("unheard_of", 2.5, "2.50"),
        ("latency_ms", None, "not measured"),
    ],
)
def test_show(metric: str, value: float | None, text: str) -> None:
    assert show(metric, value).replace("\u00a0", " ") == text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_significant_is_within_half_a_unit_of_the_third_digit(value: float) -> None:
    written = float(significant(value).replace(",", ""))
    assert abs(written - value) <= 0.5 * 10.0 ** (math.floor(math.log10(value)) - 2) * (1 + 1e-9) or (
        value >= 100 and abs(written - value) <= 0.5
    )


@pytest.mark.parametrize("hole", [None, math.nan, math.inf, True, "3", [3], {}])
def test_a_hole_is_no_number(hole: object) -> None:
    assert number(hole) is None
    assert metric_value({"metrics": {"params": hole}}, "params") is None
    assert metric_value({"metrics": hole}, "params") is None


def test_latency_is_read_in_the_statistic_asked_for() -> None:
    model = {"metrics": {"latency_ms": 1.0, "latency_ms_p10": 0.9}, "latency": {"p50": 1.1, "p90": 1.5}}
    assert metric_value(model, "latency_ms") == 1.1
    assert metric_value(model, "latency_ms", "p90") == metric_value(model, "latency_ms_p90") == 1.5
    assert metric_value(model, "latency_ms", "p10") == 0.9
    assert metric_value({"metrics": {"latency_ms": 1.0}}, "latency_ms") == 1.0
    # A median must never stand in for a tail that was not measured.
    assert metric_value({"metrics": {"latency_ms": 1.0}}, "latency_ms", "p90") is None


def test_accuracy_error_is_wilsons() -> None:
    # Wilson's interval for 81 of 263 is 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 1998, table I, method 3).
    assert accuracy_error(81 / 263, 263) == pytest.approx((0.3662 - 0.2553) / 2, abs=1e-4)
    assert accuracy_error(0.9, None) is None


def test_words() -> None:
    assert [joined([]), joined(["a"]), joined("abc")] == ["", "a", "a, b and c"]
    assert [duration(s) for s in (0.44, 59.9, 200, 7500, None)] == ["0.4 s", "59.9 s", "3 min 20 s", "2 h 05 min", "not measured"]
    assert percent(-0.031).replace("\u00a0", " ") == "−3.1 %"


@given(st.text())
def test_file_safe_names_stay_in_their_folder(name: str) -> None:
    safe = file_safe(name)
    assert safe
    assert not safe.startswith(".")
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
