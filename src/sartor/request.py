"""What a user asks of a search: read strictly, stored in the run folder, read back on resume. Light: imports no torch."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from sartor.errors import UserError
from sartor.goals import Goals, metric_name, parse_limit
from sartor.hardware.device import cores
from sartor.hardware.devices import HOST, check_threads, find, names
from sartor.hardware.platforms import Platform, check_platform_goals, parse_platform

CONFIG = "config.json"
SCHEMA = 1

# The registry of spaces imports torch, so its names live here as well; a test keeps the two equal.
SPACES: Mapping[str, str] = {
    "mobile": "the default: inverted residuals or plain convolutions, sized to the images",
    "catalogue": "every kind of the edge block catalogue, chosen block by block",
    "once-for-all": "Once-for-All on MobileNetV3 (Cai et al. 2020)",
    "fbnet": "FBNet (Wu et al. 2019)",
    "mobilenet-v2": "one net: MobileNetV2 (Sandler et al. 2018)",
    "mobilenet-v3-large": "one net: MobileNetV3-Large (Howard et al. 2019)",
    "mobilenet-v3-small": "one net: MobileNetV3-Small (Howard et al. 2019)",
    "mnasnet-a1": "one net: MnasNet-A1 (Tan et al. 2019)",
    "proxylessnas-mobile": "one net: ProxylessNAS-Mobile (Cai et al. 2019)",
    "fbnet-c": "one net: FBNet-C (Wu et al. 2019)",
    "mcu": "microcontrollers: width and picture size are chosen first, by the limits (TinyNAS, Lin et al. 2020)",
    "nasbench201": "the cell of NAS-Bench-201 (Dong & Yang 2020)",
    "darts": "normal and reduction cells of DARTS (Liu et al. 2019)",
    "nasnet": "normal and reduction cells of five blocks (NASNet, Zoph et al. 2018)",
    "macro": "a chain of layers with skip connections (Zoph & Le 2017)",
    "branches": "units of parallel branches, added or concatenated",
}
#: A user's own network or data: an attribute of an importable module.
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SearchRequest(BaseModel):
    """One search: data, device, limits and time. Every field is checked on construction.

    `limits` are sentences such as ``"latency_ms<=2"`` or ``"peak_bytes=256KB"`` (see :func:`sartor.goals.parse_limit`). `minutes` is
    the time of the whole run, and everything inside it is scaled to it. Raises :class:`UserError`, one sentence, for the first field
    that is not as expected.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    data: str = Field(min_length=1, description="digits, fashion-mnist, cifar10, an image folder, a .npz file or module:function")
    space: str = Field("mobile", description="the name of a search space (see `sartor spaces`; mcu when left out for a microcontroller)")
    device: str = Field("host", description="the name of a device (see `sartor devices`)")
    precision: Literal["int8", "fp32"] = Field("int8", description="the precision of the delivered model, int8 or fp32")
    threads: int = Field(1, ge=1, description="the number of threads the model will run with, at least 1")
    platforms: list[str] = Field(
        default_factory=list, description="a further device to search for, such as raspberry-pi-4 or raspberry-pi-4:weight=2,limit=30ms"
    )
    limits: list[str] = Field(default_factory=list, description="a limit to keep, such as latency_ms<=2 or peak_bytes<=256KB")
    objectives: list[str] = Field(
        default_factory=lambda: ["accuracy", "latency_ms"], min_length=1, description="one or more metrics to trade off, each named once"
    )
    composite: list[float] | None = Field(None, description="three weights of composite_cost, of FLOPs, moved bytes and latency")
    merit: list[float] | None = Field(None, description="three exponents of merit, of accuracy, energy and latency")
    strategy: str = Field("nsga2", description="the name of a search strategy, such as nsga2, random or pc-darts")
    guard: bool = Field(False, description="whether a search by epochs is ended when its doctor finds a collapse, true or false")
    check_ranks: int = Field(
        0, ge=0, le=100, description="how many networks are also trained alone, to check the ranking by shared weights: 0, or 3 to 100"
    )
    minutes: float = Field(40.0, gt=0, allow_inf_nan=False, description="the time for the whole run in minutes, above 0")
    seed: int = Field(0, ge=0, lt=2**32, description="the seed of everything drawn at random, a whole number from 0 to 4294967295")
    out: str = Field("", description="the run folder, new or empty (runs/<data>-<time> when left out)")
    models: int = Field(8, ge=1, le=100, description="the most models to deliver, from 1 to 100")
    baselines: bool = Field(True, description="whether hand-made reference nets are trained and measured too, true or false")
    weights: str | None = Field(None, description="a .safetensors file that the supernet, or a method's network, starts from")
    from_scratch: bool = Field(False, description="whether delivered nets are also trained from scratch and both reported, true or false")
    validation: float = Field(
        0.1, gt=0, le=0.5, allow_inf_nan=False, description="the fraction of the training images held out, above 0 and up to 0.5"
    )
    limit_train: int | None = Field(None, ge=1, description="the most training images to use, at least 1")
    input_size: int | None = Field(None, ge=4, le=4096, description="the height and width images are resized to, from 4 to 4096 pixels")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise UserError(_sentence(error.errors(), type(self))) from None

    @model_validator(mode="after")
    def _whole(self) -> SearchRequest:
        from sartor.methods import BY_EPOCH, METHODS

        if self.guard and self.strategy not in BY_EPOCH:
            raise UserError(f"guard: it ends methods that search by epochs, and {self.strategy} does not; leave it out, or choose one of"
                            f" {', '.join(sorted(BY_EPOCH))}.")  # fmt: skip
        if self.check_ranks and (self.check_ranks < 3 or self.strategy not in METHODS):
            expected = "3 or more networks" if self.check_ranks < 3 else f"a method that shares weights ({', '.join(METHODS)})"
            raise UserError(f"check_ranks: expected {expected}, but got {self.check_ranks} with strategy {self.strategy}.")
        goals = self.goals()
        named = {*goals.objectives, *(limit.metric for limit in goals.limits)}
        check_platform_goals(self.device, self.further(), named, list(goals.limits))
        if "space" not in self.model_fields_set and self.device != HOST and find(self.device).kind == "mcu":
            self.space = "mcu"
        if not self.out:
            self.out = f"runs/{_slug(self.data)}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        return self

    @field_validator("data")
    @classmethod
    def _known_data(cls, data: str) -> str:
        check_data(data)
        return data

    @field_validator("space", "strategy")
    @classmethod
    def _known_name(cls, name: str, info: Any) -> str:
        from sartor.methods import METHODS
        from sartor.searchers import MULTI_FIDELITY, SEARCHERS

        known: Iterable[str] = {"space": [*SPACES], "strategy": [*SEARCHERS, *METHODS]}[str(info.field_name)]
        if name not in known and not (info.field_name == "space" and _ATTRIBUTE.fullmatch(name)):
            raise UserError(unknown(info.field_name, name, known, "module:Class of your own" if info.field_name == "space" else ""))
        if info.field_name == "strategy" and name in MULTI_FIDELITY:
            raise UserError(f"strategy: {name!r} evaluates at several fidelities; a search has one: take it to `sartor bench`.")
        return name

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        known = names()
        if device not in known:
            raise UserError(unknown("device", device, known, "one of your own (see `sartor devices add --help`)"))
        return device

    @field_validator("threads")
    @classmethod
    def _cores(cls, threads: int, info: Any) -> int:
        check_threads(info.data.get("device", HOST), threads)
        return threads

    @field_validator("platforms")
    @classmethod
    def _platforms(cls, platforms: list[str], info: Any) -> list[str]:
        known, main = names(), info.data.get("device", HOST)
        seen = [main]
        for asked in map(parse_platform, platforms):
            name = asked.device
            if name not in known:
                raise UserError(unknown("platform", name, known, "one of your own (see `sartor devices add --help`)"))
            if name in seen:
                raise UserError(f"platform: {name} is {'the device itself' if name == main else 'given twice'}; name other devices.")
            seen.append(name)
            there, threads = cores() if name == HOST else find(name).cores, info.data.get("threads", 1)
            if threads > there:
                raise UserError(f"platform: expected at least {threads} cores, as many as threads, but {name} has {there}.")
        return platforms

    @field_validator("composite", "merit")
    @classmethod
    def _three(cls, weights: list[float] | None, info: Any) -> list[float] | None:
        if weights is not None and (len(weights) != 3 or not all(0 <= w < float("inf") for w in weights) or not any(weights)):
            expected = str(cls.model_fields[str(info.field_name)].description)
            raise UserError(f"{info.field_name}: expected {expected}, each at least 0 and not all of them 0, but got {weights}.")
        return weights

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, objectives: list[str]) -> list[str]:
        try:
            return [metric_name(name) for name in objectives]
        except UserError as error:
            raise UserError(f"objective: {error}") from None

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: str | None) -> str | None:
        if weights is not None:
            if not weights.endswith(".safetensors"):
                raise UserError(f"weights: expected a .safetensors file, but got {weights!r}: pickled checkpoints are not read.")
            if not Path(weights).is_file():
                raise UserError(f"weights: there is no file {weights!r}.")
        return weights

    def goals(self) -> Goals:
        """The objectives and parsed limits as one object, those of the platforms among them."""
        own = tuple(limit for platform in self.further() if (limit := platform.limit) is not None)
        return Goals(tuple(self.objectives), (*map(parse_limit, self.limits), *own))

    def further(self) -> list[Platform]:
        """The further devices, parsed."""
        return [parse_platform(text) for text in self.platforms]

    def save(self, folder: str | Path | None = None) -> Path:
        """Write ``config.json`` into the run folder (default: `out`), which is made if missing. Returns the file's path.

        Raises :class:`UserError` if the folder holds something already: a run is never overwritten.
        """
        folder = Path(folder if folder is not None else self.out)
        check_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        temporary = path.with_name(f"{CONFIG}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"schema": SCHEMA, "request": self.model_dump()}, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> SearchRequest:
        """Read the request of the run in `folder`; its `out` is the folder as named here, so a moved run resumes where it now lies.

        Raises :class:`UserError` if there is no run in `folder` or its ``config.json`` is damaged.
        """
        path = Path(folder) / CONFIG
        content = read_json(path, f"There is no run in {str(folder)!r}: expected a folder with {CONFIG}, as `sartor search` makes.")
        if content.get("schema") != SCHEMA or not isinstance(content.get("request"), dict):
            raise UserError(f"{path}: expected schema {SCHEMA} with a request, but got schema {content.get('schema')!r}: start a new run.")
        fields = {**content["request"], "out": str(folder)}
        try:
            return cls(**fields)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def check_data(data: str) -> None:
    """Refuse `data` that is no known name, no existing path and no ``module:function``, or a known name that is not on this machine.

    Raises :class:`UserError`. What the data hold is checked when they are loaded.
    """
    from sartor.data import catalogue

    known = {entry.name: entry for entry in catalogue()}
    if data in known:
        if not known[data].found:
            raise UserError(f"data: {data} is not on this machine: {known[data].how}")
        return
    if Path(data).expanduser().exists() or _ATTRIBUTE.fullmatch(data):
        return
    if "/" in data or os.sep in data or Path(data).suffix:
        raise UserError(f"data: there is no file or folder {data!r}: give an image folder (one sub-folder a class) or a .npz file.")
    raise UserError(unknown("data", data, known, "an image folder, a .npz file or module:function"))


def check_new_folder(folder: Path) -> None:
    """Refuse a run folder that exists and is not empty. Raises :class:`UserError`."""
    for part in (folder, *folder.parents):
        if part.is_file():
            raise UserError(f"out: expected a folder, but {str(part)!r} is a file: choose another.")
    if (folder / CONFIG).is_file():
        raise UserError(f"out: {str(folder)!r} already holds a run: go on with `sartor resume {folder}`, or choose another folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"out: expected a new or empty folder, but {str(folder)!r} holds other files: choose another.")


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises :class:`UserError`, with the sentence `missing` if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(missing) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a readable JSON file, but {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, but got {type(content).__name__}.")
    return content


def unknown(field: str, name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The sentence for a name that is not among `known`, with the closest of them. `otherwise` says what else would be accepted."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    expected = f"expected one of {', '.join(names)}" + (f", {otherwise}" if otherwise else "")
    return f"{field}: {expected}, but got {name!r}" + (f": did you mean {close[0]!r}?" if close else ".")


def _sentence(errors: list[ErrorDetails], model: type[BaseModel]) -> str:
    """The first of pydantic's findings as one sentence: the field, what was expected, what came."""
    first = errors[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, model.model_fields, n=1)
        return f"There is no field {field!r} in a search request" + (f": did you mean {close[0]!r}?" if close else ".")
    expected = model.model_fields[field].description
    if first["type"] == "missing":
        return f"{field}: expected {expected}, but it is missing."
    given = first["input"]
    return f"{field}: expected {expected}, but got {given!r}."


def _slug(data: str) -> str:
    """A folder name from the data's name: the last part of a path, letters and digits only."""
    stem = Path(data).stem if Path(data).suffix == ".npz" else Path(data).name
    return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-").lower() or "data"
