"""A learned cost: exact where choices interact in pairs, honest and refused where they do not, and never what a limit is held against."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.hardware.cost import Factor
from sartor.hardware.graph import Op
from sartor.recipes.cost_term import Cost, Target
from sartor.recipes.projection import Bound, project, within
from sartor.recipes.surrogate import drawn, ridge

PLAIN = Space({f"c{i}": ("x", "y", "z", "w")[: 2 + i % 3] for i in range(7)})
CONDITIONAL = Space(
    {"depth": (1, 2, 3), "w": (8, 16, 24), "k1": (3, 5), "k2": (3, 5, 7), "k3": (3, 5), "e3": (1, 2, 4), "r": (1, 2, 3), "s": (1, 2, 3, 4)},
    {"k2": {"depth": [2, 3]}, "k3": {"depth": [3]}, "e3": {"k3": [5]}},
)
True_ = Callable[[Mapping[str, int]], float]


def of_pairs(space: Space, rng: np.random.Generator, pairs: int = 5, triple: float = 0.0) -> True_:
    """A cost to which only active choices, and pairs of them, add; a triple too, where asked."""
    sizes = {name: len(options) for name, options in space.choices.items()}
    terms: list[tuple[str, ...]] = [(name,) for name in sizes]
    every = list(itertools.combinations(sizes, 2))
    terms += [every[int(i)] for i in rng.choice(len(every), size=pairs, replace=False)]
    tables = {term: rng.exponential(size=[sizes[name] for name in term]) for term in terms}
    three = tuple(list(sizes)[:3])
    tables[three] = triple * rng.exponential(size=[sizes[name] for name in three])

    def cost(arch: Mapping[str, int]) -> float:
        on = space.active(arch)
        return 3.0 + sum(float(values[tuple(arch[n] for n in term)]) for term, values in tables.items() if on.issuperset(term))

    return cost


def mixture_of(space: Space, rng: np.random.Generator) -> dict[str, dict[int, float]]:
    return {name: dict(zip(a, rng.dirichlet(np.ones(len(a))).tolist(), strict=True)) for name, a in space.allowed.items()}


def enumerated(space: Space, mixture: Mapping[str, Mapping[int, float]], cost: True_) -> float:
    total = 0.0
    for values in itertools.product(*(mixture[name] for name in space.choices)):
        arch = dict(zip(space.choices, values, strict=True))
        on = space.active(arch)
        weight = math.prod(mixture[name][i] for name, i in arch.items())
        total += weight * cost({name: i if name in on else 0 for name, i in arch.items()})
    return total


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), conditional=st.booleans())
def test_a_cost_of_pairs_is_recovered_and_its_expectation_is_the_sum_over_all_architectures(seed: int, conditional: bool) -> None:
    space, rng = CONDITIONAL if conditional else PLAIN, np.random.default_rng(seed)
    true = of_pairs(space, rng)
    learned = Cost.learned(space, true, name="latency_ms", samples=600, seed=seed)
    assert learned.fit is not None and learned.fit.median_error < 1e-6 and learned.fit.kendall_tau > 0.999
    assert all(float(learned.estimate(arch)) == pytest.approx(true(arch), rel=1e-5) for arch in drawn(space, 50, rng))
    mixture = mixture_of(space, rng)
    assert learned(mixture) == pytest.approx(enumerated(space, mixture, true), rel=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    learned = Cost.learned(CONDITIONAL, of_pairs(CONDITIONAL, rng, triple=0.3), name="latency_ms", samples=400)
    mixture = mixture_of(CONDITIONAL, rng)
    weights = {name: {i: torch.tensor(w, dtype=torch.float64, requires_grad=True) for i, w in row.items()} for name, row in mixture.items()}
    learned(weights).backward()
    for name, row in mixture.items():
        for i in row:
            above, below = ({**mixture, name: {**row, i: row[i] + step}} for step in (1e-4, -1e-4))
            slope = (learned.estimate(above) - learned.estimate(below)) / 2e-4
            got = weights[name][i].grad
            assert got is not None and float(got) == pytest.approx(slope, abs=1e-6)


def test_its_figures_hold_on_architectures_that_nobody_saw() -> None:
    rng = np.random.default_rng(2)
    true = of_pairs(PLAIN, rng, triple=1.5)
    learned = Cost.learned(PLAIN, true, name="latency_ms", samples=600)
    assert learned.fit is not None and learned.fit.learned == 450 and learned.fit.held_out == 150 and learned.fit.pairs >= 3
    archs = list(PLAIN)
    errors = np.abs([float(learned.estimate(arch)) - true(arch) for arch in archs])
    assert np.median(errors / [true(arch) for arch in archs]) == pytest.approx(learned.fit.median_error, rel=0.5)
    assert 0.8 < (errors <= learned.fit.bound).mean() < 0.98 and learned.fit.bound > 0.01
    assert f"{learned.fit.median_error:.1%}" in learned.fit.sentence()


def test_a_single_architecture_has_its_true_cost_and_an_expectation_is_never_below_the_cheapest() -> None:
    true = of_pairs(PLAIN, np.random.default_rng(3), triple=1.5)
    learned = Cost.learned(PLAIN, true, name="latency_ms", samples=600)
    archs = drawn(PLAIN, 50, np.random.default_rng(9))
    assert all(learned(arch) == true(arch) for arch in archs)
    assert max(abs(float(learned.estimate(arch)) - true(arch)) for arch in archs) > 0.01
    assert all(learned({name: {i: 1.0} for name, i in arch.items()}) == pytest.approx(true(arch)) for arch in archs[:10])
    weight = torch.tensor(-100.0, requires_grad=True)  # no mixture of a policy, but far below every cost
    term = Target(learned, 5.0)(torch.tensor(1.0), {name: {0: weight} for name in PLAIN.choices})
    assert torch.isfinite(term)


def test_draws_of_a_mixture_bring_its_expectation_nearer_to_the_truth_the_more_decided_it_is() -> None:
    rng = np.random.default_rng(8)
    true = of_pairs(PLAIN, rng, triple=1.5)
    learned = Cost.learned(PLAIN, true, name="latency_ms", samples=600)
    errors = []
    for _ in range(60):
        mixture = {name: dict(zip(a, rng.dirichlet(np.full(len(a), 0.1)).tolist(), strict=True)) for name, a in PLAIN.allowed.items()}
        exact = enumerated(PLAIN, mixture, true)
        errors.append((abs(learned(mixture) - exact), abs(float(learned.estimate(mixture)) - exact)))
    corrected, bare = np.array(errors).mean(axis=0)
    assert corrected < 0.7 * bare


def test_ridge_is_scikit_learns_at_the_strength_of_least_cross_validation_error() -> None:
    rng = np.random.default_rng(4)
    columns = rng.normal(size=(60, 25)) * np.geomspace(1, 0.05, 25)
    y = columns @ rng.normal(size=25) + 2.0 + rng.normal(size=60)
    error, constant, weights = ridge(columns, y)
    centred = columns - columns.mean(axis=0)
    largest, best = float(np.linalg.norm(centred, 2)) ** 2, (math.inf, Ridge())
    for alpha in largest * np.geomspace(1e-12, 1e2, 29):
        model = Ridge(alpha=alpha, solver="cholesky").fit(columns, y)
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(25), centred.T)
        found = ((y - model.predict(columns)) ** 2).mean() / (1 - (1 + np.trace(hat)) / 60) ** 2
        best = min(best, (float(found), model), key=lambda pair: pair[0])
    assert error == pytest.approx(best[0]) and constant == pytest.approx(best[1].intercept_)
    assert weights == pytest.approx(best[1].coef_, abs=1e-8)
    assert 1e-6 * largest < best[1].alpha  # not an end of the range, where any strength would do


def test_what_a_model_of_pairs_cannot_tell_is_refused() -> None:
    space = Space({f"c{i}": (0, 1) for i in range(12)})
    with pytest.raises(UserError, match=r"interact in macs beyond .*evolution"):
        Cost.learned(space, lambda arch: 10.0 + 5.0 * (sum(arch.values()) % 2), name="macs", samples=500)
    with pytest.raises(UserError, match="at least 40 different"):
        Cost.learned(Space({"a": (1, 2), "b": (1, 2)}), lambda arch: 1.0, name="macs")
    with pytest.raises(UserError, match="finite"):
        Cost.learned(space, lambda arch: math.nan, name="macs", samples=60)
    flat = Cost.learned(space, lambda arch: 7.0, name="macs", samples=60)
    assert flat({name: {0: 0.5, 1: 0.5} for name in space.choices}) == pytest.approx(7.0)


def test_only_what_cannot_be_tabulated_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sartor.hardware.cost"), "MOST_COMBINATIONS", 100)
    rng, names = np.random.default_rng(5), list(PLAIN.choices)
    triple, alone = rng.exponential(size=(2, 3, 4)), rng.exponential(size=len(names))

    def op(value: float) -> tuple[Op, ...]:
        return (Op("conv", (1, 1, 1), (1, 1, 1), name=repr(value)),)

    factors = [
        Factor((*names[:3],), lambda at: op(5.0 * float(triple[at]))),  # no pairs tell it
        Factor((*names,), lambda at: op(float(np.dot(alone, at)) + 1.0)),
    ]
    cost = Cost.of_factors(PLAIN, factors, lambda o: float(o.name), name="latency_ms", constant=2.0)
    assert cost.fit is not None and cost.fit.median_error < 1e-6 and any(table.scope == (*names[:3],) for table in cost.tables)

    def true(arch: Mapping[str, int]) -> float:
        return 2.0 + 5.0 * float(triple[tuple(arch[n] for n in names[:3])]) + float(np.dot(alone, [arch[n] for n in names])) + 1.0

    mixture = mixture_of(PLAIN, rng)
    assert cost(mixture) == pytest.approx(enumerated(PLAIN, mixture, true), rel=1e-6)
    assert all(cost(arch) == pytest.approx(true(arch)) for arch in drawn(PLAIN, 20, rng))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.9))
def test_a_projection_keeps_the_true_limit_and_proves_only_what_is_so(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    true = of_pairs(PLAIN, rng, triple=1.0)
    learned = Cost.learned(PLAIN, true, name="latency_ms", samples=600)
    costs = {arch: true(arch) for arch in PLAIN}
    limit = float(np.quantile(list(costs.values()), share))
    mixture = mixture_of(PLAIN, rng)
    scores = {arch: sum(math.log(mixture[name][i]) for name, i in arch.items()) for arch in PLAIN}
    found = project(PLAIN, mixture, [Bound(learned, limit)])
    best = max(scores[arch] for arch, value in costs.items() if value <= limit)
    assert costs[found.arch] <= limit and found.costs["latency_ms"] == costs[found.arch]
    assert found.log_prob <= best + 1e-9 <= found.limit + 2e-9 and (not found.exact or found.log_prob == pytest.approx(best))
    assert found.log_prob > best - 3.0 * math.log(10.0)
    full = within(PLAIN, mixture, learned, limit)
    assert costs[full.arch] <= limit


def test_several_limits_are_sought_together_and_what_is_not_accepted_is_left() -> None:
    rng = np.random.default_rng(7)
    trues = [of_pairs(PLAIN, rng, triple=0.5) for _ in range(2)]
    a, b = (Cost.learned(PLAIN, true, name=name, samples=600) for true, name in zip(trues, ("latency_ms", "params"), strict=True))
    costs = {arch: (trues[0](arch), trues[1](arch)) for arch in PLAIN}
    wide, tight = (float(np.quantile([c[i] for c in costs.values()], share)) for i, share in ((0, 0.9), (1, 0.02)))
    barred = [arch for arch, c in costs.items() if c[0] <= wide and c[1] <= tight][::2]
    mixture = mixture_of(PLAIN, rng)
    found = within(PLAIN, mixture, a, wide, fill=0.0, others=[Bound(b, tight)], accept=lambda arch: arch not in barred)
    assert costs[found.arch][0] <= wide and costs[found.arch][1] <= tight and found.arch not in barred
    dear = max(c[0] for c in costs.values() if c[1] <= tight)  # some fill this limit, yet what uses the other is not given up for them
    free, full = (within(PLAIN, mixture, a, dear, fill=fill, others=[Bound(b, tight)]) for fill in (0.0, 0.876))
    assert costs[free.arch][1] >= 0.876 * tight and costs[free.arch][0] < 0.876 * dear and full.arch == free.arch


def test_where_model_and_truth_disagree_about_a_limit_the_truth_decides() -> None:
    true = of_pairs(PLAIN, np.random.default_rng(6), triple=1.5)
    learned = Cost.learned(PLAIN, true, name="latency_ms", samples=600)
    wrong = max(PLAIN, key=lambda arch: true(arch) - float(learned.estimate(arch)))
    limit = 0.5 * (true(wrong) + float(learned.estimate(wrong)))
    assert float(learned.estimate(wrong)) < limit < true(wrong)
    mixture: dict[str, Any] = {name: {i: 0.9 if i == wrong[name] else 0.1 / (len(a) - 1) for i in a} for name, a in PLAIN.allowed.items()}
    found = project(PLAIN, mixture, [Bound(learned, limit)])
    assert found.arch != wrong and true(Arch(found.arch)) <= limit and not found.exact
