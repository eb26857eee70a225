"""Expected costs are exact and differentiable; FBNet's and ProxylessNAS' losses have the papers' values; a multiplier meets a target."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sartor.arch import Space
from sartor.errors import UserError
from sartor.hardware.cost import CostModel
from sartor.policies import Gumbel, Softmax
from sartor.recipes.cost_term import Additive, Cost, FBNetTerm, Target
from sartor.recipes.elimination import Potential
from sartor.spaces import build

SPACE = Space({"a": ("x", "y", "z"), "b": ("p", "q")})
PRICES = np.array([[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]])
COST = Cost("latency_ms", [Potential(("a", "b"), PRICES), Potential(("b",), np.array([0.5, 0.25]))], constant=0.1, unit="ms")


def test_an_expectation_is_the_weighted_sum_over_all_architectures_with_its_gradient() -> None:
    policy = Softmax(SPACE, scale=1.0, seed=2)
    p = policy.probabilities()
    expected = sum(p[0, arch["a"]] * p[1, arch["b"]] * COST(arch) for arch in SPACE)
    found = COST(policy.expected())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (wanted,) = torch.autograd.grad(expected, policy.alpha, retain_graph=True)
    (got,) = torch.autograd.grad(found, policy.alpha)
    assert torch.allclose(got, wanted, atol=1e-6) and got.abs().sum() > 0
    numbers = {name: {i: float(w) for i, w in row.items()} for name, row in policy.expected().items()}  # type: ignore[union-attr]
    assert COST(numbers) == pytest.approx(found.item(), rel=1e-6) and isinstance(COST(numbers), float)


def test_indices_mixtures_and_sparse_mixtures_agree() -> None:
    for arch in SPACE:
        one = {name: {i: torch.tensor(1.0)} for name, i in arch.items()}
        assert COST(arch) == pytest.approx(float(COST(one)), rel=1e-6) == pytest.approx(COST({"a": {arch["a"]: 1.0}, "b": arch["b"]}))
    hard = Gumbel(SPACE, hard=True, seed=1).sample(torch.Generator().manual_seed(0))
    assert float(COST(hard)) == pytest.approx(COST({name: next(iter(v)) for name, v in hard.items()}), rel=1e-6)  # type: ignore[arg-type]


def test_the_cost_of_a_network_is_the_cost_models_on_indices_and_on_mixtures() -> None:
    net = build("mobile", (1, 8, 8), 10)
    cost, model = Cost.of_macs(net.space, net.factors()), CostModel(net.factors(), lambda op: float(op.macs))
    rng, policy = np.random.default_rng(0), Softmax(net.space, scale=1.0)
    for arch in (net.space.sample(rng) for _ in range(20)):
        assert cost(arch) == pytest.approx(float(model(arch)))
    assert cost(policy.expected()).item() == pytest.approx(model(policy.expected()).item(), rel=1e-4)


def test_fbnets_loss_has_the_papers_value_also_at_a_hundredth_of_a_millisecond() -> None:
    tiny = Cost("latency_ms", [Potential(("b",), np.array([0.01, 0.02]))], unit="ms")
    loss = torch.tensor(2.0, requires_grad=True)
    found = FBNetTerm(tiny)(loss, {"b": 0})
    assert found.item() == pytest.approx(2.0 * 0.2 * math.log(10.0) ** 0.6, rel=1e-6)
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    mixed = FBNetTerm(tiny)(loss, {"b": {0: weights[0], 1: weights[1]}})
    assert mixed.item() == pytest.approx(2.0 * 0.2 * math.log(15.0) ** 0.6, rel=1e-6)
    mixed.backward()
    slope = 2.0 * 0.2 * 0.6 * math.log(15.0) ** -0.4 / 15.0  # d/d LAT
    assert weights.grad is not None and weights.grad.tolist() == pytest.approx([slope * 10.0, slope * 20.0], rel=1e-5)
    with pytest.raises(UserError, match="microsecond"):
        FBNetTerm(Cost("latency_ms", [Potential(("b",), np.array([1e-4, 1e-4]))]))(loss, {"b": 0})


def test_proxylessnas_adds_the_expected_latency() -> None:
    policy = Softmax(SPACE, scale=1.0)
    found = Additive(COST, 0.3, scale=2.0)(torch.tensor(1.5), policy.expected())
    assert found.item() == pytest.approx(1.5 + 0.15 * COST(policy.expected()).item())


def test_a_target_is_met_by_its_multiplier_and_costs_nothing_where_it_is_kept() -> None:
    policy = Softmax(SPACE, scale=0.0)
    preference = torch.tensor([0.0, 1.0, 2.0])  # the loss likes the most expensive option of a
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.05)
    term = Target(COST, 4.0)
    for _ in range(800):
        p = policy.probabilities()
        loss = -(p[0] * preference).sum()
        optimiser.zero_grad()
        term(loss, policy.expected()).backward()
        optimiser.step()
        term.update(policy.expected())
    assert COST(policy.expected()).item() == pytest.approx(4.0, rel=0.03) and float(term.multiplier) > 0.1
    slack = Target(COST, 1e6)
    slack.update(policy.expected())
    assert float(slack.multiplier) == 0.0 and slack(torch.tensor(1.0), policy.expected()).item() == pytest.approx(1.0)
    assert "multiplier" in term.state_dict()


def test_bad_costs_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        Cost("latency_ms", [Potential(("b",), np.array([1.0, np.nan]))])
    with pytest.raises(UserError, match="'a'"):
        COST({"b": 0})
    with pytest.raises(UserError, match="target > 0"):
        Target(COST, 0.0)
    with pytest.raises(UserError, match="axis"):
        Cost.of_table(("a", "b"), np.zeros(3), name="latency_ms")
