"""The consequences in docs/architecture.md on whole supernets, for random architectures and pictures of any shape."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.hardware import CostModel, cost, peak_bytes, trace
from sartor.layers import KINDS, Searchable
from sartor.spaces import SPACES, MobileNet, MobileSpec, Stage, build

SHAPES = [
    ("mobile", (1, 8, 8)),
    ("mobile", (1, 28, 28)),
    ("mobile", (3, 27, 27)),
    ("mobile", (3, 48, 32)),
    ("catalogue", (1, 8, 8)),
    ("catalogue", (3, 33, 33)),
    ("catalogue", (3, 32, 48)),
    ("fbnet", (3, 32, 32)),
    ("once-for-all", (3, 33, 33)),
]


@lru_cache(maxsize=2)
def net_of(name: str, shape: tuple[int, int, int]) -> Any:
    torch.manual_seed(0)
    net = build(name, shape, 7)
    with torch.no_grad():  # biases of zero and the identity as kernel transform would hide mistakes
        for parameter in net.parameters():
            if parameter.dim() <= 2:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def batch(shape: tuple[int, int, int], count: int = 4) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def by_batch(module: nn.Module) -> nn.Module:
    """Batch statistics and no dropout: what a supernet computes."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train()
    return module


def drawn(net: Any, count: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [net.space.sample(rng) for _ in range(count)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_extraction_equals_the_supernet_and_is_alive(name: str, shape: tuple[int, int, int]) -> None:
    net = net_of(name, shape)
    for arch in [*drawn(net, 1), net.largest, net.smallest]:
        plain, x = by_batch(net.extract(arch)), batch(shape)
        out = plain(x)
        with torch.no_grad():
            close(out.detach(), net(x, arch))
        assert not any(isinstance(m, Searchable) for m in plain.modules())
        out.square().sum().backward()
        idle = [n for n, p in plain.named_parameters() if p.grad is None]
        assert idle == []
        assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize("name", ["mobile", "catalogue"])
def test_weights_are_read_through_parameters_alone(name: str) -> None:
    """`functional_call` with another net's parameters is that net: what second-order methods and hypernetworks rely on."""
    net, x = net_of(name, (1, 8, 8)), batch((1, 8, 8))
    torch.manual_seed(1)
    other = build(name, (1, 8, 8), 7).eval()
    for arch in drawn(net, 3, seed=5):
        with torch.no_grad():
            found = functional_call(net, dict(other.named_parameters()), (x, arch))
            close(found, other(x, arch))
            assert not torch.allclose(found, net(x, arch), atol=1e-3)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_costs_and_factors_equal_the_trace(name: str, shape: tuple[int, int, int]) -> None:
    net = net_of(name, shape)
    factors = net.factors()
    for arch in [*drawn(net, 1 if name in ("fbnet", "once-for-all") else 2, seed=1), net.smallest]:
        with torch.device("meta"):
            plain = meta_of(name, shape).extract(arch)
        graph = trace(plain, shape)
        ops = [op for factor in factors for op in factor.at(tuple(arch[c] for c in factor.scope))]
        assert Counter(op.signature for op in ops) == Counter(op.signature for op in graph)
        assert net.costs(arch) == {
            "params": sum(p.numel() for p in plain.parameters()),
            "macs": graph.macs,
            "peak_bytes": peak_bytes(graph),
        }


@lru_cache(maxsize=4)
def meta_of(name: str, shape: tuple[int, int, int]) -> Any:
    """The same supernet without storage: extraction and tracing cost no arithmetic."""
    with torch.device("meta"):
        return build(name, shape, 7)


@pytest.mark.parametrize(("name", "shape"), SHAPES[::2])
def test_one_hot_mixtures_equal_indices(name: str, shape: tuple[int, int, int]) -> None:
    net, x = net_of(name, shape), batch(shape)
    for arch in drawn(net, 2, seed=2):
        mixed = {c: i if c in ("resolution", "stem.stride") else {i: 1.0} for c, i in arch.items()}
        with torch.no_grad():
            close(net(x, mixed), net(x, arch))


def test_one_supernet_serves_many_architectures_at_once() -> None:
    net, x = net_of("catalogue", (1, 8, 8)), batch((1, 8, 8))
    many = drawn(net, 8, seed=3)
    with torch.no_grad():
        alone = [net(x, arch) for arch in many]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda arch: net(x, arch), many * 3))
    assert len({tuple(out.flatten().tolist()) for out in alone}) == len(many)
    assert all(torch.equal(out, alone[i % len(many)]) for i, out in enumerate(together))


@pytest.mark.parametrize(("name", "shape"), [("mobile", (1, 8, 8)), ("catalogue", (1, 8, 8))])
def test_gradients_reach_every_mixture_weight(name: str, shape: tuple[int, int, int]) -> None:
    net, x = net_of(name, shape), batch(shape, 8)
    sampled = {"resolution", "stem.stride"}
    weights = {c: [torch.tensor(1 / len(o), requires_grad=True) for _ in o] for c, o in net.space.choices.items() if c not in sampled}
    out = net(x, {**net.largest, **{c: dict(enumerate(w)) for c, w in weights.items()}})
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for choice, parts in weights.items():
        for number, weight in enumerate(parts):
            assert weight.grad is not None and abs(float(weight.grad)) > 0, (choice, number)


def test_resolution_is_sampled_never_mixed() -> None:
    net = net_of("mobile", (1, 28, 28))
    with pytest.raises(UserError, match="'resolution' must be one option here"):
        net(batch((1, 28, 28)), {**net.largest, "resolution": {0: 0.5, 1: 0.5}})


def test_switched_off_choices_do_not_matter() -> None:
    """Canonical spelling loses nothing: an architecture computes and costs the same under any spelling of what is off."""
    net, x = net_of("catalogue", (1, 8, 8)), batch((1, 8, 8))
    rng = np.random.default_rng(5)
    for arch in drawn(net, 6, seed=4):
        on = net.space.active(arch)
        other = {c: arch[c] if c in on else int(rng.integers(len(o))) for c, o in net.space.choices.items()}
        with torch.no_grad():
            assert torch.equal(net(x, other), net(x, arch))
        assert net.costs(other) == net.costs(arch)


def test_switched_on_choices_do_matter() -> None:
    """No two architectures are one network: every neighbour has other ops or another output."""
    net, x = net_of("catalogue", (1, 8, 8)), batch((1, 8, 8))
    price = CostModel(net.factors(), lambda op: float(hash(op.signature) % 1_000_003))
    for arch in drawn(net, 3, seed=6):
        for other in net.space.neighbours(arch):
            if price(other) == price(arch):
                with torch.no_grad():
                    assert not torch.equal(net(x, other), net(x, arch)), (arch, other)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_extremes_are_extreme_among_nets_of_the_same_kinds(name: str, shape: tuple[int, int, int]) -> None:
    net = meta_of(name, shape)
    for arch in drawn(net, 25, seed=7):
        kinds = {c: i for c, i in arch.items() if c.endswith("kind")}
        largest, smallest, own = net.costs(net.extreme(True, kinds)), net.costs(net.extreme(False, kinds)), net.costs(arch)
        for metric in ("params", "macs"):
            assert smallest[metric] <= own[metric] <= largest[metric], (metric, dict(arch))
    for drawn_pair in [net.extremes(np.random.default_rng(seed)) for seed in range(3)]:
        assert all(arch in net.space for arch in drawn_pair)


TINY = MobileSpec(
    "tiny",
    (
        Stage((4, 8), (1, 2), 1, ("mbconv", "conv"), (3, 5), (1, 2)),
        Stage((8,), (1,), 2, ("mbconv", "fused"), (3,), (1, 2), ses=(False, True), tied=False),
    ),
    (4, 8),
    (1, 2),
    head_widths=(8, 16),
)


def test_the_expected_cost_is_the_mean_over_all_architectures() -> None:
    """Factors give the exact expectation on independent mixtures: compare with the sum over every combination of options."""
    net = MobileNet(TINY, (1, 8, 8), 3)
    rng = np.random.default_rng(0)
    mixtures = {c: dict(enumerate(rng.dirichlet(np.ones(len(o))))) for c, o in net.space.choices.items()}
    expected = 0.0
    model = CostModel(net.factors(), lambda op: float(op.macs))
    for combination in itertools.product(*(m.items() for m in mixtures.values())):
        share = float(np.prod([weight for _, weight in combination]))
        expected += share * float(model(dict(zip(mixtures, (index for index, _ in combination), strict=True))))
    assert float(cost(net.factors(), lambda op: float(op.macs), mixtures)) == pytest.approx(expected, rel=1e-9)
    tensors = {c: {i: torch.tensor(w, dtype=torch.float64, requires_grad=True) for i, w in m.items()} for c, m in mixtures.items()}
    total = cost(net.factors(), lambda op: float(op.macs), tensors)
    assert isinstance(total, Tensor)
    total.backward()
    assert all(weight.grad is not None for mixture in tensors.values() for weight in mixture.values())


def test_a_tied_stage_offers_no_skip_at_all() -> None:
    """Its kind is one choice, and the first block changes the width: the options must mean the same at every position."""
    spec = MobileSpec("tied", (Stage((8,), (2,), 1, ("skip", "mbconv", "conv"), (3,), (2,), tied=True),), (4,), (1,))
    net = MobileNet(spec, (1, 8, 8), 3).eval()
    assert net.space.choices["s1.kind"] == ("mbconv", "conv")
    for arch in net.space:
        kinds = [type(position.block(arch)) for position in net.positions]
        assert kinds == [KINDS[net.space.labels(arch)["s1.kind"]]] * 2
        with torch.no_grad():
            close(by_batch(net.extract(arch))(batch((1, 8, 8))), net(batch((1, 8, 8)), arch))


def test_drop_path_grows_with_depth_and_is_off_by_default() -> None:
    net, x = net_of("catalogue", (1, 8, 8)), batch((1, 8, 8))
    arch = net.space.canonical({**net.largest})
    with torch.no_grad():
        assert torch.equal(net(x, arch), net(x, arch, 0.0))
        torch.manual_seed(0)
        assert not torch.equal(net(x, arch, 0.9), net(x, arch))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 48)])
def test_every_space_builds_or_says_what_it_needs(name: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        try:
            net = build(name, shape, 5)
        except UserError as error:
            assert "expected images of at least" in str(error)
            return
        out = net(torch.empty(2, *shape), net.space.sample(np.random.default_rng(0)))
    assert out.shape == (2, 5)


@pytest.mark.slow
def test_mobile_space_at_full_size() -> None:
    net = net_of("mobile", (3, 224, 224))
    arch = drawn(net, 1)[0]
    x = batch((3, 224, 224), 2)
    with torch.no_grad():
        close(by_batch(net.extract(arch))(x), net(x, arch))
    graph = trace(net.extract(arch), (3, 224, 224))
    assert net.costs(arch)["macs"] == graph.macs and net.costs(arch)["peak_bytes"] == peak_bytes(graph)


def test_costs_need_one_architecture() -> None:
    net = meta_of("mobile", (1, 8, 8))
    with pytest.raises(UserError, match="no choice"):
        net.costs({})
    with pytest.raises(UserError, match="got a mixture"):
        net.costs({**net.largest, "s1.width": {0: 1.0}})
