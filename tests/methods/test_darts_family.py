"""Each method runs on a NAS-Bench-201 cell, and what defines it is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.arch import Arch
from sartor.benchmarks.nasbench201 import OPS
from sartor.data import Dataset, Split
from sartor.errors import UserError
from sartor.layers.partial import PartialChannels
from sartor.methods import METHODS, darts, darts_plus, drnas, fair_darts, gdas, p_darts, pc_darts, robust_darts, snas
from sartor.policies import Dirichlet, Gumbel, Policy, Sigmoid, Softmax
from sartor.recipes import hypergradient
from sartor.recipes.bilevel import Adam
from sartor.recipes.trajectory import Verdict
from sartor.spaces.nasbench201 import CHOICES, NasBench201

FAMILY = ("darts", "darts-2nd", "p-darts", "pc-darts", "fair-darts", "darts-plus", "robust-darts", "snas", "gdas", "drnas")
FAST = Adam(lr=0.1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    mean, std = np.zeros(3), np.ones(3)

    def split(count: int) -> Split:
        labels = np.arange(count) % 2
        images = rng.normal(0.0, 0.5, (count, 3, 4, 4)).astype(np.float32)
        images[labels == 1, 0, :2] += 1.0
        return Split(images, labels, mean, std)

    return Dataset("two", split(64), split(16), split(4), ("a", "b"), mean, std)


def net(channels: int = 4, cells: int = 1) -> NasBench201:
    torch.manual_seed(0)
    return NasBench201((3, 4, 4), 2, channels=channels, cells=cells)


def run(name: str, data: Dataset, begun: Any = None, **settings: Any) -> Any:
    return METHODS[name](begun if begun is not None else net(), data, **{"steps": 2, "batch": 16, **settings})


@pytest.mark.parametrize("name", FAMILY)
def test_every_method_derives_an_architecture_and_leaves_the_network_alone(name: str, data: Dataset) -> None:
    begun = net()
    before = {key: t.clone() for key, t in begun.state_dict().items()}
    result = run(name, data, begun, architecture=FAST)
    assert result.arch in begun.space and result.trajectory[-1].arch in begun.space
    assert [s.epoch for s in result.trajectory] == list(range(1, len(result.trajectory) + 1))
    assert all(torch.equal(t, before[key]) for key, t in begun.state_dict().items())
    assert result.notes == ()


def test_importing_the_methods_loads_no_torch() -> None:
    code = "import sys, sartor.methods, sartor.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("method", "kind"), [(darts, Softmax), (pc_darts, Softmax), (fair_darts, Sigmoid), (snas, Gumbel), (gdas, Gumbel), (drnas, Dirichlet)]
)
def test_the_policy_is_the_papers(method: Any, kind: type[Policy], data: Dataset) -> None:
    policy = method(net(), data, steps=2, batch=16).policy
    assert type(policy) is kind
    if method is gdas:
        assert policy.hard and policy.linear and policy.range == (10.0, 0.1)
    if method is snas:
        assert not policy.hard and not policy.linear
    assert (policy.beta is not None) == (method is pc_darts)


def test_second_order_unrolls_and_first_order_does_not(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from sartor.recipes import alternation

    calls: list[float] = []

    def spying(*args: Any, **settings: Any) -> Any:
        calls.append(args[4].lr)
        return hypergradient.unrolled_gradient(*args, **settings)

    monkeypatch.setattr(alternation, "unrolled_gradient", spying)
    run("darts", data)
    assert not calls
    run("darts-2nd", data)
    assert len(calls) == 2 and calls[0] == pytest.approx(0.0221, abs=1e-3)  # half a step into the cosine from 0.025 to 0.001


def test_pc_darts_runs_a_quarter_of_the_channels_with_edge_normalisation(data: Dataset) -> None:
    result = run("pc-darts", data)
    narrow = [m for m in result.net.modules() if isinstance(m, PartialChannels)]
    assert len(narrow) == 18 and {m.k for m in narrow} == {4}
    assert result.policy._groups == [[0], [1, 2], [3, 4, 5]]
    mixture = result.policy.sample()
    for group in (("edge01",), ("edge02", "edge12"), ("edge03", "edge13", "edge23")):
        assert sum(float(w) for name in group for w in mixture[name].values()) == pytest.approx(1.0, abs=1e-5)


def test_p_darts_deepens_drops_candidates_and_raises_dropout(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from sartor.methods import parts

    stages: list[tuple[int, int, float]] = []
    search = parts.search_bilevel

    def spying(begun: Any, policy: Policy, data_: Any, **settings: Any) -> Any:
        stages.append((len(begun.body), int(policy.mask.sum(1).max()), settings["drop_path"](0.0)))
        return search(begun, policy, data_, **settings)

    monkeypatch.setattr(parts, "search_bilevel", spying)
    result = p_darts(net(), data, deepen=lambda stage: net(cells=stage + 1), steps=3, batch=16, architecture=FAST)
    assert stages == [(5, 5, 0.0), (8, 4, pytest.approx(0.4)), (11, 2, pytest.approx(0.7))]
    assert result.steps == 3
    assert sum(result.arch[name] == OPS.index("skip_connect") for name in CHOICES) <= 2
    last = result.trajectory[-1].strengths
    assert all(len(row) == 2 for row in last.values())


@pytest.mark.parametrize("name", ["p-darts", "drnas"])
def test_a_stop_ends_all_stages_and_its_epoch_is_derived_from(data: Dataset, name: str) -> None:
    told: list[Any] = []
    asked: list[int] = []

    def third_epoch_of_the_second_stage(epochs: Any) -> Verdict | None:
        asked.append(len(epochs))
        stage = 1 + sum(length == 1 for length in asked[1:])
        return Verdict("enough: seen", 1) if stage == 2 and len(epochs) == 3 else None

    stages = {"p-darts": 3, "drnas": 2}[name]
    settings: dict[str, Any] = {"steps": 8 * stages, "batch": 16, "weights_only": 0.0}
    settings |= {"architecture": Adam(lr=0.5, weight_decay=0.0), "on_epoch": told.append}
    result = METHODS[name](net(), data, stops=[third_epoch_of_the_second_stage], **settings)
    first = len(result.trajectory) - 3
    assert asked == [*range(1, first + 1), 1, 2, 3], "no stage follows"
    assert [s.epoch for s in result.trajectory] == list(range(1, first + 4)) and tuple(told) == result.trajectory
    assert result.epoch == first + 1 and result.stopped is not None
    assert result.stopped.startswith(f"epoch {first + 3}, in stage 2 of {stages}: enough: seen")
    chosen, last = result.trajectory[first], result.trajectory[-1]
    assert chosen.arch != last.arch and 0 < chosen.fraction < 1
    skips = sum(chosen.arch[edge] == OPS.index("skip_connect") for edge in CHOICES)
    assert skips > 2 or result.arch == chosen.arch


@pytest.mark.parametrize("name", ["p-darts", "drnas"])
def test_a_stop_in_the_first_stage_is_the_end(data: Dataset, name: str) -> None:
    settings: dict[str, Any] = {"steps": 12, "batch": 16, "weights_only": 0.0}
    result = METHODS[name](net(), data, stops=[lambda epochs: Verdict("enough", 1)], **settings)
    assert len(result.trajectory) == 1 and result.stopped == "epoch 1: enough" and result.epoch == 1


def test_p_darts_limits_skips_in_what_it_derives(data: Dataset) -> None:
    """With skips favoured from the start, plain derivation would take them on all edges."""
    from sartor.methods import parts

    begun, skip = net(), OPS.index("skip_connect")
    policy = Softmax(begun.space)
    with torch.no_grad():
        policy.alpha[:, skip] += 2.0 + 0.1 * torch.arange(6)
    assert list(policy.mode().values()) == [skip] * 6
    derive = parts.limit_skips(parts.derivation(begun), begun.space, 2, among=parts.normal_cell)
    arch = derive(policy.strengths())
    assert [name for name in CHOICES if arch[name] == skip] == list(CHOICES[-2:])


def test_fair_darts_has_the_zero_one_loss_and_no_none(data: Dataset) -> None:
    assert all(OPS.index("none") not in row for row in run("fair-darts", data).trajectory[-1].strengths.values())
    settings = {"steps": 4, "batch": 16, "architecture": Adam(lr=0.04, weight_decay=0.0), "seed": 1}

    def spread(weight: float) -> float:
        policy = fair_darts(net(), data, zero_one=weight, **settings).policy
        return float((torch.sigmoid(policy.alpha)[policy.mask] - 0.5).square().mean())

    assert spread(1e4) > 1.5 * spread(0.0)


def test_dr_nas_widens_the_channels_and_keeps_parameters_and_weights(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from sartor.methods import parts

    begun: list[tuple[set[int], int]] = []
    ends: list[dict[str, torch.Tensor]] = []
    starts: list[dict[str, torch.Tensor]] = []
    alphas: list[torch.Tensor] = []
    search = parts.search_bilevel

    def spying(stage: Any, policy: Policy, data_: Any, **settings: Any) -> Any:
        begun.append(({m.k for m in stage.modules() if isinstance(m, PartialChannels)}, int(policy.mask.sum(1).max())))
        starts.append({k: t.clone() for k, t in stage.state_dict().items()})
        alphas.append(policy.alpha.detach().clone())
        result = search(stage, policy, data_, **settings)
        ends.append({k: t.clone() for k, t in stage.state_dict().items()})
        alphas.append(policy.alpha.detach().clone())
        return result

    monkeypatch.setattr(parts, "search_bilevel", spying)
    drnas(net(8), data, steps=4, batch=16, architecture=Adam(lr=0.1, weight_decay=0.0))
    assert begun == [({4}, 5), ({2}, 3)]  # 6 and 3 fall to divisors of the channels; half of five candidates, rounded up
    key = next(k for k in starts[1] if "inner.options.3" in k and k.endswith(".weight") and starts[1][k].dim() == 4)
    before, after = ends[0][key], starts[1][key]
    assert before.shape[0] == 2 and after.shape[0] == 4
    assert torch.equal(after[:2, :2], before), "the weights of a stage start from those of the stage before"
    assert torch.equal(alphas[2], alphas[1])


def test_darts_plus_stops_at_two_skips(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = iter(["nor_conv_3x3", "nor_conv_1x1", *["skip_connect"] * 20])
    monkeypatch.setattr(Softmax, "mode", lambda self: Arch(dict.fromkeys(CHOICES, OPS.index(next(cells)))))
    result = darts_plus(net(), data, steps=20, batch=16)
    assert len(result.trajectory) == 3 and result.steps < 20 and "skip connections" in str(result.stopped)
    assert set(result.arch.values()) == {OPS.index("nor_conv_1x1")}


def test_robust_darts_measures_the_eigenvalue_every_epoch(data: Dataset) -> None:
    result = robust_darts(net(), data, steps=4, batch=16)
    assert len(result.trajectory) == 2 and all(s.eigenvalue is not None for s in result.trajectory)
    assert all(s.eigenvalue is None for s in run("darts", data).trajectory)


def test_drnas_trains_weights_alone_at_the_start_of_every_stage(data: Dataset) -> None:
    epochs = drnas(net(), data, epochs=10, batch=16, architecture=FAST).trajectory
    assert [e.validation_loss is None for e in epochs] == 2 * [True, True, False, False, False]


def test_a_staged_search_resumes_from_its_stages(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"

    class Interrupted(Exception):
        pass

    def interrupt(what: str, done: int, total: int) -> None:
        if "2/2" in what and done == 1:
            raise Interrupted

    settings: dict[str, Any] = {"steps": 4, "batch": 16, "architecture": FAST, "checkpoint_seconds": 0.0}
    whole = drnas(net(), data, **settings)
    with pytest.raises(Interrupted):
        drnas(net(), data, checkpoint=path, progress=interrupt, **settings)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["search-stage1.safetensors", "search-stage2.safetensors"]
    resumed = drnas(net(), data, checkpoint=path, **settings)
    assert resumed.arch == whole.arch and resumed.trajectory == whole.trajectory
    assert torch.equal(resumed.policy.alpha, whole.policy.alpha)


def test_choices_that_cannot_be_mixed_are_held_and_named() -> None:
    from sartor.methods.parts import relaxed_space
    from sartor.spaces import build

    begun = build("mobile", (1, 8, 8), 4)
    space, notes = relaxed_space(begun)
    held = [name for name, allowed in begun.space.allowed.items() if len(allowed) > 1 and len(space.allowed[name]) == 1]
    assert len(notes) == len(held)
    assert all(any(f"'{name}'" in note for note in notes) for name in held)
    policy = Softmax(space)
    with torch.no_grad():
        assert begun(torch.zeros(2, 1, 8, 8), policy.sample()).shape == (2, 4)


def test_notes_say_where_a_modifier_does_not_apply(data: Dataset) -> None:
    from sartor.methods.parts import partial_if_possible, skip_dropout_if_possible
    from sartor.spaces import build

    begun = build("mobile", (1, 8, 8), 4)
    same, notes = partial_if_possible(begun, 4)
    assert same is begun and "partial channels" in notes[0]
    assert "skip dropout" in skip_dropout_if_possible(begun)[1][0]
    from .small import blobs, elastic_net

    assert any("without edge normalisation" in note for note in pc_darts(elastic_net(), blobs(), steps=1, batch=16).notes)


def few() -> Dataset:
    rng = np.random.default_rng(0)
    split = Split(rng.normal(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 2, np.zeros(1), np.ones(1))
    return Dataset("few", split, split, split, ("a", "b"), np.zeros(1), np.ones(1))


@pytest.mark.parametrize(
    "name", ["pc-darts", "p-darts", "drnas", "fair-darts", "fbnet", pytest.param("robust-darts", marks=pytest.mark.slow)]
)
def test_methods_search_the_darts_space_by_its_own_rule(name: str) -> None:
    """What is derived has two inputs a node and no `none`, though the mixtures had all edges and all operations."""
    from sartor.spaces.darts import RELAXED, SPACE, DartsNet

    begun = DartsNet((1, 8, 8), 2, channels=4, cells=3)
    result = METHODS[name](begun, few(), steps=1 if name == "robust-darts" else 3, batch=8, weights_only=0.0)
    assert result.arch in SPACE and result.trajectory[0].validation_loss is not None
    assert set(result.trajectory[0].strengths) == set(RELAXED.choices)
    assert begun.fast and result.net.fast, "the plain form is for the eigenvalue alone"
    assert (name != "robust-darts") or result.trajectory[0].eigenvalue is not None
    if name == "drnas":  # without `none`, of which no architecture has any, half of eight are four of seven
        assert all("none" not in [RELAXED.choices[n][i] for i in allowed] for n, allowed in result.policy.space.allowed.items())
        assert {len(allowed) for allowed in result.policy.space.allowed.values()} == {4}
    if name == "p-darts":
        assert len(result.net.cells) == 10 and result.notes == ()  # 17/5 of three
    if name == "pc-darts":
        assert {cell.k for cell in result.net.cells} == {4}
        assert len(result.policy._groups) == 8


@pytest.mark.parametrize("name", ["enas", "proxylessnas-reinforce", "proxylessnas"])
def test_methods_on_single_paths_search_the_darts_space_with_a_cost(name: str) -> None:
    from sartor.recipes.cost_term import Cost
    from sartor.recipes.doctor import diagnose
    from sartor.spaces.darts import SPACE, DartsNet

    begun = DartsNet((1, 8, 8), 2, channels=4, cells=3)
    cost = Cost.of_params(begun.space, begun.factors())
    target = 0.6 * float(cost(begun.largest))
    limit = {} if name == "proxylessnas" else {"target": target}
    for settings in ({}, {"cost": cost, **limit}):
        result = METHODS[name](begun, few(), steps=3, batch=8, weights_only=0.0, **settings)
        assert name != "proxylessnas" or result.trajectory[0].validation_loss is not None
        assert result.arch in SPACE and all(s.arch in SPACE for s in result.trajectory)
        assert begun.extract(result.arch)(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
        diagnose(result.trajectory, begun.space)
    assert not limit or float(cost(result.arch)) <= target


def test_p_darts_says_that_a_network_cannot_be_deepened_and_checks_its_stages() -> None:
    from .small import blobs, elastic_net

    result = p_darts(elastic_net(), blobs(), steps=3, batch=16)
    assert any("cannot be deepened" in note for note in result.notes)
    with pytest.raises(UserError, match="same stages, got 3 and 1"):
        p_darts(net(), blobs(), dropout=(0.0,), steps=3)


def test_drnas_has_one_learning_rate_schedule_over_its_stages(data: Dataset, tmp_path: Path) -> None:
    from sartor.recipes.checkpoint import load_checkpoint

    drnas(net(), data, steps=20, batch=16, checkpoint=tmp_path / "search.safetensors")
    rates = [[row["lr"] for row in load_checkpoint(tmp_path / f"search-stage{n}.safetensors")[1]["rows"]] for n in (1, 2)]
    assert rates[0][-1] == pytest.approx(0.05, abs=0.01) and rates[1][0] < rates[0][-1] and rates[1][-1] < 0.001
