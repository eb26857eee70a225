from __future__ import annotations

import io
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import UserError
from sartor.hardware.wire import MAGIC, MAX_FILES, MAX_HEADER, TASKS, Order, check_order, order, read_order

MEASURE = {"threads": 1, "batch": 1, "seconds": 0.5, "seed": 0, "patience": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "measure": MEASURE,
    "optimise": {},
    "values": {"names": ["a"]},
    "time": {"threads": 1, "seconds": 0.02, "pace": None},
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def reading(data: bytes) -> Order:
    return read_order(io.BytesIO(data).read, len(data))


@given(st.sampled_from(sorted(TASKS)), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_round_trip(task: str, sizes: list[int]) -> None:
    count = {"optimise": 1, "values": 2, "time": 2 * (len(sizes) // 2 or 1)}.get(task, len(sizes))
    given_sizes = (sizes * 2)[:count]
    made = order(task, SETTINGS[task], given_sizes)
    assert reading(made.to_bytes() + bytes(sum(given_sizes))) == made
    assert len(set(made.names)) == count and all("/" not in name and not name.startswith(".") for name in made.names)


@given(anything)
def test_any_other_header_is_refused(header: Any) -> None:
    with pytest.raises(UserError, match="expected"):
        check_order(header)


@given(st.sampled_from(sorted(MEASURE)), anything)
def test_any_other_setting_is_refused(name: str, value: Any) -> None:
    try:
        found = check_order({"task": "measure", "settings": {**MEASURE, name: value}, "sizes": [1]})
    except UserError:
        return
    kept = found.settings[name]
    assert not isinstance(kept, bool) and isinstance(kept, int | float) and 0 <= kept < 2**32


@pytest.mark.parametrize(
    ("task", "settings", "sizes"),
    [
        ("format", {}, [1]),
        ("measure", {}, [1]),
        ("measure", {**MEASURE, "path": "/etc/passwd"}, [1]),
        ("measure", MEASURE, []),
        ("measure", MEASURE, [0]),
        ("measure", MEASURE, [True]),
        ("measure", MEASURE, [1] * (MAX_FILES + 1)),
        ("measure", {**MEASURE, "seconds": float("nan")}, [1]),
        ("measure", {**MEASURE, "seconds": float("inf")}, [1]),
        ("measure", {**MEASURE, "threads": 1.0}, [1]),
        ("optimise", {}, [1, 1]),
        ("values", {"names": "ab"}, [1, 1]),
        ("time", SETTINGS["time"], [1, 1, 1]),
    ],
)
def test_unfit_orders(task: str, settings: dict[str, Any], sizes: list[int]) -> None:
    with pytest.raises(UserError, match="expected"):
        order(task, settings, sizes)


def test_lies_about_lengths_are_found_before_the_files_are_read() -> None:
    start = order("measure", MEASURE, [10]).to_bytes()
    for length in (len(start) + 9, len(start) + 11, len(start), 5):
        with pytest.raises(UserError, match="body of"):
            read_order(io.BytesIO(start + bytes(10)).read, length)
    for body in (b"", b"POST", MAGIC, MAGIC + struct.pack(">I", MAX_HEADER + 1), MAGIC + struct.pack(">I", 0), MAGIC + b"\0\0\0\2ab"):
        with pytest.raises(UserError, match="expected"):
            reading(body)
    deep = b"[" * 100_000
    with pytest.raises(UserError, match="JSON"):
        reading(MAGIC + struct.pack(">I", len(deep)) + deep)
    with pytest.raises(UserError, match="expected"):
        reading(MAGIC + struct.pack(">I", 2) + json.dumps([]).encode())
