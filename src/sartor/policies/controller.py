"""The LSTM controller of ENAS (Pham et al. 2018, "Efficient neural architecture search via parameter sharing", sections 2.2 and 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError
from sartor.policies.base import Mixture, Policy

_DRAWS = 256  # behind the estimates of marginals and entropy


class Controller(Policy):
    """Choices are drawn one after the other, each from a softmax that an LSTM computes from the choices before.

    Logits are ``constant * tanh((W h + b) / temperature)`` with `constant` 2.5 and `temperature` 5 (section 3.1), which keeps the
    controller from committing early; b is `alpha`. The distribution is not independent over choices: `probabilities`, `expected` and
    `entropy` are estimated from draws of a fixed seed, without gradient. What is learned is learned through :meth:`log_probs`.

    Args:
        hidden: width of the LSTM; 64 in the authors' code for cells, 100 in the paper.
        constant, temperature: of the logits; 0 leaves tanh or temperature out.
        seed: of the initial weights, uniform in [-0.1, 0.1] as in the paper.

    Raises:
        UserError: for settings out of range.
    """

    orders: ClassVar[tuple[int, ...]] = ()

    def __init__(self, space: Space, *, hidden: int = 64, constant: float = 2.5, temperature: float = 5.0, seed: int = 0, **settings: Any):
        if settings.get("edges") is not None:
            raise UserError("a controller draws one option of each choice and takes no edge weights; leave edges= out")
        if hidden < 1 or constant < 0 or temperature < 0:
            raise UserError(
                f"controller: expected hidden >= 1, constant >= 0 and temperature >= 0, got {hidden}, {constant}, {temperature}"
            )
        super().__init__(space, scale=0.0, seed=seed, **settings)
        self.constant, self.temperature = constant, temperature
        order = [name for name in space._order if name in self.row]  # conditions come before what depends on them
        self._steps = tuple((name, self.row[name]) for name in order)
        options = self.mask.shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.tokens = nn.Parameter(torch.empty(1 + len(self.names) * (options + 1), hidden))  # start; options and "off" of every choice
        self.head = nn.Parameter(torch.empty(len(self.names), hidden, options))
        with torch.no_grad():
            for parameter in (*self.cell.parameters(), self.tokens, self.head):
                parameter.uniform_(-0.1, 0.1, generator=generator)

    # -- drawing ---------------------------------------------------------------------------------------------------------

    def _run(
        self, given: Tensor | None, n: int, generator: torch.Generator | None, *, greedy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Walk the choices: (actions `(n, choices)` with -1 for off, log-probabilities `(n,)`, entropies `(n,)` in nats).

        `given` are the actions to score; None draws them (or takes the likeliest, if `greedy`).
        """
        options = self.mask.shape[1]
        actions = torch.full((n, len(self.names)), -1, dtype=torch.long)
        log_p, entropy = self.alpha.new_zeros(n), self.alpha.new_zeros(n)
        token = self.tokens[0].expand(n, -1)
        state: tuple[Tensor, Tensor] | None = None
        for name, row in self._steps:
            state = self.cell(token, state)
            logs = torch.log_softmax(self._logits(state[0], row).masked_fill(~self.mask[row], -torch.inf), 1)
            on = self._on(name, actions)
            if given is not None:
                action = given[:, row].clamp_min(0)
            elif greedy:
                action = logs.argmax(1)
            else:
                action = torch.multinomial(logs.detach().exp(), 1, generator=generator)[:, 0]
            actions[:, row] = torch.where(on, action, torch.full_like(action, -1))
            finite = logs.masked_fill(~self.mask[row], 0.0)
            log_p = log_p + torch.where(on, finite.gather(1, action[:, None])[:, 0], 0.0)
            entropy = entropy - torch.where(on, (finite.exp() * finite * self.mask[row]).sum(1), 0.0)
            token = self.tokens[1 + row * (options + 1) + torch.where(on, action, torch.full_like(action, options))]
        return actions, log_p, entropy

    def _logits(self, hidden: Tensor, row: int) -> Tensor:
        logits = hidden @ self.head[row] + self.alpha[row]
        if self.temperature:
            logits = logits / self.temperature
        return self.constant * torch.tanh(logits) if self.constant else logits

    def _on(self, name: str, actions: Tensor) -> Tensor:
        on = torch.ones(len(actions), dtype=torch.bool)
        for parent, wanted in self._needs(name).items():
            if parent in self.row:
                on &= torch.isin(actions[:, self.row[parent]], torch.tensor(sorted(wanted)))
            elif self.space.allowed[parent][0] not in wanted:
                on &= False
        return on

    def _arch(self, actions: Sequence[int]) -> Arch:
        values = {name: allowed[0] for name, allowed in self.space.allowed.items()}
        values.update({name: actions[row] for name, row in self.row.items() if actions[row] >= 0})
        return self.space.canonical(values)

    @torch.no_grad()
    def draws(self, n: int, generator: torch.Generator | None = None) -> list[Arch]:
        """`n` independent draws, in one pass of the LSTM."""
        return [self._arch(row) for row in self._run(None, n, generator)[0].tolist()]

    def draw(self, generator: torch.Generator | None = None) -> Arch:
        return self.draws(1, generator)[0]

    @torch.no_grad()
    def mode(self) -> Arch:
        """The likeliest option of each choice in turn, or `derive` of the marginals. (ENAS derives by reward.)"""
        if self._derive is not None:
            return self._derive(self.strengths())
        return self._arch(self._run(None, 1, None, greedy=True)[0][0].tolist())

    def sample(self, generator: torch.Generator | None = None, *, fraction: float = 0.0) -> Mixture:
        """A drawn architecture; no gradient passes through it, the score function has it."""
        return dict(self.draw(generator))

    # -- what is learned ------------------------------------------------------------------------------------------------------

    def log_probs(self, archs: Sequence[Mapping[str, int]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities `(n,)` of canonical architectures, and the entropies `(n,)` of the steps that led to them, differentiable."""
        rows = []
        for arch in archs:
            on = self.space.active(arch)
            rows.append([arch[name] if name in on else -1 for name in self.names])
        given = torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(self.names))
        return self._run(given, len(rows), None)[1:]

    def log_prob(self, arch: Mapping[str, int]) -> Tensor:
        return self.log_probs([arch])[0][0]

    # -- estimates -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Marginal probabilities, estimated from draws; where a choice was switched off in all of them, uniform."""
        actions = self._run(None, _DRAWS, torch.Generator().manual_seed(0))[0]
        counts = torch.stack([(actions == option).sum(0) for option in range(self.mask.shape[1])], 1).to(self.alpha.dtype)
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, self.mask.to(counts.dtype))
        return counts / counts.sum(1, keepdim=True)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        return self._run(None, _DRAWS, torch.Generator().manual_seed(0))[2].mean()


__all__ = ["Controller"]
