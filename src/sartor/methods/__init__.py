"""Published methods by name: each a few lines that put a policy, a recipe and modifiers together with the paper's settings.

``METHODS["pc-darts"](net, data, seconds=240)`` and ``sartor.methods.pc_darts(net, data, k=2)`` search the space of a network on the
training images of a dataset, and return a :class:`sartor.recipes.bilevel.SearchResult`. Importing this package loads no torch: a method
does when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sartor.methods.bignas import bignas
from sartor.methods.darts import darts, darts_second_order
from sartor.methods.dartsplus import darts_plus
from sartor.methods.drnas import drnas
from sartor.methods.enas import enas
from sartor.methods.fairdarts import fair_darts
from sartor.methods.fbnet import fbnet
from sartor.methods.gdas import gdas
from sartor.methods.limits import limited
from sartor.methods.ofa import ofa, specialise
from sartor.methods.pcdarts import pc_darts
from sartor.methods.pdarts import p_darts
from sartor.methods.proxylessnas import proxylessnas, proxylessnas_reinforce
from sartor.methods.robustdarts import robust_darts
from sartor.methods.snas import snas
from sartor.methods.spos import spos

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
    "proxylessnas": proxylessnas,
    "proxylessnas-reinforce": proxylessnas_reinforce,
    "fbnet": fbnet,
    "enas": enas,
    "spos": spos,
    "ofa": ofa,
    "bignas": bignas,
}

#: methods whose architecture parameters follow a gradient through the loss: those that take `terms`, hence :func:`limited`
GRADIENT = frozenset(METHODS) - {"proxylessnas-reinforce", "enas", "spos", "ofa", "bignas"}

#: methods that search by epochs, each with an architecture derived: those that take `stops`, `on_epoch` and `evaluate`
BY_EPOCH = GRADIENT | {"proxylessnas-reinforce", "enas"}

__all__ = [
    "BY_EPOCH",
    "GRADIENT",
    "METHODS",
    "bignas",
    "darts",
    "darts_plus",
    "darts_second_order",
    "drnas",
    "enas",
    "fair_darts",
    "fbnet",
    "gdas",
    "limited",
    "ofa",
    "p_darts",
    "pc_darts",
    "proxylessnas",
    "proxylessnas_reinforce",
    "robust_darts",
    "snas",
    "specialise",
    "spos",
]
