"""Where what was measured of a device is kept between runs: `$SARTOR_CACHE`, else `sartor` in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from sartor.hardware.device import Identity


def _folder() -> Path:
    chosen = os.environ.get("SARTOR_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sartor"


def table_path(identity: Identity) -> Path:
    """The latency table of a device: one file for each device, runtime, version, precision and thread count."""
    return _folder() / "tables" / f"{identity.fingerprint}.sqlite"


def roofline_path(key: str, precision: str, threads: int) -> Path:
    """The roofline of a device: `key` is its name, or the fingerprint of this machine's identity."""
    return _folder() / "rooflines" / f"{key}-{precision}-{threads}.json"
