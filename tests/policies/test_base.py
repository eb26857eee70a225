from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sartor.arch import Space
from sartor.errors import UserError
from sartor.policies import Dirichlet, Gumbel, Policy, Sigmoid, Softmax
from sartor.policies.dirichlet import anchor

KINDS = (Softmax, Sigmoid, Gumbel, Dirichlet)


def conditional_space() -> Space:
    """Depth decides whether the second and third block exist; the third block's kernel decides whether its squeeze exists."""
    return Space(
        {"depth": (1, 2, 3), "k2": (3, 5), "k3": (3, 5, 7), "se": (False, True), "lone": ("only",)},
        {"k2": {"depth": [2, 3]}, "k3": {"depth": [3]}, "se": {"k3": [5, 7]}},
    )


def policy_of(kind: type[Policy], space: Space, seed: int, **given_: Any) -> Policy:
    return kind(space, scale=1.0, seed=seed, **given_).double()


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.booleans())
def test_distribution_over_canonical_architectures_is_exact(kind: type[Policy], seed: int, restricted: bool) -> None:
    space = conditional_space()
    if restricted:
        space = space.restrict({"k3": [3, 7], "depth": [2, 3]})
    policy = policy_of(kind, space, seed)
    archs = list(space)
    log_p = torch.stack([policy.log_prob(arch) for arch in archs])
    assert float(log_p.exp().sum()) == pytest.approx(1.0)
    assert float(policy.entropy()) == pytest.approx(float(-(log_p.exp() * log_p).sum()))
    for row, name in enumerate(policy.names):
        on = sum(float(p) for arch, p in zip(archs, log_p.exp(), strict=True) if name in space.active(arch))
        assert float(policy.presence()[row]) == pytest.approx(on)
    assert policy.mode() in space
    assert policy.draw(torch.Generator().manual_seed(seed)) in space


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_log_probability(kind: type[Policy]) -> None:
    space = conditional_space()
    policy = policy_of(kind, space, 3)
    generator = torch.Generator().manual_seed(0)
    count = 4000
    seen: dict[Any, int] = {}
    for _ in range(count):
        arch = policy.draw(generator)
        seen[arch] = seen.get(arch, 0) + 1
    for arch in space:
        p = float(policy.log_prob(arch).exp())
        assert abs(seen.get(arch, 0) / count - p) < 5 * math.sqrt(p * (1 - p) / count) + 1e-9


def test_score_function_gradient_agrees_with_enumeration() -> None:
    space = Space({"a": (0, 1, 2), "b": (0, 1)}, {"b": {"a": [1, 2]}})
    policy = policy_of(Softmax, space, 1)
    rng = np.random.default_rng(0)
    reward = {arch: float(rng.normal()) for arch in space}
    exact = torch.autograd.grad(sum(policy.log_prob(arch).exp() * r for arch, r in reward.items()), policy.alpha)[0]
    scores = {arch: torch.autograd.grad(policy.log_prob(arch), policy.alpha)[0] for arch in space}
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([reward[arch] * scores[arch] for arch in (policy.draw(generator) for _ in range(4000))])
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() <= 4 * error + 1e-9).all())
    assert float(exact.abs().max()) > 5 * float(error.max())


def test_softmax_runs_its_probabilities_and_settled_choices_hold_an_index() -> None:
    policy = policy_of(Softmax, conditional_space(), 2)
    mixture = policy.sample()
    assert mixture["lone"] == 0
    for name, row in mixture.items():
        if isinstance(row, dict):
            p = torch.softmax(policy.alpha[policy.row[name], : len(row)], 0)
            assert torch.stack(list(row.values())).allclose(p)
    assert all(not w.requires_grad for row in policy.sample_weights().values() if isinstance(row, dict) for w in row.values())


def test_an_edge_with_many_open_gates_is_not_weaker_for_it() -> None:
    policy = Sigmoid(Space({"a": ("x", "y", "z"), "b": ("x", "y", "z")}))
    with torch.no_grad():
        policy.alpha.copy_(torch.tensor([[3.0, 3.0, 2.9], [-1.0, -5.0, -5.0]]))
    strengths = {name: row for name, row in policy.strengths().items() if not isinstance(row, int)}
    assert strengths["a"][0] == pytest.approx(0.9526, abs=1e-4) and strengths["b"][0] == pytest.approx(0.2689, abs=1e-4)
    assert policy.expected()["a"][0] < 0.35 < policy.expected()["b"][0]  # as a distribution each gate has its share of the sum


def test_sigmoid_gates_are_independent_of_each_other() -> None:
    policy = policy_of(Sigmoid, Space({"a": ("x", "y", "z")}), 0)
    before = policy.sample()["a"]
    with torch.no_grad():
        policy.alpha[0, 1] += 3.0
    after = policy.sample()["a"]
    assert isinstance(before, dict) and isinstance(after, dict)
    assert float(after[0]) == float(before[0]) and float(after[2]) == float(before[2])
    assert float(after[1]) == pytest.approx(float(torch.sigmoid(policy.alpha[0, 1])))
    assert float(sum(after.values())) > 1.0


def test_edge_normalisation_weighs_the_edges_of_a_node() -> None:
    """PC-DARTS, equation 4: the mixture of edge (i, j) times exp(beta_ij) / sum over i' of exp(beta_i'j)."""
    space = Space({"e02": ("a", "b"), "e12": ("a", "b"), "e01": ("a", "b")})
    policy = policy_of(Softmax, space, 5, edges=[["e01"], ["e02", "e12"]])
    assert policy.beta is not None
    p = policy.probabilities()
    beta = {name: policy.beta[policy.row[name]] for name in policy.names}
    total = beta["e02"].exp() + beta["e12"].exp()
    mixture = policy.sample()
    for name, share in (("e02", beta["e02"].exp() / total), ("e12", beta["e12"].exp() / total), ("e01", torch.ones(()))):
        row = mixture[name]
        assert isinstance(row, dict)
        for option, weight in row.items():
            assert float(weight) == pytest.approx(float(share * p[policy.row[name], option]))
    expected = policy.expected()["e02"]
    assert isinstance(expected, dict) and float(sum(expected.values())) == pytest.approx(1.0)
    with pytest.raises(UserError, match="edges"):
        Softmax(space, edges=[["nowhere"]])


# -- Gumbel ------------------------------------------------------------------------------------------------------------------


def test_gumbel_pathwise_gradient_agrees_with_quadrature() -> None:
    """Two options: the difference of two Gumbel draws is logistic, so the expectation is an integral over one variable."""
    policy = policy_of(Gumbel, Space({"a": ("x", "y")}), 4, temperature=(0.7, 0.7))
    difference = policy.alpha.detach()[0, 0] - policy.alpha.detach()[0, 1]
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logistic = torch.log(u) - torch.log1p(-u)
    location = difference.clone().requires_grad_()
    exact_value = torch.sigmoid((location + logistic) / 0.7).square().mean()
    exact = torch.autograd.grad(exact_value, location)[0]
    generator = torch.Generator().manual_seed(0)
    values, gradients = [], []
    for _ in range(2500):
        row = policy.sample(generator)["a"]
        assert isinstance(row, dict)
        value = row[0].square()
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, policy.alpha)[0][0])
    found = torch.stack(gradients)
    error = found.std(0) / math.sqrt(len(found))
    assert np.mean(values) == pytest.approx(float(exact_value), abs=4 * np.std(values) / math.sqrt(len(values)))
    assert abs(float(found.mean(0)[0] - exact)) <= 4 * float(error[0])
    assert abs(float(found.mean(0)[1] + exact)) <= 4 * float(error[1])
    assert float(exact) > 8 * float(error[0])


def test_gumbel_temperature_falls_as_asked() -> None:
    space = Space({"a": ("x", "y")})
    snas, gdas = Gumbel(space, temperature=(5.0, 0.1)), Gumbel(space, temperature=(10.0, 0.1), linear=True)
    assert [snas.temperature(f) for f in (0.0, 0.5, 1.0)] == pytest.approx([5.0, math.sqrt(0.5), 0.1])
    assert [gdas.temperature(f) for f in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 5.05, 0.1])
    with pytest.raises(UserError, match="temperature"):
        Gumbel(space, temperature=(1.0, 0.0))


def test_hard_gumbel_runs_one_option_forward_and_the_relaxation_backward() -> None:
    space = Space({"a": ("x", "y", "z"), "b": ("x", "y")})
    hard, soft = policy_of(Gumbel, space, 6, hard=True), policy_of(Gumbel, space, 6)
    for seed in range(5):
        one = hard.sample(torch.Generator().manual_seed(seed), fraction=0.3)
        all_ = soft.sample(torch.Generator().manual_seed(seed), fraction=0.3)
        for name in space.choices:
            row, relaxed = one[name], all_[name]
            assert isinstance(row, dict) and isinstance(relaxed, dict)
            ((index, weight),) = row.items()
            assert index == max(relaxed, key=lambda i: float(relaxed[i]))
            assert float(weight) == pytest.approx(1.0)
            mine = torch.autograd.grad(weight, hard.alpha, retain_graph=True)[0]
            assert mine.allclose(torch.autograd.grad(relaxed[index], soft.alpha, retain_graph=True)[0])


# -- Dirichlet ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restricted", [False, True])
def test_dirichlet_pathwise_gradient_agrees_with_the_moments(restricted: bool) -> None:
    """E[w_0^2] = c_0 (c_0 + 1) / (C (C + 1)) with concentrations c = elu(alpha) + 1 over the allowed options and C their sum."""
    space = Space({"a": ("x", "y", "z")})
    if restricted:
        space = space.restrict({"a": ["x", "z"]})
    policy = policy_of(Dirichlet, space, 8)
    alpha = policy.alpha.detach().clone().requires_grad_()
    c = (F.elu(alpha) + 1)[0][policy.mask[0]]
    exact_value = c[0] * (c[0] + 1) / (c.sum() * (c.sum() + 1))
    exact = torch.autograd.grad(exact_value, alpha)[0]
    generator = torch.Generator().manual_seed(0)
    values, gradients = [], []
    for _ in range(2500):
        row = policy.sample(generator)["a"]
        assert isinstance(row, dict) and set(row) == set(space.allowed["a"])
        assert float(sum(row.values())) == pytest.approx(1.0)
        value = row[0].square()
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, policy.alpha)[0])
    found = torch.stack(gradients)
    error = found.std(0) / math.sqrt(len(found))
    assert np.mean(values) == pytest.approx(float(exact_value), abs=4 * np.std(values) / math.sqrt(len(values)))
    assert bool(((found.mean(0) - exact).abs() <= 4 * error + 1e-9).all())
    assert float(exact.abs().max()) > 8 * float(error.max())


def test_anchor_is_zero_at_the_uniform_dirichlet_alone() -> None:
    policy = policy_of(Dirichlet, Space({"a": ("x", "y", "z")}), 0)
    assert float(anchor(policy)) > 0.01
    with torch.no_grad():
        policy.alpha.zero_()  # elu(0) + 1 = 1
    assert float(anchor(policy)) == pytest.approx(0.0, abs=1e-12)


def test_golden_samples_of_a_fixed_seed() -> None:
    space = Space({"a": ("x", "y", "z"), "b": (3, 5)})
    found = {}
    for kind in (Softmax, Sigmoid, Gumbel, Dirichlet):
        policy = kind(space, seed=11)
        row = policy.sample(torch.Generator().manual_seed(7))["a"]
        assert isinstance(row, dict)
        found[kind.__name__] = [round(float(w), 4) for w in row.values()]
    assert found == GOLDEN


GOLDEN = {
    "Softmax": [0.3334, 0.3338, 0.3329],
    "Sigmoid": [0.5002, 0.5005, 0.4998],
    "Gumbel": [0.37, 0.3719, 0.2581],
    "Dirichlet": [0.244, 0.6774, 0.0786],
}
