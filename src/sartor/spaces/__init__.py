"""Search spaces by name: `build(name, input_shape, classes)` gives the weight-sharing network, whose `space` is the space."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from sartor.errors import UserError
from sartor.spaces import published, small
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage

#: name -> spec for images of a given size
SPACES: dict[str, Callable[[int], MobileSpec]] = {
    "mobile": small.mobile,
    "catalogue": small.catalogue,
    "once-for-all": lambda size: published.fit_to(published.once_for_all(), size),
    "fbnet": lambda size: published.fit_to(published.fbnet_space(), size),
    "mobilenet-v2": lambda size: published.fit_to(published.mobilenet_v2(), size),
    "mobilenet-v3-large": lambda size: published.fit_to(published.mobilenet_v3("large"), size),
    "mobilenet-v3-small": lambda size: published.fit_to(published.mobilenet_v3("small"), size),
    "mnasnet-a1": lambda size: published.fit_to(published.mnasnet_a1(), size),
    "proxylessnas-mobile": lambda size: published.fit_to(published.proxyless_mobile(), size),
    "fbnet-c": lambda size: published.fit_to(published.fbnet_c(), size),
}


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> MobileNet:
    """The supernet of a named space for inputs (C, H, W).

    Raises:
        UserError: for an unknown name (with the closest known one), or an input too small for the space.
    """
    if name not in SPACES:
        close = difflib.get_close_matches(name, SPACES, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"unknown space '{name}'; spaces: {', '.join(SPACES)}{hint}")
    return MobileNet(SPACES[name](min(input_shape[1:])), input_shape, classes)


__all__ = ["SPACES", "MobileNet", "MobileSpec", "Stage", "build"]
