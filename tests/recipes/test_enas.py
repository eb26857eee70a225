"""ENAS alternates: the policy rests while the weights learn, and the other way round; it resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.policies import Softmax
from sartor.policies.controller import Controller
from sartor.recipes.enas import PolicyGradient, policy_loss, search_reinforce

from .test_sandwich import Killed, equal, kill_at
from .tiny import TinyNet, tiny_data

QUICK = PolicyGradient(lr=0.02, steps=3, draws=2, candidates=4)


class Spy(TinyNet):
    """Notes for every pass whether gradients were wanted."""

    def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
        self.kinds = [*getattr(self, "kinds", []), torch.is_grad_enabled()]
        return super().forward(x, arch, drop_path)


def test_the_score_function_estimate_agrees_with_enumeration() -> None:
    space = Space({"a": ("x", "y", "z"), "b": ("p", "q")})
    policy = Softmax(space, scale=1.0, seed=1)
    archs = list(space)
    reward = {arch: float((3 * i) % 5) for i, arch in enumerate(archs)}
    exact_value = sum(torch.exp(policy.log_prob(a)) * reward[a] for a in archs)
    (exact,) = torch.autograd.grad(exact_value, policy.alpha)
    generator = torch.Generator().manual_seed(0)
    drawn = [policy.draw(generator) for _ in range(6000)]
    mean = sum(reward[a] for a in drawn) / len(drawn)
    (estimate,) = torch.autograd.grad(-policy_loss(policy, drawn, [reward[a] - mean for a in drawn]), policy.alpha)
    assert torch.allclose(estimate, exact, atol=5 * 2.0 / len(drawn) ** 0.5)
    (spread,) = torch.autograd.grad(policy_loss(policy, drawn[:1], [0.0], entropy=2.0), policy.alpha)
    (wanted,) = torch.autograd.grad(-2.0 * policy.entropy(), policy.alpha)
    assert torch.allclose(spread, wanted, atol=1e-6)


def test_weights_and_policy_learn_in_turns() -> None:
    net, data = Spy(), tiny_data(80)
    policy = Controller(net.space, hidden=8)
    seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def progress(*_: Any) -> None:
        seen.append(([p.detach().clone() for p in net.parameters()], [p.detach().clone() for p in policy.parameters()]))

    result = search_reinforce(net, policy, data, epochs=2, batch=16, learning=QUICK, share=0.8, progress=progress)
    assert result.steps == 8 == len(seen)  # 64 images: four steps an epoch
    for step in range(1, 8):
        moved = any(not torch.equal(a, b) for a, b in zip(seen[step - 1][1], seen[step][1], strict=True))
        assert moved == (step in (3, 7))  # the policy moves at the ends of the two epochs alone, the weights in every step
        assert any(not torch.equal(a, b) for a, b in zip(seen[step - 1][0], seen[step][0], strict=True))
    rewarded = QUICK.steps * QUICK.draws
    first = net.kinds[: 4 + rewarded]
    assert first[:4] == [True] * 4 and first[4:] == [False] * rewarded
    assert len(result.trajectory) == 2 and all(s.arch in net.space for s in result.trajectory)


def test_turns_may_come_within_epochs_and_after_a_warm_up() -> None:
    net = Spy()
    learning = PolicyGradient(lr=0.02, steps=1, draws=1, every=2, candidates=0)
    search_reinforce(net, Softmax(net.space), tiny_data(80), steps=8, batch=16, learning=learning, share=0.8, weights_only=0.5)
    assert net.kinds == [True] * 4 + [False] + [True] * 2 + [False] + [True] * 2


def test_an_update_may_have_one_batch_and_a_baseline_that_knows_its_rewards() -> None:
    """ProxylessNAS: with a baseline of this update alone, rewards that are all the same teach nothing, whatever came before."""

    class Alike(TinyNet):
        def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
            if not torch.is_grad_enabled():
                rewarded.append({float(image.sum()) for image in x})
            return super().forward(x, self.largest, drop_path)

    seen: list[float] = []
    rewarded: list[set[float]] = []

    def reward(arch: Arch, accuracy: float) -> float:
        seen.append(accuracy)
        return accuracy

    def moved(**how: Any) -> bool:
        seen.clear(), rewarded.clear()
        net, learning = Alike(), PolicyGradient(lr=0.02, steps=4, draws=3, candidates=0, entropy=0.0, **how)
        policy = Softmax(net.space)
        before = policy.alpha.detach().clone()
        search_reinforce(net, policy, tiny_data(80), steps=8, batch=8, learning=learning, share=0.5, reward=reward)
        return not torch.equal(before, policy.alpha)

    assert not moved(one_batch=True, current=True, decay=0.0)
    assert all(len(set(seen[i : i + 3])) == 1 for i in range(0, len(seen), 3)) and len(set(seen)) > 1
    # two turns of four updates: five batches are all 40 images once, over the turns
    assert len(set.union(*rewarded[: 3 * 5])) == 40 and len(set.union(*rewarded[: 3 * 4])) == 32
    assert moved(one_batch=True, current=False, decay=0.0)  # compared with the update before
    assert moved(one_batch=False, current=True, decay=0.0)
    assert any(len(set(seen[i : i + 3])) > 1 for i in range(0, len(seen), 3))


def test_the_policy_finds_what_is_rewarded() -> None:
    net = TinyNet()
    policy = Controller(net.space, hidden=16, seed=1)

    def reward(arch: Arch, accuracy: float) -> float:
        return float(arch["w1"] == 1) + float(arch["k"] == 0)

    learning = PolicyGradient(lr=0.02, steps=60, draws=8, entropy=0.0, decay=0.9, candidates=6)
    result = search_reinforce(net, policy, tiny_data(64), steps=8, batch=16, learning=learning, reward=reward)
    assert result.arch["w1"] == 1 and result.arch["k"] == 0
    assert policy.probabilities()[policy.row["w1"], 1] > 0.75


def test_what_is_not_accepted_is_not_derived() -> None:
    net = TinyNet()
    result = search_reinforce(
        net, Softmax(net.space), tiny_data(64), steps=4, batch=16, learning=QUICK,
        accept=lambda arch: arch["w2"] == 0, evaluate=lambda net, arch: {"params": 1.0},
    )  # fmt: skip
    assert all(s.arch["w2"] == 0 and s.metrics == {"params": 1.0} for s in result.trajectory)


@pytest.mark.parametrize("kind", [Softmax, Controller])
def test_a_killed_search_resumes_bit_for_bit(tmp_path: Path, kind: Any) -> None:
    def run(checkpoint: Path | None, progress: Any = None) -> tuple[TinyNet, Any, Any]:
        net = TinyNet()
        policy = kind(net.space, seed=2)
        learning = PolicyGradient(lr=0.05, steps=2, draws=2, every=3, candidates=3)
        result = search_reinforce(
            net, policy, tiny_data(80), steps=11, batch=16, learning=learning, seed=3, share=0.8, checkpoint=checkpoint,
            checkpoint_seconds=0, progress=progress,
        )  # fmt: skip
        return net, policy, result

    whole, path = run(None), tmp_path / "search.safetensors"
    with pytest.raises(Killed):
        run(path, kill_at(7))
    resumed = run(path)
    assert equal(whole[0], resumed[0]) and equal(whole[1], resumed[1])
    assert whole[2].trajectory == resumed[2].trajectory and whole[2].arch == resumed[2].arch
    assert not equal(whole[1], kind(whole[0].space, seed=2))


def test_bad_settings_are_refused() -> None:
    net = TinyNet()
    with pytest.raises(UserError, match="draws"):
        PolicyGradient(draws=0)
    with pytest.raises(UserError, match="share"):
        search_reinforce(net, Softmax(net.space), tiny_data(64), steps=2, share=1.0)
    with pytest.raises(UserError, match="not finite"):
        search_reinforce(net, Softmax(net.space), tiny_data(64), steps=4, batch=16, learning=QUICK, reward=lambda *_: float("nan"))
