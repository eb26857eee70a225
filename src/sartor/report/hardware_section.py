"""The delivered networks on the device: memory over time and, where a model of the device is kept, its roofline. PNG in `plots/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import UserError
from sartor.report.files import write_atomically
from sartor.report.hardware_plots import memory_png, roofline_png
from sartor.report.markup import Html, join, section, tag
from sartor.report.promises import limits
from sartor.report.values import Record, file_safe, mapping, name_of, number, searched

if TYPE_CHECKING:
    from sartor.hardware.graph import OpGraph

KINDS = {
    "memory": "Bytes of live activations while each op runs.",
    "roofline": "Work per byte against work per second, by the model of the device; the area of a mark is its share of the time.",
}


def write_pictures(run_dir: Path | str, result: Mapping[str, Any]) -> list[Path]:
    """Write `plots/memory_<name>.png` and `plots/roofline_<name>.png` of every searched network whose ONNX file lies in the run folder.

    Pictures of an earlier call that have no successor are removed. A roofline is drawn only where one is kept for the device, or the
    device's file has what it needs: nothing is measured here. Raises OSError when the folder cannot be written.
    """
    folder = Path(run_dir)
    plots = folder / "plots"
    drawn: dict[str, bytes] = {}
    for model, graph in _graphs(folder, result):
        name = name_of(model)
        for kind, content in _draw(result, name, graph):
            drawn[f"{kind}_{file_safe(name)}.png"] = content
    for kind in KINDS:
        for old in plots.glob(f"{kind}_*.png"):
            if old.name not in drawn:
                old.unlink()
    for file, content in drawn.items():
        plots.mkdir(parents=True, exist_ok=True)
        write_atomically(plots / file, content)
    return [plots / file for file in drawn]


def hardware(result: Mapping[str, Any], run_dir: Path) -> Html:
    """The section of the page that shows the pictures which `write_pictures` left in the run folder; nothing without any."""
    entries = []
    for model in searched(result):
        name = name_of(model)
        there = {kind: f"plots/{kind}_{file_safe(name)}.png" for kind in KINDS}
        figures = [
            tag("figure", tag("img", src=path, alt=f"{name}: {KINDS[kind]}", class_="still", loading="lazy"),
                tag("figcaption", KINDS[kind], class_="note"))
            for kind, path in there.items() if (run_dir / path).is_file()
        ]  # fmt: skip
        if figures:
            entries.append(tag("details", tag("summary", name), join(figures)))
    return section("hardware", "On the device", join(entries)) if entries else Html("")


def _graphs(folder: Path, result: Mapping[str, Any]) -> Iterator[tuple[Record, OpGraph]]:
    from sartor.hardware.onnx_graph import onnx_graph

    for model in searched(result):
        file = model.get("file")
        path = folder / str(file)
        # Only files of the run folder itself: a result may come from anywhere.
        if not file or not path.is_file() or folder.resolve() not in path.resolve().parents:
            continue
        try:
            yield model, onnx_graph(path)
        except UserError:
            continue  # a file that cannot be read has no picture


def _draw(result: Mapping[str, Any], name: str, graph: OpGraph) -> Iterator[tuple[str, bytes]]:
    from sartor.hardware.kept import described_roofline
    from sartor.hardware.memory import timeline
    from sartor.hardware.onnx_graph import precision_of

    precision = precision_of(graph)
    bound = next((bound for metric, bound, _ in limits(result) if metric == "peak_bytes"), None)
    yield "memory", memory_png(timeline(graph, 1 if precision == "int8" else 4), bound, f"{name}: live activations of one image")
    device = mapping(result.get("device"))
    model = described_roofline(device, precision, int(number(device.get("threads")) or 1))
    if model is not None and graph.macs:
        yield "roofline", roofline_png(model, model.times(graph), f"{name} on {device.get('name') or 'the device'}, {precision}")
