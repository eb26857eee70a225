from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.dppnet import DPPNet
from sartor.searchers.pnas import PNAS
from sartor.searchers.progressive import Progressive
from sartor.trial import Trial

SPACE = Space({f"c{i}": list(range(4)) for i in range(6)})
GOALS = Goals(("accuracy",))
TWO = Goals.parse(["accuracy", "latency"])


def evaluate(arch: Arch) -> dict[str, float]:
    """Additive, the best option of choice i is (i + 1) mod 4; latency grows with every index."""
    gain = sum((v == (i + 1) % 4) + 0.1 * v for i, v in enumerate(arch.values()))
    return {"accuracy": gain / 8, "latency_ms": 1.0 + sum(arch.values())}


def stages(searcher: Progressive, goals: Goals, budget: int, batch: int = 4) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in search(searcher, evaluate, goals=goals, space=SPACE, budget=budget, batch=batch).trials:
        found.setdefault(trial.meta["stage"], []).append(trial)
    return found


@pytest.mark.parametrize("method", [PNAS, DPPNet])
def test_a_stage_grows_one_block_of_its_beam(method: type[Progressive]) -> None:
    for stage, trials in stages(method(SPACE, TWO, beam=5), TWO, 26).items():  # type: ignore[call-arg]  # both take (space, goals)
        assert len(trials) <= 5
        for trial in trials:  # what has not grown yet is at its base
            assert all(v == 0 for v in list(trial.arch.values())[stage + 1 :])


@pytest.mark.parametrize("method", [PNAS, DPPNet])
def test_the_seed_decides_among_children_that_look_alike(method: type[Progressive]) -> None:
    """Not only the order within a stage: with nothing to tell children apart, two seeds evaluate different ones."""

    def chosen(seed: int) -> set[Arch]:
        searcher = method(SPACE, TWO, beam=4)  # type: ignore[call-arg]  # both take (space, goals)
        flat = {"accuracy": 0.5, "latency_ms": 1.0}
        return {t.arch for t in search(searcher, lambda arch: flat, goals=TWO, space=SPACE, budget=20, seed=seed).trials}

    assert chosen(0) == chosen(0) != chosen(1)


def test_the_beam_is_the_best_of_the_stage_before() -> None:
    """Every child of stage s has a parent among the three best of the known children of stage s - 1."""
    found = stages(PNAS(SPACE, GOALS, beam=3), GOALS, 18)
    assert [len(trials) for trials in found.values()] == [3] * 6
    known: set[Arch] = set()
    beam = [SPACE.at(0)]
    for stage, trials in found.items():
        name = f"c{stage}"
        family = {SPACE.canonical({**parent, name: option}) for parent in beam for option in range(4)}
        assert {t.arch for t in trials} <= family
        known |= {t.arch for t in trials}
        beam = sorted(family & known, key=lambda arch: -evaluate(arch)["accuracy"])
        worst = evaluate(beam[:3][-1])["accuracy"]
        beam = [arch for arch in beam if evaluate(arch)["accuracy"] >= worst]  # of equals either may be kept
        assert len(beam) <= 4


def test_the_predictor_picks_the_children() -> None:
    """Three of twelve children a stage: on an additive function the best option of a block is found before most are evaluated."""
    found = stages(PNAS(SPACE, GOALS, beam=3), GOALS, 45)
    best = max(t.metrics["accuracy"] for trials in found.values() for t in trials)
    optimum = evaluate(Arch({f"c{i}": (i + 1) % 4 for i in range(6)}))["accuracy"]
    rng = np.random.default_rng(0)
    random = [max(evaluate(SPACE.sample(rng))["accuracy"] for _ in range(45)) for _ in range(50)]
    assert best >= 0.93 * optimum and best > np.quantile(random, 0.9)


def test_dpp_net_keeps_a_front_where_pnas_keeps_the_most_accurate() -> None:
    reference = np.array([0.0, 20.0])
    volumes = []
    for method in (PNAS, DPPNet):
        trials = [t for found in stages(method(SPACE, TWO, beam=6), TWO, 72).values() for t in found]
        volumes.append(pareto.hypervolume(TWO.table(trials)[0], reference))
        fast = [t for t in trials if t.meta["stage"] == 5 and t.metrics["latency_ms"] <= 4]
        assert bool(fast) == (method is DPPNet)
    assert volumes[1] > volumes[0]


def test_blocks_and_base_are_the_users() -> None:
    searcher = PNAS(SPACE, GOALS, beam=16, blocks=[["c5", "c4"], ["c0"]], base={"c1": 3})
    first = stages(searcher, GOALS, 16)[0]
    assert {(t.arch["c5"], t.arch["c4"]) for t in first} == {(a, b) for a in range(4) for b in range(4)}
    assert {(t.arch["c0"], t.arch["c1"], t.arch["c2"]) for t in first} == {(0, 3, 0)}


@pytest.mark.parametrize("method", [PNAS, DPPNet])
def test_what_has_not_grown_is_a_skip_where_there_is_one(method: type[Progressive]) -> None:
    """So that cells of NAS-Bench-201 connect their input to their output from the first stage on, and can be told apart."""
    from sartor.benchmarks.nasbench201 import SPACE as CELLS
    from sartor.benchmarks.nasbench201 import connected, index_of

    searcher = method(CELLS, GOALS, beam=8)  # type: ignore[call-arg]  # both take (space, goals)
    found = search(searcher, lambda arch: {"accuracy": 0.5}, goals=GOALS, space=CELLS, budget=13).trials
    assert all(connected()[index_of(t.arch)] for t in found)
    assert {tuple(t.arch.values())[2:] for t in found} == {(CELLS.option("edge01", "skip_connect"),) * 4}


def test_a_switched_on_choice_grows_after_its_parent() -> None:
    space = Space({"k2": [3, 5, 7], "depth": [1, 2]}, {"k2": {"depth": [2]}})
    trials = search(PNAS(space, GOALS, beam=9), evaluate, goals=GOALS, space=space, budget=4).trials
    assert [t.meta["stage"] for t in trials] == [0, 0, 1, 1]
    assert {space.labels(t.arch)["depth"] for t in trials[:2]} == {1, 2}


def test_limits_are_predicted_too() -> None:
    goals = Goals.parse(["accuracy"], ["latency=7ms"])
    found = stages(PNAS(SPACE, goals, beam=4), goals, 60)
    late = [t for stage, trials in found.items() if stage >= 6 for t in trials]
    assert len(late) > 10 and np.mean([goals.feasible(t.metrics) for t in late]) > 0.6


@pytest.mark.parametrize(
    "settings",
    [
        {"beam": 0},
        {"blocks": [["c9"]]},
        {"blocks": [["c0"], ["c0"]]},
        {"blocks": []},
        {"blocks": [list(SPACE.choices)]},
        {"base": {"c0": 9}},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"pnas|option"):
        PNAS(SPACE, GOALS, **settings)
