"""The Once-for-All MobileNetV3 space: Cai et al. 2020, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR.

Two tables, of different architectures: `ofa` has GPU latencies, `ofa_accuracy` ImageNet accuracies of sub-networks with the supernet's
weights. No architecture has both, so they make no task; they are what predictors are fitted to and tested on.
"""

from __future__ import annotations

from sartor.arch import Arch, Space
from sartor.benchmarks.tables import table

KERNELS, EXPANDS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
RESOLUTIONS = tuple(range(128, 225, 4))
UNITS, BLOCKS = 5, 4


def _space() -> Space:
    choices: dict[str, tuple[int, ...]] = {"resolution": RESOLUTIONS}
    conditions: dict[str, dict[str, tuple[int, ...]]] = {}
    for unit in range(UNITS):
        choices[f"unit{unit}.depth"] = DEPTHS
        for block in range(BLOCKS):
            for what, options in (("kernel", KERNELS), ("expand", EXPANDS)):
                name = f"unit{unit}.block{block}.{what}"
                choices[name] = options
                if block >= DEPTHS[0]:
                    conditions[name] = {f"unit{unit}.depth": tuple(d for d in DEPTHS if d > block)}
    return Space(choices, conditions)


SPACE = _space()


def arch_of(row: int, name: str = "ofa") -> Arch:
    """The architecture of a row of table `ofa` or `ofa_accuracy`; blocks beyond a unit's depth are switched off."""
    found = table(name)
    kernels, expands, depths = (found.column(column)[row] for column in ("kernels", "expands", "depths"))
    labels: dict[str, int] = {"resolution": int(found.column("resolution")[row])}
    for unit in range(UNITS):
        labels[f"unit{unit}.depth"] = int(depths[unit])
        for block in range(BLOCKS):
            labels[f"unit{unit}.block{block}.kernel"] = int(kernels[unit * BLOCKS + block])
            labels[f"unit{unit}.block{block}.expand"] = int(expands[unit * BLOCKS + block])
    return SPACE.from_labels(labels)
