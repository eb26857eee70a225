"""Further devices of a search: who they are, how much each counts, and how long an inference may take there."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from sartor.errors import UserError
from sartor.goals import Limit, parse_limit

_FORM = "DEVICE or DEVICE:weight=2,limit=30ms"
_SETTINGS = ("weight", "limit")


@dataclass(frozen=True)
class Platform:
    """A device beside the one that a search is for.

    Args:
        device: its name, as `sartor devices` lists it.
        weight: of its latency in `weighted_latency_ms`, where the search's own device has weight 1; 0 leaves it to its limit.
        limit_ms: how long the median inference may take there, in ms.
    """

    device: str
    weight: float = 1.0
    limit_ms: float | None = None

    @property
    def metric(self) -> str:
        """The entry of its latency among a network's metrics: `latency_ms@DEVICE`."""
        return f"latency_ms@{self.device}"

    @property
    def limit(self) -> Limit | None:
        """Its latency limit as a limit of the search."""
        return None if self.limit_ms is None else Limit(self.metric, self.limit_ms)


def parse_platform(text: str) -> Platform:
    """A platform from what a user writes: `raspberry-pi-4`, `raspberry-pi-4:weight=2`, `pi:weight=0.5,limit=30ms`.

    A limit takes the units of a latency; a bare number is in ms. Whether there is such a device is not checked here.

    Raises:
        UserError: for no device, an unknown or repeated setting, one without a value, and numbers that are none or out of range.
    """
    device, colon, rest = text.strip().partition(":")
    device = device.strip()
    if not device or (colon and not rest.strip()):
        raise UserError(f"platform {text!r}: expected {_FORM}")
    given: dict[str, float] = {}
    for part in rest.split(",") if colon else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if name not in _SETTINGS:
            close = difflib.get_close_matches(name, _SETTINGS, 1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise UserError(f"platform {text!r}: expected {_FORM}, but got the setting {name!r}{hint}")
        if not sign or not value:
            raise UserError(f"platform {text!r}: expected {name}=NUMBER, but got {part.strip()!r}")
        if name in given:
            raise UserError(f"platform {text!r}: {name} is given twice; keep one")
        given[name] = _weight(text, value) if name == "weight" else _limit(text, value)
    return Platform(device, given.get("weight", 1.0), given.get("limit"))


def _weight(text: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"platform {text!r}: expected a weight of at least 0, but got {value!r}")
    return weight


def _limit(text: str, value: str) -> float:
    try:
        return parse_limit(f"latency_ms<={value}").bound
    except UserError:
        raise UserError(f"platform {text!r}: expected a limit above 0 in ms, such as 30ms or 500us, but got {value!r}") from None


def check_platform_goals(device: str, platforms: list[Platform], named: set[str], limits: list[Limit]) -> None:
    """Refuse objectives and limits that these platforms do not give.

    Args:
        device: the search's own device.
        named: the metrics that the search names as objectives or limits.
        limits: those of the search, and of its platforms.

    Raises:
        UserError: for a latency on a device that is no platform of the search, a weighted or worst latency without platforms, and a worst
            latency where one of the devices has no limit.
    """
    known = {platform.metric for platform in platforms}
    for metric in sorted(named):
        on = metric.partition("@")[2]
        if on and metric not in known:
            what = "write latency_ms for the search's own device" if on == device else f"add it with --platform {on}"
            raise UserError(f"{metric}: expected the latency on a further device of the search, but {on!r} is none of them: {what}.")
    asked = sorted(named & {"weighted_latency_ms", "worst_latency"})
    if asked and not platforms:
        raise UserError(f"{asked[0]}: expected further devices beside {device}: name at least one with --platform DEVICE.")
    if "worst_latency" in named:
        limited = {limit.key for limit in limits}
        lacking = [("--limit latency_ms<=MS", device)] if "latency_ms" not in limited else []
        lacking += [(f"--platform {p.device}:limit=MS", p.device) for p in platforms if p.metric not in limited]
        if lacking:
            raise UserError(f"worst_latency: expected a latency limit for every device, but {lacking[0][1]} has none: {lacking[0][0]}.")
