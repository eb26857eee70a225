"""Further devices as a user writes them: strict, with one sentence for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.goals import Limit
from sartor.hardware.platforms import Platform, parse_platform

_PIECES = ["pi", "raspberry-pi-4", ":", ",", "=", "weight", "limit", "2", "0", "-1", "30ms", "500us", "ms", "nan", "inf", " ", "@", "1e9"]


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_weight_and_limit_are_read_in_any_order(weight: float, limit_ms: float, turned: bool) -> None:
    settings = [f"weight={weight!r}", f"limit={limit_ms!r}ms"]
    found = parse_platform(f"pixel-3:{','.join(settings[:: -1 if turned else 1])}")
    assert found == Platform("pixel-3", weight, limit_ms) and found.limit == Limit("latency_ms@pixel-3", limit_ms)


def test_what_is_left_out_has_a_default() -> None:
    assert parse_platform(" pixel-3 ") == Platform("pixel-3", 1.0, None) and parse_platform("pixel-3").limit is None
    assert parse_platform("pixel-3:limit=500us").limit_ms == 0.5


@given(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join))
def test_any_text_is_a_platform_or_a_user_error(text: str) -> None:
    try:
        found = parse_platform(text)
    except UserError as error:
        assert str(error).startswith("platform") and repr(text) in str(error)
    else:
        assert found.device and found.weight >= 0 and (found.limit_ms is None or found.limit_ms > 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "DEVICE"),
        (":weight=1", "DEVICE"),
        ("pi:", "DEVICE"),
        ("pi:wieght=2", "did you mean 'weight'"),
        ("pi:weight", "weight=NUMBER"),
        ("pi:weight=", "weight=NUMBER"),
        ("pi:weight=-1", "at least 0"),
        ("pi:weight=nan", "at least 0"),
        ("pi:limit=0", "above 0"),
        ("pi:limit=3s3", "such as 30ms"),
        ("pi:limit=3MB", "such as 30ms"),
        ("pi:limit=1,limit=2", "given twice"),
        ("pi:weight=1,", "the setting ''"),
    ],
)
def test_mistakes(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_platform(text)
