"""Spaces against brute force: counting, numbering, uniform sampling and moving about under conditions of any shape."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sartor.arch import Arch, Space
from sartor.errors import UserError


@st.composite
def spaces(draw: st.DrawFn, restricted: bool = True) -> Space:
    """Up to six choices in any order, with conditions on up to two parents each, chains and diamonds among them; perhaps restricted."""
    count = draw(st.integers(1, 6))
    sizes = [draw(st.integers(1, 3)) for _ in range(count)]
    choices = {f"c{i}": [f"o{j}" for j in range(n)] for i, n in enumerate(sizes)}
    conditions: dict[str, dict[str, list[str]]] = {}
    for i in range(1, count):
        parents = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True))
        if parents:
            conditions[f"c{i}"] = {f"c{p}": draw(st.lists(st.sampled_from(choices[f"c{p}"]), min_size=1, unique=True)) for p in parents}
    order = draw(st.permutations(list(choices)))
    space = Space({name: choices[name] for name in order}, conditions)
    if restricted and draw(st.booleans()):
        name = draw(st.sampled_from(order))
        space = space.restrict({name: draw(st.lists(st.sampled_from(choices[name]), min_size=1, unique=True))})
    return space


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def brute_force(space: Space) -> set[tuple[tuple[str, int], ...]]:
    """Every canonical architecture, from the definition alone: a choice is on where all its parents are on and allow it."""

    def on(name: str, values: Mapping[str, int]) -> bool:
        return all(on(p, values) and values[p] in ids for p, ids in space.conditions.get(name, {}).items())

    found = set()
    for combination in itertools.product(*(space.allowed[name] for name in space.choices)):
        values = dict(zip(space.choices, combination, strict=True))
        found.add(tuple((name, values[name] if on(name, values) else 0) for name in space.choices))
    return found


def key(arch: Arch) -> tuple[tuple[str, int], ...]:
    return tuple(arch.items())


@given(spaces())
def test_size_and_numbering_agree_with_brute_force(space: Space) -> None:
    every = brute_force(space)
    assert space.size == len(every)
    numbered = [space.at(i) for i in range(space.size)]
    assert {key(arch) for arch in numbered} == every
    assert [space.index(arch) for arch in numbered] == list(range(space.size))
    assert list(space) == numbered
    assert all(arch in space for arch in numbered)
    with pytest.raises(IndexError):
        space.at(space.size)
    with pytest.raises(IndexError):
        space.at(-1)


@given(spaces(), seeds)
def test_canonical_spelling_forgets_what_is_switched_off(space: Space, rng: np.random.Generator) -> None:
    arch = space.sample(rng)
    on = space.active(arch)
    scrambled = {n: arch[n] if n in on else int(rng.integers(-5, 5)) for n in space.choices}
    assert space.canonical(scrambled) == arch
    assert space.canonical({n: arch[n] for n in on}) == arch
    assert all(arch[name] == 0 for name in space.choices if name not in on)
    loud = {n: arch[n] if n in on else 1 for n in space.choices}
    assert (loud in space) == (len(on) == len(space.choices))


@given(spaces(), seeds)
def test_labels_round_trip(space: Space, rng: np.random.Generator) -> None:
    arch = space.sample(rng)
    labels = space.labels(arch)
    assert set(labels) == space.active(arch)
    assert all(space.choices[name][arch[name]] == label for name, label in labels.items())
    assert space.from_labels(labels) == arch


@given(spaces())
def test_encoding_tells_all_architectures_apart(space: Space) -> None:
    rows = space.encode(list(space))
    assert rows.dtype == np.float32
    assert rows.shape == (space.size, sum(len(o) for o in space.choices.values() if len(o) > 1))
    assert len(np.unique(rows, axis=0)) == space.size
    for arch, row in zip(space, rows, strict=True):
        assert row.sum() == sum(len(space.choices[name]) > 1 for name in space.active(arch))


@given(spaces(), seeds, st.integers(1, 3))
def test_mutation_changes_switched_on_choices_and_stays_inside(space: Space, rng: np.random.Generator, n: int) -> None:
    arch = space.sample(rng)
    on = space.active(arch)
    free = [name for name in on if len(space.allowed[name]) > 1]
    one, several, rated = space.mutate(arch, rng), space.mutate(arch, rng, n=n), space.mutate(arch, rng, rate=0.3)
    for child in (one, several, rated):
        assert child in space
        assert (child != arch) == bool(free)
    shared = space.active(one) & on
    assert sum(one[name] != arch[name] for name in shared) == min(1, len(free))
    assert sum(several[name] != arch[name] for name in space.active(several) & on) <= n


@given(spaces(), seeds)
def test_crossover_takes_every_choice_from_a_parent_that_has_it(space: Space, rng: np.random.Generator) -> None:
    a, b = space.sample(rng), space.sample(rng)
    child = space.crossover(a, b, rng)
    assert child in space
    assert space.crossover(a, a, rng) == a
    for name in space.active(child):
        offered = {parent[name] for parent in (a, b) if name in space.active(parent)}
        assert not offered or child[name] in offered


@given(spaces(), seeds)
def test_neighbours_are_all_that_differ_in_one_choice(space: Space, rng: np.random.Generator) -> None:
    arch = space.sample(rng)
    on = space.active(arch)
    found = space.neighbours(arch)
    assert len(found) == len(set(found)) == sum(len(space.allowed[name]) - 1 for name in on)
    for neighbour in found:
        assert neighbour in space
        assert sum(neighbour[name] != arch[name] for name in on & space.active(neighbour)) == 1
        appeared = space.active(neighbour) - on
        assert all(neighbour[name] == space.allowed[name][0] for name in appeared)
    for name in space.choices:
        assert space.neighbours(arch, only=name) == [x for x in found if name in on and x[name] != arch[name] and name in space.active(x)]


@given(spaces(restricted=False), seeds)
def test_restriction_keeps_exactly_the_architectures_with_the_labels(space: Space, rng: np.random.Generator) -> None:
    name = list(space.choices)[int(rng.integers(len(space.choices)))]
    keep = [label for label in space.choices[name] if rng.random() < 0.6] or [space.choices[name][-1]]
    small = space.restrict({name: keep})
    inside = {arch for arch in space if name not in space.active(arch) or space.labels(arch)[name] in keep}
    assert set(small) == inside
    assert small.choices == space.choices
    assert (small.fingerprint == space.fingerprint) == (len(keep) == len(space.choices[name]))
    assert all(space.labels(arch) == small.labels(arch) for arch in small)


CONDITIONAL = Space(
    {"depth": (1, 2, 3), "k1": (3, 5), "k2": (3, 5), "k3": (3, 5, 7), "kind": ("a", "b"), "gate": (False, True)},
    {"k2": {"depth": [2, 3]}, "k3": {"depth": [3]}, "gate": {"kind": ["b"]}},
)


def test_sampling_is_uniform_over_architectures() -> None:
    rng = np.random.default_rng(0)
    space = CONDITIONAL
    assert space.size == (2 + 4 + 12) * 3
    counts = Counter(space.index(space.sample(rng)) for _ in range(200 * space.size))
    assert len(counts) == space.size
    assert chisquare([counts[i] for i in range(space.size)]).pvalue > 0.01
    # the deepest third of the choices holds 12 of 18 nets: drawing choice by choice would give it one third
    depth = Counter(space.sample(rng)["depth"] for _ in range(18_000))
    assert abs(depth[2] / 18_000 - 12 / 18) < 0.02


def test_sampling_reaches_the_whole_of_a_huge_space() -> None:
    space = Space({f"c{i}": range(4) for i in range(60)})
    assert space.size == 4**60
    rng = np.random.default_rng(1)
    drawn = [space.sample(rng) for _ in range(400)]
    for name in space.choices:
        assert chisquare(list(Counter(arch[name] for arch in drawn).values())).pvalue > 1e-5
    assert all(space.at(space.index(arch)) == arch for arch in drawn[:20])


def test_once_for_all_has_the_published_size() -> None:
    """Cai et al. 2020: five units of depth 2 to 4, three kernels, three ratios each: ((3*3)^2 + (3*3)^3 + (3*3)^4)^5."""
    choices: dict[str, tuple[int, ...]] = {}
    conditions: dict[str, dict[str, list[int]]] = {}
    for unit in range(5):
        choices[f"d{unit}"] = (2, 3, 4)
        for block in range(4):
            for what, options in (("k", (3, 5, 7)), ("e", (3, 4, 6))):
                choices[f"{what}{unit}{block}"] = options
                if block > 1:
                    conditions[f"{what}{unit}{block}"] = {f"d{unit}": [d for d in (2, 3, 4) if d > block]}
    assert Space(choices, conditions).size == 21_758_655_492_572_485_851


def test_golden_draws() -> None:
    """A seed means the same architectures tomorrow: histories and resumed runs rely on it."""
    rng = np.random.default_rng(42)
    assert [CONDITIONAL.index(CONDITIONAL.sample(rng)) for _ in range(6)] == [4, 41, 35, 23, 23, 46]
    assert CONDITIONAL.fingerprint == "dcd2aa74e6cf"


def test_arch_is_a_frozen_hashable_mapping() -> None:
    arch = Arch({"a": 1, "b": 0})
    assert arch == {"b": 0, "a": 1} == arch
    assert hash(arch) == hash(Arch({"b": 0, "a": 1}))
    assert len({arch, Arch({"b": 0, "a": 1}), Arch({"a": 0, "b": 0})}) == 2
    assert Arch.from_json(arch.to_json()) == arch == pickle.loads(pickle.dumps(arch)) == arch.as_dict()  # noqa: S301  # our own bytes
    with pytest.raises(TypeError):
        arch["a"] = 2  # type: ignore[index]
    with pytest.raises(KeyError):
        arch["c"]


def test_labels_are_told_apart_as_json_does() -> None:
    space = Space({"x": (1, True, "1", 1.0, [1, 2])})
    assert space.size == 5
    for number, label in enumerate(space.choices["x"]):
        assert space.from_labels({"x": label})["x"] == number
    assert space.from_labels({"x": (1, 2)})["x"] == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Space({"a": ()}), "choice 'a' has no options"),
        (lambda: Space({"a": (1, 2, 1)}), "'a' has an option twice"),
        (lambda: Space({"a": (object(), 2)}), "is no label"),
        (lambda: Space({"a": (1, 2)}, {"b": {"a": [1]}}), "condition on 'b', which is no choice; choices: a"),
        (lambda: Space({"a": (1, 2)}, {"a": {"z": [1]}}), "unknown choice 'z'"),
        (lambda: Space({"a": (1, 2), "b": (1, 2)}, {"b": {"a": [3]}}), "'a' has no option 3; options: [1, 2]"),
        (lambda: Space({"a": (1, 2), "b": (1, 2)}, {"a": {"b": [1]}, "b": {"a": [1]}}), "depends on itself"),
        (lambda: CONDITIONAL.canonical({"depth": 0, "k1": 0, "kind": 0, "nope": 1}), "unknown choice 'nope'"),
        (lambda: CONDITIONAL.canonical({"depth": 2, "k1": 0, "k2": 0, "kind": 0}), "choice 'k3' is missing"),
        (lambda: CONDITIONAL.canonical({"depth": 3, "k1": 0, "kind": 0}), "choice 'depth' has index 3; allowed: [0, 1, 2]"),
        (lambda: CONDITIONAL.canonical({"depth": {0: 1.0}, "k1": 0, "kind": 0}), "choice 'depth' has index"),
        (lambda: CONDITIONAL.restrict({"depth": []}), "leaves no option"),
        (lambda: CONDITIONAL.restrict({"depth": [7]}), "'depth' has no option 7"),
        (lambda: CONDITIONAL.restrict({"k1": [3]}).canonical({"depth": 0, "k1": 1, "kind": 0}), "'k1' has index 1; allowed: [0]"),
        (lambda: Arch.from_json("[1, 2]"), "JSON object"),
        (lambda: Arch.from_json('{"a": 0.5}'), "JSON object"),
        (lambda: Arch.from_json("{"), "JSON object"),
    ],
)
def test_mistakes_are_said_in_one_sentence(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
