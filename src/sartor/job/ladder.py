"""The hand-designed ladder: published mobile networks and small ResNets, trained, exported and measured like the search's own models."""

from __future__ import annotations

from typing import Any

from sartor.job.context import Job
from sartor.job.finish import make
from sartor.spaces.mobile import MobileNet, MobileSpec
from sartor.spaces.published import fit_to, mobilenet_v2, mobilenet_v3
from sartor.spaces.small import resnet


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


def climb(job: Job) -> list[dict[str, Any]]:
    """Train every rung from scratch with an equal share of the ladder's time; returns the model records."""
    import torch

    specs = rungs(min(job.data.input_shape[1:]))
    records = []
    for name, spec in specs.items():
        torch.manual_seed(job.request.seed)
        net = MobileNet(spec, job.data.input_shape, len(job.data.classes))
        module = net.extract(net.largest)
        with job.state.timing("ladder"):
            records.append(
                make(
                    job,
                    name,
                    "baseline",
                    module,
                    seconds=job.plan.ladder / len(specs),
                    start="scratch",
                    predicted={},
                    labels={"design": name},
                )
            )
    return records
