"""What is to be run, and the file that remembers it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sartor.arch import Space
from sartor.bench.cases import Case, Group, grid, parse_strategy, spell_strategy
from sartor.bench.code import code_of
from sartor.bench.results import Results, Row
from sartor.bench.runner import run_case
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers import SEARCHERS, RandomSearch
from sartor.searchers.constraints import Constrained

CASE = Case("random", Group("nb201-cifar10", "raspi4", "oracle"), 3, 5)
ROW = Row(CASE, (5, 1, 9, 7, 2), (None, 0.5, None, 1.0, None), 2.0)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("random", "random", {}),
        (" nsga2:population=20, mutation_rate=null", "nsga2", {"population": 20, "mutation_rate": None}),
        ("bayes:acquisition=ei,scale=0.5,whole=true", "bayes", {"acquisition": "ei", "scale": 0.5, "whole": True}),
        (
            'genetic:fitness={"accuracy": 1, "latency": [2, 3]},elite=0',
            "genetic",
            {"fitness": {"accuracy": 1, "latency": [2, 3]}, "elite": 0},
        ),
        ('pnas:blocks=[["edge01","a,b"],["edge03"]], base={}', "pnas", {"blocks": [["edge01", "a,b"], ["edge03"]], "base": {}}),
    ],
)
def test_strategies_and_their_settings(text: str, name: str, settings: dict[str, object]) -> None:
    assert parse_strategy(text) == (name, settings)
    assert parse_strategy(spell_strategy(name, settings)) == (name, settings)


def test_one_spelling_whatever_the_order() -> None:
    a, b = (spell_strategy(*parse_strategy(text)) for text in ("x:b=1,a=2.0", "x: a=2.0, b=1"))
    assert a == b == "x:a=2.0,b=1"


def test_grid_has_every_combination_once_and_seeds_outermost() -> None:
    cases = grid(["random", "random", "nsga2:population=4"], ["nb201-cifar10", "nb201-cifar100"], ["raspi4", None], seeds=3, budget=7)
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 3
    assert [case.seed for case in cases] == sorted(case.seed for case in cases)
    assert {case.budget for case in cases} == {7}


@pytest.mark.parametrize(
    ("arguments", "more", "said"),
    [
        ((["rndom"], ["nb201-cifar10"]), {}, "did you mean 'random'"),
        ((["nsga2:populatoin=3"], ["nb201-cifar10"]), {}, "no setting 'populatoin'"),
        ((["nsga2:population"], ["nb201-cifar10"]), {}, "SETTING=VALUE"),
        ((["nsga2:population=1"], ["nb201-cifar10"]), {}, "at least 2"),
        ((["nsga2:population=few"], ["nb201-cifar10"]), {}, "nsga2: population must be a whole number, got 'few'"),
        ((["bayes:memory=20.5"], ["nb201-cifar10"]), {}, "bayes: memory must be a whole number, got 20.5"),
        ((["bayes:initial=true"], ["nb201-cifar10"]), {}, "bayes: initial must be a whole number, got True"),
        ((["reinforce:learning_rate=fast"], ["nb201-cifar10"]), {}, "learning_rate must be a number, got 'fast'"),
        ((["nsga2:initial=abc"], ["nb201-cifar10"]), {}, "strategy 'nsga2:initial=abc'"),
        ((["genetic:fitness=accuracy"], ["nb201-cifar10"]), {}, "strategy 'genetic:fitness=accuracy'"),
        ((["pnas:base=5"], ["nb201-cifar10"]), {}, "strategy 'pnas:base=5'"),
        ((["bayes:scale=scores"], ["nb201-cifar10"], [None, "raspi4"]), {}, "of a single objective"),
        ((["random"], ["nb201"]), {}, "unknown task"),
        ((["random"], []), {}, "at least one task"),
        ((["random"], ["nb201-imagenet16"], ["raspi4"]), {}, "32x32"),
        ((["random"], ["nb201-cifar10"]), {"limits": ["latency=2ms"]}, "give a device"),
        ((["random"], ["nb201-cifar10"]), {"seeds": 0}, "seeds: .* but got 0"),
        ((["random"], ["nb201-cifar10"]), {"seeds": -3}, "seeds: .* but got -3"),
        ((["random"], ["nb201-cifar10"]), {"budget": 0}, "budget: .* but got 0"),
        ((["random"], ["nb201-cifar10"]), {"batch": -1}, "batch: .* but got -1"),
    ],
)
def test_mistakes_are_said_before_anything_runs(arguments: tuple[list[str], ...], more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid(*arguments, **more)  # type: ignore[arg-type]


def test_limits_have_one_spelling() -> None:
    one, other = (
        grid(["random"], ["nb201-cifar10"], ["raspi4"], seeds=1, limits=limits)
        for limits in (["latency=20ms", "params<=1M"], ["params<=1000K", "latency_ms<=20", "latency_ms<=0.02s"])
    )
    assert one == other and str(one[0].group) == "nb201-cifar10 on raspi4 with latency_ms<=20, params<=1000000"


def test_strategies_of_other_programs_need_rows() -> None:
    assert [case.strategy for case in grid(["tpe"], ["nb201-cifar10"], seeds=1, known={"tpe"})] == ["tpe"]
    with pytest.raises(UserError, match="unknown searcher 'tpe'"):
        grid(["tpe"], ["nb201-cifar10"], seeds=1)


def test_rows_come_back(tmp_path: Path) -> None:
    with Results(tmp_path / "deep" / "results.sqlite") as results:
        results.add(ROW)
    with Results(tmp_path / "deep" / "results.sqlite") as results:
        assert results.find(CASE) == ROW
        assert results.strategies() == ["random"]


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "nsga2"},
        {"seed": 4},
        {"batch": 2},
        {"budget": 6},
        {"group": Group("nb201-cifar10", "raspi4", "realistic")},
        {"group": Group("nb201-cifar10", None, "oracle")},
        {"group": Group("nb201-cifar10", "raspi4", "oracle", ("latency_ms<=20",))},
        {"group": Group("nb201-cifar100", "raspi4", "oracle")},
    ],
)
def test_another_case_is_not_found(change: dict[str, object], tmp_path: Path) -> None:
    with Results(tmp_path / "results.sqlite") as results:
        results.add(ROW)
        assert results.find(replace(CASE, **change)) is None  # type: ignore[arg-type]


def test_a_longer_run_serves_a_smaller_budget(tmp_path: Path) -> None:
    with Results(tmp_path / "results.sqlite") as results:
        results.add(ROW)
        cut = results.find(replace(CASE, budget=2))
        assert cut is not None
        assert (cut.rows, cut.fidelities, cut.case.budget) == ((5, 1), (None, 0.5), 2)
        assert cut.seconds == pytest.approx(0.8)


def test_errors_are_kept_apart(tmp_path: Path) -> None:
    with Results(tmp_path / "results.sqlite") as results:
        results.add(replace(ROW, error="ValueError: no"))
        assert results.find(CASE) is None
        assert [row.error for row in results.errors([CASE])] == ["ValueError: no"]
        results.add(ROW)
        assert results.errors([CASE]) == [] and results.select([CASE]) == [ROW]


def test_rows_of_other_code_are_not_found(tmp_path: Path) -> None:
    with Results(tmp_path / "results.sqlite", lambda strategy: "old") as results:
        results.add(ROW)
        assert results.find(CASE) == ROW
    for code, found in (("new", None), ("old", ROW), ("", ROW)):  # no digest: of another program, say
        with Results(tmp_path / "results.sqlite", lambda strategy, code=code: code) as results:
            assert results.find(CASE) == found and results.select([CASE]) == ([] if found is None else [ROW])


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="another SQLite file"):
        Results(path)
    path.write_text("text, and quite a lot of it " * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Results(path)


def test_a_strategy_says_in_which_form_it_keeps_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its searcher gets such goals; what it found is judged by the limits as they are."""
    given: list[Any] = []

    class Spy(RandomSearch):
        def __init__(self, space: Space, goals: Goals) -> None:
            given.append(goals)
            super().__init__(space, goals)

    monkeypatch.setitem(SEARCHERS, "spy", Spy)
    texts = ["spy", "spy:limits=soft", 'spy:limits={"form": "penalty", "weight": 10}']
    cases = grid(texts, ["nb201-cifar10"], ["raspi4"], seeds=1, budget=3, limits=["latency=20ms"])
    rows = [run_case(case) for case in cases]
    assert [row.error for row in rows] == [None] * 3 and rows[0].rows == rows[1].rows == rows[2].rows
    for goals in (given[:3], given[3:]):  # as checked before, and as run
        assert type(goals[0]) is Goals
        assert [(type(g), g.form, g.weight) for g in goals[1:]] == [(Constrained, "soft", 1.0), (Constrained, "penalty", 10)]
        assert len({g.limits for g in goals}) == 1
    assert parse_strategy(cases[2].strategy)[1] == {"limits": {"form": "penalty", "weight": 10}}
    assert code_of("evolution") != code_of("evolution:limits=soft") == code_of("evolution:limits=hinge")


@pytest.mark.parametrize(
    ("text", "limits", "said"),
    [
        ("random:limits=mild", ["latency=20ms"], "unknown form of constraint 'mild'"),
        ("random:limits=penalty", [], "no limits to keep"),
        ('random:limits={"shape": 1}', ["latency=20ms"], "another form than the strategy takes"),
        ("random:limits=5", ["latency=20ms"], "another form than the strategy takes"),
    ],
)
def test_forms_that_make_no_sense_are_said(text: str, limits: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid([text], ["nb201-cifar10"], ["raspi4"], seeds=1, limits=limits)
