from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.recipes.stops import SKIPS, any_of, offers_skips, rising_eigenvalue, skips_of, stable_ranking, too_many_skips
from sartor.recipes.trajectory import Snapshot

OPS = ("none", "skip_connect", "conv")
SPACE = Space({"normal.a": OPS, "normal.b": OPS, "reduce.a": OPS})
LEARNED = Space(dict.fromkeys(SPACE.choices, ("conv_1", "conv_2", "conv_3")))
SKIP, CONV = OPS.index("skip_connect"), OPS.index("conv")


def epoch(number: int, a: int = CONV, b: int = CONV, r: int = CONV, *, eigenvalue: float | None = None, searching: bool = True) -> Snapshot:
    arch = Arch({"normal.a": a, "normal.b": b, "reduce.a": r})
    strengths = {name: {i: 0.8 if i == arch[name] else 0.1 for i in range(3)} for name in SPACE.choices}
    return Snapshot(number, 10 * number, number / 10, arch, strengths, 1.0, 0.5, 1.1 if searching else None, 0.5, eigenvalue)


def test_two_skips_in_a_normal_cell_end_the_search_at_the_epoch_before() -> None:
    stop = too_many_skips(SPACE, 2, among=lambda name: name.startswith("normal"))
    healthy = [epoch(1), epoch(2, a=SKIP), epoch(3, a=SKIP, r=SKIP)]
    assert all(stop(healthy[:n]) is None for n in (1, 2, 3))
    verdict = stop([*healthy, epoch(4, a=SKIP, b=SKIP)])
    assert verdict is not None and verdict.epoch == 3
    assert "normal.a" in verdict.reason and "normal.b" in verdict.reason


def test_skips_of_the_initial_parameters_do_not_count() -> None:
    stop = too_many_skips(SPACE, 2)
    assert stop([epoch(1, a=SKIP, b=SKIP, searching=False)]) is None
    assert stop([epoch(1, a=SKIP, b=SKIP)]) is None  # as it began: nothing has collapsed yet
    assert stop([epoch(1, searching=False), epoch(2, a=SKIP, b=SKIP)]) is None
    verdict = stop([epoch(1, a=SKIP, b=SKIP), epoch(2), epoch(3, a=SKIP, b=SKIP)])
    assert verdict is not None and verdict.epoch == 2


@pytest.mark.parametrize("label", sorted(SKIPS))
def test_a_skip_connection_is_known_by_each_of_its_labels(label: str) -> None:
    """`nasnet` calls it `identity`."""
    ops = ("none", label, "conv")
    space = Space({"normal.a": ops, "normal.b": ops, "reduce.a": ops})
    assert offers_skips(space) and skips_of(space, epoch(1, a=SKIP, r=SKIP).arch) == ["normal.a", "reduce.a"]
    verdict = too_many_skips(space, 2)([epoch(1, a=SKIP), epoch(2, a=SKIP, b=SKIP)])
    assert verdict is not None and verdict.epoch == 1
    assert stable_ranking(space, 1)([epoch(1), epoch(2, a=SKIP)]) is not None  # a skip connection has no rank
    assert skips_of(space, epoch(1, a=SKIP).arch, skips={"conv"}) == ["normal.b", "reduce.a"]


def test_a_space_without_skips_is_refused() -> None:
    held = SPACE.restrict({name: ["none", "conv"] for name in SPACE.choices})
    for space in (Space({"a": ("x", "y")}), held, Space({"block": ("conv", "skip"), "stage": ([1, 2], [3])})):
        assert not offers_skips(space)
        with pytest.raises(UserError, match="'identity' or 'skip_connect'"):
            too_many_skips(space)


@pytest.mark.parametrize(
    ("stop", "field"),
    [
        (lambda: too_many_skips(SPACE, 0), "most"),
        (lambda: stable_ranking(SPACE, 0), "epochs"),
        (lambda: stable_ranking(SPACE, 2.5), "epochs"),
        (lambda: rising_eigenvalue(window=0), "window"),
        (lambda: rising_eigenvalue(0.0), "ratio"),
        (lambda: rising_eigenvalue(1.5), "ratio"),
    ],
)
def test_settings_without_a_meaning_are_refused(stop: Callable[[], object], field: str) -> None:
    with pytest.raises(UserError, match=rf": {field} must be"):
        stop()


def test_a_ranking_that_stays_ends_the_search() -> None:
    stop = stable_ranking(LEARNED, 3)
    same = [epoch(n) for n in range(1, 5)]
    assert stop(same[:3]) is None
    verdict = stop(same)
    assert verdict is not None and verdict.epoch == 4
    assert stop([epoch(1), epoch(2, a=SKIP), epoch(3), epoch(4)]) is None
    assert stable_ranking(SPACE, 3)([epoch(1), epoch(2, a=SKIP), epoch(3), epoch(4)]) is not None  # among operations with weights it stayed
    assert stop([*(epoch(n, searching=False) for n in (1, 2)), epoch(3), epoch(4)]) is None


def test_a_rising_eigenvalue_returns_to_before_it_rose() -> None:
    """Zela et al. 2020: stop where mean(i - k) / mean(i) < 0.75; means over k = 5 epochs."""
    stop = rising_eigenvalue(0.75, 5)
    flat = [epoch(n, eigenvalue=0.3) for n in range(1, 10)]
    assert all(stop(flat[:n]) is None for n in range(1, 10))
    risen = [*flat, *(epoch(9 + n, eigenvalue=0.3 + 0.2 * n) for n in range(1, 4))]
    # means around epochs 10 and 5: (0.3 + 0.3 + 0.5 + 0.7 + 0.9) / 5 = 0.54, 0.3; 0.3 / 0.54 = 0.556
    assert stop(risen) is None, "epoch 5 is too early to return to"
    assert (verdict := rising_eigenvalue(0.75, 5, first=5)(risen)) is not None and verdict.epoch == 5
    assert rising_eigenvalue(0.75, 5, first=6)(risen) is None and rising_eigenvalue(0.75, 5, first=5)(risen[2:]) == verdict
    assert rising_eigenvalue(0.75, 5, first=5)([replace(e, eigenvalue=-0.3) if e.epoch < 9 else e for e in risen]) is None
    assert rising_eigenvalue(0.55, 5, first=5)(risen) is None
    later = [epoch(n, eigenvalue=0.3 if n < 20 else 1.0) for n in range(1, 21)]  # the mean around 18 is 0.44, around 13 0.3
    assert all(stop(later[:n]) is None for n in range(20))
    verdict = stop(later)
    assert verdict is not None and verdict.epoch == 13
    risen = later
    assert any_of(stable_ranking(LEARNED, 50), stop)(risen) == verdict
    assert any_of(stable_ranking(LEARNED, 50))(risen) is None
