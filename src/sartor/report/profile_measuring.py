"""What `sartor profile` measures: on this machine whatever its runtimes tell, on a board what its agent does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError

if TYPE_CHECKING:
    from sartor.hardware.runtimes import Setup
    from sartor.hardware.spec import DeviceSpec
    from sartor.hardware.target import Device

Progress = Callable[[str, int, int], None]


def measure_here(
    file: Path, setup: Setup, seconds: float, seed: int, sweep: bool, record: dict[str, Any], notes: list[str], progress: Progress | None
) -> None:
    from sartor.hardware.measure import measure_setups
    from sartor.hardware.measure import sweep as sweep_setups
    from sartor.hardware.profile import PROFILED, layers

    (found,) = measure_setups([(file, setup)], seconds=seconds, seed=seed, progress=progress)
    record["latency"] = found.to_json()
    if found.conditions is not None:
        notes += list(found.conditions["warnings"])
    if setup.runtime in PROFILED:
        record["layers"] = [
            {"name": layer.name, "type": layer.type, "latency_us": round(layer.us, 3)} for layer in layers(file, setup, total_ms=found.p50)
        ]
    else:
        notes.append(f"{setup.runtime} does not time its layers.")
    if sweep:
        tried = sweep_setups(file, setup=replace(setup, cores=()), cores=_core_sets(), seconds=seconds, seed=seed)
        record["sweep"] = [{"setup": one.to_json(), "latency": latency.to_json()} for one, latency in tried]


def check_possible_there(bench: Device, spec: DeviceSpec, setup: Setup, sweep: bool) -> None:
    """What only this machine can do is refused for another device rather than left out in silence."""
    how = "its agent measures with onnxruntime" if bench.measured else f"it is only described, and modelled with its runtime {spec.runtime}"
    if setup.runtime not in ("onnxruntime", *(() if bench.measured else (spec.runtime,))):
        raise UserError(f"runtime: expected none for the device {bench.name}, for {how}; got {setup.runtime!r}.")
    if setup.precision or sweep or setup.cores:
        what = "precision" if setup.precision else "sweep" if sweep else "cores"
        raise UserError(f"{what}: expected none for the device {bench.name}, for {how}; only this machine can be told.")
    if setup.batch != 1 and not bench.measured:
        raise UserError(f"batch: expected 1 for the device {bench.name}, for {how}; got {setup.batch}.")


def measure_there(
    file: Path, bench: Device, setup: Setup, seconds: float, seed: int, record: dict[str, Any], notes: list[str],
    progress: Progress | None,
) -> None:  # fmt: skip
    """The latency on a board behind an agent, which times whole networks. Of a described device there is nothing to measure."""
    if not bench.measured:
        return
    (found,) = bench.measure_many([file], threads=setup.threads, batch=setup.batch, seconds=seconds, seed=seed, progress=progress)
    record["latency"] = found.to_json()
    if found.conditions is not None:
        notes += list(found.conditions["warnings"])
    notes.append(f"The agent of {bench.name} times whole networks: there are no layers.")


def _core_sets() -> list[tuple[int, ...]]:
    """Not pinned; pinned to the first one, two, four … cores of this process."""
    if not hasattr(os, "sched_getaffinity"):
        return [()]
    mine = sorted(os.sched_getaffinity(0))
    return [(), *(tuple(mine[: 2**power]) for power in range(len(mine).bit_length()) if 2**power <= len(mine))]
