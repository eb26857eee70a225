"""Training of evaluation networks: auxiliary loss, drop-path that rises, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sartor.errors import UserError
from sartor.recipes.from_scratch import AUGMENT, train_from_scratch
from sartor.spaces.darts_eval import CellNetwork

from .tiny import tiny_data


class Recorded(nn.Module):
    """A linear classifier with an auxiliary one beside it; remembers the rates it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.main, self.side = nn.Linear(64, 4), nn.Linear(64, 4)
        self.rates: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x.flatten(1))
        return out

    def training_outputs(self, x: Tensor, drop_path: float = 0.0) -> tuple[Tensor, Tensor]:
        self.rates.append(drop_path)
        return self.forward(x), self.side(x.flatten(1))


def test_drop_path_rises_linearly_over_the_budget() -> None:
    net = Recorded()
    train_from_scratch(net, tiny_data(), steps=8, batch=32, augment=None, drop_path=0.4)
    assert net.rates == pytest.approx([0.4 * step / 8 for step in range(8)])


def test_the_auxiliary_loss_has_its_weight() -> None:
    """SGD of one step moves the auxiliary classifier in proportion to its weight, and the other not at all by it."""
    moved = {}
    for weight in (0.0, 0.4, 0.8):
        net, start = Recorded(), Recorded()
        train_from_scratch(net, tiny_data(), steps=1, batch=32, augment=None, auxiliary=weight, weight_decay=0.0, clip_norm=None)
        moved[weight] = (net.side.weight - start.side.weight).detach(), (net.main.weight - start.main.weight).detach()
    assert not moved[0.0][0].any() and moved[0.0][1].any()
    assert torch.allclose(moved[0.8][0], 2.0 * moved[0.4][0], rtol=1e-4, atol=1e-7)
    assert torch.equal(moved[0.0][1], moved[0.8][1])


def cells(seed: int = 0) -> CellNetwork:
    torch.manual_seed(seed)
    return CellNetwork("p-darts", (1, 8, 8), 4, channels=4, cells=3)


def test_it_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = tiny_data()
    settings = {"steps": 12, "batch": 32, "lr": 0.1, "augment": None}
    whole, halted = cells(), cells()
    result = train_from_scratch(whole, data, **settings)  # type: ignore[arg-type]  # settings of several types
    assert result.steps == 12 and result.loss < 1.2  # log 4 at the start

    class Stop(Exception):
        pass

    def halt(what: str, done: int, total: int) -> None:
        if done == 7:
            raise Stop

    path = tmp_path / "t.safetensors"
    with pytest.raises(Stop):
        train_from_scratch(halted, data, checkpoint=path, checkpoint_seconds=0.0, progress=halt, **settings)  # type: ignore[arg-type]
    resumed = cells(seed=1)
    train_from_scratch(resumed, data, checkpoint=path, **settings)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_the_papers_augmentation() -> None:
    assert (AUGMENT.pad, AUGMENT.flip, AUGMENT.cutout) == (4, True, 16)


@pytest.mark.parametrize(("more", "said"), [({"drop_path": 1.0}, "drop_path="), ({"auxiliary": -1.0}, "auxiliary=")])
def test_mistakes_are_said(more: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train_from_scratch(Recorded(), tiny_data(), steps=1, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="training_outputs"):
        train_from_scratch(nn.Linear(1, 1), tiny_data(), steps=1)
