"""The FBNet space, 22 layers of 9 blocks: Wu et al. 2019, "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable NAS", CVPR.

The tables hold latencies only: no accuracy of this space was published for a sample of it, so it makes no task of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from sartor.arch import Arch, Space
from sartor.benchmarks.tables import table
from sartor.errors import UserError

BLOCKS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
CHOICES = tuple(f"layer{number}" for number in range(1, 23))
SPACE = Space(dict.fromkeys(CHOICES, BLOCKS))
TABULATED = ("pixel3", "raspi4", "eyeriss", "fpga")
"""Devices whose latencies are the sums of a block table, so that every architecture has one."""


def arch_of(row: int) -> Arch:
    """The architecture of a row of table `fbnet`."""
    blocks = table("fbnet").column("blocks")[row]
    return Arch(dict(zip(CHOICES, (int(block) for block in blocks), strict=True)))


def latency_ms(arch: Mapping[str, int], device: str) -> float:
    """Latency by the block table that HW-NAS-Bench (Li et al. 2021) sums; reproduces its 5,000 published figures to 0.0007 ms (rounding).

    Raises:
        UserError: for a device without such a table.
    """
    if device not in TABULATED:
        raise UserError(f"the FBNet space has a block table for {', '.join(TABULATED)}, not for '{device}'")
    blocks = table("fbnet_blocks").column(device)  # row 0: stem and head; row n: layer n, with 0 for a skip
    return float(blocks[0, 0] + sum(blocks[number, arch[choice]] for number, choice in enumerate(CHOICES, start=1)))
