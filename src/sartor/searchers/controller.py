"""Learned controllers. REINFORCE: Zoph & Le 2017, "Neural Architecture Search with Reinforcement Learning", ICLR, section 3.2,
https://arxiv.org/abs/1611.01578; PPO: Zoph et al. 2018, https://arxiv.org/abs/1707.07012, with the clipped objective of Schulman et al.
2017, equation 7, https://arxiv.org/abs/1707.06347."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.base import Fold, Visited
from sartor.searchers.rewards import Form, Reward, make_reward
from sartor.searchers.variation import fresh, whole
from sartor.trial import Proposal, Trial

if TYPE_CHECKING:
    from torch import Tensor

    from sartor.searchers.policy import Network, Policy

Gain = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
_ROUNDS = 4  # batches of draws until the policy is taken to repeat itself


@dataclass
class _State:
    visited: Visited
    policy: Policy
    optimiser: Any
    waiting: list[Trial] = field(default_factory=list)  # finished, not yet learned from
    baseline: float | None = None  # moving average of the reward
    variance: float = 0.0  # moving average of the squared advantage
    worst: float | None = None  # smallest reward so far


@dataclass(frozen=True)
class _Settings:
    method: str
    network: Network
    hidden: int
    batch: int
    learning_rate: float
    entropy: float
    decay: float
    seed: int
    epochs: int = 1

    def __post_init__(self) -> None:
        whole(self.method, "batch", self.batch, 1)
        whole(self.method, "epochs", self.epochs, 1)
        whole(self.method, "seed", self.seed, 0)
        whole(self.method, "hidden", self.hidden, 4)
        if self.network not in ("lstm", "transformer") or self.hidden % 4:
            raise UserError(
                f"{self.method}: expected network 'lstm' or 'transformer' and hidden a multiple of 4, got {self.network!r} and"
                f" {self.hidden}"
            )
        if not (0 < self.learning_rate < 1 and 0 <= self.decay < 1 and 0 <= self.entropy < math.inf):
            raise UserError(
                f"{self.method}: expected 0 < learning_rate < 1, 0 <= decay < 1 and 0 <= entropy, got {self.learning_rate}, {self.decay}"
                f" and {self.entropy}"
            )


class _Controller:
    """A policy that is a fold over the finished trials: seeded weights, one update for every `batch` trials in the order of the history.

    Draws that were seen before are drawn again; a policy that keeps repeating itself has its last draws mutated until they are new. The
    log-probability at the time of the proposal travels in `Proposal.meta`; trials without one (another searcher's) teach nothing. A
    failed trial has the smallest reward so far. Advantages are divided by their moving root mean square, so that no setting depends on
    the unit of the reward. A cold start on a long history learns it anew, some 10 ms for `batch` trials.

    Args:
        gain: `(log-probabilities now, when proposed, advantages)`, each `(n,)`, to what is to be raised `(n,)`.
    """

    def __init__(self, space: Space, reward: Reward, gain: Gain, settings: _Settings) -> None:
        self._space, self._reward, self._gain, self._set = space, reward, gain, settings
        self._fold = Fold(self._start, self._finish)

    def policy(self, history: Sequence[Trial]) -> Policy:
        """The policy after `history`."""
        from sartor.searchers.policy import one_thread

        with one_thread():
            return self._fold(history).policy

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        from sartor.searchers.policy import one_thread

        with one_thread():
            return self._ask(self._fold(history), pending, n, rng)

    def _ask(self, state: _State, pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        archs: list[Arch] = []
        with state.visited.holding(pending):
            drawn: list[Arch] = []
            for _ in range(_ROUNDS):
                if len(archs) == n:
                    break
                drawn = state.policy.sample(4 * n + 60, rng)
                archs += [arch for arch in drawn if state.visited.add(arch)][: n - len(archs)]
            while len(archs) < n and (arch := fresh(self._space, state.visited, drawn[len(archs) % len(drawn)], rng)) is not None:
                state.visited.add(arch)
                archs.append(arch)
        if not archs:
            return []
        logp = state.policy.log_prob(state.policy.actions(archs))[0].detach().double().tolist()
        return [Proposal(arch, meta={"logp": value}) for arch, value in zip(archs, logp, strict=True)]

    def _start(self) -> _State:
        import torch

        from sartor.searchers.policy import Policy

        policy = Policy(self._space, network=self._set.network, hidden=self._set.hidden, seed=self._set.seed)
        return _State(Visited(self._space), policy, torch.optim.Adam(policy.parameters(), lr=self._set.learning_rate))

    def _finish(self, state: _State, trial: Trial) -> None:
        state.visited.add(trial.arch)
        if "logp" in trial.meta and trial.arch in self._space:
            state.waiting.append(trial)
        if len(state.waiting) == self._set.batch:
            batch, state.waiting = state.waiting, []
            self._learn(state, batch)

    def _learn(self, state: _State, trials: list[Trial]) -> None:
        import torch

        rewards = np.array([self._reward(trial) for trial in trials])
        known = rewards[np.isfinite(rewards)]
        if len(known):
            state.worst = float(known.min()) if state.worst is None else min(state.worst, float(known.min()))
        if state.worst is None:
            return  # nothing but failures so far
        rewards = np.where(np.isfinite(rewards), rewards, state.worst)
        advantages = torch.tensor(self._advantages(state, rewards), dtype=torch.float32)
        actions = state.policy.actions([trial.arch for trial in trials])
        before = torch.tensor([float(trial.meta["logp"]) for trial in trials])
        for _ in range(self._set.epochs):
            logp, entropy = state.policy.log_prob(actions)
            loss = -self._gain(logp, before, advantages).mean() - self._set.entropy * entropy.mean()
            state.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(state.policy.parameters(), 1.0)
            state.optimiser.step()

    def _advantages(self, state: _State, rewards: np.ndarray) -> np.ndarray:
        """Reward less the moving average of the batches before (Zoph & Le 2017, section 3.2), in units of its moving deviation."""
        mean, decay = float(rewards.mean()), self._set.decay
        first = state.baseline is None
        baseline = mean if state.baseline is None else state.baseline
        advantages = rewards - baseline
        square = float((advantages**2).mean())
        state.baseline = decay * baseline + (1 - decay) * mean
        state.variance = square if first else decay * state.variance + (1 - decay) * square
        return advantages / (math.sqrt(state.variance) + 1e-12)


class REINFORCE:
    """Policy gradient `(reward - baseline) · ∇ log P(arch)`, with an entropy bonus.

    Args:
        network: "lstm" or "transformer" (two causal layers of four heads).
        hidden: width of the network; a multiple of 4.
        batch: trials an update.
        learning_rate: of Adam.
        entropy: weight of the policy's entropy in nats (a sum over the steps). As repeats are never proposed, a policy that narrows down
            early is worth little: this default keeps it open for some hundred proposals (chosen on NAS-Bench-201, CIFAR-10).
        decay: of the moving-average baseline.
        reward, target_ms, weights: as in :func:`sartor.searchers.rewards.make_reward`.
        seed: of the initial weights.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        network: Network = "lstm",
        hidden: int = 64,
        batch: int = 10,
        learning_rate: float = 0.03,
        entropy: float = 0.15,
        decay: float = 0.9,
        reward: Form = "objective",
        target_ms: float | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        settings = _Settings("reinforce", network, hidden, batch, learning_rate, entropy, decay, seed)
        figure = make_reward(reward, goals, target_ms=target_ms, weights=weights)
        self._controller = _Controller(space, figure, lambda now, before, advantages: now * advantages, settings)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        return self._controller.ask(history, pending, n, rng)

    def policy(self, history: Sequence[Trial]) -> Policy:
        """The policy after `history`."""
        return self._controller.policy(history)


class PPO:
    """`epochs` steps on each batch of the clipped ratio to the policy that proposed it, with an entropy bonus.

    Args:
        network, hidden, batch, learning_rate, entropy, decay, reward, target_ms, weights, seed: as in :class:`REINFORCE`.
        clip: how far the ratio may leave 1 with effect.
        epochs: steps on each batch.

    Raises:
        UserError: for settings out of range.
    """

    def __init__(
        self,
        space: Space,
        goals: Goals,
        *,
        network: Network = "lstm",
        hidden: int = 64,
        batch: int = 10,
        learning_rate: float = 0.02,
        entropy: float = 0.1,
        decay: float = 0.9,
        clip: float = 0.2,
        epochs: int = 2,
        reward: Form = "objective",
        target_ms: float | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < clip < 1:
            raise UserError(f"ppo: clip must lie between 0 and 1, got {clip}")
        settings = _Settings("ppo", network, hidden, batch, learning_rate, entropy, decay, seed, epochs)
        figure = make_reward(reward, goals, target_ms=target_ms, weights=weights)
        self._controller = _Controller(space, figure, _clipped(clip), settings)

    def ask(self, history: Sequence[Trial], pending: Sequence[Proposal], n: int, rng: np.random.Generator) -> list[Proposal]:
        return self._controller.ask(history, pending, n, rng)

    def policy(self, history: Sequence[Trial]) -> Policy:
        """The policy after `history`."""
        return self._controller.policy(history)


def _clipped(clip: float) -> Gain:
    """Schulman et al. 2017, equation 7."""

    def gain(now: Tensor, before: Tensor, advantages: Tensor) -> Tensor:
        ratio = (now - before).exp()
        return (ratio * advantages).minimum(ratio.clamp(1 - clip, 1 + clip) * advantages)

    return gain
