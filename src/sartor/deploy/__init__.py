"""What is handed over: files verified by measuring them, and the card that says what was measured."""

from __future__ import annotations
