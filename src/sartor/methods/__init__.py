"""Published methods by name: each a few lines that put a policy, a recipe and modifiers together with the paper's settings."""

from __future__ import annotations
