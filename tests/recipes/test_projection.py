"""The projection is the most probable architecture within the limits: against enumeration, and with the limits of real tables."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.arch import Arch, Space
from sartor.benchmarks import nasbench201, table
from sartor.errors import UserError
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Elimination, Potential, TooLarge
from sartor.recipes.projection import Bound, project, within
from sartor.spaces import build

CONDITIONAL = Space(
    {"depth": (1, 2, 3), "w": (8, 16), "k2": (3, 5, 7), "k3": (3, 5), "e3": (1, 2, 4)},
    {"k2": {"depth": [2, 3]}, "k3": {"depth": [3]}, "e3": {"depth": [3], "k3": [5]}},
)


def mixture_of(space: Space, rng: np.random.Generator, sharpness: float = 1.5) -> dict[str, dict[int, float]]:
    found = {}
    for name, allowed in space.allowed.items():
        weights = np.exp(sharpness * rng.normal(size=len(allowed)))
        found[name] = dict(zip(allowed, (weights / weights.sum()).tolist(), strict=True))
    return found


def log_prob(space: Space, mixture: dict[str, dict[int, float]], arch: Any) -> float:
    return sum(math.log(mixture[name][arch[name]]) for name in space.active(arch))


def random_cost(space: Space, rng: np.random.Generator, tables: int = 5, name: str = "latency_ms") -> Cost:
    names = list(space.choices)
    potentials = []
    for _ in range(tables):
        scope = tuple(rng.choice(names, size=int(rng.integers(1, 4)), replace=False).tolist())
        potentials.append(Potential(scope, rng.exponential(size=[len(space.choices[n]) for n in scope])))
    return Cost(name, potentials, constant=0.5, unit="ms")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0), fill=st.sampled_from([0.0, 0.9]), conditional=st.booleans())
def test_it_is_the_best_of_all_architectures(seed: int, share: float, fill: float, conditional: bool) -> None:
    rng = np.random.default_rng(seed)
    space = CONDITIONAL if conditional else Space({f"c{i}": tuple(range(2 + i % 3)) for i in range(6)})
    mixture, cost = mixture_of(space, rng), random_cost(space, rng)
    costs = {arch: float(cost(arch)) for arch in space}
    low, high = min(costs.values()), max(costs.values())
    limit = low + share * (high - low)
    inside = [a for a, c in costs.items() if fill * limit <= c <= limit]
    if not inside:
        with pytest.raises(UserError, match=r"relax|no architecture"):
            project(space, mixture, [Bound(cost, limit, fill * limit)])
        return
    found = project(space, mixture, [Bound(cost, limit, fill * limit)])
    best = max(log_prob(space, mixture, a) for a in inside)
    assert found.exact and found.arch in space and fill * limit <= costs[found.arch] <= limit
    assert found.log_prob == pytest.approx(best, abs=1e-9) == log_prob(space, mixture, found.arch)
    assert found.costs == {"latency_ms": costs[found.arch]}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_several_limits_and_a_condition_of_any_kind_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = CONDITIONAL
    mixture, a, b = mixture_of(space, rng), random_cost(space, rng), random_cost(space, rng, name="params")
    cost_a, cost_b = ({arch: float(c(arch)) for arch in space} for c in (a, b))
    bound_a, bound_b = np.quantile(list(cost_a.values()), 0.4), np.quantile(list(cost_b.values()), 0.5)

    def accept(arch: Arch) -> bool:
        return arch["w"] == 1

    inside = [x for x in space if cost_a[x] <= bound_a and cost_b[x] <= bound_b and accept(x)]
    bounds = [Bound(a, float(bound_a)), Bound(b, float(bound_b))]
    if not inside:
        with pytest.raises(UserError):
            project(space, mixture, bounds, accept=accept)
        return
    found = project(space, mixture, bounds, accept=accept)
    assert found.exact and found.log_prob == pytest.approx(max(log_prob(space, mixture, x) for x in inside))


def nasbench201_cost(device: str = "raspi4") -> tuple[Cost, np.ndarray]:
    """The published latency of every cell as a table over its six choices, and the mask of connected cells in the same layout."""
    cells, latency, connected = nasbench201.cells(), table("nasbench201_latency").column(device), nasbench201.connected()
    values, mask = np.zeros([5] * 6), np.zeros([5] * 6, dtype=bool)
    values[tuple(cells.T)] = np.where(np.isfinite(latency), latency, 0.0)
    mask[tuple(cells.T)] = connected
    return Cost.of_table(nasbench201.CHOICES, values, name="latency_ms", unit="ms"), mask


def test_on_all_cells_of_nas_bench_201_it_equals_enumeration() -> None:
    space, (cost, connected) = nasbench201.SPACE, nasbench201_cost()
    latency = cost.tables[0].values
    rng = np.random.default_rng(0)

    def accept(arch: Arch) -> bool:
        return bool(connected[tuple(arch[c] for c in nasbench201.CHOICES)])

    for limit in np.quantile(latency[connected], [0.02, 0.2, 0.5, 0.8]):
        mixture = mixture_of(space, rng)
        rows = [np.log([mixture[c][i] for i in range(5)]) for c in nasbench201.CHOICES]
        scores = sum(row.reshape([-1 if axis == i else 1 for axis in range(6)]) for i, row in enumerate(rows))
        inside = connected & (latency <= limit) & (latency >= 0.85 * limit)
        found = within(space, mixture, cost, float(limit), accept=accept)
        assert found.exact and found.log_prob == pytest.approx(float(np.where(inside, scores, -np.inf).max()))
        assert inside[tuple(found.arch[c] for c in nasbench201.CHOICES)]


def test_on_a_mobile_space_of_many_choices_the_optimum_is_proven() -> None:
    net = build("mobile", (3, 32, 32), 10)
    cost = Cost.of_macs(net.space, net.factors())
    rng = np.random.default_rng(1)
    assert all(cost(arch) == pytest.approx(net.costs(arch)["macs"]) for arch in (net.space.sample(rng) for _ in range(20)))
    low, high = float(cost(net.smallest)), float(cost(net.largest))
    for share in (0.1, 0.5):
        mixture, limit = mixture_of(net.space, rng), low + share * (high - low)
        found = within(net.space, mixture, cost, limit)
        assert found.arch in net.space and 0.85 * limit <= cost(found.arch) <= limit
        assert found.limit - found.log_prob < 0.05  # nearly always zero
        rivals = [a for a in (net.space.sample(rng) for _ in range(300)) if 0.85 * limit <= cost(a) <= limit]
        assert all(log_prob(net.space, mixture, a) <= found.limit + 1e-9 for a in rivals)


def test_without_limits_it_is_the_mode_and_a_wide_one_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    mixture, cost = mixture_of(CONDITIONAL, rng), random_cost(CONDITIONAL, rng)
    best = max(CONDITIONAL, key=lambda a: log_prob(CONDITIONAL, mixture, a))
    assert project(CONDITIONAL, mixture, []).arch == best == project(CONDITIONAL, mixture, [Bound(cost, 1e9)]).arch


def test_a_target_is_filled_where_anything_fills_it() -> None:
    space = Space({"a": ("slow", "medium", "fast")})
    cost = Cost("latency_ms", [Potential(("a",), np.array([10.0, 9.0, 1.0]))])
    mixture = {"a": {0: 0.5, 1: 0.01, 2: 0.49}}
    assert within(space, mixture, cost, 9.5).arch == {"a": 1}  # 9 of 9.5 ms, whatever its probability
    assert within(space, mixture, cost, 9.5, fill=0.0).arch == {"a": 2}
    assert within(space, mixture, cost, 10.0).arch == {"a": 0}
    assert within(space, mixture, cost, 8.0).arch == {"a": 2}  # nothing lies between 6.8 and 8 ms


def test_what_is_out_of_reach_is_named_with_the_best_attainable() -> None:
    rng = np.random.default_rng(4)
    mixture, cost = mixture_of(CONDITIONAL, rng), random_cost(CONDITIONAL, rng)
    least = min(float(cost(a)) for a in CONDITIONAL)
    with pytest.raises(UserError, match=f"best attainable is {least:.6g}"):
        project(CONDITIONAL, mixture, [Bound(cost, 0.5 * least)])
    with pytest.raises(UserError, match="was accepted"):
        project(CONDITIONAL, mixture, [Bound(cost, 1e9)], accept=lambda _: False)
    with pytest.raises(UserError, match="'w'"):
        project(CONDITIONAL, {"depth": {0: 1.0}}, [])
    with pytest.raises(UserError, match="target above zero"):
        within(CONDITIONAL, mixture, cost, -1.0)


def test_where_tables_would_be_too_large_exchange_still_keeps_the_limit() -> None:
    rng = np.random.default_rng(5)
    space = Space({f"c{i}": (0, 1, 2, 3) for i in range(11)})
    mixture = mixture_of(space, rng)
    pairs = [Potential((f"c{i}", f"c{j}"), rng.exponential(size=(4, 4))) for i, j in itertools.combinations(range(11), 2)]
    cost = Cost("latency_ms", pairs)
    with pytest.raises(TooLarge):
        Elimination(space, [pairs])
    limit = float(np.quantile([cost(space.sample(rng)) for _ in range(50)], 0.1))
    found = project(space, mixture, [Bound(cost, limit)])
    assert not found.exact and cost(found.arch) <= limit and found.log_prob < found.limit
    rivals = [a for a in (space.sample(rng) for _ in range(500)) if cost(a) <= limit]
    assert found.log_prob > max(log_prob(space, mixture, a) for a in rivals)
    free = project(space, mixture, [Bound(cost, 1e9)])
    assert free.exact and free.log_prob == free.limit == found.limit  # nothing is more probable than the mode
