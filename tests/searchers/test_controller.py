from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.run import search
from sartor.searchers.constraints import constrained
from sartor.searchers.controller import PPO, REINFORCE, _clipped
from sartor.searchers.policy import Policy
from sartor.searchers.rewards import make_reward
from sartor.trial import Trial

GOALS = Goals(("accuracy",))
ARMS = Space({"arm": ["bad", "good"], **{f"c{i}": list(range(4)) for i in range(6)}})
CONDITIONAL = Space(
    {"k2": [3, 5, 7], "depth": [1, 2, 3], "one": ["x"], "k3": [3, 5], "e": [1, 2, 3]}, {"k2": {"depth": [2, 3]}, "k3": {"depth": [3]}}
).restrict({"e": [1, 3]})
NETWORKS = ("lstm", "transformer")


def moved(policy: Policy, seed: int = 0) -> Policy:
    """The policy with other weights, so that it is far from uniform."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return policy


# -- the policy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_probabilities_sum_to_one_over_the_architectures(network: Any) -> None:
    policy = moved(Policy(CONDITIONAL, network=network, hidden=8, seed=0))
    whole = list(CONDITIONAL)
    logp = policy.log_prob(policy.actions(whole))[0]
    assert math.isclose(float(logp.exp().sum().detach()), 1.0, abs_tol=1e-5) and float(logp.std().detach()) > 0.3


@pytest.mark.parametrize("network", NETWORKS)
def test_draws_follow_the_probabilities(network: Any) -> None:
    policy = moved(Policy(CONDITIONAL, network=network, hidden=8, seed=0))
    whole, n = list(CONDITIONAL), 20_000
    found = Counter(policy.sample(n, np.random.default_rng(1)))
    expected = n * policy.log_prob(policy.actions(whole))[0].exp().double().detach().numpy()
    counts = np.array([found[arch] for arch in whole])
    assert counts.sum() == n  # nothing outside the space
    likely = expected > 5
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < likely.sum() + 5 * math.sqrt(2 * likely.sum())


@pytest.mark.parametrize("network", NETWORKS)
def test_entropy_is_that_of_the_steps(network: Any) -> None:
    """Averaged over the policy's own draws, the sum of the steps' entropies is the entropy of the policy."""
    policy = moved(Policy(CONDITIONAL, network=network, hidden=8, seed=0))
    logp, entropy = policy.log_prob(policy.actions(list(CONDITIONAL)))
    assert math.isclose(float((logp.exp() * entropy).sum().detach()), float(-(logp.exp() * logp).sum().detach()), rel_tol=1e-4)


def test_a_step_sees_only_what_came_before() -> None:
    for network in NETWORKS:
        policy = moved(Policy(ARMS, network=network, hidden=8, seed=0))  # type: ignore[arg-type]  # a plain string
        a = policy.actions([Arch({**dict.fromkeys(ARMS.choices, 0), "c5": 0}), Arch({**dict.fromkeys(ARMS.choices, 0), "c2": 3})])
        rows = policy(a)
        assert torch.allclose(rows[0, :4], rows[1, :4], atol=1e-6) and not torch.allclose(rows[0, 4], rows[1, 4], atol=1e-3)


def test_weights_follow_the_seed_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (Policy(ARMS, network="lstm", hidden=8, seed=seed).heads for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(torch.rand(1), expected)


# -- learning ---------------------------------------------------------------------------------------------------------------


def arm(policy: Policy) -> float:
    """Probability of the good arm, which is the first decision."""
    return float(policy(torch.zeros((1, 0), dtype=torch.long))[0, 0, 1].exp().detach())


def batch(searcher: REINFORCE | PPO, past: list[Trial], n: int, value: Any) -> list[Trial]:
    asked = searcher.ask(past, [], n, np.random.default_rng(len(past)))
    return [Trial(len(past) + i, p.arch, {"accuracy": value(p.arch)}, meta=p.meta) for i, p in enumerate(asked)]


@pytest.mark.parametrize("method", [REINFORCE, PPO])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("good", [1, 0])
def test_the_better_arm_becomes_likelier(method: Any, network: str, good: int) -> None:
    """One update: the sign of the gradient. Both arms, so that a constant drift would fail one of them."""
    searcher = method(ARMS, GOALS, network=network, hidden=8, batch=40, entropy=0.0, learning_rate=0.05)
    past = batch(searcher, [], 40, lambda arch: 1.0 if arch["arm"] == good else 0.0)
    before, after = arm(searcher.policy([])), arm(searcher.policy(past))
    assert (after > before + 0.01) if good else (after < before - 0.01)


def test_equal_rewards_teach_nothing_but_entropy() -> None:
    """With the baseline there is no advantage; without it every drawn arm would become likelier."""
    searcher = REINFORCE(ARMS, GOALS, hidden=8, batch=10, entropy=0.0)
    past = batch(searcher, [], 10, lambda arch: 0.7)
    assert abs(arm(searcher.policy(past)) - arm(searcher.policy([]))) < 1e-6


def test_the_baseline_is_a_moving_average_of_the_batches_before() -> None:
    """A second batch of equal rewards below the first one's is bad news for what it drew."""
    searcher = REINFORCE(ARMS, GOALS, hidden=8, batch=10, entropy=0.0)
    first = batch(searcher, [], 10, lambda arch: 0.9)
    second = batch(searcher, first, 10, lambda arch: 0.1)
    logp = [
        float(policy.log_prob(policy.actions([t.arch for t in second]))[0].mean().detach())
        for policy in (searcher.policy(first), REINFORCE(ARMS, GOALS, hidden=8, batch=10, entropy=0.0).policy([*first, *second]))
    ]
    assert logp[1] < logp[0] - 1e-3


def test_the_entropy_bonus_keeps_the_policy_open() -> None:
    left = []
    for weight in (0.0, 1.0):
        searcher = REINFORCE(ARMS, GOALS, hidden=8, batch=10, entropy=weight, learning_rate=0.05)
        past: list[Trial] = []
        for _ in range(15):
            past += batch(searcher, past, 10, lambda arch: float(arch["arm"]))
        policy = searcher.policy(past)
        left.append(float(policy.log_prob(policy.actions([t.arch for t in past[-10:]]))[1].mean().detach()))
    assert left[1] > left[0] + 0.2


def test_ppo_stops_at_the_clip() -> None:
    """Schulman et al. 2017, figure 1: no gain beyond 1 + clip for a good action, none below 1 - clip for a bad one."""
    for ratio, advantage, slope in [(1.1, 1, 1.1), (1.3, 1, 0), (0.7, 1, 0.7), (0.7, -1, 0), (1.3, -1, -1.3), (0.9, -1, -0.9)]:
        now = torch.tensor([math.log(ratio)], requires_grad=True)
        _clipped(0.2)(now, torch.zeros(1), torch.tensor([float(advantage)])).sum().backward()
        assert now.grad is not None and math.isclose(float(now.grad), slope, abs_tol=1e-6)


def test_ppo_compares_with_the_policy_that_proposed() -> None:
    """Trials said to have been 1/e times as likely when proposed (good ones) or e times (bad ones) are beyond the clip."""
    searcher = PPO(ARMS, GOALS, hidden=8, batch=40, entropy=0.0, learning_rate=0.05, epochs=1)
    past = batch(searcher, [], 40, lambda arch: float(arch["arm"]))
    beyond = [replace(t, meta={"logp": t.meta["logp"] + (-1.0 if t.arch["arm"] else 1.0)}) for t in past]
    start, moved_by, left = (arm(searcher.policy(history)) for history in ([], past, beyond))
    assert moved_by > start + 0.01 and abs(left - start) < 1e-6


def test_failures_have_the_smallest_reward_so_far() -> None:
    """The good arm always fails here: the policy leaves it."""
    searcher = REINFORCE(ARMS, GOALS, hidden=8, batch=20, entropy=0.0, learning_rate=0.05)
    past: list[Trial] = []
    for _ in range(3):
        asked = searcher.ask(past, [], 20, np.random.default_rng(len(past)))
        for p in asked:
            fails = p.arch["arm"] == 1
            metrics = {} if fails else {"accuracy": 0.5 + p.arch["c0"] / 10}
            past.append(Trial(len(past), p.arch, metrics, "failed" if fails else "complete", error="x" if fails else None, meta=p.meta))
    assert arm(searcher.policy(past)) < arm(searcher.policy([])) - 0.05


@pytest.mark.parametrize("method", [REINFORCE, PPO])
def test_it_learns(method: Any) -> None:
    def evaluate(arch: Arch) -> dict[str, float]:
        return {"accuracy": (10 * arch["arm"] + sum(arch.values())) / 29}

    trials = search(method(ARMS, GOALS, hidden=16), evaluate, goals=GOALS, space=ARMS, budget=300, batch=10).trials
    late, early = (np.mean([t.metrics["accuracy"] for t in part]) for part in (trials[-50:], trials[:50]))
    assert late > early + 0.2


def test_the_reward_of_another_searchers_trial_teaches_nothing() -> None:
    searcher = REINFORCE(ARMS, GOALS, hidden=8, batch=5)
    past = [Trial(i, ARMS.at(i), {"accuracy": i / 10}) for i in range(10)]
    assert arm(searcher.policy(past)) == arm(searcher.policy([]))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 0},
        {"hidden": 6},
        {"network": "gru"},
        {"learning_rate": 0.0},
        {"decay": 1.0},
        {"entropy": -1.0},
        {"clip": 0.0},
        {"epochs": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="ppo"):
        PPO(ARMS, GOALS, **settings)


# -- rewards ----------------------------------------------------------------------------------------------------------------


def trial(accuracy: float = 0.8, latency_ms: float = 3.0, **more: float) -> Trial:
    return Trial(0, Arch({}), {"accuracy": accuracy, "latency_ms": latency_ms, **more})


def test_rewards_by_hand() -> None:
    two = Goals.parse(["accuracy", "latency"])
    assert make_reward("objective", two)(trial()) == 0.8
    assert make_reward("objective", Goals(("latency_ms",)))(trial()) == -3.0
    assert math.isclose(make_reward("mnasnet-soft", two, target_ms=1.5)(trial()), 0.8 * 2**-0.07)
    assert math.isclose(make_reward("mnasnet-hard", two, target_ms=1.5)(trial()), 0.4)
    assert make_reward("mnasnet-hard", two, target_ms=6.0)(trial()) == 0.8
    assert math.isclose(make_reward("weighted", two, weights={"accuracy": 2.0, "latency": 0.1})(trial()), 1.6 - 0.3)


def test_limits_cost_a_reward_once() -> None:
    goals = Goals.parse(["accuracy"], ["latency=2ms", "params<=1M"])
    over = trial(params=2e6)
    assert math.isclose(make_reward("objective", goals)(over), 0.8 - 0.5 - 1.0)
    assert math.isclose(make_reward("objective", constrained(goals, "penalty", weight=0.1))(over), 0.8 - 0.1 * 1.25)
    assert math.isclose(make_reward("mnasnet-hard", goals)(over), 0.8 * 2 / 3 - 1.0)  # its latency term stands for that limit


def test_what_failed_has_no_reward() -> None:
    failed = Trial(0, Arch({}), {}, status="failed", error="x")
    for form in ("objective", "weighted", "mnasnet-soft"):
        reward = make_reward(form, Goals.parse(["accuracy", "latency"]), target_ms=1.0)  # type: ignore[arg-type]  # a plain string
        assert math.isnan(reward(failed)) and math.isnan(reward(trial(accuracy=math.nan)))


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "best"},
        {"form": "mnasnet-soft"},
        {"form": "mnasnet-hard", "target_ms": 0.0},
        {"form": "weighted", "weights": {"accuracy": 0.0}},
    ],
)
def test_bad_rewards_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="reward"):
        make_reward(goals=GOALS, **settings)
