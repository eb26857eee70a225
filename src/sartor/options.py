"""Numbers given on the command line: parsers of options, each refusing in a sentence that names what came."""

from __future__ import annotations

import typer


def whole(text: str) -> int:
    """An option's whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, but got {text!r}") from None


def number(text: str) -> float:
    """An option's number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, but got {text!r}") from None


def numbers(text: str) -> list[float]:
    """An option's numbers with commas between them."""
    return [number(part.strip()) for part in text.split(",")]
