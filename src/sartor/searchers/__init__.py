"""Search strategies. A searcher is a pure function of the finished trials; adding one is a file, a line here and a row in the battery."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from inspect import signature
from numbers import Integral, Real
from typing import Any

from sartor.arch import Space
from sartor.errors import UserError
from sartor.goals import Goals
from sartor.searchers.bananas import Bananas
from sartor.searchers.base import Searcher
from sartor.searchers.bayes import BayesianOptimisation
from sartor.searchers.controller import PPO, REINFORCE
from sartor.searchers.dpp import DPPSearch
from sartor.searchers.dppnet import DPPNet
from sartor.searchers.evolution import RegularizedEvolution
from sartor.searchers.genetic import GeneticAlgorithm
from sartor.searchers.grid import GridSearch
from sartor.searchers.halving import ASHA, Hyperband, SuccessiveHalving
from sartor.searchers.linas import Linas
from sartor.searchers.local import LocalSearch
from sartor.searchers.nsga2 import NSGA2
from sartor.searchers.nsga3 import NSGA3
from sartor.searchers.pnas import PNAS
from sartor.searchers.random import RandomSearch

__all__ = ["MULTI_FIDELITY", "NSGA2", "SEARCHERS", "RandomSearch", "Searcher", "make_searcher"]

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "random": RandomSearch,
    "nsga2": NSGA2,
    "grid": GridSearch,
    "evolution": RegularizedEvolution,
    "genetic": GeneticAlgorithm,
    "local": LocalSearch,
    "nsga3": NSGA3,
    "dpp": DPPSearch,
    "pnas": PNAS,
    "dpp-net": DPPNet,
    "halving": SuccessiveHalving,
    "hyperband": Hyperband,
    "asha": ASHA,
    "reinforce": REINFORCE,
    "ppo": PPO,
    "bayes": BayesianOptimisation,
    "bananas": Bananas,
    "linas": Linas,
}
MULTI_FIDELITY = frozenset({"halving", "hyperband", "asha"})  # these call `evaluate(arch, fidelity)`


def make_searcher(name: str, space: Space, goals: Goals, **settings: Any) -> Searcher:
    """The searcher that is registered as `name`.

    Raises:
        UserError: for an unknown searcher or setting, naming the known ones, and for a value of another kind than the setting's default.
    """
    if name not in SEARCHERS:
        close = difflib.get_close_matches(name, SEARCHERS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(f"unknown searcher '{name}'; {hint}known: {', '.join(SEARCHERS)}")
    parameters = {p.name: p.default for p in signature(SEARCHERS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = [setting for setting in settings if setting not in parameters]
    if unknown:
        raise UserError(f"searcher '{name}' has no setting '{unknown[0]}'; known: {', '.join(parameters) or 'none'}")
    for setting, value in settings.items():
        _check_kind(name, setting, value, parameters[setting])
    return SEARCHERS[name](space, goals, **settings)


_KINDS: dict[type, tuple[Any, str]] = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "a name")}


def _check_kind(name: str, setting: str, value: object, default: object) -> None:
    """Refuse a text for a number, say; where the default is of no such kind (None), the searcher itself judges."""
    kind, said = _KINDS.get(type(default), (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        raise UserError(f"{name}: {setting} must be {said}, got {value!r}")
