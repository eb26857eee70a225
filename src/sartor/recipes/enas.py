"""Alternating search by policy gradient: the weights learn on drawn architectures, the policy from the reward of drawn architectures.

ENAS (Pham et al. 2018, "Efficient neural architecture search via parameter sharing", section 2.2) with its controller; ProxylessNAS'
REINFORCE variant (Cai et al. 2019, section 3.3.2, equation 5) with a softmax. The reward needs no gradient, so that a cost may enter it in
any form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.policies.base import Policy
from sartor.recipes.alternation import Adam, described
from sartor.recipes.bilevel import SearchData, SearchResult, divide
from sartor.recipes.loop import Augment, Batch, Loop, Moment, Optimisation, steps_per_epoch, stream
from sartor.recipes.loss import as_target, classification_loss
from sartor.recipes.schedule import Progress, budget
from sartor.recipes.trajectory import EvaluateShared, Snapshot, Stop, Verdict, restored

Reward = Callable[[Arch, float], float]  # (architecture, accuracy on a batch, a fraction) -> what is to be raised

#: ENAS on CIFAR-10 (section 3.2): SGD with Nesterov momentum, learning rate 0.05 to 0.001 by a cosine, decay 1e-4. The paper restarts the
#: cosine; one cosine over the budget is used here.
WEIGHTS = Optimisation(lr=0.05, momentum=0.9, weight_decay=1e-4, warmup=0.0, clip_norm=5.0, floor=0.02)


@dataclass(frozen=True)
class PolicyGradient:
    """How the policy learns.

    Args:
        lr, betas: of Adam; 0.00035 in ENAS (section 3.1).
        steps: updates of the policy in each of its turns.
        draws: architectures an update, whose gradients are averaged.
        one_batch: reward all draws of an update on the same batch, instead of one each.
        entropy: weight of the policy's entropy in nats; 1e-4 in ENAS.
        decay: of the moving-average baseline: what stays of it; 0.99 in the code of ENAS.
        current: whether the baseline has taken in an update's rewards before they are compared with it, or after.
        every: weight steps between two turns; None for one epoch, as in ENAS.
        candidates: architectures drawn at the end of each epoch, of which the one with the highest reward on one batch is derived (ENAS,
            section 2.2, "deriving architectures"); 0 for the policy's mode.
    """

    lr: float = 0.00035
    steps: int = 30
    draws: int = 10
    entropy: float = 1e-4
    decay: float = 0.99
    every: int | None = None
    candidates: int = 10
    betas: tuple[float, float] = (0.9, 0.999)
    one_batch: bool = False
    current: bool = False

    def __post_init__(self) -> None:
        fine = self.lr > 0 and self.steps >= 1 and self.draws >= 1 and self.entropy >= 0 and 0 <= self.decay < 1 and self.candidates >= 0
        if not fine or (self.every is not None and self.every < 1):
            raise UserError(
                "policy gradient: expected lr > 0, steps, draws and every >= 1, entropy and candidates >= 0 and decay in [0, 1), got"
                f" {self}"
            )


def scores(policy: Policy, archs: Sequence[Arch]) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(n,)` of drawn architectures and the policy's entropy, both differentiable."""
    many = getattr(policy, "log_probs", None)
    if many is not None:
        log_p, entropies = many(archs)
        return log_p, entropies.mean()
    return torch.stack([policy.log_prob(arch) for arch in archs]), policy.entropy()


def policy_loss(policy: Policy, archs: Sequence[Arch], advantages: Sequence[float], entropy: float = 0.0) -> Tensor:
    """``-mean(advantage * log P(arch)) - entropy * H(P)``: its gradient is the score-function estimate (Williams 1992)."""
    log_p, spread = scores(policy, archs)
    return -(log_p * log_p.new_tensor(list(advantages))).mean() - entropy * spread


def search_reinforce(
    net: nn.Module,
    policy: Policy,
    data: SearchData,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 128,
    weights: Optimisation = WEIGHTS,
    learning: PolicyGradient | None = None,
    reward: Reward | None = None,
    accept: Callable[[Arch], bool] | None = None,
    share: float = 0.9,
    weights_only: float = 0.0,
    stops: Sequence[Stop] = (),
    augment: Augment | None = None,
    evaluate: EvaluateShared | None = None,
    on_epoch: Callable[[Snapshot], None] | None = None,
    agreed: Sequence[str | float] = (),
    channels_last: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    name: str = "search",
) -> SearchResult:
    """Train `net` on drawn architectures and `policy` on their rewards, in turns, both in place, and derive an architecture.

    Give exactly one of `epochs`, `steps` (deterministic on one thread; a resumed search repeats the interrupted one bit for bit) and
    `seconds`. The training images are divided: `share` of them for the weights, the rest for the rewards.

    Args:
        policy: with `draw` and `log_prob`; a :class:`sartor.policies.controller.Controller` or any independent one.
        reward: the accuracy itself by default; :func:`sartor.recipes.cost_term.mnasnet_reward` weighs it by a cost.
        accept: what may be derived; among drawn candidates that it refuses, the policy's mode is the last resort.
        agreed: what a checkpoint must agree in besides, such as the target that is in `reward` and `accept`.
        weights_only: share of the budget, at its start, in which the policy rests.
        stops, evaluate, on_epoch, checkpoint: as in :func:`sartor.recipes.bilevel.search_bilevel`.

    Raises:
        UserError: on bad settings, a diverged loss (nothing bad is saved), or a foreign checkpoint.
    """
    if not 0.0 < share < 1.0 or not 0.0 <= weights_only < 1.0:
        raise UserError(f"expected share= in (0, 1) and weights_only= in [0, 1), got {share} and {weights_only}")
    learning = learning or PolicyGradient()
    for_weights, for_policy = divide(data.train, share, seed)
    size = min(batch, len(for_policy))
    per_epoch = steps_per_epoch(for_weights, batch)

    def batches(start: int) -> Iterator[Batch]:
        return stream(for_policy, size, seed + 1, None, start)

    state = _Turns(
        net=net,
        policy=policy,
        batches=batches,
        learning=learning,
        reward=reward or (lambda arch, accuracy: accuracy),
        accept=accept or (lambda arch: True),
        weights_only=weights_only,
        stops=stops,
        evaluate=evaluate,
        on_epoch=on_epoch,
        channels_last=channels_last,
        seed=seed,
    )
    loop = Loop(
        net,
        for_weights,
        state.compute,
        batch=batch,
        budget=budget(steps=steps, epochs=epochs, seconds=seconds, steps_per_epoch=per_epoch),
        optimisation=weights,
        seed=seed,
        augment=augment,
        channels_last=channels_last,
        settings={
            "recipe": "policy gradient",
            "space": policy.space.fingerprint,
            "policy": described(policy),
            "reward": list(agreed),
            "share": share,
            "weights_only": weights_only,
            "learning": [list(value) if isinstance(value, tuple) else value for value in asdict(learning).values()],  # as JSON has it
        },
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        name=name,
        on_epoch=state.end_epoch,
        companion=state,
    )
    state.loop = loop
    trace = loop.run()
    last = state.trajectory[state.verdict.epoch - 1] if state.verdict else state.trajectory[-1]
    stopped = f"epoch {len(state.trajectory)}: {state.verdict.reason}" if state.verdict else None
    return SearchResult(last.arch, tuple(state.trajectory), trace.step, trace.seconds, stopped, net, policy, epoch=last.epoch)


@dataclass
class _Turns:
    """State and steps of one search; `loop` drives it, and must be set first."""

    net: nn.Module
    policy: Policy
    batches: Callable[[int], Iterator[Batch]]
    learning: PolicyGradient
    reward: Reward
    accept: Callable[[Arch], bool]
    weights_only: float
    stops: Sequence[Stop]
    evaluate: EvaluateShared | None
    on_epoch: Callable[[Snapshot], None] | None
    channels_last: bool
    seed: int
    loop: Loop = field(init=False)
    trajectory: list[Snapshot] = field(default_factory=list)
    verdict: Verdict | None = None
    baseline: float | None = None
    turns: int = 0

    def __post_init__(self) -> None:
        self.named = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.Adam(list(self.named.values()), lr=self.learning.lr, betas=self.learning.betas)
        self.sums = [0.0] * 6  # of the epoch: loss, correct and images of the weights' steps; of the rewarded architectures

    # -- the weights' step ------------------------------------------------------------------------------------------------

    def compute(self, x: Tensor, y: Tensor, moment: Moment) -> float:
        """Gradients of the weights for one drawn architecture (M = 1, section 2.2); before it, the policy's turn if it is due."""
        every = self.learning.every
        if every is not None and moment.step and moment.step % every == 0 and moment.fraction >= self.weights_only:
            self._turn(moment.step)
        arch = self.policy.draw(torch.default_generator)
        logits = self.net(x, arch)
        loss = classification_loss(logits, as_target(y))
        loss.backward()
        self._count(0, loss, logits, y)
        return loss.item()

    def _count(self, at: int, loss: Tensor, logits: Tensor, labels: Tensor) -> int:
        correct = int((logits.argmax(1) == labels).sum())
        for offset, value in enumerate((loss.item() * len(labels), correct, len(labels))):
            self.sums[at + offset] += value
        return correct

    # -- the policy's turn ---------------------------------------------------------------------------------------------------

    def _turn(self, step: int) -> None:
        """`steps` updates of the policy with the weights at rest (section 2.2, "training the controller parameters")."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + 7919 * step + 1) % 2**63)
        how = self.learning
        stream_ = self.batches(self.turns * how.steps * (1 if how.one_batch else how.draws))
        for _ in range(how.steps):
            archs = [self.policy.draw(generator) for _ in range(how.draws)]
            batches = [next(stream_)] * len(archs) if how.one_batch else [next(stream_) for _ in archs]
            rewards = [self.reward(arch, self._accuracy(arch, batch)) for arch, batch in zip(archs, batches, strict=True)]
            mean = math.fsum(rewards) / len(rewards)
            if not math.isfinite(mean):
                raise UserError(f"a reward is not finite ({rewards}); check reward=")
            before = mean if self.baseline is None else self.baseline
            self.baseline = how.decay * before + (1 - how.decay) * mean
            baseline = self.baseline if how.current else before
            loss = policy_loss(self.policy, archs, [r - baseline for r in rewards], self.learning.entropy)
            self.optimiser.zero_grad(set_to_none=True)
            gradients = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True)
            for parameter, gradient in zip(self.named.values(), gradients, strict=True):
                parameter.grad = gradient
            self.optimiser.step()
            self.policy.updated()
        self.turns += 1

    @torch.no_grad()
    def _accuracy(self, arch: Arch, batch: Batch) -> float:
        images, labels = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.net(images, arch)
        return self._count(3, classification_loss(logits, as_target(labels)), logits, labels) / len(labels)

    def _derived(self, step: int) -> Arch:
        """The candidate of highest reward on one batch."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + 104729 * step + 2) % 2**63)
        drawn = [self.policy.draw(generator) for _ in range(self.learning.candidates)]
        fit = list(dict.fromkeys(arch for arch in drawn if self.accept(arch)))
        if not fit:
            return self.policy.mode()
        batch = next(self.batches(step))
        kept = list(self.sums)
        best = max(fit, key=lambda arch: self.reward(arch, self._accuracy(arch, batch)))
        self.sums = kept  # candidates do not count among the rewards that taught the policy
        return best

    def end_epoch(self) -> dict[str, float]:
        """The policy's turn where it follows epochs, a snapshot, and the stops."""
        trace = self.loop.trace
        fraction = self.loop.budget.fraction(trace.step, trace.seconds)
        if self.learning.every is None and fraction >= self.weights_only:
            self._turn(trace.step)
        loss, correct, images, reward_loss, reward_correct, rewarded = self.sums
        arch = self._derived(trace.step)
        snapshot = Snapshot(
            epoch=len(self.trajectory) + 1,
            step=trace.step,
            fraction=fraction,
            arch=arch,
            strengths={name: row for name, row in self.policy.strengths().items() if not isinstance(row, int)},
            train_loss=loss / max(images, 1),
            train_accuracy=correct / max(images, 1),
            validation_loss=reward_loss / rewarded if rewarded else None,
            validation_accuracy=reward_correct / rewarded if rewarded else None,
            metrics=dict(self.evaluate(self.net, arch)) if self.evaluate is not None else {},
        )
        self.trajectory.append(snapshot)
        self.sums = [0.0] * 6
        self._judge()
        if self.on_epoch is not None:
            self.on_epoch(snapshot)
        return {"reward": self.baseline if self.baseline is not None else math.nan, "turns": float(self.turns)}

    def _judge(self) -> None:
        self.verdict = next((v for stop in self.stops if (v := stop(self.trajectory)) is not None), None)

    # -- the loop's companion ------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        found = {f"policy.{name}": p.detach() for name, p in self.policy.state_dict().items()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state[parameter].items():
                found[f"adam.{key}.{name}"] = torch.as_tensor(value)
        return found

    def state(self) -> dict[str, Any]:
        return {
            "trajectory": [s.to_json() for s in self.trajectory],
            "baseline": self.baseline,
            "turns": self.turns,
            "sums": self.sums,
        }

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict({n.removeprefix("policy."): t for n, t in tensors.items() if n.startswith("policy.")})
        for key in ("step", "exp_avg", "exp_avg_sq"):
            prefix = f"adam.{key}."
            for name, value in tensors.items():
                if name.startswith(prefix):
                    self.optimiser.state[self.named[name.removeprefix(prefix)]][key] = value.clone()
        self.trajectory = restored(state["trajectory"], self.on_epoch)
        self.baseline, self.turns, self.sums = state["baseline"], int(state["turns"]), list(state["sums"])
        if self.trajectory:
            self._judge()

    def finished(self) -> bool:
        return self.verdict is not None


__all__ = ["WEIGHTS", "Adam", "PolicyGradient", "Reward", "policy_loss", "scores", "search_reinforce"]
