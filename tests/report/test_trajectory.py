from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from sartor.report.trajectory import FILE, learning, moved, trajectory_png, write_picture


def epochs() -> list[dict[str, Any]]:
    """Edge b moves, edge a rests; in the last epoch a candidate of b was dropped and c settled."""
    found = []
    for number in range(1, 5):
        strengths = {
            "a": {"skip": 0.5, "conv": 0.5},
            "b": {"skip": 0.2 * number, "conv": 1 - 0.2 * number},
            "c": {"skip": 0.4, "conv": 0.6},
        }
        if number == 4:
            strengths = {"a": strengths["a"], "b": {"skip": 1.0}}
        found.append({"epoch": number, "strengths": strengths, "arch": {"a": "skip", "b": "skip", "c": "conv"}})
    return found


def test_choices_are_ordered_by_how_far_they_moved() -> None:
    assert moved(epochs()) == ["b", "a", "c"]


def test_picture_is_drawn_the_same_twice_and_removed_when_there_is_nothing(tmp_path: Path) -> None:
    assert trajectory_png(epochs()) == trajectory_png(epochs())
    (tmp_path / FILE).write_text(json.dumps({"schema": 1, "strategy": "gdas", "epochs": epochs()}))
    path = write_picture(tmp_path)
    assert path is not None
    with Image.open(path) as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(10**6) or []) > 3
    (tmp_path / FILE).unlink()
    assert write_picture(tmp_path) is None and not path.exists()


def test_page_has_a_section_only_where_a_method_learned_something(tmp_path: Path) -> None:
    assert learning(tmp_path) == ""
    content = {"schema": 1, "strategy": "<gdas>", "epochs": epochs()}
    (tmp_path / FILE).write_text(json.dumps(content))
    page = learning(tmp_path)
    assert "&lt;gdas&gt; searched for 4 epochs" in page and "plots/trajectory.png" in page
    assert "1.000" in page and "settled" in page
    (tmp_path / FILE).write_text("{damaged")
    assert learning(tmp_path) == ""
