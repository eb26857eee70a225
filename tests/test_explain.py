from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.explain import explain, importances
from sartor.trial import Trial

SPACE = Space({"a": [0, 1, 2, 3], "b": ["x", "y", "z"], "c": [0, 1], "idle": [0, 1, 2], "lone": [7]})
WEIGHT = {"a": 1.0, "b": 2.0, "c": 1.5}


def additive(arch: Arch) -> float:
    return sum(weight * arch[name] for name, weight in WEIGHT.items())


def history(space: Space, function: Callable[[Arch], float], *, count: int = 60, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(space.size, size=count, replace=False) if space.size < 10**4 else rng.integers(space.size, size=count)
    return [Trial(i, arch, {"accuracy": function(arch)}) for i, arch in enumerate(space.at(int(number)) for number in chosen)]


def truth(name: str) -> float:
    values = np.arange(len(SPACE.choices[name])) * WEIGHT.get(name, 0.0)
    return float(values.var())


def test_shares_of_an_additive_function_are_its_variances() -> None:
    """Var of w * Uniform{0..k-1}; the whole space is the history, so that only the model's own error remains."""
    found = importances(SPACE, history(SPACE, additive, count=72), "accuracy")
    total = sum(truth(name) for name in SPACE.choices)
    for name in SPACE.choices:
        assert found[name] == pytest.approx(truth(name) / total, abs=0.05)
    assert list(found)[:3] == ["b", "a", "c"] and found["lone"] == 0.0
    assert 0.9 < sum(found.values()) <= 1.001


def test_effects_are_the_marginal_means() -> None:
    found = explain(SPACE, history(SPACE, additive, count=72), "accuracy")
    for name, weight in WEIGHT.items():
        values = np.array(list(found.effects[name].values()))
        assert list(found.effects[name]) == list(SPACE.choices[name])
        assert values - values.mean() == pytest.approx(weight * (np.arange(len(values)) - (len(values) - 1) / 2), abs=0.3)
    assert found.mean == pytest.approx(np.mean([additive(arch) for arch in SPACE]), abs=0.1)
    assert found.r2 > 0.8 and found.trials == 72


def test_an_interaction_belongs_to_the_pair() -> None:
    """Parity of two choices: neither matters alone, together they are everything."""
    space = Space({name: [0, 1] for name in ("p", "q", "r", "s", "t")})
    found = explain(space, history(space, lambda arch: float(arch["p"] ^ arch["q"]), count=32), "accuracy", pairs=3)
    assert max(found.importance.values()) < 0.1
    assert next(iter(found.pairs)) == ("p", "q") and found.pairs["p", "q"] > 0.7 and len(found.pairs) == 3


def test_a_whole_small_space_leaves_nothing_to_chance() -> None:
    """Two choices that add up have half of the variance each and no interaction, also where a space has only a few architectures."""
    space = Space({"p": list(range(4)), "q": list(range(4))})
    found = explain(space, history(space, lambda arch: float(arch["p"] + arch["q"]), count=16), "accuracy")
    assert found.importance == pytest.approx({"p": 0.5, "q": 0.5}, abs=0.02)
    assert found.pairs["p", "q"] < 0.02


def test_a_biased_history_is_explained_over_the_whole_space() -> None:
    """A search that stopped varying `a` at its best still knows what `a` does."""
    every = history(SPACE, additive, count=72)
    biased = [trial for trial in every if trial.arch["a"] == 3 or trial.number % 6 == 0]
    assert np.mean([trial.arch["a"] == 3 for trial in biased]) > 0.5
    exact = truth("a") / sum(truth(name) for name in WEIGHT)
    assert importances(SPACE, biased, "accuracy")["a"] == pytest.approx(exact, abs=0.1)


def test_conditions_and_large_spaces() -> None:
    space = Space({"depth": [1, 2], "k": [3, 5, 7], **{f"o{i}": list(range(8)) for i in range(8)}}, {"k": {"depth": [2]}})
    found = explain(space, history(space, lambda arch: 10.0 * arch["depth"] + 4 * arch["k"], count=300), "accuracy")
    assert set(list(found.importance)[:2]) == {"depth", "k"}
    assert list(found.effects["k"]) == [3, 5, 7, "(off)"]
    assert found.effects["k"]["(off)"] < found.effects["k"][3] < found.effects["k"][7]


def test_failures_and_constants() -> None:
    trials = history(SPACE, additive)
    broken = [Trial(99, trials[0].arch, {}, status="failed"), Trial(98, trials[1].arch, {"accuracy": float("nan")})]
    assert explain(SPACE, [*trials, *broken], "accuracy") == explain(SPACE, trials, "accuracy")
    assert set(importances(SPACE, history(SPACE, lambda arch: 1.0), "accuracy").values()) == {0.0}
    with pytest.raises(UserError, match="at least 10"):
        explain(SPACE, trials, "latency_ms")
