"""Data: built-in sets, image folders, ``.npz`` files and the user's own functions, as NumPy arrays; nothing heavy is imported."""

from __future__ import annotations

from sartor.data.augment import Policy, default_policy, mixup
from sartor.data.builtin import Entry, catalogue
from sartor.data.dataset import Dataset, Split
from sartor.data.loading import load

__all__ = ["Dataset", "Entry", "Policy", "Split", "catalogue", "default_policy", "load", "mixup"]
