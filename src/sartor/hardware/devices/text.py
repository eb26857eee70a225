"""A device spec as TOML text: what `sartor.hardware.spec.parse` reads, written back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.hardware.spec import DeviceSpec

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(spec: DeviceSpec) -> str:
    """The spec as TOML, without what is unknown. `parse(to_toml(spec)) == spec`."""
    record = spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    plain = {key: value for key, value in record.items() if not _is_table(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in record.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_key(key)}]", *(f"{_key(name)} = {_value(inner)}" for name, inner in value.items())]
        elif _is_table(value):
            for entry in value:
                lines += ["", f"[[{_key(key)}]]", *(f"{_key(name)} = {_value(inner)}" for name, inner in entry.items())]
    return "\n".join(lines) + "\n"


def write(spec: DeviceSpec, folder: Path, *, replace: bool = False) -> Path:
    """Writes `<name>.toml` into the folder, which is made if missing, and returns its path.

    Raises UserError when the file is there already, unless `replace`, and when it cannot be written.
    """
    path = folder / f"{spec.name}.toml"
    if path.exists() and not replace:
        raise UserError(f"device: {spec.name!r} is there already, in {path}: choose another name, or --force to replace it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(to_toml(spec), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"expected to write the device file {path}, got: {error}") from None
    return path


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value))


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's too; the one control character that JSON leaves as it is must not stand in TOML.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    return repr(value)
