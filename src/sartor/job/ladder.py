"""The hand-designed ladder: published mobile networks and small ResNets, trained, exported and measured like the search's own models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from sartor.job.context import Job
from sartor.job.device_space import feasible
from sartor.job.explore import batch_size
from sartor.job.finish import make
from sartor.job.workers import Task, module_of, train_all, with_shares
from sartor.spaces.mobile import MobileNet, MobileSpec
from sartor.spaces.published import fit_to, mobilenet_v2, mobilenet_v3
from sartor.spaces.small import resnet

_SCALES = (1.4, 1.0, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1)  # width multipliers of MobileNetV2


def rungs(size: int) -> dict[str, MobileSpec]:
    """Name -> network, for images of `size` pixels; early strides are dropped for small images, as is usual."""
    found: dict[str, MobileSpec] = {}
    for multiplier in (0.25, 0.35, 0.5):
        found[f"mobilenet-v2-{multiplier:g}"] = fit_to(mobilenet_v2(multiplier), size)
    for multiplier in (0.35, 0.5, 1.0):
        found[f"mobilenet-v3-small-{multiplier:g}"] = fit_to(mobilenet_v3("small", multiplier), size)
    for width in (8, 16):
        found[f"resnet8-{width}"] = resnet(width)
    return found


def ladder_of(job: Job) -> dict[str, MobileSpec]:
    """The rungs of a run. For a microcontroller: MobileNetV2 at the two largest widths that keep the run's memory limits, which share all
    of the ladder's training time; fewer where fewer keep them."""
    size = min(job.data.input_shape[1:])
    if job.spec is None or job.spec.kind != "mcu":
        return rungs(size)
    keeps, found = feasible(job), dict[str, MobileSpec]()
    for multiplier in _SCALES:
        spec = fit_to(mobilenet_v2(multiplier), size)
        with torch.device("meta"):
            net = MobileNet(spec, job.data.input_shape, len(job.data.classes))
        if keeps(net, net.largest):
            found[f"mobilenet-v2-{multiplier:g}"] = spec
        if len(found) == 2:
            break
    return found


def rung(job: Job, name: str) -> nn.Module:
    """The plain network of one rung, freshly initialised."""
    net = MobileNet(ladder_of(job)[name], job.data.input_shape, len(job.data.classes))
    return net.extract(net.largest)


def climb(job: Job) -> list[dict[str, Any]]:
    """Train every rung from scratch, all for the same number of images, in the ladder's share of the time; returns the model records."""
    with job.state.timing("ladder"):
        if "rungs" not in job.state:
            tasks = [Task(name, "scratch", design=name) for name in ladder_of(job)]
            modules = [module_of(job, task) for task in tasks]
            shared = with_shares(tasks, modules, job.data.input_shape, batch_size(job), job.plan.ladder)
            job.state.put("rungs", [asdict(task) for task in shared])
        tasks = [Task(**task) for task in job.state["rungs"]]
        train_all(job, [task for task in tasks if f"model:{task.name}" not in job.state])
        return [make(job, task, "baseline", {}) for task in tasks]
