"""Distributions over the architectures of a space, with parameters that a gradient can move.

A policy gives every choice a mixture over its options: what a supernet runs (`sample`), what a cost is expected to be (`expected`), and
which discrete architecture it stands for (`mode`). Methods differ in `probabilities` and `weights` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sartor.arch import Arch, Space
from sartor.errors import UserError

#: What a supernet is run with: a settled choice holds an index, any other the weights of the options that take part.
Mixture = dict[str, int | dict[int, Tensor]]
Derive = Callable[[Mapping[str, int | Mapping[int, float]]], Arch]


class Policy(nn.Module):
    """Architecture parameters of every choice of a space, and the distribution that they stand for.

    A subclass defines `probabilities`, and `weights` where what the supernet runs is not the probabilities themselves. Both are matrices
    `(choices, options)`, one row per free choice in the order of `names`, zero where `mask` is False.

    Args:
        space: its choices with more than one allowed option are free; the others are settled.
        edges: choices that enter the same node, node by node. If given, each edge has a weight of its own, a softmax over the node's edges,
            which multiplies its mixture: edge normalisation (Xu et al. 2020, PC-DARTS, section 3.3, equation 4).
        derive: how a mixture becomes an architecture; by default the option of largest weight of each choice.
        scale: standard deviation of the initial parameters. DARTS has 1e-3.
        seed: of the initial parameters.

    Attributes:
        alpha: parameter `(choices, options)`.
        beta: parameter `(choices,)`, or None without `edges`.
        mask: buffer `(choices, options)`, True where an option is allowed.
        orders: of a bilevel search that may train it: none for a policy that learns from rewards alone.

    Raises:
        UserError: for `edges` that name an unknown choice.
    """

    orders: ClassVar[tuple[int, ...]] = (1, 2)
    alpha: nn.Parameter
    beta: nn.Parameter | None
    mask: Tensor

    def __init__(
        self,
        space: Space,
        *,
        edges: Sequence[Sequence[str]] | None = None,
        derive: Derive | None = None,
        scale: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.space = space
        self.names = tuple(name for name, allowed in space.allowed.items() if len(allowed) > 1)
        self.row = {name: i for i, name in enumerate(self.names)}
        self._derive = derive
        most = max((len(space.choices[name]) for name in self.names), default=1)
        mask = torch.zeros(len(self.names), most, dtype=torch.bool)
        for name, row in self.row.items():
            mask[row, list(space.allowed[name])] = True
        self.register_buffer("mask", mask, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        self.alpha = nn.Parameter(scale * torch.randn(mask.shape, generator=generator))
        self._groups: list[list[int]] = []
        self.beta = None
        if edges is not None:
            self._groups = self._group_rows(edges)
            self.beta = nn.Parameter(scale * torch.randn(len(self.names), generator=generator))

    def _group_rows(self, edges: Sequence[Sequence[str]]) -> list[list[int]]:
        unknown = [name for group in edges for name in group if name not in self.space.choices]
        if unknown:
            raise UserError(f"edges: expected choices of the space, got '{unknown[0]}'; choices: {', '.join(self.space.choices)}")
        return [rows for group in edges if (rows := [self.row[name] for name in group if name in self.row])]

    # -- what a method defines ---------------------------------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """Probability of every option `(choices, options)`: rows sum to 1, zero where `mask` is False. Differentiable in `alpha`."""
        raise NotImplementedError

    def weights(self, generator: torch.Generator | None, fraction: float) -> tuple[Tensor, Tensor]:
        """Weights of one forward pass `(choices, options)`, and which options take part, of the same shape.

        `fraction` in [0, 1] is the spent share of the search: what temperatures follow. Deterministic relaxations return the
        probabilities of all options.
        """
        return self.probabilities(), self.mask

    def merits(self) -> Tensor:
        """By what options are compared when an architecture is derived `(choices, options)`: the probabilities."""
        return self.probabilities()

    def updated(self) -> None:
        """Called after every step of the architecture optimiser."""

    # -- what others use ---------------------------------------------------------------------------------------------

    def sample(self, generator: torch.Generator | None = None, *, fraction: float = 0.0) -> Mixture:
        """The mixture of one forward pass of the architecture step; gradients reach the parameters through its weights."""
        values, support = self.weights(generator, fraction)
        return self.mixture(self._scaled(values), support)

    def sample_weights(self, generator: torch.Generator | None = None, *, fraction: float = 0.0) -> Mixture:
        """The mixture of one forward pass of the weight step: as :meth:`sample`, without gradients for the policy."""
        with torch.no_grad():
            return self.sample(generator, fraction=fraction)

    def expected(self) -> Mixture:
        """The probabilities as a mixture: what :class:`sartor.hardware.cost.CostModel` turns into an exact expected cost."""
        return self.mixture(self.probabilities(), self.mask)

    def strengths(self) -> dict[str, int | dict[int, float]]:
        """:meth:`merits` of every option, edge weights included, as numbers: what an architecture is derived from."""
        with torch.no_grad():
            rows = self._scaled(self.merits()).tolist()
        return {
            name: {i: rows[self.row[name]][i] for i in allowed} if name in self.row else allowed[0]
            for name, allowed in self.space.allowed.items()
        }

    def mode(self) -> Arch:
        """The architecture that the policy stands for: `derive` of the strengths, or the strongest option of each choice."""
        strengths = self.strengths()
        if self._derive is not None:
            return self._derive(strengths)
        # Ties go to the first option, as in the papers' code.
        return self.space.canonical({n: v if isinstance(v, int) else max(v, key=v.__getitem__) for n, v in strengths.items()})

    def draw(self, generator: torch.Generator | None = None) -> Arch:
        """An architecture drawn from the distribution; its log-probability is :meth:`log_prob`."""
        values = {name: allowed[0] for name, allowed in self.space.allowed.items()}
        if self.names:
            with torch.no_grad():
                drawn = torch.multinomial(self.probabilities(), 1, generator=generator)[:, 0].tolist()
            values.update(zip(self.names, drawn, strict=True))
        return self.space.canonical(values)

    def log_prob(self, arch: Mapping[str, int]) -> Tensor:
        """Log-probability of a canonical architecture, a scalar: the sum over the choices that are switched on in it."""
        on = self.space.active(arch)
        rows = [row for name, row in self.row.items() if name in on]
        columns = [arch[self.names[row]] for row in rows]
        return torch.log(self.probabilities()[rows, columns]).sum()

    def entropy(self) -> Tensor:
        """Entropy in nats over canonical architectures, a scalar: each choice counts as often as it is switched on."""
        p = self.probabilities()
        each = -torch.where(p > 0, p * torch.log(p.clamp_min(torch.finfo(p.dtype).tiny)), torch.zeros_like(p)).sum(1)
        return (each * self.presence(p)).sum()

    def presence(self, probabilities: Tensor | None = None) -> Tensor:
        """Probability `(choices,)` that each free choice is switched on.

        A choice is on where every ancestor has one of the labels that its descendants ask for. Ancestors are drawn independently, so the
        probability is a product over them.
        """
        p = self.probabilities() if probabilities is None else probabilities
        found = []
        for name in self.names:
            on = p.new_ones(())
            for ancestor, indices in self._needs(name).items():
                if ancestor in self.row:
                    on = on * p[self.row[ancestor], sorted(indices)].sum()
                elif self.space.allowed[ancestor][0] not in indices:
                    on = on * 0.0
            found.append(on)
        return torch.stack(found) if found else p.new_zeros(0)

    def _needs(self, name: str) -> dict[str, frozenset[int]]:
        """Ancestor -> the indices that it must have for `name` to be switched on."""
        needs: dict[str, frozenset[int]] = {}
        open_names = [name]
        while open_names:
            for parent, indices in self.space.conditions.get(open_names.pop(), {}).items():
                allowed = frozenset(i for i in indices if i in self.space.allowed[parent])
                needs[parent] = needs[parent] & allowed if parent in needs else allowed
                open_names.append(parent)
        return needs

    # -- matrices to mixtures ------------------------------------------------------------------------------------------

    def edge_weights(self) -> Tensor:
        """Weight of each choice `(choices,)`: the softmax of `beta` within each group of edges, 1 for choices in none."""
        scale = torch.ones(len(self.names), dtype=self.alpha.dtype, device=self.alpha.device)
        if self.beta is None:
            return scale
        for rows in self._groups:
            scale = scale.index_copy(0, torch.tensor(rows, device=scale.device), torch.softmax(self.beta[rows], 0))
        return scale

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self.beta is None else values * self.edge_weights()[:, None]

    def mixture(self, values: Tensor, support: Tensor) -> Mixture:
        """A matrix `(choices, options)` as a mixture of the options in `support`; settled choices hold their index."""
        rows = [row.unbind(0) for row in values.unbind(0)]
        taking_part = support.tolist()
        found: Mixture = {}
        for name, allowed in self.space.allowed.items():
            row = self.row.get(name)
            found[name] = allowed[0] if row is None else {i: rows[row][i] for i in allowed if taking_part[row][i]}
        return found
