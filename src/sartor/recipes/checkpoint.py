"""Checkpoints: one safetensors file whose header carries the state, so that weights and state can never disagree.

A readable copy of the state is written next to it (``supernet.safetensors`` -> ``supernet.json``) and never read back.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.errors import UserError

SCHEMA = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-spelled `state` atomically.

    Raises:
        UserError: if a tensor holds NaN or infinity. A diverged model is never saved; an earlier checkpoint stays as it is.
    """
    from safetensors.torch import save

    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"'{name}' holds NaN or infinity, so nothing was saved to {path.name}; train again with a lower lr=")
    spelled = json.dumps({"schema": SCHEMA, **state}, sort_keys=True)
    # clone: safetensors refuses memory shared between entries and any layout but contiguous
    flat = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(path, save(flat, metadata={"state": spelled}))
    write_atomically(path.with_suffix(".json"), (json.dumps(json.loads(spelled), indent=1, sort_keys=True) + "\n").encode())


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of :func:`save_checkpoint`.

    Raises:
        UserError: if the file is missing, damaged, or of another kind or schema.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); delete it to train from the start") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        found = state.get("schema") if isinstance(state, dict) else None
        raise UserError(f"checkpoint {path} has schema {found}, expected {SCHEMA}; delete it to train from the start")
    return tensors, state


@dataclass(frozen=True)
class LoadReport:
    """What became of the parameters and buffers of a module that started from given weights."""

    loaded: tuple[str, ...] = ()
    partial: Mapping[str, str] = field(default_factory=dict)  # name -> "(8, 3, 3, 3) of given (16, 3, 3, 3) ..."
    missing: tuple[str, ...] = ()  # in the module, not among the weights: left at their initial values
    unused: tuple[str, ...] = ()  # among the weights, not in the module

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded, {len(self.partial)} in part, {len(self.missing)} missing, {len(self.unused)} unused"
        return "; ".join([text, *(f"{name}: {how}" for name, how in self.partial.items())])


def _window(target: int, given: int, *, centred: bool) -> tuple[slice, slice]:
    """Overlap of two extents as (slice of target, slice of given)."""
    extent = min(target, given)
    start_target, start_given = ((target - extent) // 2, (given - extent) // 2) if centred else (0, 0)
    return slice(start_target, start_target + extent), slice(start_given, start_given + extent)


def load_weights(module: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Copy weights into `module`, in part where shapes differ: leading channels, and the centre of kernels (as elastic layers slice them).

    Args:
        source: a safetensors file (a checkpoint of this package, of which the averaged weights are preferred, or a plain state dict) or a
            mapping name -> tensor.

    Raises:
        UserError: if the file cannot be read or nothing in it fits the module.
    """
    given = dict(source) if isinstance(source, Mapping) else _weights_of(Path(source))
    loaded: list[str] = []
    partial: dict[str, str] = {}
    missing: list[str] = []
    own = module.state_dict()
    with torch.no_grad():
        for name, target in own.items():
            tensor = given.get(name)
            if tensor is None or tensor.dim() != target.dim():
                missing.append(name)
            elif tensor.shape == target.shape:
                target.copy_(tensor)
                loaded.append(name)
            else:
                windows = [_window(t, g, centred=axis >= 2) for axis, (t, g) in enumerate(zip(target.shape, tensor.shape, strict=True))]
                target[tuple(w for w, _ in windows)].copy_(tensor[tuple(w for _, w in windows)])
                covered = tuple(w.stop - w.start for w, _ in windows)
                partial[name] = f"{covered} of given {tuple(tensor.shape)} into {tuple(target.shape)}"
    if own and not loaded and not partial:
        raise UserError(f"none of the {len(given)} given weights fits the network (it expects e.g. '{next(iter(own))}'); check the file")
    return LoadReport(tuple(loaded), partial, tuple(missing), tuple(name for name in given if name not in own))


def _weights_of(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"weights {path} do not exist; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            checkpoint = "state" in (file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"weights {path} cannot be read as safetensors ({error}); convert them with safetensors.torch.save_file") from error
    diverged = next((name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)
    if diverged is not None:
        raise UserError(f"weights {path}: '{diverged}' holds NaN or infinity, which no training recovers from; take other weights")
    if not checkpoint:
        return tensors
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    average = {name.removeprefix("ema."): t for name, t in tensors.items() if name.startswith("ema.")}
    return {**model, **average}
