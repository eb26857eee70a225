from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.recipes.schedule import Budget, budget, cosine, duration, exponential


def test_cosine_golden_values() -> None:
    assert cosine(0.0) == 1.0
    assert cosine(0.05, warmup=0.1) == pytest.approx(0.5)
    assert cosine(0.1, warmup=0.1) == pytest.approx(1.0)
    assert cosine(0.55, warmup=0.1) == pytest.approx(0.5)
    assert cosine(1.0, warmup=0.1, floor=0.2) == pytest.approx(0.2)


def test_exponential_decay_is_bignas_and_ends_constant() -> None:
    assert exponential(0.05, warmup=0.1) == pytest.approx(0.5) and exponential(0.1, warmup=0.1) == pytest.approx(1.0)
    assert exponential(24 / 360) == pytest.approx(0.97**10)  # 3 % every 2.4 epochs of 360
    assert exponential(1.0) == pytest.approx(0.97**150)
    assert exponential(0.6, floor=0.05) > 0.05
    assert exponential(0.7, floor=0.05) == exponential(1.0, floor=0.05) == 0.05


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 0.5))
def test_cosine_rises_then_falls_and_stays_in_range(fraction: float, warmup: float, floor: float) -> None:
    value = cosine(fraction, warmup=warmup, floor=floor)
    assert -1e-12 <= value <= 1 + 1e-12
    later = cosine(min(fraction + 0.01, 1.0), warmup=warmup, floor=floor)
    if fraction >= warmup:
        assert later <= value + 1e-12
    elif fraction + 0.01 < warmup:
        assert later >= value


def test_a_budget_in_seconds_always_completes_its_schedule() -> None:
    b = Budget(seconds=10.0)
    assert b.fraction(3, 5.0) == 0.5 and not b.done(3, 9.9) and b.done(3, 12.0) and b.fraction(3, 12.0) == 1.0
    assert b.time_left(3, 4.0) == 6.0 and b.units(3, 4.7) == (4, 10)


def test_a_budget_in_epochs_is_one_in_steps() -> None:
    b = budget(epochs=2.5, steps_per_epoch=10)
    assert b == Budget(steps=25) and b.time_left(5, 1.0) == pytest.approx(4.0) and b.units(5, 1.0) == (5, 25)


@pytest.mark.parametrize(
    "given_", [{}, {"steps": 3, "epochs": 1.0}, {"steps": 0}, {"seconds": -1.0}, {"epochs": math.inf}, {"seconds": math.nan}]
)
def test_bad_budgets_are_refused(given_: dict[str, float]) -> None:
    with pytest.raises(UserError):
        budget(steps_per_epoch=4, **given_)  # type: ignore[arg-type]


def test_durations_for_people() -> None:
    assert [duration(s) for s in (None, 5.2, 200, 3720)] == ["?", "5s", "3m20s", "1h02m"]
