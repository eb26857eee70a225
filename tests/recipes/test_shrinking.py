"""OFA's stages: what is elastic when, transformed kernels, channels sorted without a change of function, the teacher, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.arch import Space
from sartor.errors import UserError
from sartor.layers.choice import Choice
from sartor.layers.conv import ElasticConv2d
from sartor.recipes import shrinking
from sartor.recipes.importance import sort_channels
from sartor.recipes.loop import Optimisation
from sartor.recipes.shrinking import stages, train_shrinking
from sartor.spaces.mobile import MobileNet, MobileSpec, Stage

from .test_sandwich import Killed, equal, kill_at
from .tiny import tiny_data


def small(seed: int = 0, **more: Any) -> MobileNet:
    torch.manual_seed(seed)
    stages_ = (
        Stage((8,), (1, 2), 1, kernels=(3, 5, 7), expands=(2, 3, 4), ses=(False, True), **more),
        Stage((8, 16), (1, 2, 3), 2, kernels=(3, 5), expands=(1, 2, 4), **more),
    )
    return MobileNet(MobileSpec("small", stages_, (8,), (1,), head_widths=(16, 32)), (1, 8, 8), 4)


def labels_of(space: Space, name: str) -> set[Any]:
    return {space.choices[name][i] for i in space.allowed[name]}


def test_kernels_shrink_first_then_depths_then_widths_from_the_largest_down() -> None:
    net = small()
    plan = stages(net.space)
    assert [s.name for s in plan] == ["largest", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert [s.nets for s in plan] == [1, 1, 2, 2, 4, 4] and [s.sort for s in plan] == [False] * 4 + [True] * 2
    assert sum(s.share for s in plan) == pytest.approx(1.0)
    course = {
        "s1.b0.kernel": [{7}, {3, 5, 7}, {3, 5, 7}, {3, 5, 7}, {3, 5, 7}, {3, 5, 7}],
        "s2.depth": [{3}, {3}, {3, 2}, {3, 2, 1}, {3, 2, 1}, {3, 2, 1}],
        "s1.b0.expand": [{4}, {4}, {4}, {4}, {4, 3}, {4, 3, 2}],
        "s2.width": [{16}, {16}, {16}, {16}, {16, 8}, {16, 8}],
        "s1.se": [{False, True}] * 6,  # what is no dimension of the shrinking is elastic from the start
    }
    for name, wanted in course.items():
        assert [labels_of(s.space, name) for s in plan] == wanted, name
    assert plan[0].space.size < plan[1].space.size < plan[3].space.size < plan[5].space.size == net.space.size


def test_a_smaller_kernel_is_the_transformed_centre_of_the_next_larger_one() -> None:
    torch.manual_seed(0)
    conv = ElasticConv2d(4, 4, Choice("kernel", (3, 5, 7)), depthwise=True)
    for transform in conv.transforms.values():
        torch.nn.init.normal_(transform)
    seven = conv.weight
    five = (seven[..., 1:6, 1:6].reshape(-1, 25) @ conv.transforms["5"].T).reshape(4, 1, 5, 5)
    three = (five[..., 1:4, 1:4].reshape(-1, 9) @ conv.transforms["3"].T).reshape(4, 1, 3, 3)
    for size, wanted in ((7, seven), (5, five), (3, three)):
        assert torch.allclose(conv.kernel_weight(size, 4, (4,)), wanted, atol=1e-6)


def randomised(net: MobileNet, seed: int = 0) -> MobileNet:
    """Every parameter at random, so that no symmetry hides a channel in the wrong place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def test_sorting_keeps_the_function_of_the_largest_network_and_orders_channels_by_what_reads_them() -> None:
    net = randomised(small())
    largest = stages(net.space)[3].space  # widths are still fixed
    archs = [largest.sample(np.random.default_rng(i)) for i in range(4)]
    x = torch.randn(8, 1, 8, 8)
    before = [net(x, a).detach() for a in archs]
    done = sort_channels(net, largest, keep=archs[:2])
    for arch, wanted in zip(archs, before, strict=True):
        assert torch.allclose(net(x, arch), wanted, atol=1e-3 * float(wanted.abs().max()))
    assert {"s1.b0.expand", "s2.width", "head.width", "s2.width s2.b1.expand"} <= set(done)
    project = net.positions[0].modules["mbconv"].project.conv.weight
    strengths = project.detach().abs().sum((0, 2, 3))
    assert bool((strengths[:-1] >= strengths[1:]).all())
    assert sort_channels(net, largest, keep=archs) == []  # sorted already


def test_widths_that_are_elastic_already_keep_their_function_too() -> None:
    net = randomised(small(1), seed=1)
    space = stages(net.space)[4].space  # the two largest widths
    archs = [space.sample(np.random.default_rng(i)) for i in range(6)]
    assert len({tuple(a[n] for n in a if n.endswith(("expand", "width"))) for a in archs}) > 3
    x = torch.randn(8, 1, 8, 8)
    before = [net(x, a).detach() for a in archs]
    weights = [p.detach().clone() for p in net.parameters()]
    assert sort_channels(net, space, keep=archs)
    assert any(not torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    for arch, wanted in zip(archs, before, strict=True):
        assert torch.allclose(net(x, arch), wanted, atol=1e-3 * float(wanted.abs().max()))


def test_a_width_whose_channels_cannot_change_places_is_left_as_it_was() -> None:
    class Shuffled(MobileNet):
        def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
            return super().forward(x, arch, drop_path) + 10.0 * self.head.bn.bias[:4]  # reads channels by their place

    net = small()
    net.__class__ = Shuffled
    randomised(net)
    keep = [stages(net.space)[0].space.sample(np.random.default_rng(0))]
    x = torch.randn(4, 1, 8, 8)
    before = net(x, keep[0]).detach()
    done = sort_channels(net, stages(net.space)[0].space, keep=keep)
    assert "head.width" not in done and "s2.width" in done
    assert torch.allclose(net(x, keep[0]), before, atol=1e-3 * float(before.abs().max()))


class Recording(MobileNet):
    def forward(self, x: torch.Tensor, arch: Any, drop_path: float = 0.0) -> torch.Tensor:
        self.__dict__.setdefault("calls", []).append(dict(arch))
        return super().forward(x, arch, drop_path)


def test_every_stage_trains_sub_nets_of_its_own_space_and_the_last_one_all() -> None:
    net = small()
    net.__class__ = Recording
    result = train_shrinking(net, tiny_data(64), steps=37, batch=16)
    plan = stages(net.space)
    assert [row["stage"] for row in result.stages] == [s.name for s in plan] and result.steps == sum(
        r["steps"] for r in result.stages
    ) == 37
    assert not any(row["sorted"] for row in result.stages[:4]) and result.stages[4]["sorted"]
    calls = net.__dict__["calls"]
    assert all(a in plan[0].space for a in calls[: result.stages[0]["steps"]])
    assert any(a not in plan[4].space for a in calls)


def test_the_rates_of_a_short_training_are_near_that_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Spied(shrinking.Loop):
        def __init__(self, *args: Any, **settings: Any) -> None:
            rates.append(settings["optimisation"].lr / 0.08)
            super().__init__(*args, **settings)

    monkeypatch.setattr(shrinking, "Loop", Spied)
    plan, data = stages(small().space), tiny_data(64)  # four steps an epoch
    train_shrinking(small(), data, steps=59, batch=16)
    assert rates == pytest.approx([stage.rate ** (59 / 4 / 590) for stage in plan]) and min(rates) > 0.9
    monkeypatch.setattr(shrinking, "_PAPER_EPOCHS", 5.0)
    rates.clear()
    train_shrinking(small(), data, steps=59, batch=16)
    assert rates == pytest.approx([stage.rate for stage in plan])
    rates.clear()
    train_shrinking(small(), data, seconds=0.3, batch=16)
    assert rates[0] == 1.0 and all(stage.rate <= rate + 1e-12 for stage, rate in zip(plan, rates, strict=True))
    rates.clear()
    monkeypatch.setattr(shrinking, "_PAPER_EPOCHS", 590.0)
    train_shrinking(small(), data, steps=12, batch=16, plan=plan)
    assert rates == pytest.approx([stage.rate for stage in plan])  # a plan of one's own is taken as it is


def test_after_the_first_stage_the_largest_network_teaches() -> None:
    losses = []
    for distillation in (0.0, 1.0):
        net = small()
        result = train_shrinking(net, tiny_data(64), steps=12, batch=16, distillation=distillation)
        losses.append([row["loss"] for row in result.stages])
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


@pytest.mark.slow
def test_every_size_learns() -> None:
    net, data = small(), tiny_data(256)
    plan = [replace(stage, rate=1.0, share=1 / 6) for stage in stages(net.space)]  # the paper's rates are for hundreds of epochs
    train_shrinking(net, data, steps=180, batch=32, plan=plan, weights=Optimisation(lr=0.1, warmup=0.05, weight_decay=1e-4))
    x, y = (torch.from_numpy(v) for v in next(data.validation.batches(128)))
    with torch.no_grad():
        archs = (net.largest, net.smallest, *(net.space.sample(np.random.default_rng(i)) for i in range(6)))
        found = [float((net(x, arch).argmax(1) == y).float().mean()) for arch in archs]
    assert min(found) > 0.4 and np.mean(found) > 0.6, found  # chance is 0.25


def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(checkpoint: Path | None, progress: Any = None) -> MobileNet:
        net = small()
        train_shrinking(net, tiny_data(64), steps=24, batch=16, seed=3, checkpoint=checkpoint, checkpoint_seconds=0, progress=progress)
        return net

    count = 0

    def kill_late(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 19:  # within the stages of widths, after a sorting
            raise Killed

    whole, path = run(None), tmp_path / "ofa.safetensors"
    with pytest.raises(Killed):
        run(path, kill_late)
    assert len(list(tmp_path.glob("ofa-*.safetensors"))) >= 4
    resumed = run(path)
    assert equal(whole, resumed) and not equal(whole, small())
    with pytest.raises(Killed):
        run(tmp_path / "other.safetensors", kill_at(1))


def test_teacher_and_sub_nets_of_a_step_see_one_size_of_picture() -> None:
    torch.manual_seed(0)
    stage = Stage((8,), (1, 2), 1, kernels=(3, 5), expands=(2, 4))
    net = MobileNet(MobileSpec("sizes", (stage, replace(stage, stride=2)), (8,), (1,), resolutions=(6, 8)), (1, 8, 8), 4)
    seen: list[int] = []
    net.stem.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[-1]))  # copied with the teacher
    plan = [phase for phase in stages(net.space) if not phase.sort]  # sorting runs probes of its own
    result = train_shrinking(net, tiny_data(64), steps=60, batch=16, plan=plan)
    passes, drawn = iter(seen), list[set[int]]()
    for number, (phase, row) in enumerate(zip(plan, result.stages, strict=True)):
        drawn += [{next(passes) for _ in range(phase.nets + (number > 0))} for _ in range(row["steps"])]
    assert next(passes, None) is None and all(len(sizes) == 1 for sizes in drawn) and set.union(*drawn) == {6, 8}


def test_a_space_without_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="kernel, depth, expand, width"):
        stages(Space({"edge01": ("none", "conv")}))
    with pytest.raises(UserError, match="orders options by size"):
        stages(Space({"width": ("thin", "wide")}))
