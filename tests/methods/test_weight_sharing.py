"""The weight-sharing family by name: settings of the papers reach the recipes, and limits hold for what is derived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor import methods
from sartor.arch import Arch
from sartor.errors import UserError
from sartor.methods import GRADIENT, METHODS, limited
from sartor.methods.derivation import Derivation, lifted
from sartor.policies import Softmax
from sartor.recipes.checkpoint import load_checkpoint
from sartor.recipes.cost_term import Cost
from sartor.recipes.elimination import Potential
from sartor.recipes.enas import PolicyGradient
from sartor.recipes.single_path import fair_paths
from sartor.recipes.trajectory import Verdict
from sartor.spaces.darts import DartsNet

from .small import blobs, cell_net, edge_cost, elastic_net, falling

QUICK: dict[str, Any] = {"steps": 4, "batch": 16, "seed": 1}
LIMITED = ("darts", "gdas", "drnas", "fbnet", "proxylessnas", "fair-darts")


@pytest.mark.parametrize("name", ["darts", "pc-darts", "drnas"])
def test_mixed_operations_learn_no_norms_while_they_are_searched(name: str) -> None:
    """Learned scales would undo the weights of the mixture (DARTS, appendix A.1.1), on part of the channels as on all."""
    result = METHODS[name](cell_net(), blobs(), **QUICK)
    learned = [n for n, p in result.net.named_parameters() if ".edges." in n and p.ndim == 1 and p.requires_grad]
    assert not learned and any(".edges." in n and p.ndim == 1 for n, p in result.net.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proxylessnas", "fbnet"])
def test_gradient_methods_find_an_architecture_and_leave_the_network_alone(name: str) -> None:
    net = cell_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = METHODS[name](net, blobs(), cost=edge_cost(net), weights_only=0.0, **QUICK)
    assert result.arch in net.space and result.trajectory[0].validation_loss is not None
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), result.net.parameters(), strict=True))


@pytest.mark.slow
def test_the_cost_in_the_loss_changes_what_is_found() -> None:
    from sartor.policies import Softmax
    from sartor.recipes.alternation import Adam

    net = cell_net()
    cost, uniform = edge_cost(net), Softmax(net.space, scale=0.0)
    quick = {**QUICK, "steps": 40, "weights_only": 0.0, "architecture": Adam(0.3, (0.0, 0.999), 0.0)}
    result = methods.proxylessnas(net, blobs(), cost=cost, weight=100.0, **quick)
    assert cost(result.policy.expected()).item() - 5.0 < 0.5 * (cost(uniform.expected()).item() - 5.0)


def test_architecture_steps_are_as_rare_as_in_the_papers(tmp_path: Path) -> None:
    rare = {"fbnet": 4, "proxylessnas": 5}
    for name, every in rare.items():
        METHODS[name](cell_net(), blobs(), steps=1, batch=16, checkpoint=tmp_path / f"{name}.safetensors")
        assert load_checkpoint(tmp_path / f"{name}.safetensors")[1]["settings"]["every"] == every
    METHODS["proxylessnas-reinforce"](cell_net(), blobs(), steps=36, batch=16, weights_only=0.0, checkpoint=tmp_path / "r.safetensors")
    state = load_checkpoint(tmp_path / "r.safetensors")[1]
    assert state["companion"]["turns"] == 2  # before steps 16 and 32
    learning = dict(zip(PolicyGradient.__dataclass_fields__, state["settings"]["learning"], strict=True))
    assert (learning["steps"], learning["draws"], learning["decay"]) == (1, 10, 0.01) and learning["one_batch"] and learning["current"]


def test_search_by_reward_derives_only_what_keeps_the_target() -> None:
    net = cell_net()
    cost, target = edge_cost(net), 20.0
    learning = PolicyGradient(steps=2, draws=2, candidates=4)
    for name in ("enas", "proxylessnas-reinforce"):
        result = METHODS[name](net, blobs(), cost=cost, target=target, learning=learning, **QUICK)
        assert all(float(cost(s.arch)) <= target for s in result.trajectory)
    with pytest.raises(UserError, match="go together"):
        methods.enas(net, blobs(), cost=cost, **QUICK)
    with pytest.raises(UserError, match="attainable"):
        methods.enas(net, blobs(), cost=cost, target=1.0, **QUICK)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n != "gdas" else n for n in LIMITED])
def test_a_limit_given_to_any_gradient_method_is_kept_by_every_derivation(name: str) -> None:
    net = cell_net()
    cost, target = edge_cost(net), 24.0
    result = limited(METHODS[name], net, blobs(), cost=cost, target=target, weights_only=0.0, **QUICK)
    assert name in GRADIENT and result.trajectory[0].validation_loss is not None
    assert all(0.85 * target <= float(cost(s.arch)) <= target for s in result.trajectory)
    gave_way = any("no better than random networks within it" in note for note in result.notes)
    assert float(cost(result.arch)) <= target and (gave_way or float(cost(result.arch)) >= 0.85 * target)
    with pytest.raises(UserError, match="attainable"):
        limited(METHODS[name], net, blobs(), cost=cost, target=4.0, **QUICK)
    assert not hasattr(net, "derive")


def test_a_learned_cost_presses_and_its_truth_is_kept() -> None:
    net = cell_net()
    edges, names = edge_cost(net), list(net.space.choices)

    def true(arch: Any) -> float:
        return float(edges(arch)) + 2.0 * (arch[names[0]] == arch[names[1]]) + 4.0 * (len({arch[n] for n in names[:3]}) == 1)

    cost, target = Cost.learned(net.space, true, name="latency_ms", samples=600), 24.0
    result = limited(METHODS["gdas"], net, blobs(), cost=cost, target=target, **QUICK)
    assert all(0.85 * target <= true(arch) <= target for arch in (result.arch, *(s.arch for s in result.trajectory)))
    assert cost.fit is not None and any(cost.fit.sentence() in note for note in result.notes)
    with pytest.raises(UserError, match="nearest has latency_ms 5"):
        limited(METHODS["gdas"], net, blobs(), cost=cost, target=1.0, **QUICK)


def test_a_search_reconsiders_what_fills_its_limit_by_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, target = edge_cost(cell_net()), 24.0
    error: list[Callable[[Arch], float]] = [lambda arch: 0.3]
    monkeypatch.setattr(methods.limits, "_shared_error", lambda net, data: error[0])
    monkeypatch.setattr(Softmax, "strengths", lambda self: falling(cell_net()))

    def search(method: str = "darts", **more: Any) -> Any:
        return limited(METHODS[method], cell_net(), blobs(), cost=cost, target=target, **{**QUICK, **more})

    plain = search()
    assert float(cost(plain.arch)) >= 0.85 * target and not plain.notes
    error[0] = lambda arch: 0.9 if arch == plain.arch else 0.3
    drawn = search()
    assert 0.85 * target <= float(cost(drawn.arch)) <= target and drawn.arch != plain.arch
    assert any("(wrong on 30.0%, not 90.0%) than the most probable" in note for note in drawn.notes)
    error[0] = lambda arch: 0.9 if float(cost(arch)) >= 0.85 * target else 0.3
    found = search()
    assert float(cost(found.arch)) < 0.85 * target and any("no better than random networks within it" in note for note in found.notes)
    assert found.trajectory[-1].arch == plain.arch  # as derived on the way
    stopped = search(stops=[lambda trajectory: Verdict("enough", 1)])
    assert stopped.arch == plain.arch and not stopped.notes
    ruled = search("p-darts", batch=16, steps=6)
    assert ruled.by_rule and not any("validation images" in note for note in ruled.notes)


def test_shared_error_is_of_sub_nets_on_validation_images_where_there_are_both() -> None:
    net, data = cell_net(), blobs()
    error = methods.limits._shared_error(net, data)
    assert error is not None and 0.0 <= error(net.space.at(0)) <= 1.0
    assert methods.limits._shared_error(DartsNet((1, 8, 8), 4, channels=4, cells=3, k=4), data) is None
    assert methods.limits._shared_error(torch.nn.Linear(1, 1), data) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["enas", "proxylessnas-reinforce"])
def test_a_checkpoint_of_another_target_is_refused(name: str, tmp_path: Path) -> None:
    """What it derived keeps its own target, not the one that is asked for now."""
    net, cost = cell_net(), edge_cost(cell_net())
    kept: dict[str, Any] = {"checkpoint": tmp_path / "s.safetensors", **QUICK}
    METHODS[name](net, blobs(), cost=cost, target=40.0, **kept)
    for settings in ({"cost": cost, "target": 10.0}, {}):
        with pytest.raises(UserError, match="reward"):
            METHODS[name](net, blobs(), **settings, **kept)


@pytest.mark.parametrize("name", ["gdas", "drnas", "pc-darts"])
def test_a_search_under_a_limit_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """The control of the target is part of the checkpoint: with a multiplier that begins anew the architecture would drift."""
    net, cost = cell_net(), edge_cost(cell_net())
    settings: dict[str, Any] = {**QUICK, "steps": 12, "weights_only": 0.0, "cost": cost, "target": 14.0}
    whole = limited(name, net, blobs(), **settings)

    def breaks(what: str, done: int, total: int) -> None:
        if what.startswith("search") and done == 4:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path / "s.safetensors", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        limited(name, net, blobs(), progress=breaks, **kept, **settings)
    again = limited(name, net, blobs(), **kept, **settings)
    assert torch.equal(again.policy.alpha, whole.policy.alpha) and again.trajectory == whole.trajectory and again.arch == whole.arch


@pytest.mark.parametrize("name", ["pc-darts", "drnas"])
def test_a_limit_on_a_search_with_partial_channels(name: str) -> None:
    net = DartsNet((1, 8, 8), 4, channels=4, cells=3)
    price = {op: 1.0 + 2.0 * ("conv" in op) + ("5x5" in op) for op in next(iter(net.relaxed.choices.values()))}
    cost = Cost("latency_ms", _edge_tables(net, price), unit="ms")
    result = limited(METHODS[name], net, blobs(), cost=cost, target=30.0, **{**QUICK, "steps": 4, "batch": 16})
    assert float(cost(result.arch)) <= 30.0


@pytest.mark.slow
def test_limits_hold_where_a_network_derives_by_a_rule_of_its_own() -> None:
    net = DartsNet((3, 8, 8), 4, channels=4, cells=3)
    rng = np.random.default_rng(0)
    strengths = {}
    for name, allowed in net.relaxed.allowed.items():
        weights = np.exp(rng.normal(size=len(allowed)))
        strengths[name] = dict(enumerate((weights / weights.sum()).tolist()))
    from sartor.recipes.projection import project

    assert project(net.space, lifted(net.space, strengths), []).arch == net.derive(strengths)  # without a limit: the paper's rule
    shares = lifted(net.space, strengths, normalised=True)
    assert all(sum(row.values()) == pytest.approx(1.0) for row in shares.values() if isinstance(row, dict))
    price = {op: 1.0 + 2.0 * ("conv" in op) + ("5x5" in op) for op in net.relaxed.choices[next(iter(strengths))]}
    cost = Cost("latency_ms", _edge_tables(net, price), unit="ms")
    free = float(cost(net.derive(strengths)))
    arch: Arch = Derivation(net.space, cost, 0.8 * free)(strengths)
    assert arch in net.space and 0.85 * 0.8 * free <= float(cost(arch)) <= 0.8 * free


def test_the_limits_of_a_search_become_a_target_and_a_condition() -> None:
    from sartor.goals import Goals, parse_limit
    from sartor.methods.limits import goal_limit

    net = elastic_net()
    macs, latency = Cost.of_macs(net.space, net.factors()), Cost("latency_ms", [], constant=0.1)
    goals = Goals(("accuracy",), (parse_limit("accuracy>=0.5"), parse_limit("peak_bytes<=1KB"), parse_limit("macs<=20K")))
    found = goal_limit(goals, [macs, latency], net.costs)
    assert found["cost"] is macs and found["target"] == 20_000 and found["others"] == []
    both = goal_limit(Goals(("accuracy",), (parse_limit("macs<=20K"), parse_limit("latency_ms<=3"))), [macs, latency])
    assert both["cost"] is macs and [(bound.cost, bound.at_most) for bound in both["others"]] == [(latency, 3.0)]
    costs = {arch: net.costs(arch) for arch in (net.space.sample(np.random.default_rng(i)) for i in range(50))}
    assert {found["accept"](arch) for arch in costs} == {c["peak_bytes"] <= 1024 and c["macs"] <= 20_000 for c in costs.values()}
    assert all(found["accept"](arch) == (c["peak_bytes"] <= 1024 and c["macs"] <= 20_000) for arch, c in costs.items())
    fast = goal_limit(Goals(("accuracy",), (parse_limit("throughput>=500"),)), [macs, latency])
    assert fast["cost"] is latency and fast["target"] == pytest.approx(2.0)
    assert goal_limit(Goals(("accuracy",)), [macs]) == {} == goal_limit(Goals(("accuracy",), goals.limits[:2]), [macs])


def _edge_tables(net: DartsNet, price: dict[str, float]) -> list[Any]:
    """The price of an edge's operation, where the edge is among its node's inputs."""
    tables = []
    for name, options in net.space.choices.items():
        if name not in net.relaxed.choices:
            continue
        own = np.array([price[op] for op in options])
        parents = net.space.conditions.get(name, {})
        if not parents:
            tables.append(Potential((name,), own))
        for parent, wanted in parents.items():
            on = np.array([float(i in wanted) for i in range(len(net.space.choices[parent]))])
            tables.append(Potential((parent, name), on[:, None] * own[None]))
    return tables


def test_fair_paths_run_every_option_equally_often() -> None:
    net = cell_net()
    draw, rng = fair_paths(net.space), np.random.default_rng(0)
    for _ in range(5):
        archs = draw(rng)
        assert len(archs) == 5 and all(sorted(a[name] for a in archs) == list(range(5)) for name in net.space.choices)
