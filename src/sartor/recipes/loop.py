"""The loop under every gradient-training recipe: data order, schedule, optimiser step, checkpoints, resume.

All randomness is derived from (seed, epoch) and (seed, step), never carried along: a resumed run needs no generator state and repeats the
interrupted one bit for bit (on one thread, with a budget in steps).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sartor.data.augment import mixup as mix_pairs
from sartor.errors import UserError
from sartor.recipes.checkpoint import load_checkpoint, save_checkpoint
from sartor.recipes.loss import is_finite
from sartor.recipes.schedule import SCHEDULES, Budget, Progress, duration
from sartor.recipes.splits import TrainingSplit

Batch = tuple[np.ndarray, np.ndarray]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # (b, C, H, W) -> (b, C, H, W), e.g. sartor.data.Policy


@dataclass(frozen=True)
class Optimisation:
    """SGD with momentum under a schedule with warm-up.

    Args:
        lr: peak learning rate.
        weight_decay: L2 penalty on convolution and linear weights; never on biases and batch-normalisation parameters.
        warmup: share of the budget in which the rate rises linearly.
        clip_norm: bound on the global L2 norm of the gradients; None leaves them alone.
        ema: decay of the exponential moving average of the weights, which then is the result; None for none. The decay warms up as
            min(ema, (1 + step) / (10 + step)), so that short runs are not averaged with the initial weights.
        floor: share of the peak learning rate at which the cosine ends, and below which the exponential decay does not go.
        nesterov: Nesterov's momentum instead of the classical one.
        schedule: "cosine" or "exponential", see :mod:`sartor.recipes.schedule`.
        part: beginning and end of the part of the schedule that this training has, for one schedule over several trainings.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip_norm: float | None = 1.0
    ema: float | None = None
    floor: float = 0.0
    nesterov: bool = True
    schedule: str = "cosine"
    part: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        checks = {
            "lr": (self.lr > 0, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "zero or more"),
            "warmup": (0 <= self.warmup < 1, "a share of the budget in [0, 1)"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "positive or None"),
            "ema": (self.ema is None or 0 < self.ema < 1, "in (0, 1) or None"),
            "floor": (0 <= self.floor <= 1, "in [0, 1]"),
            "part": (0 <= self.part[0] < self.part[1] <= 1, "two numbers that rise, in [0, 1]"),
            "schedule": (self.schedule in SCHEDULES, " or ".join(SCHEDULES)),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise UserError(f"{name}= must be {wanted}, got {getattr(self, name)}")

    def settings(self) -> dict[str, Any]:
        """JSON-spelled; the settings that came later are left out at their defaults, so that older checkpoints still agree."""
        later = {"floor": 0.0, "nesterov": True, "schedule": "cosine", "part": (0.0, 1.0)}
        known = {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


class Companion(Protocol):
    """What is trained beside the module (architecture parameters): it is part of the checkpoint, and may end the training."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside tensors, as JSON spells it."""
        ...

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`tensors` and :meth:`state` gave."""
        ...

    def finished(self) -> bool:
        """Whether the training ends here, whatever is left of the budget; asked after every epoch and on resume."""
        ...


@dataclass(frozen=True)
class Moment:
    """Where a training step stands: number, spent share of the budget, and a generator of its own."""

    step: int
    fraction: float
    rng: np.random.Generator


@dataclass
class Trace:
    """The course of a training: one row per epoch, and the totals."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan  # running mean
    rows: list[dict[str, float]] = field(default_factory=list)


def steps_per_epoch(split: TrainingSplit, batch: int) -> int:
    """Full batches only: a leftover of one image would make a useless batch statistic. A split below one batch is one step."""
    if len(split) == 0:
        raise UserError("the training split is empty; give a dataset with training images")
    if batch < 1:
        raise UserError(f"batch= must be at least 1, got {batch}")
    return max(len(split) // batch, 1)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices and kernels; none on vectors (biases, batch-normalisation scales and shifts), nor on the kernel transforms of
    elastic convolutions, which start as the identity and would be pulled away from it."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (free if parameter.dim() <= 1 or "transforms" in name.split(".") else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's global generator as it was found: dropout inside a recipe is seeded per step."""
    with torch.random.fork_rng(devices=[]):
        yield


def stream(split: TrainingSplit, batch: int, seed: int, augment: Augment | None, start: int) -> Iterator[Batch]:
    """Batches without end from step `start` on; the order of epoch e depends on (seed, e) alone."""
    per_epoch = steps_per_epoch(split, batch)
    epoch, skip = divmod(start, per_epoch)
    while True:
        batches = split.batches(batch, np.random.default_rng([seed, 0, epoch]), augment, len(split) >= batch)
        for i, item in enumerate(batches):
            if i >= skip:
                yield item
        epoch, skip = epoch + 1, 0


class Loop:
    """State of one training; :meth:`run` drives it.

    Args:
        module: trained in place.
        compute: forward and backward of one batch, ``compute(images, labels, moment) -> loss``; gradients accumulate into the parameters.
        settings: JSON-spelled settings that must agree between a checkpoint and the run that resumes it.
        checkpoint: file to save to and resume from; None for none.
        checkpoint_seconds: least wall time between two saves. Saving never changes the course of the training.
        companion: what `compute` trains beside the module.
    """

    def __init__(
        self,
        module: nn.Module,
        split: TrainingSplit,
        compute: Callable[[Tensor, Tensor, Moment], float],
        *,
        batch: int,
        budget: Budget,
        optimisation: Optimisation,
        seed: int,
        augment: Augment | None = None,
        mixup: float = 0.0,
        classes: int = 0,
        channels_last: bool = True,
        settings: Mapping[str, Any] | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 30.0,
        progress: Progress | None = None,
        name: str = "train",
        on_epoch: Callable[[], dict[str, float]] | None = None,
        companion: Companion | None = None,
    ) -> None:
        self.companion = companion
        self.module, self.split, self.compute = module, split, compute
        self.batch, self.budget, self.optimisation, self.seed = batch, budget, optimisation, seed
        self.augment, self.channels_last, self.progress, self.name, self.on_epoch = augment, channels_last, progress, name, on_epoch
        self.mixup, self.classes = mixup, classes
        self.checkpoint = Path(checkpoint) if checkpoint else None
        self.checkpoint_seconds = checkpoint_seconds
        self.settings = {"batch": batch, "seed": seed, "mixup": mixup, **optimisation.settings(), **asdict(budget), **(settings or {})}
        self.per_epoch = steps_per_epoch(split, batch)
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub omits the keyword-only form
        groups = parameter_groups(module, optimisation.weight_decay)
        nesterov = optimisation.nesterov and optimisation.momentum > 0
        self.optimiser = torch.optim.SGD(groups, lr=optimisation.lr, momentum=optimisation.momentum, nesterov=nesterov, foreach=True)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if optimisation.ema else {}
        self.trace = Trace()

    def run(self) -> Trace:
        """Train to the end of the budget.

        Raises:
            UserError: if the loss or a gradient becomes NaN or infinite, or the checkpoint does not belong to this training.
        """
        if self.checkpoint and self.checkpoint.is_file():
            self._resume()
        trace, start = self.trace, time.perf_counter() - self.trace.seconds
        saved_at, saved_step = time.perf_counter(), trace.step
        batches = stream(self.split, self.batch, self.seed, self.augment, trace.step)
        self.module.train()
        with _own_randomness():
            over = self.budget.done(trace.step, trace.seconds) or self._ended()
            while not over:
                self._step(*next(batches))
                trace.seconds = time.perf_counter() - start
                over = self.budget.done(trace.step, trace.seconds)
                if trace.step % self.per_epoch == 0 or over:
                    self._end_epoch()
                    over = over or self._ended()
                    trace.seconds = time.perf_counter() - start
                if self.checkpoint and (over or time.perf_counter() - saved_at >= self.checkpoint_seconds):
                    self._save()
                    saved_at, saved_step = time.perf_counter(), trace.step
                self._report()
        if self.checkpoint and saved_step != trace.step:
            self._save()
        if self.average:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.average[name])
        self.module.eval()
        return trace

    def _ended(self) -> bool:
        return self.companion is not None and self.companion.finished()

    def _step(self, images: np.ndarray, labels: np.ndarray) -> None:
        trace, o = self.trace, self.optimisation
        fraction = self.budget.fraction(trace.step, trace.seconds)
        begin, end = o.part
        at = begin + (end - begin) * min(fraction + self._half_step(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = o.lr * SCHEDULES[o.schedule](at, warmup=o.warmup, floor=o.floor)
        torch.default_generator.manual_seed((self.seed * 1_000_003 + trace.step) % 2**63)
        rng = np.random.default_rng([self.seed, 1, trace.step])
        if self.mixup:
            images, labels = mix_pairs(images, labels, self.classes, rng, self.mixup)
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.compute(x, y, Moment(trace.step, fraction, rng))
        norm = 0.0
        if o.clip_norm is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), o.clip_norm, foreach=True))
        if not is_finite(loss) or not is_finite(norm):
            what = f"the loss became {loss}" if not is_finite(loss) else f"the gradient norm became {norm}"
            raise UserError(
                f"training diverged: {what} at step {trace.step}; lower lr= (now {o.lr}), raise warmup= or set clip_norm=1, and in a "
                "network of your own normalise what grows"
            )
        self.optimiser.step()
        trace.step += 1
        # half-life of about seven steps: readable, yet current
        trace.loss = loss if math.isnan(trace.loss) else 0.9 * trace.loss + 0.1 * loss
        if o.ema:
            weight = 1.0 - min(o.ema, (1 + trace.step) / (10 + trace.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], weight)

    def _half_step(self) -> float:
        """Step budgets read the schedule at the middle of a step, so that neither the first nor the last step has rate zero."""
        return 0.5 / self.budget.steps if self.budget.steps else 1e-3

    def _end_epoch(self) -> None:
        trace = self.trace
        row = {"epoch": trace.step / self.per_epoch, "step": trace.step, "loss": trace.loss, "lr": self.optimiser.param_groups[0]["lr"]}
        if self.on_epoch is not None:
            row.update(self.on_epoch())
            self.module.train()
        trace.rows.append({**row, "seconds": trace.seconds})

    def _report(self) -> None:
        if self.progress is not None:
            trace = self.trace
            left = duration(self.budget.time_left(trace.step, trace.seconds))
            self.progress(f"{self.name}: loss {trace.loss:.3f}, {left} left", *self.budget.units(trace.step, trace.seconds))

    def _save(self) -> None:
        assert self.checkpoint is not None
        momenta = {name: self.optimiser.state[p].get("momentum_buffer") for name, p in self.parameters.items()}
        tensors = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        tensors.update({f"momentum.{name}": t for name, t in momenta.items() if t is not None})
        tensors.update({f"ema.{name}": t for name, t in self.average.items()})
        trace = self.trace
        state: dict[str, Any] = {
            "step": trace.step, "seconds": trace.seconds, "loss": trace.loss, "rows": trace.rows, "settings": self.settings,
        }  # fmt: skip
        if self.companion is not None:
            tensors.update({f"companion.{name}": t for name, t in self.companion.tensors().items()})
            state["companion"] = self.companion.state()
        save_checkpoint(self.checkpoint, tensors, state)

    def _resume(self) -> None:
        assert self.checkpoint is not None
        tensors, state = load_checkpoint(self.checkpoint)
        for key in sorted({*self.settings, *state["settings"]}):
            was, now = state["settings"].get(key), self.settings.get(key)
            if was != now:
                raise UserError(
                    f"checkpoint {self.checkpoint} was made with {key}={was}, this training has {now}; use the same or delete it"
                )
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        own = self.module.state_dict()
        wrong = [name for name in {*own, *model} if name not in own or name not in model or own[name].shape != model[name].shape]
        if wrong:
            raise UserError(f"checkpoint {self.checkpoint} is of another network ('{min(wrong)}' differs); delete it to start anew")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(model[name])
            for name, parameter in self.parameters.items():
                if f"momentum.{name}" in tensors:
                    buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                    self.optimiser.state[parameter]["momentum_buffer"] = buffer
                if name in self.average:
                    self.average[name].copy_(tensors[f"ema.{name}"])
        self.trace = Trace(state["step"], state["seconds"], state["loss"], state["rows"])
        if self.companion is not None:
            own_part = {name.removeprefix("companion."): t for name, t in tensors.items() if name.startswith("companion.")}
            self.companion.load(own_part, state["companion"])
