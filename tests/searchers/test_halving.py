from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.halving import ASHA, Hyperband, SuccessiveHalving, fidelities
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list(range(5)) for i in range(5)})
GOALS = Goals(("accuracy",))


def evaluate(arch: Arch, fidelity: float) -> dict[str, float]:
    """Rankings differ between fidelities."""
    noise = int(hashlib.sha256(f"{arch.to_json()}{fidelity}".encode()).hexdigest()[:8], 16) / 2**32
    return {"accuracy": 0.8 * sum(arch.values()) / 20 + 0.2 * noise}


def rungs(trials: list[Trial] | tuple[Trial, ...], bracket: int) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.meta["bracket"] == bracket:
            found.setdefault(trial.meta["rung"], []).append(trial)
    return found


def test_fidelities_are_powers_of_eta_below_the_highest() -> None:
    assert np.allclose(fidelities(1, 81, 3), [1, 3, 9, 27, 81])
    assert np.allclose(fidelities(1 / 9, 1.0, 3), [1 / 9, 1 / 3, 1])
    assert np.allclose(fidelities(0.3, 1.0, 2), [0.5, 1]) and fidelities(1.0, 1.0, 4) == [1.0]


@pytest.mark.parametrize("batch", [1, 7])
def test_one_in_eta_goes_on_and_it_is_the_best(batch: int) -> None:
    searcher = SuccessiveHalving(SPACE, GOALS, initial=20, min_fidelity=1, max_fidelity=9)
    trials = search(searcher, evaluate, goals=GOALS, space=SPACE, budget=56, batch=batch).trials
    for bracket in (0, 1):
        found = rungs(trials, bracket)
        assert [len(found[k]) for k in (0, 1, 2)] == [20, 6, 2]
        for k in (1, 2):
            best = sorted(found[k - 1], key=lambda t: -t.metrics["accuracy"])[: len(found[k])]
            assert {t.arch for t in found[k]} == {t.arch for t in best}
            assert {t.fidelity for t in found[k]} == {3.0**k}
    assert not {t.arch for t in rungs(trials, 0)[0]} & {t.arch for t in rungs(trials, 1)[0]}


def test_hyperbands_brackets_are_those_of_the_papers_table_1() -> None:
    """R = 81, eta = 3: n_i and r_i of Li et al. 2018, table 1."""
    table = {
        0: [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        1: [(34, 3), (11, 9), (3, 27), (1, 81)],
        2: [(15, 9), (5, 27), (1, 81)],
        3: [(8, 27), (2, 81)],
        4: [(5, 81)],
    }
    budget = sum(n for rows in table.values() for n, _ in rows)
    searcher = Hyperband(SPACE, GOALS, min_fidelity=1, max_fidelity=81)
    trials = search(searcher, evaluate, goals=GOALS, space=SPACE, budget=budget + 3, batch=20).trials
    for bracket, rows in table.items():
        found = rungs(trials, bracket)
        assert [(len(found[k]), found[k][0].fidelity) for k in sorted(found)] == rows
    assert [t.meta for t in trials[-3:]] == [{"bracket": 5, "rung": 0}] * 3  # and again from the first


def test_a_rung_waits_for_its_last_trial() -> None:
    searcher = SuccessiveHalving(SPACE, GOALS, initial=6, min_fidelity=1, max_fidelity=3)
    asked = searcher.ask([], [], 10, np.random.default_rng(0))
    done = [Trial(i, p.arch, evaluate(p.arch, 1.0), fidelity=p.fidelity, meta=p.meta) for i, p in enumerate(asked)]
    assert len(asked) == 6 and searcher.ask(done[:5], asked[5:], 3, np.random.default_rng(1)) == []
    assert [p.meta["rung"] for p in searcher.ask(done, [], 3, np.random.default_rng(1))] == [1, 1]


def test_failed_trials_never_go_on() -> None:
    searcher = SuccessiveHalving(SPACE, GOALS, initial=6, min_fidelity=1, max_fidelity=3)
    asked = searcher.ask([], [], 6, np.random.default_rng(0))
    done = [Trial(i, p.arch, {}, status="failed", fidelity=p.fidelity, error="x", meta=p.meta) for i, p in enumerate(asked[:5])]
    done.append(Trial(5, asked[5].arch, {"accuracy": 0.1}, fidelity=1.0, meta=asked[5].meta))
    assert [p.arch for p in searcher.ask(done, [], 3, np.random.default_rng(1))] == [asked[5].arch]
    nothing = [*done[:5], Trial(5, asked[5].arch, {}, status="failed", fidelity=1.0, error="x", meta=asked[5].meta)]
    assert searcher.ask(nothing, [], 1, np.random.default_rng(1))[0].meta == {"bracket": 1, "rung": 0}


def _by_the_book(done: list[Trial], pending: list[Proposal], rungs: int, eta: int) -> tuple[int, set[Arch]]:
    """Algorithm 2 of Li et al. 2020, written down again: the rung to go to and who may go; (0, nobody) for a new one."""
    for k in range(rungs - 2, -1, -1):
        here = sorted((t for t in done if t.meta["rung"] == k), key=lambda t: -t.metrics["accuracy"])
        gone = {t.arch for t in done if t.meta["rung"] == k + 1} | {p.arch for p in pending if p.meta["rung"] == k + 1}
        if left := {t.arch for t in here[: len(here) // eta]} - gone:
            return k + 1, left
    return 0, set()


@pytest.mark.parametrize("workers", [1, 6])
def test_asha_is_algorithm_2_whatever_finishes_first(workers: int) -> None:
    searcher, rng = ASHA(SPACE, GOALS, min_fidelity=1, max_fidelity=9), np.random.default_rng(4)
    done: list[Trial] = []
    pending: list[Proposal] = []
    for step in range(200):
        rung, candidates = _by_the_book(done, pending, 3, 3)
        asked = searcher.ask(done, pending, 1, np.random.default_rng(step))[0]
        assert asked.meta["rung"] == rung and asked.fidelity == 3.0**rung and (rung == 0 or asked.arch in candidates)
        pending.append(asked)
        if len(pending) == workers:
            p = pending.pop(int(rng.integers(workers)))
            done.append(Trial(step, p.arch, evaluate(p.arch, p.fidelity or 0), fidelity=p.fidelity, meta=p.meta))
    counts = np.bincount([t.meta["rung"] for t in done])
    assert counts[0] > 2.5 * counts[1] > 5 * counts[2] > 0


def test_asha_promotes_no_failure_and_no_stranger() -> None:
    done = [Trial(i, SPACE.at(i), {}, status="failed", error="x", fidelity=1.0, meta={"rung": 0}) for i in range(6)]
    done += [Trial(6 + i, SPACE.at(10 + i), {"accuracy": 0.9}) for i in range(6)]  # another searcher's
    asked = ASHA(SPACE, GOALS).ask(done, [], 4, np.random.default_rng(0))
    assert {p.meta["rung"] for p in asked} == {0} and not {p.arch for p in asked} & {t.arch for t in done}


def test_the_front_is_of_the_highest_fidelity() -> None:
    result = search(ASHA(SPACE, GOALS), evaluate, goals=GOALS, space=SPACE, budget=60, batch=4)
    assert {t.fidelity for t in result.front} == {1.0}


@pytest.mark.parametrize(
    "settings", [{"eta": 1}, {"min_fidelity": 0.0}, {"min_fidelity": 2.0}, {"initial": 0}, {"max_fidelity": float("inf")}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="halving"):
        SuccessiveHalving(SPACE, GOALS, **settings)
