"""Strategies compared on tabular tasks: every strategy, task, device and seed is one row, and what is there is not run again."""

from __future__ import annotations
