"""Budgets and the schedules that follow them.

Everything that changes during training is a function of the *fraction* of the budget that is spent, so one schedule serves budgets in
steps, epochs and seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sartor.errors import UserError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps (deterministic) or of wall-clock seconds (as many steps as the machine manages, hence not
    reproducible: another machine, or another load, takes other steps). Exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None

    def fraction(self, step: int, elapsed: float) -> float:
        """Spent share of the budget, 0..1, before step number `step` at `elapsed` seconds."""
        if self.steps is not None:
            return min(step / self.steps, 1.0) if self.steps else 1.0
        assert self.seconds is not None
        return min(elapsed / self.seconds, 1.0)

    def done(self, step: int, elapsed: float) -> bool:
        return self.fraction(step, elapsed) >= 1.0

    def time_left(self, step: int, elapsed: float) -> float | None:
        """Seconds still needed at the pace so far; None before the first step of a step budget."""
        if self.seconds is not None:
            return max(self.seconds - elapsed, 0.0)
        assert self.steps is not None
        return elapsed / step * (self.steps - step) if step else None

    def units(self, step: int, elapsed: float) -> tuple[int, int]:
        """(done, total) for a progress callback: steps, or whole seconds."""
        if self.steps is not None:
            return step, self.steps
        assert self.seconds is not None
        return min(int(elapsed), math.ceil(self.seconds)), math.ceil(self.seconds)


def budget(*, steps: int | None = None, epochs: float | None = None, seconds: float | None = None, steps_per_epoch: int) -> Budget:
    """The budget that a caller spelled in steps, epochs or seconds.

    Raises:
        UserError: unless exactly one is given and it is positive.
    """
    given = {name: value for name, value in (("steps", steps), ("epochs", epochs), ("seconds", seconds)) if value is not None}
    if len(given) != 1:
        raise UserError(f"expected exactly one of steps=, epochs= and seconds= as the training budget, got {given or 'none'}; give one")
    ((name, value),) = given.items()
    if not value > 0 or not math.isfinite(value):
        raise UserError(f"{name}= must be a positive number, got {value}")
    if name == "seconds":
        return Budget(seconds=float(value))
    return Budget(steps=max(1, round(value * steps_per_epoch if name == "epochs" else value)))


def cosine(fraction: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Learning-rate factor: linear from 0 to 1 over the first `warmup` share, then half a cosine from 1 down to `floor`
    (Loshchilov & Hutter 2017, SGDR, eq. 5, without restarts)."""
    if fraction < warmup:
        return fraction / warmup
    rest = (fraction - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


#: BigNAS's rate falls by 3 % every 2.4 of 360 epochs (Yu et al. 2020, section 4): 150 times.
EXPONENTIAL_END = 0.97**150


def exponential(fraction: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Learning-rate factor: linear from 0 to 1 over the first `warmup` share, then exponential decay, constant once it has reached `floor`.

    Without a floor it is at :data:`EXPONENTIAL_END` when the budget ends. BigNAS, section 3.1 ("exponentially decaying with constant
    ending"), has a floor of 0.05.
    """
    if fraction < warmup:
        return fraction / warmup
    rest = (fraction - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return max(floor, EXPONENTIAL_END ** min(rest, 1.0))


SCHEDULES: dict[str, Callable[..., float]] = {"cosine": cosine, "exponential": exponential}


def duration(seconds: float | None) -> str:
    """``3m20s``, for people."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
