"""A result of a device that was not at hand says so, wherever its figures are shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sartor.report.html import page
from sartor.report.promises import MODELLED, modelled
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
