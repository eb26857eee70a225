"""Autoregressive policies over the choices of a space: an LSTM (Zoph & Le 2017, section 3.1) and a small causal transformer.

The only module of the searchers that imports torch; controllers import it when they are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.searchers.variation import parents_first

Network = Literal["lstm", "transformer"]
_OFF = -1  # the action of a choice that is switched off


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small lose by a pool of threads, and sums in one thread are the same on every number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Policy(nn.Module):
    """`P(arch) = Π_t P(choice_t | choices before)`, choices in an order in which conditions come first.

    An action row `(steps,)` holds the option of every choice that has more than one, -1 where it is switched off; such a step has
    probability 1. Options that the space does not allow have probability 0. The initial policy is nearly uniform at every step.

    Args:
        hidden: width of embeddings and state.
        seed: of the initial weights; the global generator is left as it is.
    """

    allowed: Tensor  # mask (steps, options)

    def __init__(self, space: Space, *, network: Network, hidden: int, seed: int) -> None:
        super().__init__()
        self.space = space
        self.names = [name for name in parents_first(space) if len(space.allowed[name]) > 1]
        self._walk = [(name, space.conditions.get(name, {}), name in set(self.names)) for name in parents_first(space)]
        steps, options = max(1, len(self.names)), max((len(space.choices[name]) for name in self.names), default=1)
        self._steps, self._options = steps, options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(1 + steps * (options + 1), hidden)  # start, and every option and "off" of every step
            self.places = nn.Parameter(torch.randn(steps, hidden) * 0.1)
            self.body: nn.Module
            if network == "lstm":
                self.body = nn.LSTM(hidden, hidden, batch_first=True)
            else:
                layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True)
                self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.heads = nn.Parameter(torch.randn(steps, hidden, options) * (0.1 / hidden**0.5))
            self.biases = nn.Parameter(torch.zeros(steps, options))
        allowed = torch.zeros(steps, options, dtype=torch.bool)
        for t, name in enumerate(self.names):
            allowed[t, list(space.allowed[name])] = True
        allowed[len(self.names) :, 0] = True  # a space without any decision still has one step, of one option
        self.register_buffer("allowed", allowed)

    def forward(self, actions: Tensor) -> Tensor:
        """Log-probabilities `(n, t, options)` of steps 0..t-1, given actions `(n, t - 1)` or more, of which only those are read."""
        n, t = len(actions), min(actions.shape[1] + 1, self._steps)
        past = actions[:, : t - 1]
        base = 1 + torch.arange(t - 1) * (self._options + 1)
        tokens = torch.where(past == _OFF, self._options, past) + base
        inputs = self.tokens(torch.cat([torch.zeros(n, 1, dtype=torch.long), tokens], dim=1)) + self.places[:t]
        if isinstance(self.body, nn.LSTM):
            features = self.body(inputs)[0]
        else:
            causal = torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)
            features = self.body(inputs, mask=causal)
        logits = torch.einsum("nth,tho->nto", features, self.heads[:t]) + self.biases[:t]
        return torch.log_softmax(logits.masked_fill(~self.allowed[:t], -torch.inf), dim=2)

    def log_prob(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability `(n,)` and entropy `(n,)` in nats of action rows `(n, steps)`: sums over the steps that are switched on."""
        rows = self(actions)
        on = (actions != _OFF).float()
        taken = rows.gather(2, actions.clamp(min=0)[:, :, None])[:, :, 0]
        safe = rows.masked_fill(~self.allowed, 0.0)
        entropy = -(safe.exp() * safe).masked_fill(~self.allowed, 0.0).sum(dim=2)
        return (taken * on).sum(dim=1), (entropy * on).sum(dim=1)

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> list[Arch]:
        """`n` draws, by inversion of uniform numbers of `rng`; repeats are possible."""
        uniform = rng.random((n, self._steps))
        states: dict[str, NDArray[np.int_]] = {}
        actions = torch.full((n, 0), _OFF, dtype=torch.long)
        for name, conditions, decides in self._walk:
            on = _on(conditions, states, n)
            value = np.full(n, self.space.allowed[name][0])
            if decides:
                t = actions.shape[1]
                odds = self(actions)[:, t].double().exp().numpy().cumsum(axis=1)
                value = (uniform[:, t, None] * odds[:, -1:] >= odds).sum(axis=1)
            states[name] = np.where(on, value, _OFF)
            if decides:
                actions = torch.cat([actions, torch.from_numpy(states[name].astype(np.int64))[:, None]], dim=1)
        return [Arch({name: max(0, int(states[name][i])) for name in self.space.choices}) for i in range(n)]

    def actions(self, archs: Sequence[Mapping[str, int]]) -> Tensor:
        """Action rows `(n, steps)` of architectures."""
        states: dict[str, NDArray[np.int_]] = {}
        for name, conditions, _ in self._walk:
            states[name] = np.where(_on(conditions, states, len(archs)), np.array([arch[name] for arch in archs], dtype=np.int64), _OFF)
        columns = [states[name] for name in self.names] or [np.full(len(archs), _OFF, dtype=np.int64)]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def _on(conditions: Mapping[str, frozenset[int]], states: Mapping[str, NDArray[np.int_]], n: int) -> NDArray[np.bool_]:
    on = np.ones(n, dtype=bool)
    for parent, allowed in conditions.items():
        on &= np.isin(states[parent], list(allowed))
    return on
