"""Devices as they show themselves: what the system tells, and peaks, bandwidth and overhead by measuring (`sartor devices probe`)."""

from __future__ import annotations

import platform

from sartor.hardware.device import host
from sartor.hardware.facts import SOURCES, system_facts
from sartor.hardware.spec import DeviceSpec


def probe_host() -> DeviceSpec:
    """This machine as far as its system tells, without measuring: peaks and bandwidth are left out. `sartor devices probe` measures."""
    identity, facts = host(), system_facts()
    return DeviceSpec.model_validate(
        {
            "name": "host",
            "title": f"this machine ({platform.system()} {platform.machine()})",
            "kind": "cpu",
            "processor": identity.cpu,
            "measured": True,
            "runtime": identity.runtime,
            "precisions": ("fp32", "int8"),
            **facts,
            "sources": {key: SOURCES[key] for key in facts},
        }
    )
