"""How the time of a run is shared out."""

from __future__ import annotations

from dataclasses import dataclass

#: Shares of the whole time. The hand-designed ladder gets as much training time, in all, as the search: supernet, fine-tuning and, where
#: asked for, training from scratch.
_SHARES = {"first": 0.03, "calibrate": 0.03, "supernet": 0.20, "screen": 0.05, "explore": 0.10, "finish": 0.30}


@dataclass(frozen=True)
class Plan:
    """Seconds by phase, and sizes that follow from them. What is not listed (table, verification) takes what it takes."""

    first: float
    calibrate: float
    supernet: float
    screen: float
    explore: float
    finish: float
    ladder: float
    screened: int = 10_000
    front: int = 100
    generations: int = 30

    @staticmethod
    def of(minutes: float, *, baselines: bool, from_scratch: bool) -> Plan:
        """The plan for a run of `minutes`; without baselines or training from scratch, the search takes their time."""
        seconds = 60.0 * minutes
        shares = dict(_SHARES)
        scratch = shares["finish"] if from_scratch else 0.0
        ladder = shares["supernet"] + shares["finish"] + scratch if baselines else 0.0
        scale = 0.94 / (sum(shares.values()) + ladder + scratch + 0.08)
        allotted = {name: seconds * share * scale for name, share in shares.items()}
        return Plan(
            allotted["first"], allotted["calibrate"], allotted["supernet"], allotted["screen"], allotted["explore"], allotted["finish"],
            seconds * ladder * scale,
        )  # fmt: skip
