"""Devices by name: the files shipped here, and the user's own, which come first.

A user's files lie in `~/.config/sartor/devices` (`XDG_CONFIG_HOME` and `SARTOR_DEVICES` move it), one `<name>.toml` each.
"""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path

from sartor.errors import UserError
from sartor.hardware.device import cores, host
from sartor.hardware.spec import DeviceSpec, parse, read

HOST = "host"


def user_folder() -> Path:
    """Where a user's own device files lie."""
    chosen = os.environ.get("SARTOR_DEVICES")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sartor" / "devices"


def names(folder: Path | None = None) -> list[str]:
    """Names of all devices: the host first, then the shipped and the user's in alphabetical order."""
    shipped = {entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")}
    return [HOST, *sorted((shipped | {path.stem for path in _own(folder)}) - {HOST})]


def find(name: str, folder: Path | None = None) -> DeviceSpec:
    """The spec of a device by name: the user's own file, or the shipped one, or for `host` what this machine tells of itself.

    Raises UserError for a name that no file has, naming the nearest, and for a file that is not as expected.
    """
    for path in _own(folder):
        if path.stem == name:
            spec = read(path)
            if spec.name != name:
                raise UserError(f"{path}: expected name = {name!r}, as the file is called, got {spec.name!r}")
            if name != HOST or spec.processor == host().cpu:  # a home folder may be shared with the machine that was probed
                return spec
    if name == HOST:
        from sartor.hardware.probing import probe_host

        return probe_host()
    if name not in names(folder):
        near = difflib.get_close_matches(name, names(folder), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names(folder))}."
        raise UserError(f"device: there is none called {name!r}; {hint} `sartor devices add` adds one.")
    return parse(files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml")


def check_threads(device: str, threads: int) -> None:
    """Raises UserError for a number of threads that a device has no cores for, and for none."""
    there, whose = (cores(), "this machine") if device == HOST else (find(device).cores, device)
    if threads > there:
        raise UserError(f"threads: expected at most {there}, the cores of {whose}, but got {threads}.")
    if threads < 1:
        raise UserError(f"threads: expected at least 1, but got {threads}.")


def _own(folder: Path | None) -> list[Path]:
    base = folder or user_folder()
    return sorted(base.glob("*.toml")) if base.is_dir() else []
