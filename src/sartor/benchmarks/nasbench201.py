"""NAS-Bench-201: Dong & Yang 2020, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020.

A cell has four nodes; node 0 is its input and node 3 its output. Each of the six edges from a node to a later one applies one of five
operations, and a node is the sum of the edges that enter it: 5^6 = 15,625 cells. `index` is always the benchmark's own number of a cell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from sartor.arch import Arch
from sartor.benchmarks.tables import table
from sartor.cells import CellSpace
from sartor.errors import UserError

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(from, to), in the order in which a cell string lists them."""
CHOICES = tuple(f"edge{source}{target}" for source, target in EDGES)
SPACE = CellSpace(dict(zip(CHOICES, EDGES, strict=True)), OPS)
CELLS = SPACE.size
DATASETS = ("cifar10", "cifar100", "imagenet16")

_STRING = re.compile(r"\|([a-z0-9_]+)~0\|\+\|([a-z0-9_]+)~0\|([a-z0-9_]+)~1\|\+\|([a-z0-9_]+)~0\|([a-z0-9_]+)~1\|([a-z0-9_]+)~2\|")
_RADIX = 5 ** np.arange(5, -1, -1)


def to_string(arch: Mapping[str, int]) -> str:
    """The benchmark's spelling of a cell: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, grouped by the node that the edges enter."""
    spelled = [f"{OPS[arch[choice]]}~{source}" for choice, (source, _) in zip(CHOICES, EDGES, strict=True)]
    return f"|{spelled[0]}|+|{'|'.join(spelled[1:3])}|+|{'|'.join(spelled[3:])}|"


def from_string(text: str) -> Arch:
    """Inverse of :func:`to_string`.

    Raises:
        UserError: for anything that is no cell string, and unknown operations.
    """
    found = _STRING.fullmatch(text.strip())
    unknown = [op for op in found.groups() if op not in OPS] if found else []
    if found is None or unknown:
        reason = f"unknown operation '{unknown[0]}'" if unknown else "another form"
        raise UserError(f"expected a cell |op~0|+|op~0|op~1|+|op~0|op~1|op~2| of {', '.join(OPS)}, got {reason} in {text[:120]!r}")
    return Arch({choice: OPS.index(op) for choice, op in zip(CHOICES, found.groups(), strict=True)})


@lru_cache(maxsize=1)
def cells() -> np.ndarray:
    """Operation of every edge of every cell, `(15625, 6)` int, by benchmark index."""
    return table("nasbench201").column("cell").astype(int)


@lru_cache(maxsize=1)
def _rows() -> list[int]:
    """Benchmark index by the cell read as a number of six digits to base five."""
    rows = np.full(CELLS, -1)
    rows[cells() @ _RADIX] = np.arange(CELLS)
    return rows.tolist()  # type: ignore[no-any-return]  # a list is read several times faster than an array


def index_of(arch: Mapping[str, int]) -> int:
    """Benchmark index, 0..15624, of a cell.

    Raises:
        UserError: where `arch` is no cell of this space.
    """
    number = 0
    try:
        for choice in CHOICES:
            op = arch[choice]
            if not 0 <= op < 5:
                raise KeyError(choice)
            number = 5 * number + op
    except (KeyError, TypeError):
        SPACE.canonical(arch)  # says in one sentence what is wrong
        raise
    return _rows()[number]


def arch_of(index: int) -> Arch:
    """The cell with this benchmark index.

    Raises:
        UserError: outside 0..15624.
    """
    if not 0 <= index < CELLS:
        raise UserError(f"NAS-Bench-201 has cells 0..{CELLS - 1}, got {index}")
    return Arch(dict(zip(CHOICES, (int(op) for op in cells()[index]), strict=True)))


@lru_cache(maxsize=1)
def connected() -> np.ndarray:
    """Mask `(15625,)` of the cells with a path from input to output; the other 341 are constant functions. Read-only."""
    used = cells() != 0
    reached = np.zeros((CELLS, 4), dtype=bool)
    reached[:, 0] = True
    for edge, (source, target) in enumerate(EDGES):  # in the order of the nodes that they enter
        reached[:, target] |= used[:, edge] & reached[:, source]
    reached.flags.writeable = False
    return reached[:, 3]
