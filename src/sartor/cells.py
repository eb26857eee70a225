"""Cells: spaces in which every choice is the operation on one edge of a small graph, and what their structure tells before any training.

Two cells that are spelled differently may compute the same: edges that carry nothing, or from which nothing reaches the output, do not
count, and a skip connection joins two nodes into one. The features say what is left. What is left to be computed is another matter: an
operation behind a `none` is applied to zeros, which takes as long as anything else if its result reaches the output. Features are structure
alone: nothing measured is in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sartor.arch import Arch, Label, Space
from sartor.errors import UserError

_MOST_PATH_COLUMNS = 2000


COST_FEATURES = ("work", "load", "spelled")
"""Groups of :meth:`CellSpace.features` that tell what a cell costs, and not what it computes."""
EXECUTED = ("work", "load")
"""Those of them that are alike for cells of which the output needs the same."""
COST_SUMS = ("load", "spelled", "counts")
"""Groups of operation counts, whose costs add up, each for another runtime: one that drops what the output does not need, one that executes
everything, and one that drops what is applied to zeros as well."""


class CellSpace(Space):
    """A directed acyclic graph whose edges choose among `ops`; the first node is the input, the last the output, a node sums what enters.

    Args:
        edges: choice -> (from, to), with from < to.
        ops: operations, the same for every edge.
        none: the operation that carries nothing.
        skip: the operation that changes nothing.

    Raises:
        UserError: for edges that run backwards, and if `none` or `skip` is no operation.
    """

    cost_features = COST_FEATURES
    cost_sums = COST_SUMS
    executed = EXECUTED

    def __init__(
        self,
        edges: Mapping[str, tuple[int, int]],
        ops: Sequence[str],
        *,
        none: str = "none",
        skip: str = "skip_connect",
        allowed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(dict.fromkeys(edges, tuple(ops)), allowed=allowed)
        for name in (none, skip):
            if name not in ops:
                raise UserError(f"a cell needs the operation '{name}' among its operations, got {', '.join(ops)}")
        backwards = next((name for name, (source, target) in edges.items() if not 0 <= source < target), None)
        if backwards is not None:
            raise UserError(f"edge '{backwards}' must run from a lower node to a higher one, got {edges[backwards]}")
        self.edges = dict(edges)
        self._ops, self._none, self._skip = tuple(ops), none, skip
        self._output = max(target for _, target in edges.values())
        self._paths = list(self._walk(0))

    def restrict(self, keep: Mapping[str, Sequence[Label]]) -> CellSpace:
        return CellSpace(self.edges, self._ops, none=self._none, skip=self._skip, allowed=super().restrict(keep).allowed)

    def _walk(self, node: int) -> Iterator[tuple[int, ...]]:
        """All paths from `node` to the output, as positions of edges."""
        if node == self._output:
            yield ()
        for position, (source, target) in enumerate(self.edges.values()):
            if source == node:
                yield from ((position, *rest) for rest in self._walk(target))

    def features(self, archs: Sequence[Arch]) -> dict[str, np.ndarray]:
        """Groups of structural features, each `(n, columns)`.

        `live`: the operation of every edge that lies on a path from input to output, one-hot. `counts`: how often each operation is on such
        an edge. `paths`: how many paths apply each sequence of operations, skip connections contracted (the path encoding of White et al.
        2021, section 4, on the contracted graph); left out for cells with too many sequences. `work` and `load` are `live` and `counts` of
        what is computed: of the edges from which the output can be reached, whether or not the input reaches them. `spelled` counts the
        operations of all edges.
        """
        ops = np.array([[arch[name] for name in self.edges] for arch in archs], dtype=np.int64).reshape(len(archs), len(self.edges))
        carries = ops != self._ops.index(self._none)
        real = [i for i, op in enumerate(self._ops) if op not in (self._none, self._skip)]
        digit = np.zeros(len(self._ops), dtype=np.int64)
        digit[real] = np.arange(1, len(real) + 1)
        live = np.zeros_like(carries)
        codes, alive = [], []
        for path in self._paths:
            open_path = carries[:, list(path)].all(axis=1)
            live[:, list(path)] |= open_path[:, None]
            code = np.zeros(len(ops), dtype=np.int64)
            for position in path:
                step = digit[ops[:, position]]
                code = np.where(step > 0, code * (len(real) + 1) + step, code)
            codes.append(code)
            alive.append(open_path)
        shown = [i for i in range(len(self._ops)) if self._ops[i] != self._none]

        def hot_of(edges: np.ndarray) -> np.ndarray:
            return np.stack([(ops == op) & edges for op in shown], axis=2)

        hot = hot_of(live)
        groups = {"live": hot.reshape(len(ops), len(self.edges) * len(shown)).astype(float), "counts": hot.sum(axis=1).astype(float)}
        work = hot_of(self._leading(carries))
        groups |= {"work": work.reshape(len(ops), len(self.edges) * len(shown)).astype(float), "load": work.sum(axis=1).astype(float)}
        groups["spelled"] = hot_of(carries).sum(axis=1).astype(float)
        columns = self._sequences(len(real))
        if columns is not None:
            paths = np.zeros((len(ops), len(columns)))
            where = np.full(max(columns, default=0) + 1, 0)
            where[columns] = np.arange(len(columns))
            for code, open_path in zip(codes, alive, strict=True):
                np.add.at(paths, (np.flatnonzero(open_path), where[code[open_path]]), 1.0)
            groups["paths"] = paths
        return groups

    def _leading(self, carries: np.ndarray) -> np.ndarray:
        """Which edges carry something from which the output can be reached `(n, edges)`."""
        leads = np.zeros((len(carries), self._output + 1), dtype=bool)
        leads[:, self._output] = True
        found = np.zeros_like(carries)
        # Backwards through the nodes: edges run from lower to higher ones.
        for position, (source, target) in sorted(enumerate(self.edges.values()), key=lambda item: -item[1][1]):
            found[:, position] = carries[:, position] & leads[:, target]
            leads[:, source] |= found[:, position]
        return found

    def _sequences(self, kinds: int) -> list[int] | None:
        """The code of every sequence of operations that a path can have; None if they are too many."""
        longest = max((len(path) for path in self._paths), default=0)
        if sum(kinds**length for length in range(longest + 1)) > _MOST_PATH_COLUMNS:
            return None
        codes = []
        for length in range(longest + 1):
            for sequence in itertools.product(range(1, kinds + 1), repeat=length):
                code = 0
                for step in sequence:
                    code = code * (kinds + 1) + step
                codes.append(code)
        return codes
