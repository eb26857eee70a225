"""Does the space fit the time? A supernet that sees its data only once ranks nets no better than their size does."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sartor.arch import Space
from sartor.hardware.device import cores
from sartor.job.context import Job
from sartor.recipes.sandwich import extremes, sandwich_step, thread_pool

#: Passes over the training images below which the supernet's picture scale is reduced.
ENOUGH_EPOCHS = 3.0
#: Pixels below which a picture is not made smaller: what is lost there no saved time brings back.
_DETAIL = 48


def fit_space(job: Job, batch: int) -> None:
    """Leave out the largest picture scales (first stride, then large resolutions) while the supernet has too little time for the data.

    The cost of every later layer follows from them, so that each halving of the picture gives about four times as many steps. What was left
    out and why is told in the report; more `minutes` keep everything. Also finds the fastest use of the cores.
    """
    if "sizing" in job.state:
        return
    left_out: list[str] = []
    keep: dict[str, list[Any]] = {}
    with job.state.timing("sizing"):
        use, seconds = _step(job, batch)
        wanted = ENOUGH_EPOCHS * len(job.data.train) / batch
        for name, option in _scales(job.net.space):
            if job.plan.supernet / seconds >= wanted:
                break
            keep[name] = [label for label in keep.get(name, job.net.space.choices[name]) if label != option]
            job.net.space = job.net.space.restrict({name: keep[name]})
            job.forget_extremes()
            left_out.append(f"{name} = {option}")
            use, seconds = _step(job, batch)
    epochs = job.plan.supernet / seconds * batch / len(job.data.train)
    note = (
        f"Left out of the space: {', '.join(left_out)}. Even so the supernet sees the data only about {epochs:.1f} times in "
        f"{job.request.minutes:g} minutes on this machine; more minutes keep everything."
    )
    job.state.put("sizing", {"keep": keep, **asdict(use), "epochs": epochs, "note": note if left_out else ""})


def _scales(space: Space) -> list[tuple[str, Any]]:
    """The options of the choices that scale the picture and may be left out, the costliest first; the cheapest of each choice stays, and so
    does every resolution of small pictures."""
    found: list[tuple[str, Any]] = []
    for name, reverse in (("stem.stride", False), ("resolution", True)):
        if name in space.choices:
            ordered = sorted((space.choices[name][i] for i in space.allowed[name]), reverse=reverse)
            found += [(name, label) for label in ordered[:-1] if name == "stem.stride" or label > _DETAIL]
    return found


@dataclass(frozen=True)
class _Use:
    """Of the processor: threads in an operation, nets side by side, see :mod:`sartor.recipes.arithmetic`."""

    threads: int
    workers: int
    arithmetic: str = "fp32"


def _step(job: Job, batch: int) -> tuple[_Use, float]:
    """The fastest use of the processor and its mean seconds of a sandwich step on random nets.

    Small networks are slower with several threads in an operation; several nets side by side then use the cores. bf16 must save a tenth.
    """
    x = torch.from_numpy(job.data.train.images(slice(0, batch))).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(job.data.train.labels[: len(x)])
    job.net.train()
    job.net.to(memory_format=torch.channels_last)
    job.progress("look at the space", 0, 2)  # the extremes of a space of cells take minutes to find
    extremes(job.net, job.rng(5))
    job.progress("look at the space", 1, 2)
    seconds = {use: _timed(job, x, y, use) for use in (_Use(*pair) for pair in sorted({(1, 1), (cores(), 1), (1, cores())}))}
    best = min(seconds, key=seconds.__getitem__)
    mixed = replace(best, arithmetic="bf16")
    try:
        seconds[mixed] = _timed(job, x, y, mixed)
    except RuntimeError:  # a user's own layers need not take both
        seconds[mixed] = math.inf
    job.net.zero_grad(set_to_none=True)
    job.progress("look at the space", 2, 2)
    best = mixed if seconds[mixed] < 0.9 * seconds[best] else best
    return best, seconds[best]


def _timed(job: Job, x: torch.Tensor, y: torch.Tensor, use: _Use) -> float:
    torch.set_num_threads(use.threads)
    rng = job.rng(5)  # the same nets whatever the use
    total = 0.0
    with thread_pool(use.workers) if use.workers > 1 else nullcontext() as pool:
        for number in range(6):
            largest, smallest = extremes(job.net, rng)
            others = [smallest, job.net.space.sample(rng), job.net.space.sample(rng)]
            start = time.perf_counter()
            sandwich_step(job.net, x, y, others, largest=largest, arithmetic=use.arithmetic, pool=pool)
            total += (time.perf_counter() - start) if number else 0.0
    return total / 5
