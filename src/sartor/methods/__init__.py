"""Published methods by name: each a few lines that put a policy, a recipe and modifiers together with the paper's settings.

``METHODS["pc-darts"](net, data, seconds=240)`` and ``sartor.methods.pc_darts(net, data, k=2)`` search the space of a network on the
training images of a dataset, and return a :class:`sartor.recipes.bilevel.SearchResult`. Importing this package loads no torch: a method
does when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sartor.methods.darts import darts, darts_second_order
from sartor.methods.dartsplus import darts_plus
from sartor.methods.drnas import drnas
from sartor.methods.fairdarts import fair_darts
from sartor.methods.gdas import gdas
from sartor.methods.pcdarts import pc_darts
from sartor.methods.pdarts import p_darts
from sartor.methods.robustdarts import robust_darts
from sartor.methods.snas import snas

#: name on the command line -> method(net, data, **settings)
METHODS: dict[str, Callable[..., Any]] = {
    "darts": darts,
    "darts-2nd": darts_second_order,
    "p-darts": p_darts,
    "pc-darts": pc_darts,
    "fair-darts": fair_darts,
    "darts-plus": darts_plus,
    "robust-darts": robust_darts,
    "snas": snas,
    "gdas": gdas,
    "drnas": drnas,
}

__all__ = [
    "METHODS",
    "darts",
    "darts_plus",
    "darts_second_order",
    "drnas",
    "fair_darts",
    "gdas",
    "p_darts",
    "pc_darts",
    "robust_darts",
    "snas",
]
