"""`sartor train`: a derived or published cell as a full-size network, trained by the paper's recipe and exported. Light until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sartor.errors import UserError
from sartor.options import Json, print_json, whole

if TYPE_CHECKING:
    from sartor.data import Dataset
    from sartor.spaces.darts_eval import CellNetwork, Genotype


def train(
    data: Annotated[str, typer.Argument(help="As for `sartor search`.", show_default=False)],
    cells_of: Annotated[
        str,
        typer.Option("--genotype", help="darts-v1, darts-v2, p-darts, pc-darts, or a .json file with a model's `arch` of the darts space."),
    ] = "darts-v2",
    channels: Annotated[int, typer.Option(parser=whole, metavar="N", help="Channels of the first cells.")] = 36,
    cells: Annotated[int, typer.Option(parser=whole, metavar="N", help="Number of cells.")] = 20,
    epochs: Annotated[int, typer.Option(parser=whole, metavar="N", help="Passes over the training images.")] = 600,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images of a step.")] = 96,
    auxiliary: Annotated[
        bool | None, typer.Option("--auxiliary/--no-auxiliary", help="Auxiliary head (default: if images have 32 pixels).")
    ] = None,
    limit_train: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most training images to use.")] = None,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Seed of everything drawn at random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on from what is there.")] = Path("runs/train"),
    as_json: Json = False,
) -> None:
    """Train the network of a DARTS genotype from scratch by the paper's recipe; export it and read the test images once."""
    from sartor.report.terminal import Progress

    for name, value in (("epochs", epochs), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name}: expected a whole number of at least 1, but got {value}.")
    with Progress(plain=True if as_json else None) as progress:
        found = train_genotype(
            data, cells_of, channels=channels, cells=cells, epochs=epochs, batch=batch, auxiliary=auxiliary, limit=limit_train, seed=seed,
            out=out, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print(f"{found['genotype']}: test accuracy {found['test']['accuracy']:.2%}, {found['params']:,} parameters; files are in {out}")


def genotype_from(text: str) -> Genotype:
    """A published genotype by name, or that of a ``.json`` file with the labels of an architecture of the darts space: a model card, or its
    `arch` alone.

    Raises:
        UserError: for an unknown name, a missing or damaged file, or labels of another space.
    """
    from sartor.spaces.darts import SPACE, genotype_of
    from sartor.spaces.darts_eval import genotype_named

    if not text.endswith(".json"):
        return genotype_named(text)
    try:
        content = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"genotype: expected a readable JSON file, but {error}.") from None
    labels = content.get("arch", content) if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise UserError(f"genotype: expected an object of labels in {text}, got {type(content).__name__}")
    try:
        return genotype_of(SPACE.from_labels(labels))
    except UserError as error:
        raise UserError(f"genotype: {text}: {error}") from None


def train_genotype(
    data: str,
    genotype: str,
    *,
    channels: int = 36,
    cells: int = 20,
    epochs: float = 600,
    batch: int = 96,
    auxiliary: bool | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path = "runs/train",
    progress: Any = None,
) -> dict[str, Any]:
    """Train, export to ``model.onnx``, ``model.py`` and ``model.safetensors`` in `out`, and write ``result.json``, which is returned.

    The classifier on test images is the exported file's. Cutout takes half the side of the images, shifts an eighth.

    Raises:
        UserError: for a bad genotype, data or settings, or a checkpoint in `out` of another training.
    """
    import torch

    from sartor.data import load
    from sartor.data.augment import Policy
    from sartor.export.files import write_atomic
    from sartor.recipes.from_scratch import train_from_scratch
    from sartor.spaces.darts_eval import CellNetwork

    found, folder = genotype_from(genotype), Path(out)
    dataset = load(data, seed=seed, limit=limit)
    side = min(dataset.input_shape[1:])
    headed = auxiliary if auxiliary is not None else dataset.input_shape[1:] == (32, 32)
    torch.manual_seed(seed)
    net = CellNetwork(found, dataset.input_shape, len(dataset.classes), channels=channels, cells=cells, auxiliary=headed)
    folder.mkdir(parents=True, exist_ok=True)
    augment = Policy(pad=max(1, side // 8), flip=dataset.input_shape[0] == 3, cutout=side // 2)
    result = train_from_scratch(
        net, dataset, epochs=epochs, batch=batch, augment=augment, seed=seed, checkpoint=folder / "training.safetensors", progress=progress
    )
    record = {
        "genotype": genotype,
        "cells": {"normal": found.normal, "reduce": found.reduce},
        "data": dataset.name,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
        "validation": {"accuracy": _known(result.accuracy), "top5": _known(result.top5)},
        **_export(net, dataset, folder),
    }
    write_atomic(folder / "result.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    return record


def _export(net: CellNetwork, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Files without the auxiliary head, and what they are worth."""
    import torch

    from sartor.deploy.verify import accuracy_of
    from sartor.export.onnx import to_onnx
    from sartor.export.source import save_source
    from sartor.hardware.graph import trace

    net.auxiliary = None
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub omits the keyword-only form
    net.eval()
    file = to_onnx(net, dataset.input_shape, folder / "model.onnx")
    save_source(net, folder, "Cells", dataset.input_shape)
    graph = trace(net, dataset.input_shape)
    return {
        "params": sum(p.numel() for p in net.parameters()),
        "macs": graph.macs,
        "test": accuracy_of(file, dataset.read_test().batches(256)),
    }


def _known(value: float) -> float | None:
    return value if value - value == 0.0 else None


__all__ = ["genotype_from", "train", "train_genotype"]
