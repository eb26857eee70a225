"""ENAS' controller is a distribution: probabilities sum to one, draws follow them, and the score function has its gradient."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sartor.arch import Space
from sartor.errors import UserError
from sartor.policies.controller import Controller

SPACE = Space({"depth": (1, 2), "a": ("x", "y", "z"), "b": ("p", "q"), "only": (7,)}, {"b": {"depth": [2]}})


def spread(seed: int = 0) -> Controller:
    controller = Controller(SPACE, hidden=8, seed=seed, temperature=1.0)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(8.0)
        controller.alpha.copy_(torch.randn(controller.alpha.shape, generator=torch.Generator().manual_seed(seed)))
    return controller


def test_probabilities_sum_to_one_over_the_space_and_draws_follow_them() -> None:
    controller = spread()
    archs = list(SPACE)
    log_p = controller.log_probs(archs)[0].detach()
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    n = 6000
    counts = Counter(controller.draws(n, torch.Generator().manual_seed(1)))
    assert set(counts) <= set(archs)
    for arch, p in zip(archs, log_p.exp().tolist(), strict=True):
        assert counts[arch] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 1e-3)
    assert controller.log_prob(archs[3]).item() == pytest.approx(float(log_p[3]), abs=1e-6)


def test_the_score_function_estimates_the_gradient_of_the_expected_reward() -> None:
    controller = spread(1)
    archs = list(SPACE)
    rewards = torch.tensor([float((7 * i) % 5) for i in range(len(archs))])
    p = controller.log_probs(archs)[0].exp()
    exact = torch.autograd.grad((p * rewards).sum(), controller.head)[0]
    drawn = controller.draws(8000, torch.Generator().manual_seed(2))
    value = torch.tensor([float(rewards[archs.index(a)]) for a in drawn])
    log_p = controller.log_probs(drawn)[0]
    estimate = torch.autograd.grad((log_p * (value - value.mean())).mean(), controller.head)[0]
    assert torch.nn.functional.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0) > 0.97
    assert torch.allclose(estimate, exact, atol=0.15 * float(exact.abs().max()))


def test_logits_are_bounded_by_the_tanh_constant() -> None:
    controller = Controller(SPACE, hidden=8)
    with torch.no_grad():
        controller.alpha[:, 0] = 1e6
    # exp(2.5 - (-2.5)) is the largest ratio of two probabilities; here the other logits are near zero
    p = controller.probabilities()[controller.row["a"]]
    assert float(p[0]) == pytest.approx(1 / (1 + 2 * 2.718281828**-2.5), abs=0.06)
    free = Controller(SPACE, hidden=8, constant=0.0)
    with torch.no_grad():
        free.alpha[:, 0] = 1e3
    assert free.probabilities()[free.row["a"]].tolist() == [1.0, 0.0, 0.0]


def test_entropy_and_mode_agree_with_enumeration() -> None:
    controller = spread(2)
    log_p = controller.log_probs(list(SPACE))[0].detach()
    assert float(controller.entropy()) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=0.15)
    assert controller.mode() in SPACE
    assert controller.sample(torch.Generator().manual_seed(0)) in SPACE


def test_a_fixed_seed_gives_fixed_draws_and_bad_settings_are_refused() -> None:
    first, second = (Controller(SPACE, seed=5).draws(20, torch.Generator().manual_seed(9)) for _ in range(2))
    assert first == second
    with pytest.raises(UserError, match="hidden"):
        Controller(SPACE, hidden=0)
    with pytest.raises(UserError, match="edge"):
        Controller(SPACE, edges=[["a"]])
