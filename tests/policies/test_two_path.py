"""ProxylessNAS' gates follow the paper: gradient against enumeration of equation 4, one and two paths, probabilities of the others kept."""

from __future__ import annotations

import itertools

import pytest
import torch

from sartor.arch import Space
from sartor.errors import UserError
from sartor.policies.two_path import TwoPath

SPACE = Space({"a": ("w", "x", "y", "z"), "b": ("p", "q", "r")})


def policy(seed: int = 3) -> TwoPath:
    return TwoPath(SPACE, scale=1.0, seed=seed).double()


def outputs(mixture: dict) -> torch.Tensor:
    """A loss that is not linear in the gates: (sum_a g o)^2 * (sum_b h u)."""
    first = sum(w * value for w, value in ((mixture["a"][i], (1.0, -2.0, 0.5, 3.0)[i]) for i in mixture["a"]))
    second = sum(w * value for w, value in ((mixture["b"][i], (2.0, 1.0, -1.0)[i]) for i in mixture["b"]))
    return first**2 * second + first  # type: ignore[operator, no-any-return]


def test_two_paths_run_in_the_architecture_step_one_of_them_open_and_one_in_the_weight_step() -> None:
    p, generator = policy(), torch.Generator().manual_seed(0)
    for _ in range(50):
        mixture = p.sample(generator)
        for name in SPACE.choices:
            gates = [float(w.detach()) for w in mixture[name].values()]  # type: ignore[union-attr]
            assert sorted(gates) == [0.0, 1.0]
        assert all(isinstance(v, int) for v in p.sample_weights(generator).values())
    assert {len(row) for row in p.expected().values()} == {3, 4}  # type: ignore[arg-type]  # costs are charged for all options


def test_the_gradient_is_equation_four_over_the_drawn_pair() -> None:
    p, generator = policy(), torch.Generator().manual_seed(1)
    for _ in range(20):
        p.zero_grad()
        mixture = p.sample(generator)
        gates = {
            name: {i: w.detach().clone().requires_grad_() for i, w in row.items()}  # type: ignore[union-attr]
            for name, row in mixture.items()
        }
        outputs(gates).backward()
        outputs(mixture).backward()
        for name, row in p.row.items():
            pair = list(gates[name])
            soft = torch.softmax(p.alpha.detach()[row, pair], 0)
            wanted = torch.zeros(p.alpha.shape[1], dtype=torch.float64)
            for (i, at), (j, other) in itertools.product(enumerate(pair), enumerate(pair)):
                wanted[at] += gates[name][other].grad * soft[j] * (float(i == j) - soft[i])
            assert p.alpha.grad is not None and torch.allclose(p.alpha.grad[row], wanted, atol=1e-12)


def test_paths_are_drawn_by_their_probabilities() -> None:
    p, generator, n = policy(), torch.Generator().manual_seed(2), 4000
    probabilities = p.probabilities().detach()
    opened, single = torch.zeros(4), torch.zeros(4)
    for _ in range(n):
        opened[next(i for i, w in p.sample(generator)["a"].items() if float(w.detach()) == 1.0)] += 1  # type: ignore[union-attr]
        single[p.sample_weights(generator)["a"]] += 1  # type: ignore[index]
    row = probabilities[p.row["a"]].float()
    assert torch.allclose(single / n, row, atol=4 * 0.5 / n**0.5)
    # The pair (i, j) comes up with p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j), and then i is opened with p_i / (p_i + p_j).
    wanted = torch.zeros(4)
    for i, j in itertools.permutations(range(4), 2):
        pair = row[i] * row[j] / (1 - row[i]) + row[j] * row[i] / (1 - row[j])
        wanted[i] += pair * row[i] / (row[i] + row[j])
    assert torch.allclose(opened / n, wanted, atol=4 * 0.5 / n**0.5)


def test_a_step_moves_the_drawn_pair_alone() -> None:
    p, generator = policy(), torch.Generator().manual_seed(4)
    optimiser = torch.optim.Adam(p.parameters(), lr=0.3, betas=(0.0, 0.999))
    for _ in range(10):
        before = p.probabilities().detach().clone()
        optimiser.zero_grad()
        mixture = p.sample(generator)
        outputs(mixture).backward()
        optimiser.step()
        p.updated()
        after = p.probabilities().detach()
        for name, row in p.row.items():
            others = [i for i in range(len(SPACE.choices[name])) if i not in mixture[name]]  # type: ignore[operator]
            assert torch.allclose(after[row, others], before[row, others], atol=1e-12)
        assert not torch.allclose(after, before, atol=1e-6)


def test_an_option_of_probability_zero_can_still_be_the_second_path() -> None:
    p = policy()
    with torch.no_grad():
        p.alpha[:, 0] = 2000.0
    mixture = p.sample(torch.Generator().manual_seed(0))
    assert all(len(row) == 2 for row in mixture.values())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="edge"):
        TwoPath(SPACE, edges=[["a", "b"]])
