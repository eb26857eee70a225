"""Settings without a meaning are refused in a sentence that names them, before anything is trained; and what does not apply is told."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sartor import methods
from sartor.arch import Arch
from sartor.errors import UserError
from sartor.methods import METHODS
from sartor.policies import Gumbel, Softmax
from sartor.spaces.nasnet import NasNet

from .small import blobs, cell_net, edge_cost, elastic_net

NO_DATA: Any = object()  # whatever touched it would raise something else

MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    (methods.spos, {"population": 0}, "spos: population"),
    (methods.spos, {"population": 2.5}, "spos: population"),
    (methods.spos, {"top": 0}, "spos: top"),
    (methods.spos, {"mutation_rate": 2}, "spos: mutation_rate"),
    (methods.bignas, {"coarse": -3}, "bignas: coarse"),
    (methods.bignas, {"coarse": 0}, "bignas: coarse"),
    (methods.robust_darts, {"window": 0}, "window"),
    (methods.robust_darts, {"ratio": 0}, "ratio"),
    (methods.robust_darts, {"ratio": 1.5}, "ratio"),
    (methods.robust_darts, {"ratio": "0.75"}, "ratio"),
    (methods.pc_darts, {"k": 0}, "pc_darts: k"),
    (methods.pc_darts, {"k": 1.5}, "pc_darts: k"),
    (methods.fair_darts, {"zero_one": -1.0}, "fair_darts: zero_one"),
    (methods.fair_darts, {"zero_one": float("nan")}, "fair_darts: zero_one"),
    (methods.darts_plus, {"most_skips": 0}, "darts_plus: most_skips"),
    (methods.darts_plus, {"stable_epochs": 0}, "darts_plus: stable_epochs"),
    (methods.fbnet, {"a": 0}, "fbnet: a must"),
    (methods.fbnet, {"b": 0.0}, "fbnet: b must"),
    (methods.fbnet, {"b": -0.6}, "fbnet: b must"),
    (methods.fbnet, {"a": "0.2"}, "fbnet: a must"),
    (methods.fbnet, {"cost": "latency"}, "fbnet: cost must be a sartor.recipes.cost_term.Cost"),
    (methods.proxylessnas, {"cost": "latency"}, "proxylessnas: cost must be a sartor.recipes.cost_term.Cost"),
    (methods.enas, {"cost": "latency", "target": 2.0}, "enas: cost"),
    (methods.enas, {"cost": edge_cost(cell_net()), "target": "2ms"}, "enas: target"),
    (methods.enas, {"accept": lambda arch: True}, "accept= and others= belong to a limit"),
    (methods.drnas, {"k": (4, 2, 1)}, "k= and candidates= for the same stages, got 3 and 2"),
    (methods.drnas, {"k": (0, 1)}, "drnas: k"),
    (methods.drnas, {"anchor": -1.0}, "drnas: anchor"),
    (methods.p_darts, {"most_skips": -1}, "p_darts: most_skips"),
    (methods.ofa, {"evaluations": 4}, "evaluations= must be at least 13, got 4"),
    (methods.spos, {"limits": "parms<=5K"}, "parms"),
    (methods.spos, {"images": -1}, "images= must be at least 1"),
    (methods.proxylessnas_reinforce, {"cost": "latency", "target": 2.0}, "proxylessnas_reinforce: cost"),
    (methods.proxylessnas_reinforce, {"cost": edge_cost(cell_net()), "target": "2ms"}, "proxylessnas_reinforce: target"),
    *((method, {"temperature": t}, "temperature: expected two positive numbers, the first and the last")
      for method in (methods.gdas, methods.snas, methods.fbnet)
      for t in (1.0, "10", (5.0, 0.0), (5.0, 1.0, 0.1), (float("nan"), 0.1), ("5", "0.1"))),
]  # fmt: skip

#: what limited() refuses, and how the method that was given takes limits
LIMITED: list[tuple[Any, dict[str, Any], str]] = [
    (methods.enas, {}, r"got enas, .* give it cost= and target="),
    ("proxylessnas-reinforce", {}, r"got proxylessnas-reinforce, .* give it cost= and target="),
    (methods.spos, {}, "got spos, .* give it limits="),
    ("ofa", {}, "got ofa, .* give it limits="),
    (partial(methods.bignas, coarse=1), {}, "got bignas, .* give it limits="),
    ("gradas", {}, r"expected a method that searches by gradient \(darts, .*gdas.*\), got 'gradas'"),
    (None, {}, "searches by gradient"),
    ("gdas", {"cost": "latency"}, "limited: cost"),
    ("gdas", {"cost": None}, "limited: cost"),
    ("gdas", {"target": "2ms"}, "limited: target"),
    ("gdas", {"target": 0}, "limited: target"),
    ("gdas", {"temperature": 1.0}, "temperature"),
]


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def refuses(call: Any, sentence: str) -> None:
    net = cell_net()
    before = weights(net)
    with pytest.raises(UserError, match=sentence):
        call(net, NO_DATA, steps=2, batch=16)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("method", "settings", "sentence"), MISTAKES)
def test_a_setting_without_a_meaning_is_named_before_anything_is_trained(method: Any, settings: dict[str, Any], sentence: str) -> None:
    refuses(partial(method, **settings), sentence)


@pytest.mark.parametrize(("method", "settings", "sentence"), LIMITED)
def test_a_limit_needs_a_method_by_gradient_and_a_cost(method: Any, settings: dict[str, Any], sentence: str) -> None:
    refuses(partial(methods.limited, method, **{"cost": edge_cost(cell_net()), "target": 24.0, **settings}), sentence)


def test_a_limit_may_be_given_to_a_method_by_its_name_and_to_one_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    class Called(Exception):
        pass

    def search(net: Any, data: Any, *, terms: Any, order: int = 1) -> Any:
        raise Called(len(terms))

    monkeypatch.setitem(METHODS, "gdas", search)
    for method in ("gdas", search, partial(search, order=2)):
        with pytest.raises(Called, match="1"):
            methods.limited(method, cell_net(), NO_DATA, cost=edge_cost(cell_net()), target=24.0)


def test_temperatures_may_be_a_list() -> None:
    assert Gumbel(cell_net().space, temperature=[4, 0.5]).range == (4, 0.5)  # type: ignore[arg-type]  # from JSON


def test_darts_plus_says_where_it_ends_by_the_ranking_alone() -> None:
    note = "no choice offers a skip connection: the search ends by the ranking alone"
    assert note in methods.darts_plus(elastic_net(), blobs(), steps=1, batch=16).notes
    assert note not in methods.darts_plus(cell_net(), blobs(), steps=1, batch=16).notes


def test_darts_plus_ends_at_the_skip_connections_of_nasnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """There they are called `identity`."""
    torch.manual_seed(0)
    net = NasNet((1, 8, 8), 4, channels=4, cells=1, blocks=1, ops=("conv_1x1", "identity"), combiners=("add",))
    cells = iter([0, 0, *[1] * 20])

    def mode(policy: Softmax) -> Arch:
        index = next(cells)
        return Arch({name: index if ".op" in name else 0 for name in net.space.choices})

    monkeypatch.setattr(Softmax, "mode", mode)
    result = methods.darts_plus(net, blobs(), steps=20, batch=16)
    assert len(result.trajectory) == 3 and "2 skip connections" in str(result.stopped) and not any("skip" in note for note in result.notes)
