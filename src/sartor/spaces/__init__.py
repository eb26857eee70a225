"""Search spaces by name: `build(name, input_shape, classes)` gives the weight-sharing network, whose `space` is the space."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.extract import Net, check_logits
from sartor.spaces import mcu, published, small
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
    "mcu": mcu.mcu,
}

#: name -> module:Class(input_shape, classes) of spaces that are networks of their own rather than a spec; imported when asked for
NETWORKS: dict[str, str] = {
    "nasbench201": "sartor.spaces.nasbench201:NasBench201",
    "darts": "sartor.spaces.darts:DartsNet",
    "nasnet": "sartor.spaces.nasnet:NasNet",
    "macro": "sartor.spaces.macro:MacroNet",
    "branches": "sartor.spaces.branches:BranchNet",
}


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> Any:
    """The supernet for inputs (C, H, W): of a named space, or ``module:attribute(input_shape, classes)`` from the user's own code.

    The current folder is searched for the module. The result is a :class:`MobileNet`, a :class:`sartor.extract.Net`, or another module with
    the same attributes.

    Raises:
        UserError: for an unknown name (with the closest known one), an input too small for the space, or code that cannot be imported or
            makes something else than a searchable network, or one whose layers do not fit each other, the images or the classes.
    """
    if ":" in name:
        net = _users(name, input_shape, classes)
        if isinstance(net, Net):
            first = net.space.canonical({choice: allowed[0] for choice, allowed in net.space.allowed.items()})
            check_logits(net, first)
        return net
    if name in NETWORKS:
        return _users(NETWORKS[name], input_shape, classes)
    if name not in SPACES:
        known = [*SPACES, *NETWORKS]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"unknown space '{name}'; spaces: {', '.join(known)}, or module:Class of your own{hint}")
    return MobileNet(SPACES[name](min(input_shape[1:])), input_shape, classes)


def _users(name: str, input_shape: tuple[int, int, int], classes: int) -> Any:
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"space '{name}': cannot import '{module_name}' from {folder}: {type(error).__name__}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        offered = (
            ", ".join(n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__) or "nothing"
        )
        raise UserError(f"space '{name}': '{module_name}' has nothing callable named '{attribute}'; it defines {offered}")
    try:
        net = factory(input_shape, classes)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"space '{name}': {attribute}({input_shape}, {classes}) failed: {type(error).__name__}: {error}") from error
    lacking = [a for a in ("space", "extract", "costs", "factors", "extreme") if not hasattr(type(net), a) and not hasattr(net, a)]
    if lacking:
        raise UserError(
            f"space '{name}': expected a network with .{lacking[0]}, got {type(net).__name__}; derive it from sartor.extract.Net"
        )
    return net


__all__ = ["NETWORKS", "SPACES", "MobileNet", "MobileSpec", "Stage", "build"]
