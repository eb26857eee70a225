"""The user's own network: two quite different ones run through everything that MobileNet runs through."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.errors import UserError
from sartor.extract import Net, check, extract, space_of
from sartor.hardware import CostModel, peak_bytes, trace
from sartor.layers import Choice, ConvBNAct, ElasticConv2d, ElasticDepth, ElasticLinear, OneOf, Searchable
from sartor.spaces import build

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_network.py"
spec = importlib.util.spec_from_file_location("own_network", EXAMPLE)
assert spec is not None and spec.loader is not None
own_network: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own_network)


class Attend(Searchable):
    """A user's own block without an `extract`: a gate from the mean over the picture, applied to two layers' sum."""

    def __init__(self, width: Choice) -> None:
        super().__init__()
        self.near = ElasticConv2d(width, width, Choice("attend.kernel", (1, 3)))
        self.gate = ElasticLinear(width, width)

    def forward(self, x: Tensor, arch: Mapping[str, Any], drop_path: float = 0.0) -> Tensor:
        y = self.near(x, arch)
        return y * torch.sigmoid(self.gate(x.mean((2, 3)), arch)).unsqueeze(-1).unsqueeze(-1)


class Mixed(Net):
    """Everything at once: an own block, a layer used twice, a strided choice, a concatenation, plain torch layers, nested containers."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        width = Choice("width", (8, 12))
        self.stem = ConvBNAct(input_shape[0], width, 3, Choice("stride", (1, 2)), act=Choice("act", ("relu", "hardswish")))
        deep = Choice("depth", (0, 1, 2))
        inner = [OneOf(f"op{i}", {"conv": ConvBNAct(width, width, Choice(f"k{i}", (3, 5))), "none": nn.Identity()}) for i in range(2)]
        self.body = ElasticDepth(deep, inner)
        self.twice = ConvBNAct(width, width, 3)
        self.attend = Attend(width)
        self.join = Choice("join", ("add", "attend"))
        self.tail = nn.Sequential(nn.Dropout(0.5), nn.Flatten())
        self.head = ElasticLinear(width, classes)

    def forward(self, x: Tensor, arch: Mapping[str, Any], drop_path: float = 0.0) -> Tensor:
        x = self.body(self.stem(x, arch), arch)
        x = self.twice(F.relu(self.twice(x, arch)), arch)
        if self.join.pick(arch) == "attend":
            x = self.attend(x, arch)
        else:
            x = x + F.max_pool2d(x, 3, 1, 1)
        return self.head(self.tail(F.adaptive_avg_pool2d(x, 1)), arch)


class Split(Searchable):
    """A user's own block that returns two tensors."""

    def __init__(self, width: Choice) -> None:
        super().__init__()
        self.left, self.right = ConvBNAct(width, width, 3), ConvBNAct(width, width, Choice("split.kernel", (1, 5)), act="none")

    def forward(self, x: Tensor, arch: Mapping[str, Any], drop_path: float = 0.0) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.left(x, arch), self.right(x, arch)


class Meet(Searchable):
    """A user's own block that takes two tensors."""

    def __init__(self, width: Choice) -> None:
        super().__init__()
        self.how, self.project = Choice("how", ("add", "mul")), ConvBNAct(width, width, 1)

    def choices(self) -> tuple[Choice, ...]:
        return (self.how,)

    def forward(self, x: Tensor, arch: Mapping[str, Any], other: Tensor) -> Tensor:  # type: ignore[override]
        how = self.how.pick(arch)
        return self.project(x + other if how == "add" else x * torch.relu(other), arch)  # type: ignore[no-any-return]


class Forked(Net):
    """Blocks of several inputs and outputs, blocks in blocks, and one block that stands in two places."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        width = Choice("width", (4, 8))
        self.stem = ConvBNAct(input_shape[0], width, 3)
        self.split, self.meet, self.attend = Split(width), Meet(width), Attend(width)
        self.again = self.attend
        self.head = ElasticLinear(width, classes)

    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]  # a user need not take drop_path
        left, right = self.split(self.stem(x, arch), arch)
        x = self.again(self.attend(self.meet(left, arch, right), arch), arch)
        return self.head(x.mean((2, 3)), arch)  # type: ignore[no-any-return]


NETS: list[tuple[Callable[..., Any], tuple[int, int, int]]] = [
    (own_network.Branched, (1, 28, 28)),
    (own_network.Perceptron, (1, 8, 8)),
    (Mixed, (3, 13, 10)),
    (Forked, (3, 9, 9)),
]


@pytest.fixture(params=NETS, ids=["branched", "perceptron", "mixed", "forked"], scope="module")
def net(request: pytest.FixtureRequest) -> Any:
    factory, shape = request.param
    torch.manual_seed(0)
    made = factory(shape, 5).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def images(net: Any, count: int = 6) -> Tensor:
    return torch.randn(count, *net.input_shape, generator=torch.Generator().manual_seed(1))


def by_batch(module: nn.Module) -> nn.Module:
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train()
    return module


def sampled(net: Any, count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [net.space.sample(rng) for _ in range(count)]


def test_a_network_that_keeps_every_promise_passes_the_check(net: Any) -> None:
    check(net, archs=4)
    assert not net.training


def test_extraction_equals_the_network_and_is_plain(net: Any) -> None:
    x = images(net)
    for arch in sampled(net, 8):
        plain = by_batch(net.extract(arch))
        with torch.no_grad():
            torch.testing.assert_close(plain(x), net(x, arch), rtol=1e-5, atol=1e-5)
        assert not any(isinstance(m, Searchable) for m in plain.modules())
        assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}
        grads = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()), allow_unused=True)
        assert all(g is not None for g in grads)


def test_costs_and_graph_equal_the_trace_of_the_extracted_network(net: Any) -> None:
    """Layers are lowered once and looked up afterwards; fusion must still cross their borders."""
    for arch in sampled(net, 10):
        plain = net.extract(arch)
        graph, ours = trace(plain, net.input_shape), net.graph(arch)
        assert [(op.signature, op.inputs) for op in ours] == [(op.signature, op.inputs) for op in graph]
        expected = {"params": sum(p.numel() for p in plain.parameters()), "macs": graph.macs, "peak_bytes": peak_bytes(graph)}
        assert net.costs(arch) == expected


class Gate(Searchable):
    """``x + relu(x)``: it reads its input twice."""

    def forward(self, x: Tensor, arch: Mapping[str, Any], drop_path: float = 0.0) -> Tensor:
        return x + torch.relu(x)


def test_an_activation_fuses_only_into_an_op_that_nobody_else_reads() -> None:
    class Linear(Net):
        def __init__(self) -> None:
            super().__init__((3, 8, 8), 4)
            self.stem = ConvBNAct(3, 4, 3, act="none")
            self.gate = OneOf("gate", {"twice": Gate(), "once": nn.ReLU()})

        def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]  # a user need not take drop_path
            return self.gate(self.stem(x, arch), arch).mean((2, 3))

    net = Linear()
    kinds = [[(op.kind, op.act) for op in net.graph(arch)] for arch in net.space]
    assert kinds == [[("conv", ""), ("act", "relu"), ("add", ""), ("pool", "")], [("conv", "relu"), ("pool", "")]]
    for arch in net.space:
        assert [op.signature for op in net.graph(arch)] == [op.signature for op in trace(net.extract(arch), (3, 8, 8))]


def test_factors_add_up_and_have_small_scopes(net: Any) -> None:
    factors = net.factors()
    for metric in ("macs", "params"):
        model = CostModel(factors, lambda op, metric=metric: float(getattr(op, metric)))
        for arch in sampled(net, 60):
            assert model(arch) == sum(getattr(op, metric) for op in net.graph(arch))
    for arch in sampled(net, 20):
        ops = [op for factor in factors for op in factor.at(tuple(arch[c] for c in factor.scope))]
        assert Counter(op.signature for op in ops) == Counter(op.signature for op in net.graph(arch))
    assert max(len(factor.scope) for factor in factors) < max(4, len(net.space.choices) - 1)


def test_extremes_are_extreme(net: Any) -> None:
    every = [net.costs(arch)["macs"] for arch in (net.space if net.space.size < 200 else sampled(net, 80))]
    assert net.costs(net.smallest)["macs"] <= min(every) <= max(every) <= net.costs(net.largest)["macs"]
    rng = np.random.default_rng(0)
    drawn = [net.extremes(rng) for _ in range(6)]
    assert all(arch in net.space for pair in drawn for arch in pair)
    named = [name for name, options in net.space.choices.items() if isinstance(options[0], str) and name in net.space.active(net.largest)]
    assert all(len({pair[0][name] for pair in drawn}) > 1 for name in named)
    fixed = dict.fromkeys(named, 0)
    assert all(net.extreme(True, fixed)[name] == 0 for name in named)


def test_conditions_follow_from_the_layers() -> None:
    space = Mixed((3, 8, 8), 4).space
    labels = {n: {p: {space.choices[p][i] for i in ids} for p, ids in c.items()} for n, c in space.conditions.items()}
    assert labels == {
        "op0": {"depth": {1, 2}},
        "k0": {"depth": {1, 2}, "op0": {"conv"}},
        "op1": {"depth": {2}},
        "k1": {"depth": {2}, "op1": {"conv"}},
    }
    assert space.size == 2 * 2 * 2 * 2 * 2 * (1 + 3 + 3 * 3)


def test_a_choice_read_in_two_places_exists_where_either_is() -> None:
    kernel = Choice("kernel", (3, 5))

    class Twice(Net):
        def __init__(self) -> None:
            super().__init__((3, 8, 8), 4)
            depth = Choice("depth", (1, 2, 3))
            blocks: list[nn.Module] = [ConvBNAct(3, 3, 3), ConvBNAct(3, 3, kernel), ConvBNAct(3, 3, kernel)]
            self.body = ElasticDepth(depth, blocks)

        def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]  # a user need not take drop_path
            return self.body(x, arch)

    space = space_of(Twice())
    assert {p: {space.choices[p][i] for i in ids} for p, ids in space.conditions["kernel"].items()} == {"depth": {2, 3}}


def test_the_authors_conditions_are_added() -> None:
    space = own_network.Perceptron((1, 8, 8), 3).space
    assert space.size == 3 + 3 * 3


def test_a_module_that_is_no_net_can_be_extracted_too() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ConvBNAct(3, Choice("w", (4, 6)), 3)
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("shift", torch.tensor(0.5))

        def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:
            out: Tensor = self.scale * self.conv(x, arch).mean((2, 3)) + self.shift
            return out

    bare, x = Bare(), torch.randn(4, 3, 6, 6)
    assert space_of(bare).size == 2
    plain = extract(bare, {"w": 1})
    torch.testing.assert_close(plain(x), bare(x, {"w": 1}), rtol=1e-5, atol=1e-5)
    assert "scale" in dict(plain.named_parameters()) and "shift" in dict(plain.named_buffers())
    assert plain.get_parameter("scale").data_ptr() != bare.scale.data_ptr()
    assert plain.training


def test_a_layer_called_twice_is_extracted_once() -> None:
    net = Mixed((3, 8, 8), 4)
    plain = net.extract(net.smallest)
    assert sum(p.numel() for p in plain.get_submodule("twice").parameters()) == 8 * 8 * 9 + 16
    assert not any("again" in name for name, _ in plain.named_modules())


# -- by name ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


def test_a_users_network_is_built_by_name(folder: Path) -> None:
    (folder / "users_net.py").write_text(EXAMPLE.read_text())
    net = build("users_net:Branched", (1, 12, 12), 3)
    assert type(net).__name__ == "Branched" and net.classes == 3 and net.input_shape == (1, 12, 12)
    assert net(torch.randn(2, 1, 12, 12), net.largest).shape == (2, 3)


UNFIT = """
from torch import nn
from sartor.extract import Net
from sartor.layers import Choice, ConvBNAct, ElasticLinear

class Unfit(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        width = Choice("width", (4, 8))
        self.conv, self.head = ConvBNAct(shape[0], width, 3), HEAD
    def forward(self, x, arch):
        return RETURN
"""


@pytest.mark.parametrize(
    ("head", "result", "words"),
    [
        (
            "nn.Linear(4, classes)",
            "self.head(self.conv(x, arch).flatten(1))",
            "fails for images of (1, 8, 8) at {'width': 4}: ",
        ),
        ("ElasticLinear(width, classes + 1)", "self.head(self.conv(x, arch).mean((2, 3)), arch)", "got (2, 4) at {'width': 4}"),
        ("ElasticLinear(width, classes)", "(self.head(self.conv(x, arch).mean((2, 3)), arch),)", "shape (2, 3), got tuple at"),
    ],
)
def test_a_users_network_whose_layers_do_not_fit_is_refused(folder: Path, head: str, result: str, words: str) -> None:
    (folder / "users_unfit.py").write_text(UNFIT.replace("HEAD", head).replace("RETURN", result))
    with pytest.raises(UserError, match=re.escape(words)):
        build("users_unfit:Unfit", (1, 8, 8), 3)


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        (None, "users_missing:Net", "cannot import 'users_missing'"),
        ("import nowhere_to_be_found", "users_a:Net", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("1 +", "users_b:Net", "SyntaxError"),
        ("def other(): ...\nNet = 3", "users_c:Net", "nothing callable named 'Net'; it defines other"),
        ("def make(shape, classes): return 1 / 0", "users_d:make", "make((1, 8, 8), 3) failed: ZeroDivisionError"),
        ("def make(shape, classes): return object()", "users_e:make", "expected a network with .space, got object"),
        ("from sartor.errors import UserError\ndef make(shape, classes): raise UserError('too small')", "users_f:make", "too small"),
    ],
)
def test_code_that_makes_no_network_is_refused(folder: Path, code: str | None, name: str, words: str) -> None:
    if code is not None:
        (folder / f"{name.partition(':')[0]}.py").write_text(code)
    with pytest.raises(UserError) as caught:
        build(name, (1, 8, 8), 3)
    assert words in str(caught.value)


# -- what check finds --------------------------------------------------------------------------------------------------------


class Base(Net):
    """A small sound network, to be broken in one place each."""

    def __init__(self) -> None:
        super().__init__((3, 8, 8), 4)
        torch.manual_seed(0)
        self.width = Choice("w", (4, 6))
        self.stem = ConvBNAct(3, self.width, Choice("k", (1, 3)))
        self.head = ElasticLinear(self.width, 4)

    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]  # a user need not take drop_path
        return self.head(self.stem(x, arch).mean((2, 3)), arch)


class Deaf(Base):
    def __init__(self) -> None:
        super().__init__()
        self.unused = Choice("unused", (1, 2))


class Stateful(Base):
    calls = 0

    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        self.calls += 1
        return super().forward(x, arch) * self.calls


class WrongExtract(Base):
    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        return super().extract({**arch, "k": 0})


class Sharing(Base):
    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        plain = super().extract(arch)
        if arch["w"] == 1:
            plain.head.weight = self.head.weight
        return plain


class DeadWeights(Base):
    def extract(self, arch: Mapping[str, int]) -> nn.Module:
        plain = super().extract(arch)
        plain.idle = nn.Linear(2, 2)
        return plain


class Running(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)


class WrongMixture(Base):
    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        out = super().forward(x, arch)
        return out + 1 if isinstance(arch["k"], dict) else out


class Features(Base):
    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return self.stem(x, arch)


class Doubled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = ConvBNAct(3, Choice("w", (4, 8)), 3)


class NoArch(Base):
    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return self.head(self.stem(x).mean((2, 3)), arch)


class DataDependent(Base):
    def forward(self, x: Tensor, arch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        out = super().forward(x, arch)
        return out if out.sum() > 0 else out * 2


def test_the_base_is_sound() -> None:
    check(Base())


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Deaf, "choice 'unused' has no effect"),
        (Stateful, "draws at random or keeps state"),
        (WrongExtract, "the extracted network does not compute what WrongExtract.forward computes"),
        (Sharing, "shares weights with Sharing"),
        (DeadWeights, "weights that nothing uses: 'idle.weight'"),
        (Running, "'norm' is a BatchNorm2d with running statistics"),
        (WrongMixture, "of choice 'k' does not equal its option"),
        (Features, "must return logits of shape (8, 4), got (8, "),
        (Doubled, "choice 'w' has options [4, 6] in the network but [4, 8] in other"),
        (DataDependent, "DataDependent.forward cannot be traced"),
    ],
)
def test_check_says_what_is_wrong_in_one_sentence(broken: type[Net], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check(broken())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_called_without_the_architecture_is_named() -> None:
    net = NoArch()
    with pytest.raises(UserError, match=r"the layer 'stem' \(ConvBNAct\) must be called as layer\(x, arch\)"):
        net.extract(net.space.at(0))


def test_a_network_without_choices_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no choices"):
        space_of(nn.Linear(2, 2))
