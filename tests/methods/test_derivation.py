"""From strengths to an architecture within limits: what is drawn, what is taken, what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sartor.arch import Arch, Space
from sartor.methods import derivation
from sartor.methods.derivation import BY_DRAWING, DRAWN, GAVE_WAY, Derivation, _perturbed
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Potential
from sartor.recipes.exchange import Bound
from sartor.recipes.projection import project

from .small import cell_net, edge_cost, falling

FREE = Cost("nothing", [], constant=1.0)


def test_what_fills_a_target_gives_way_to_something_better_where_it_is_no_better_than_random() -> None:
    net = cell_net()
    cost, target, strengths = edge_cost(net), 24.0, falling(net)
    filling, free = (Derivation(net.space, cost, target, fill)(strengths) for fill in (0.85, 0.0))
    assert float(cost(free)) < 0.85 * target <= float(cost(filling)) <= target
    asked: list[Arch] = []

    def loss_with(of_free: float, of_filled: float, of_others: float) -> Callable[[Arch], float]:
        def loss(arch: Arch) -> float:
            asked.append(arch)
            filled = of_filled if float(cost(arch)) >= 0.85 * target else of_others
            return 0.5 if arch == filling else of_free if arch == free else filled

        return loss

    derive = Derivation(net.space, cost, target)
    for losses, expected in (((0.1, 0.6, 0.7), (filling, None)), ((0.1, 0.6, 0.2), (free, GAVE_WAY)), ((0.6, 0.6, 0.2), (filling, None))):
        assert derive.best(strengths, loss_with(*losses)) == expected
    assert len(set(asked) - {filling, free}) > 8 and all(float(cost(arch)) <= target for arch in asked)
    few = Derivation(net.space, cost, target, accept=lambda arch: arch in (filling, free))
    assert few.best(strengths, loss_with(0.1, 9.0, 9.0)) == (free, GAVE_WAY)  # no draw is within the limits: the better of the two


def test_the_best_of_several_that_are_drawn_within_the_limit_is_taken_by_the_loss() -> None:
    net = cell_net()
    cost, target, strengths = edge_cost(net), 24.0, falling(net)
    derive = Derivation(net.space, cost, target)
    filling = derive(strengths)
    asked: dict[Arch, float] = {}

    def loss(arch: Arch) -> float:
        return asked.setdefault(arch, 0.5 if arch == filling else 0.4 + len(asked) % 3 / 100)

    found, how = derive.best(strengths, loss)
    filled = {arch: value for arch, value in asked.items() if 0.85 * target <= float(cost(arch))}
    assert len(filled) > 6 and all(float(cost(arch)) <= target for arch in asked) and how == BY_DRAWING
    assert found in filled and asked[found] == min(filled.values()) < asked[filling]
    unbound, _ = Derivation(net.space, cost, target, 0.0).best(strengths, loss)
    assert asked[unbound] == min(asked.values()) and float(cost(unbound)) <= target
    # what is decided leaves nothing to draw: the loss of others does not matter
    certain = {name: {i: 1.0 if i == filling[name] else 1e-9 for i in range(len(o))} for name, o in net.space.choices.items()}
    asked.clear()
    assert derive.best(certain, loss) == (filling, None) and set(asked) <= {filling}


def test_a_draw_that_fills_another_limit_is_told_as_a_draw() -> None:
    net = cell_net()
    cost, steep = edge_cost(net), np.array([0.0, 0.5, 4.4, 4.0, 4.2])
    other = Cost("other", [Potential((name,), steep) for name in net.space.choices])
    derive = Derivation(net.space, cost, 36.0, others=[Bound(other, 13.0)])
    filling, free = derive(falling(net)), Derivation(net.space, cost, 36.0, 0.0, others=[Bound(other, 13.0)])(falling(net))
    found, how = derive.best(falling(net), lambda arch: 0.5 if arch in (filling, free) or float(cost(arch)) >= 0.85 * 36.0 else 0.1)
    assert how == BY_DRAWING and found not in (filling, free)
    assert float(cost(found)) < 0.85 * 36.0 and 0.85 * 13.0 <= float(other(found)) <= 13.0


def drawn(space: Space, strengths: Mapping[str, Any], count: int) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [project(space, _perturbed(strengths, rng), []).arch for _ in range(count)]


def test_draws_follow_the_strengths_also_where_choices_switch_others_on() -> None:
    space = Space(
        {"depth": (1, 2), **{f"deep{i}": ("a", "b", "c") for i in range(4)}}, conditions={f"deep{i}": {"depth": [2]} for i in range(4)}
    )
    strengths = {"depth": {0: 0.3, 1: 0.7}, **{f"deep{i}": {0: 0.2, 1: 0.2, 2: 0.6} for i in range(4)}}
    found = drawn(space, strengths, 800)
    deep = [arch for arch in found if arch["depth"] == 1]
    assert abs(len(deep) / len(found) - 0.7) < 0.05  # four choices below it do not make it less likely
    assert abs(np.mean([arch["deep0"] == 2 for arch in deep]) - 0.6) < 0.06


def test_noise_leaves_what_strengths_say_of_edges_against_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        row = _perturbed({"a": {0: 0.27, 1: 0.03}, "b": {0: 0.006, 1: 0.004, 2: 0.0}, "c": 3}, rng)
        assert max(row["a"].values()) == max(row["a"][0], row["a"][1]) and abs(max(row["a"].values()) - 0.3) < 1e-12
        assert abs(max(row["b"].values()) - 0.01) < 1e-12 and row["b"][2] == 0.0 and row["c"] == 3


def test_no_more_are_drawn_when_a_further_condition_was_asked_for_often(monkeypatch: Any) -> None:
    net = cell_net()
    asked: list[Arch] = []
    losses: list[Arch] = []

    def accept(arch: Arch) -> bool:
        asked.append(arch)
        return sum(arch.values()) % 3 == 0

    def count(at_most: int) -> tuple[int, int]:
        monkeypatch.setattr(derivation, "_ASKED", at_most)
        asked.clear()
        losses.clear()
        Derivation(net.space, FREE, 1.0, accept=accept).best(falling(net), lambda arch: losses.append(arch) or 0.0)  # type: ignore[func-returns-value]
        return len(asked), len(set(losses))

    many, tried = count(10_000)
    assert tried > DRAWN // 2 and many == len(set(asked))  # none is asked for twice
    few, fewer = count(5)
    assert few < many and 1 <= fewer < tried


def test_dropped_options_come_back_where_a_limit_cannot_be_filled_without_them() -> None:
    net = cell_net()
    cost, target = edge_cost(net), 40.0
    dropped = {name: {1: 0.7, 2: 0.3} for name in net.space.choices}  # no 3x3 convolution is left, 9 ms each
    found = Derivation(net.space, cost, target)(dropped)
    assert 0.85 * target <= float(cost(found)) <= target
    back = [name for name, index in found.items() if index not in dropped[name]]
    assert len(back) == 3  # of six: the fewest that fill it
    assert Derivation(net.space, cost, target, 0.0)(dropped) == Arch(dict.fromkeys(net.space.choices, 1))
