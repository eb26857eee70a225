"""The steps of a differentiable search: what happens in a batch, at the end of an epoch, and in a checkpoint.

:func:`sartor.recipes.bilevel.search_bilevel` is the way in.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sartor.policies.base import Policy
from sartor.recipes.hypergradient import WeightStep, dominant_eigenvalue, frozen, unrolled_gradient
from sartor.recipes.loop import Batch, Loop, Moment, Optimisation
from sartor.recipes.loss import as_target, classification_loss
from sartor.recipes.trajectory import EvaluateShared, Snapshot, Stop, Verdict, restored


@dataclass(frozen=True)
class Adam:
    """The optimiser of the architecture parameters; the defaults are those of DARTS (appendix A.1.1)."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3


class Term(Protocol):
    """What is added to, or done to, the loss of the architecture step: ``term(loss, expected mixture)``; `update` follows each step.

    One that is an `nn.Module` has its state in the checkpoint. :mod:`sartor.recipes.cost_term` has those of hardware costs.
    """

    def __call__(self, loss: Tensor, mixture: Mapping[str, Any]) -> Tensor: ...

    def update(self, mixture: Mapping[str, Any]) -> None: ...


def described(part: Any) -> list[Any]:
    """What a policy or a term is, for comparison with a checkpoint: its type, its plain settings, and those of a term inside.

    Settings are attributes named like parameters of the constructor, and those that the class names in `SETTINGS`: others may count.
    """
    plain = {}
    for name in sorted({*inspect.signature(type(part).__init__).parameters, *getattr(part, "SETTINGS", ())} - {"self"}):
        value = getattr(part, name, None)
        values = value if isinstance(value, tuple) else (value,)
        if all(isinstance(v, bool | int | float | str) for v in values):
            plain[name] = list(value) if isinstance(value, tuple) else value
    inside, cost = getattr(part, "term", None), getattr(part, "cost", None)
    return [type(part).__name__, plain, *([cost.name] if cost else []), *([described(inside)] if inside else [])]


@dataclass
class _Means:
    """Sums over the steps of an epoch."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0

    def add(self, loss: float, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss * len(labels)
        self.correct += int((logits.argmax(1) == labels).sum())
        self.images += len(labels)

    def mean(self) -> tuple[float, float] | None:
        return (self.loss / self.images, self.correct / self.images) if self.images else None


@dataclass
class Alternation:
    """State and steps of one search; a :class:`sartor.recipes.loop.Loop` drives it, and must be set as `loop` first."""

    net: nn.Module
    policy: Policy
    batches: Callable[[int], Iterator[Batch]]  # of the architecture step, from a step on
    weights: Optimisation
    architecture: Adam
    order: int
    joint: bool
    weights_only: float
    every: int
    terms: Sequence[Term]
    stops: Sequence[Stop]
    drop_path: Callable[[float], float]
    eigenvalue: bool
    evaluate: EvaluateShared | None
    on_epoch: Callable[[Snapshot], None] | None
    channels_last: bool
    loop: Loop = field(init=False)
    trajectory: list[Snapshot] = field(default_factory=list)
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        a = self.architecture
        self.named = dict(self.policy.named_parameters())
        self.alphas = list(self.named.values())
        self.optimiser = torch.optim.Adam(self.alphas, lr=a.lr, betas=a.betas, weight_decay=a.weight_decay)
        self.train_means, self.validation_means = _Means(), _Means()
        self._stream: Iterator[Batch] | None = None
        self._next = -1

    # -- one step ----------------------------------------------------------------------------------------------------

    def compute(self, x: Tensor, y: Tensor, moment: Moment) -> float:
        """Architecture step (unless it is still the time of the weights alone), then gradients of the weight step."""
        searching = moment.fraction >= self.weights_only
        rate = self.drop_path(moment.fraction)
        if self.joint and searching:
            return self._joint_step(x, y, moment, rate)
        if searching and moment.step % self.every == 0:
            self._architecture_step(x, y, moment, rate)
        mixture = self.policy.sample_weights(torch.default_generator, fraction=moment.fraction)
        logits = self.net(x, mixture, rate)
        loss = classification_loss(logits, as_target(y))
        loss.backward()
        self.train_means.add(loss.item(), logits, y)
        return loss.item()

    def _joint_step(self, x: Tensor, y: Tensor, moment: Moment, rate: float) -> float:
        """Both gradients of one loss on one batch: the single-level search of SNAS (Xie et al. 2019, section 2.3)."""
        logits = self.net(x, self.policy.sample(torch.default_generator, fraction=moment.fraction), rate)
        loss = classification_loss(logits, as_target(y))
        self.train_means.add(loss.item(), logits, y)
        self.validation_means.add(loss.item(), logits, y)
        total = self._with_terms(loss)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        self._move()
        return loss.item()

    def _architecture_step(self, x: Tensor, y: Tensor, moment: Moment, rate: float) -> None:
        images, labels = self._validation_batch(moment.step)
        if self.order == 1:
            gradients: Sequence[Tensor | None] = [None] * len(self.alphas)
            with frozen(self.net.parameters()):
                logits, loss = self._loss(images, labels, moment, rate)
                total = self._with_terms(loss)
                if total.requires_grad:  # a draw may leave nothing to choose
                    gradients = torch.autograd.grad(total, self.alphas, allow_unused=True)
            self.validation_means.add(loss.item(), logits, labels)
        else:
            gradients = self._second_order(x, y, images, labels, moment, rate)
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = gradient
        self._move()

    def _second_order(self, x: Tensor, y: Tensor, images: Tensor, labels: Tensor, moment: Moment, rate: float) -> Sequence[Tensor | None]:
        seed = int(moment.rng.integers(2**62))  # both losses see the same draws in every pass

        def training() -> Tensor:
            torch.default_generator.manual_seed(seed)
            return self._loss(x, y, moment, rate)[1]

        def validation() -> Tensor:
            torch.default_generator.manual_seed(seed + 1)
            logits, loss = self._loss(images, labels, moment, rate)
            self.validation_means.add(loss.item(), logits, labels)
            return self._with_terms(loss)

        return unrolled_gradient(training, validation, list(self.loop.parameters.values()), self.alphas, self._weight_step(moment))[1]

    def _weight_step(self, moment: Moment) -> WeightStep:
        optimiser, parameters = self.loop.optimiser, self.loop.parameters.values()
        decay = {p: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
        velocities = [optimiser.state[p].get("momentum_buffer") for p in parameters]
        return WeightStep(optimiser.param_groups[0]["lr"], self.weights.momentum, velocities, [decay[p] for p in parameters])

    def _loss(self, x: Tensor, y: Tensor, moment: Moment, rate: float) -> tuple[Tensor, Tensor]:
        logits = self.net(x, self.policy.sample(torch.default_generator, fraction=moment.fraction), rate)
        return logits, classification_loss(logits, as_target(y))

    def _with_terms(self, loss: Tensor) -> Tensor:
        if self.terms:
            mixture = self.policy.expected()
            for term in self.terms:
                loss = term(loss, mixture)
        return loss

    def _move(self) -> None:
        self.optimiser.step()
        self.policy.updated()
        if self.terms:
            with torch.no_grad():
                mixture = self.policy.expected()
            for term in self.terms:
                term.update(mixture)

    def _validation_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of the architecture step that goes with this step of the weights, whatever was read before."""
        number = step // self.every
        if self._stream is None or self._next != number:
            self._stream = self.batches(number)
        self._next = number + 1
        images, labels = next(self._stream)
        x = torch.from_numpy(images)
        return (x.contiguous(memory_format=torch.channels_last) if self.channels_last else x), torch.from_numpy(labels)

    # -- the end of an epoch -------------------------------------------------------------------------------------------

    def end_epoch(self) -> dict[str, float]:
        """Take a snapshot, ask the stops; returns what the loop's own row is to hold."""
        step, fraction = self.loop.trace.step, self.loop.budget.fraction(self.loop.trace.step, self.loop.trace.seconds)
        train = self.train_means.mean() or (math.nan, math.nan)
        validation = self.validation_means.mean()
        arch = self.policy.mode()
        snapshot = Snapshot(
            epoch=len(self.trajectory) + 1,
            step=step,
            fraction=fraction,
            arch=arch,
            strengths={name: row for name, row in self.policy.strengths().items() if not isinstance(row, int)},
            train_loss=train[0],
            train_accuracy=train[1],
            validation_loss=validation[0] if validation else None,
            validation_accuracy=validation[1] if validation else None,
            eigenvalue=self._eigenvalue(step, fraction) if self.eigenvalue and validation else None,
            metrics=dict(self.evaluate(self.net, arch)) if self.evaluate is not None else {},
        )
        self.trajectory.append(snapshot)
        self.train_means, self.validation_means = _Means(), _Means()
        self.verdict = next((v for stop in self.stops if (v := stop(self.trajectory)) is not None), None)
        if self.on_epoch is not None:
            self.on_epoch(snapshot)
        return {}

    def _eigenvalue(self, step: int, fraction: float) -> float:
        images, labels = self._validation_batch(step)
        moment = Moment(step, fraction, np.random.default_rng([step]))

        def loss() -> Tensor:
            return self._loss(images, labels, moment, 0.0)[1]

        # A network with a fast form that has no second derivatives (sartor.layers.mixed) has a plain one that computes the same.
        fast = getattr(self.net, "fast", None)
        try:
            if fast:
                self.net.fast = False  # type: ignore[assignment]  # a flag, not a module
            return dominant_eigenvalue(loss, self.alphas)
        finally:
            if fast:
                self.net.fast = fast

    # -- the loop's companion --------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        found = {f"policy.{name}": p.detach() for name, p in self.policy.state_dict().items()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state[parameter].items():
                found[f"adam.{key}.{name}"] = torch.as_tensor(value)
        for number, term in enumerate(self.terms):
            if isinstance(term, nn.Module):
                found.update({f"term{number}.{name}": t for name, t in term.state_dict().items()})
        return found

    def state(self) -> dict[str, Any]:
        means = [[m.loss, m.correct, m.images] for m in (self.train_means, self.validation_means)]
        return {"trajectory": [s.to_json() for s in self.trajectory], "means": means}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.policy.load_state_dict(part("policy."))
        for key in ("step", "exp_avg", "exp_avg_sq"):
            for name, value in part(f"adam.{key}.").items():
                self.optimiser.state[self.named[name]][key] = value.clone()
        for number, term in enumerate(self.terms):
            if isinstance(term, nn.Module):
                term.load_state_dict(part(f"term{number}."))
        self.trajectory = restored(state["trajectory"], self.on_epoch)
        self.train_means, self.validation_means = (_Means(*values) for values in state["means"])
        if self.trajectory:
            self.verdict = next((v for stop in self.stops if (v := stop(self.trajectory)) is not None), None)

    def finished(self) -> bool:
        return self.verdict is not None
