"""Reading a run folder, and taking a model out of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.request import CONFIG, read_json, unknown

#: Of ``result.json``.
SCHEMA = 1


def read_result(run: Path) -> dict[str, Any]:
    """The content of ``result.json`` of a run. Raises :class:`UserError` if there is none or it is damaged or of another schema."""
    missing = f"There is no run in {str(run)!r}: expected a folder with result.json, as `sartor search` makes."
    if (run / CONFIG).is_file():
        missing = f"The run in {str(run)!r} has no result yet: finish it with `sartor resume {run}`."
    path = run / "result.json"
    result = read_json(path, missing)
    if result.get("schema") != SCHEMA:
        raise UserError(f"{path}: expected schema {SCHEMA}, but got {result.get('schema')!r}: use the version of sartor that wrote it.")
    models = result.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) and {"name", "metrics"} <= model.keys() for model in models):
        raise UserError(f"{path}: expected a list of models, each with name and metrics: `sartor resume {run}` writes it anew.")
    return result


def export_model(run: Path, model: str, destination: Path) -> list[str]:
    """Copy the files of `model` of a finished run into `destination`, a new or empty folder. Returns the names of the files.

    The folder appears whole or not at all. Raises :class:`UserError` if there is no such run or model, or the folder is in use.
    """
    names = [str(record["name"]) for record in read_result(run).get("models", [])]
    if model not in names:
        raise UserError(unknown("MODEL", model, names) if names else f"The run in {str(run)!r} delivered no model to export.")
    source = run / "models" / model
    if not source.is_dir():
        raise UserError(f"The files of {model!r} are gone: expected them in {str(source)!r}.")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(f"DEST: expected a new or empty folder, but {str(destination)!r} is in use: choose another.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as part:
        copied = Path(part) / "model"
        shutil.copytree(source, copied)
        os.replace(copied, destination)
    return sorted(path.relative_to(destination).as_posix() for path in destination.rglob("*") if path.is_file())


def store_traceback(error: BaseException, folder: Path | None) -> Path:
    """Write the traceback of `error` into ``error.txt`` of the run folder, or of a temporary one if that does not exist."""
    place = folder if folder is not None and folder.is_dir() else Path(tempfile.mkdtemp(prefix="sartor-"))
    path = place / "error.txt"
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return path
