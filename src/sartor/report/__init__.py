"""What a run looks like to a person: on the terminal and as a page."""

from __future__ import annotations
