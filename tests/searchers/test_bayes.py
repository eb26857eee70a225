from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sartor import pareto
from sartor.arch import Arch, Space
from sartor.cells import CellSpace
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers import NSGA2, RandomSearch, Searcher
from sartor.searchers.bayes import BayesianOptimisation
from sartor.trial import Proposal, Trial

SPACE = Space({f"c{i}": list("abcd") for i in range(6)})
ONE, TWO = Goals.parse(["accuracy"]), Goals.parse(["accuracy", "latency"])
_EFFECT = np.random.default_rng(7).normal(size=(6, 4))
_PAIR = np.random.default_rng(8).normal(size=(5, 4, 4))


def evaluate(arch: Arch) -> dict[str, float]:
    """Additive effects and effects of neighbouring choices; what is accurate tends to be slow."""
    v = list(arch.values())
    score = sum(_EFFECT[i, v[i]] for i in range(6)) + 0.5 * sum(_PAIR[i, v[i], v[i + 1]] for i in range(5))
    return {"accuracy": 1 / (1 + np.exp(-0.4 * score)), "latency_ms": 1.0 + sum(v) + 0.3 * (v[0] == v[3]), "params": 10.0 + v[5] * v[4]}


VALUES = {arch: evaluate(arch) for arch in SPACE}
BEST = max(metrics["accuracy"] for metrics in VALUES.values())


def until_best(searcher: Searcher, seed: int, limit: int = 120) -> int:
    """Evaluations until the optimum of the space."""
    history: list[Trial] = []
    while len(history) < limit:
        (proposal,) = searcher.ask(history, [], 1, np.random.default_rng((seed, len(history))))
        history.append(Trial(len(history), proposal.arch, VALUES[proposal.arch]))
        if history[-1].metrics["accuracy"] == BEST:
            return len(history)
    return limit + 1


@pytest.mark.parametrize(("acquisition", "whole"), [("improvement", 20_000), ("improvement", 0), ("thompson", 0)])
def test_it_finds_the_optimum_of_4096_in_few_evaluations(acquisition: str, whole: int) -> None:
    searcher = BayesianOptimisation(SPACE, ONE, acquisition=acquisition, whole=whole, pool=200)  # type: ignore[arg-type]
    assert any(until_best(searcher, seed, limit=100) <= 100 for seed in range(2))  # random search needs 2048 on average


def test_a_batch_is_what_asking_one_by_one_with_pending_gives() -> None:
    searcher = BayesianOptimisation(SPACE, TWO)
    history = list(search(searcher, evaluate, goals=TWO, space=SPACE, budget=20).trials)
    batch = searcher.ask(history, [], 4, np.random.default_rng(0))
    pending: list[Proposal] = []
    for proposal in batch:
        assert searcher.ask(history, pending, 1, np.random.default_rng(0)) == [proposal]
        pending.append(proposal)


def test_pending_proposals_are_believed() -> None:
    """An exact twin of a pending architecture (a choice without effect) loses its promise."""
    space = Space({**{f"c{i}": list("abcd") for i in range(4)}, "idle": [1, 2]})

    def value(arch: Arch) -> dict[str, float]:
        return {"accuracy": 1 / (1 + np.exp(-sum(_EFFECT[i, arch[f"c{i}"]] for i in range(4))))}

    searcher = BayesianOptimisation(space, ONE)
    twins = 0
    for seed in range(2):
        history = list(search(searcher, value, goals=ONE, space=space, budget=40, seed=seed).trials)
        batch = searcher.ask(history, [], 6, np.random.default_rng(seed))
        twins += 6 - len({tuple(proposal.arch[f"c{i}"] for i in range(4)) for proposal in batch})
    assert twins <= 2


def gaps(make: Callable[[int], Searcher], goals: Goals, budget: int, reference: np.ndarray) -> float:
    true = np.array([goals.values(metrics) for metrics in VALUES.values()])
    full = pareto.hypervolume(true, reference)
    found = []
    for seed in range(2):
        trials = search(make(seed), evaluate, goals=goals, space=SPACE, budget=budget, seed=seed).trials
        found.append(1 - pareto.hypervolume(np.array([goals.values(t.metrics) for t in trials]), reference) / full)
    return float(np.median(found))


@pytest.mark.parametrize("acquisition", ["improvement", "thompson"])
def test_two_objectives_close_the_gap_faster_than_nsga2(acquisition: str) -> None:
    reference = np.array([-0.3, 20.0])
    bayes = BayesianOptimisation(SPACE, TWO, acquisition=acquisition, whole=0, pool=200)  # type: ignore[arg-type]
    ours = gaps(lambda seed: bayes, TWO, 60, reference)
    assert ours < 0.5 * gaps(lambda seed: NSGA2(SPACE, TWO, population=20), TWO, 60, reference)


def test_three_and_four_objectives() -> None:
    three = Goals.parse(["accuracy", "latency", "params"])
    reference = np.array([-0.2, 20.0, 20.0])
    bayes = BayesianOptimisation(SPACE, three, whole=0, pool=200, reference={"accuracy": 0.2, "latency_ms": 20.0, "params": 20.0})
    assert gaps(lambda seed: bayes, three, 40, reference) < 0.7 * gaps(lambda seed: RandomSearch(SPACE, three), three, 40, reference)
    four = Goals(("accuracy", "latency_ms", "params", "macs"))
    result = search(
        BayesianOptimisation(SPACE, four, whole=0, pool=100, initial=5),
        lambda arch: {**evaluate(arch), "macs": 1.0 + arch["c2"]},
        goals=four,
        space=SPACE,
        budget=15,
    )
    assert len(result.front) >= 3


def test_limits_are_kept_and_their_edge_is_used() -> None:
    goals = Goals.parse(["accuracy"], ["latency=6ms"])
    feasible = [metrics["accuracy"] for metrics in VALUES.values() if metrics["latency_ms"] <= 6]
    best_unlimited = max(VALUES, key=lambda arch: VALUES[arch]["accuracy"])
    assert VALUES[best_unlimited]["latency_ms"] > 6 and len(feasible) < 500
    for seed in range(2):
        result = search(BayesianOptimisation(SPACE, goals), evaluate, goals=goals, space=SPACE, budget=60, seed=seed)
        assert result.front[0].metrics["accuracy"] >= np.sort(feasible)[-3]
        late = [goals.feasible(trial.metrics) for trial in result.trials[20:]]
        assert np.mean(late) > 0.2 > 1.6 * len(feasible) / len(VALUES)


def test_without_a_feasible_trial_it_looks_for_one() -> None:
    """3 of 4096 are feasible; random search would need more than a thousand evaluations."""
    goals = Goals.parse(["accuracy"], ["latency=1.5ms", "params=10.5"])
    assert sum(goals.feasible(metrics) for metrics in VALUES.values()) <= 3
    result = search(BayesianOptimisation(SPACE, goals), evaluate, goals=goals, space=SPACE, budget=60)
    assert result.front


def test_failures_are_learnt_and_avoided() -> None:
    def fragile(arch: Arch) -> dict[str, float]:
        if arch["c1"] >= 2:
            raise RuntimeError("does not compile")
        return evaluate(arch)

    result = search(BayesianOptimisation(SPACE, ONE), fragile, goals=ONE, space=SPACE, budget=50)
    failed = [trial.status == "failed" for trial in result.trials]
    assert sum(failed[:10]) >= 2 and np.mean(failed[15:]) < 0.15


def test_structure_helps_where_a_space_offers_it() -> None:
    """Accuracy is a function of the contracted paths: seen through them it is learnt from fewer cells."""
    edges = {"a": (0, 1), "b": (0, 2), "c": (1, 2), "d": (0, 3), "e": (1, 3), "f": (2, 3)}
    cell = CellSpace(edges, ["none", "skip_connect", "conv1", "conv3"])
    weight = np.random.default_rng(3).normal(size=cell.features([])["paths"].shape[1])
    score = {arch: float(np.tanh(row @ weight / 3)) for arch, row in zip(cell, cell.features(list(cell))["paths"], strict=True)}
    plain = Space(cell.choices)
    chosen = np.random.default_rng(0).permutation(cell.size)[:150]
    history = [Trial(i, arch, {"accuracy": 0.5 + 0.4 * score[arch]}) for i, arch in enumerate(cell.at(int(c)) for c in chosen)]
    errors = {}
    for space in (cell, plain):
        searcher = BayesianOptimisation(space, ONE, scale="log")
        model = searcher._models(searcher._fold(history))
        assert model is not None
        errors[type(space)] = float((model["accuracy"].gp.left_out_errors() ** 2).mean())
    assert errors[CellSpace] < 0.6 * errors[Space]


def test_the_whole_space_kept_up_to_date_is_the_models_conditioned_anew() -> None:
    """Two objectives, failures among them; asked at every step, or once at the end by another searcher: the same proposals."""
    steady, late = (BayesianOptimisation(SPACE, TWO) for _ in range(2))
    trials: list[Trial] = []
    for number in range(24):
        (proposal,) = steady.ask(trials, [], 1, np.random.default_rng(number))
        trials.append(Trial(number, proposal.arch, evaluate(proposal.arch) if number % 7 != 3 else {}))
    state = steady._fold(trials)
    kept_up, models = steady._everywhere(state), steady._models(state)
    assert kept_up is not None and models is not None and set(kept_up) == set(models)
    some = steady._pool.everything.rows[::97]
    for key, model in models.items():
        exact = model.gp.posterior(some)
        assert kept_up[key].mean[::97] == pytest.approx(exact.mean, abs=1e-6)
        assert kept_up[key].posterior.variance[::97] == pytest.approx(exact.variance, abs=1e-6)
    asked = [searcher.ask(trials, [], 3, np.random.default_rng(5)) for searcher in (steady, late)]
    assert asked[0] == asked[1]


EDGES = {"a": (0, 1), "b": (0, 2), "c": (1, 2), "d": (0, 3), "e": (1, 3), "f": (2, 3)}
CELL = CellSpace(EDGES, ["none", "skip_connect", "conv1", "conv3"])
_MS = np.array([0.0, 0.1, 2.0, 6.0])


def timed(arch: Arch) -> dict[str, float]:
    """What the output needs takes time, each operation its own; more is more accurate. Cells without any operation have no latency."""
    load = CELL.features([arch])["load"][0]
    metrics = {"accuracy": float(1 - 0.5 * np.exp(-0.3 * load @ [0.2, 1.0, 1.6]))}
    return metrics | ({"latency_ms": float(1.0 + load @ _MS[1:])} if load.any() else {})


@pytest.mark.parametrize("whole", [20_000, 0])
def test_costs_add_up_where_a_space_tells_its_parts(whole: int) -> None:
    """The fastest cell is known from cells none of which is fast; models kept up and conditioned anew agree, pending cells believed."""
    searcher = BayesianOptimisation(CELL, TWO, whole=whole, pool=50)
    drawn = [CELL.at(int(i)) for i in np.random.default_rng(0).permutation(CELL.size)]
    slow = [arch for arch in drawn if CELL.features([arch])["load"][0, 1:].sum() >= 2][:30]
    history = [Trial(i, arch, timed(arch)) for i, arch in enumerate(slow)]
    state = searcher._fold(history)
    models = searcher._models(state)
    assert models is not None
    fastest = CELL.from_labels({**dict.fromkeys(EDGES, "none"), "d": "skip_connect"})
    beliefs_of = models["latency_ms"]
    row = searcher._embedding.rows([fastest])
    mean = beliefs_of.gp.posterior(row).mean + beliefs_of.targets.base(row)
    assert float(beliefs_of.warp.inverse(mean)[0]) == pytest.approx(timed(fastest)["latency_ms"], rel=0.5)
    assert min(trial.metrics["latency_ms"] for trial in history) > 4 * timed(fastest)["latency_ms"]
    if whole:
        kept_up = searcher._everywhere(state)
        assert kept_up is not None
        place = searcher._pool.position[fastest]
        assert float(kept_up["latency_ms"].mean[place]) == pytest.approx(float(mean[0]), abs=1e-6)
        part = kept_up["latency_ms"].take(np.array([place]))
        assert part.mean == pytest.approx(mean, abs=1e-6)
        assert part.draw(4000, np.random.default_rng(0)).mean() == pytest.approx(float(mean[0]), abs=0.1 * float(part.deviation[0]))


def test_the_cheap_end_of_a_front_is_found() -> None:
    found = search(BayesianOptimisation(CELL, TWO), timed, goals=TWO, space=CELL, budget=30, seed=1)
    assert min(trial.metrics["latency_ms"] for trial in found.front) <= 1.2


def test_memory_is_bounded() -> None:
    """3000 trials: at most twice `memory` are learnt from, the best among them, whether folded at once or in steps."""
    rng = np.random.default_rng(0)
    archs = [SPACE.at(int(i)) for i in rng.permutation(SPACE.size)[:3000]]
    history = [Trial(i, arch, evaluate(arch)) for i, arch in enumerate(archs)]
    one, other = (BayesianOptimisation(SPACE, ONE, memory=30, whole=0, pool=50) for _ in range(2))
    kept = one._fold(history).kept
    for cut in range(0, 3000, 700):
        other._fold(history[:cut])
    assert kept == other._fold(history).kept and 30 <= len(kept) <= 60
    best = sorted(history, key=lambda trial: -trial.metrics["accuracy"])[:15]
    assert {trial.number for trial in best} <= {trial.number for trial in kept}
    assert len(one.ask(history, [], 3, rng)) == 3


def test_mistakes_are_said() -> None:
    for settings, message in (
        ({"acquisition": "magic"}, "'improvement' or 'thompson', got 'magic'"),
        ({"scale": "cubic"}, "scale"),
        ({"scale": "scores"}, "of a single objective"),  # TWO has two
        ({"initial": 1}, "initial must be at least 2, got 1"),
        ({"reference": {"latency_ms": 3.0}}, "'accuracy'"),
    ):
        with pytest.raises(UserError, match=message):
            BayesianOptimisation(SPACE, TWO, **settings)  # type: ignore[arg-type]
