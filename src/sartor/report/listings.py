"""`sartor data` and `sartor spaces`: what there is to search for, and in."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sartor.errors import UserError
from sartor.options import InputSize, Json, LimitTrain, Seed, Validation, print_json, whole


def describe_data(
    name: Annotated[str | None, typer.Argument(help="Load this data too and show its sizes.", show_default=False)] = None,
    validation: Validation = None,
    limit_train: LimitTrain = None,
    input_size: InputSize = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """List the data sets known by name, or describe one of any kind."""
    from sartor.data import catalogue, load
    from sartor.report import terminal

    if name is None:
        entries = [vars(entry) for entry in catalogue()]
        found: dict[str, Any] = {"data": entries}
        rows = [[str(e["name"]), str(e["description"]), e["where"] if e["found"] else f"not here: {e['how']}"] for e in entries]
        shown = terminal.table("Data by name", ("name", "description", "where"), rows, left=3)
    else:
        dataset = load(name, seed=seed or 0, validation=0.1 if validation is None else validation, limit=limit_train, size=input_size)
        found = dataset.summary()
        shown = terminal.table(dataset.name, ("", ""), [[key, str(value)] for key, value in found.items() if key != "name"], left=2)
    if as_json:
        print_json(found)
    else:
        terminal.console().print(shown)


def spaces(
    size: Annotated[int, typer.Option(parser=whole, metavar="N", help="Height and width of the images in pixels.", show_default=True)] = 32,
    channels: Annotated[int, typer.Option(parser=whole, metavar="N", help="Channels of the images.", show_default=True)] = 3,
    classes: Annotated[int, typer.Option(parser=whole, metavar="N", help="Number of classes.", show_default=True)] = 10,
    as_json: Json = False,
) -> None:
    """List the search spaces, with the exact number of architectures in each for images of a size."""
    from sartor.report import terminal
    from sartor.request import SPACES

    for name, value, least in (("size", size, 4), ("channels", channels, 1), ("classes", classes, 2)):
        if value < least:
            raise UserError(f"{name}: expected a whole number of at least {least}, but got {value}.")
    import torch

    from sartor.spaces import build

    found = []
    for name, description in SPACES.items():
        entry: dict[str, Any] = {"name": name, "description": description}
        try:
            # The meta device: sizes need no weights.
            with torch.device("meta"):
                space = build(name, (channels, size, size), classes).space
            entry.update(architectures=str(space.size), choices=len(space.choices), fingerprint=space.fingerprint)
        except UserError as error:
            entry["refused"] = str(error)
        found.append(entry)
    if as_json:
        print_json({"input_shape": [channels, size, size], "classes": classes, "spaces": found})
        return
    rows = [[e["name"], e["description"], f"{int(e['architectures']):,}" if "architectures" in e else e["refused"]] for e in found]
    title = f"Search spaces for images {size}x{size} with {channels} channel(s)"
    terminal.console().print(terminal.table(title, ("name", "description", "architectures"), rows, left=2))
