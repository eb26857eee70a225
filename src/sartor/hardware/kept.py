"""Rooflines that are kept between runs, and which one a device goes by: as calibrated, as its file says, or as probed.

A profile, a search and a report all ask here, so that they say the same of the same network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError
from sartor.hardware.cache import roofline_path
from sartor.hardware.roofline import Roofline

if TYPE_CHECKING:
    from sartor.hardware.spec import DeviceSpec


def save_roofline(model: Roofline, key: str, threads: int = 1) -> Path:
    """Keep a model for a device: `key` is its name, or the fingerprint of this machine's identity.

    Raises UserError when it cannot be written.
    """
    path = roofline_path(key, model.precision, threads)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(model.to_json()))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"expected to keep the roofline in {path}, got: {error}") from None
    return path


def load_roofline(key: str, precision: str, threads: int = 1) -> Roofline | None:
    """The model kept for a device, None when there is none that can be read."""
    try:
        return Roofline.from_json(json.loads(roofline_path(key, precision, threads).read_text()))
    except (OSError, ValueError, UserError):
        return None


def device_roofline(spec: DeviceSpec, precision: str, threads: int = 1) -> Roofline:
    """The model of a described device: as calibrated and kept for it, otherwise from its file.

    A calibration belongs to the numbers that it began from: once the file gives others, it is passed over. Raises UserError when the file
    lacks what a roofline needs.
    """
    plain = Roofline.of(spec, precision, threads)
    kept = load_roofline(spec.name, precision, threads)
    if kept is None or replace(kept, parameters=plain.parameters, quality=None, networks=0) != plain:
        return plain
    return kept


def described_roofline(device: Mapping[str, Any], precision: str, threads: int) -> Roofline | None:
    """The model of the device of a result (`device` in result.json) without measuring: as kept for it, or from its file. None otherwise."""
    from sartor.hardware.devices import find

    key = str(device.get("fingerprint") or "")
    kept = load_roofline(key, precision, threads) if key and "/" not in key else None
    if kept is not None and kept.calibrated:
        return kept
    try:
        return device_roofline(find(str(device.get("name"))), precision, threads)
    except UserError:
        return kept


def host_roofline(precision: str, threads: int, spec: DeviceSpec | None = None) -> Roofline:
    """The model of this machine: as calibrated, from its device file where that has peaks, as probed before, or probed now.

    The file comes before what an earlier call probed: it has peaks because somebody ran `sartor devices probe`, which measures longer.
    """
    from sartor.hardware.device import host
    from sartor.hardware.peaks import probe_roofline

    asked = precision if precision in ("fp32", "int8") else "fp32"
    key = host(asked, threads).fingerprint
    kept = load_roofline(key, asked, threads)
    if kept is not None and kept.calibrated:
        return kept
    if spec is not None and asked in spec.peak_ops_per_s and spec.bandwidth_bytes_per_s is not None:
        return Roofline.of(spec, asked, threads, runtime="onnxruntime")
    if kept is not None:
        return kept
    model = probe_roofline(asked, threads, lanes=1 if spec is None else spec.lanes.get(asked, 1))
    save_roofline(model, key, threads)
    return model
