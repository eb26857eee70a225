from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.job import workers
from sartor.recipes.arithmetic import forward
from sartor.recipes.sandwich import sandwich_step, thread_pool, train_sandwich
from sartor.recipes.shrinking import train_shrinking
from sartor.recipes.train import train
from sartor.spaces import build

from .test_sandwich import equal
from .test_shrinking import small
from .tiny import TinyNet, tiny_data


def test_products_are_in_bf16_and_what_comes_out_and_every_weight_in_fp32() -> None:
    net = build("mobile", (1, 12, 12), 4)
    seen: dict[str, set[torch.dtype]] = {"depthwise": set(), "other": set()}

    def look(layer: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        seen["depthwise" if layer.groups > 1 else "other"].add(out.dtype)

    module = net.extract(net.largest).train()
    hooks = [layer.register_forward_hook(look) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    x = torch.randn(8, 1, 12, 12)
    assert forward("bf16", module, x).dtype == torch.float32 and seen["other"] == {torch.bfloat16}
    assert forward("fp32", module.double(), x.double()).dtype == torch.float64
    for hook in hooks:
        hook.remove()
    from sartor.layers.depthwise import depthwise_conv2d

    wide, kernel = torch.randn(2, 3, 9, 9, dtype=torch.bfloat16), torch.randn(3, 1, 5, 5, requires_grad=True)
    exact = depthwise_conv2d(wide.float(), kernel)
    got = forward("bf16", depthwise_conv2d, wide, kernel)
    assert torch.equal(got, exact)
    got.sum().backward()
    assert kernel.grad is not None and kernel.grad.dtype == torch.float32


def test_bf16_trains_as_fp32_does_though_not_to_the_bit() -> None:
    nets = {name: (net := TinyNet()).extract(net.largest) for name in ("fp32", "bf16")}
    results = {name: train(net, tiny_data(), epochs=6, batch=32, arithmetic=name) for name, net in nets.items()}
    assert not equal(*nets.values()) and all(p.dtype == torch.float32 for p in nets["bf16"].parameters())
    assert results["bf16"].accuracy > 0.9 and abs(results["bf16"].loss - results["fp32"].loss) < 0.1
    for supernets, recipe in (([TinyNet(), TinyNet()], train_sandwich), ([small(), small()], train_shrinking)):
        for net, name in zip(supernets, ("fp32", "bf16"), strict=True):
            recipe(net, tiny_data(64), steps=6, batch=16, arithmetic=name)  # type: ignore[operator]
        assert not equal(*supernets)


def test_gradients_of_a_sandwich_step_agree_and_threads_do_not_change_them() -> None:
    torch.manual_seed(0)
    net = build("mobile", (1, 12, 12), 4)
    x, y = torch.randn(16, 1, 12, 12), torch.arange(16) % 4
    others = [net.smallest, net.space.at(3)]
    found = {}
    for name, pool in (("fp32", None), ("bf16", None), ("bf16 by threads", thread_pool(2))):
        net.zero_grad(set_to_none=True)
        sandwich_step(net, x, y, others, arithmetic=name.split()[0], pool=pool)
        found[name] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert torch.equal(found["bf16"], found["bf16 by threads"])
    assert 0.9 < torch.cosine_similarity(found["fp32"], found["bf16"], dim=0) < 1 - 1e-7


def test_a_training_takes_the_faster_arithmetic_and_fp32_where_its_layers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(len(x), 3).index_add_(0, torch.arange(len(x)), self.inner(x.mean(2)[:, 0, :4]))  # of one type only

    with pytest.raises(RuntimeError):
        forward("bf16", Refuses(), torch.zeros(4, 1, 4, 4))
    assert workers.quickest(Refuses(), (1, 4, 4), 4)[0] == "fp32"
    for mixed, best in ((0.8, "bf16"), (0.95, "fp32"), (1.2, "fp32")):
        monkeypatch.setattr(workers, "_step_seconds", lambda *given, mixed=mixed: mixed if given[-1] == "bf16" else 1.0)
        assert workers.quickest(nn.Identity(), (1, 4, 4), 4)[0] == best


def test_another_name_is_refused() -> None:
    for call in (train, train_sandwich, train_shrinking):
        with pytest.raises(UserError, match="arithmetic= of fp32 or bf16, got 'int8'"):
            call(TinyNet(), tiny_data(), steps=1, arithmetic="int8")  # type: ignore[operator]
