"""The model card: what a model is, what was measured on it and how, and how to load it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sartor.errors import UserError
from sartor.export.files import write_atomic
from sartor.export.onnx import input_facts
from sartor.goals import METRICS, Limit, metric_of

_DECIMALS = {"fraction": "{:.4f}", "ms": "{:.4f}", "bytes": "{:,.0f}", "count": "{:,.0f}", "images/s": "{:,.0f}"}


def write_card(
    record: Mapping[str, Any],
    folder: str | Path,
    *,
    data: Mapping[str, Any],
    device: Mapping[str, Any],
    limits: Sequence[Limit] = (),
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `folder`/card.json (the model record as it is) and `folder`/card.md beside the model's files; returns the latter.

    `record` is a model record of docs/architecture.md; `data` and `device` are those of result.json, `data` also with `mean` and `std`
    (per channel, on the 0..1 scale for uint8 pixels, else on the data's own), `dtype` and `range` of the pixels. The model file is looked
    for in `folder` under the name that `record["file"]` ends in, and says itself whether it normalises.
    Raises UserError where the record has no name, no metrics or no file.
    """
    for key in ("name", "file", "metrics"):
        if not record.get(key):
            raise UserError(f"a model card needs a record with {key!r}, got {sorted(record)}")
    record = plain(record)
    folder = Path(folder)
    model = folder / Path(str(record["file"])).name
    if not model.is_file():
        raise UserError(f"a model card describes files that exist: {model} does not; export the model first")
    text = "\n\n".join(
        part
        for part in (
            _head(record, data, device),
            _figures(record, limits),
            _how(record, device),
            _loading(model, data),
            _making(record),
            _layers(record),
            _versions(versions),
        )
        if part
    )
    write_atomic(folder / "card.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    return write_atomic(folder / "card.md", text + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON knows it: numpy numbers and arrays become Python's, paths strings, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _head(record: Mapping[str, Any], data: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    origin = {
        "search": "found by architecture search",
        "baseline": "a baseline of fixed design",
        "control": "a control: random architecture, same training",
    }
    shape = "x".join(str(s) for s in data.get("input_shape", ()))
    classes = data.get("classes", ())
    shown = ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
    precision = device.get("precision", "int8")
    made = origin.get(str(record.get("origin")), "of unstated origin")
    return (
        f"# {record['name']}\n\nAn image classifier ({precision}, {len(classes)} classes), {made}.\n\n"
        f"* **Data:** {data.get('name', 'unnamed')}, images of {shape} (channels x height x width); {data.get('train', '?')} for training, "
        f"{data.get('validation', '?')} for validation, {data.get('test', '?')} for the test.\n"
        f"* **Classes**, in the order of the logits: {shown}.\n"
        f"* **Intended use:** images like those of the data set; accuracy on other images was not measured."
    )


def _figures(record: Mapping[str, Any], limits: Sequence[Limit]) -> str:
    metrics, predicted = record["metrics"], record.get("predicted") or {}
    rows = ["## Figures", "", "| metric | measured | predicted | limit | kept |", "|---|---|---|---|---|"]
    bounds = {limit.key: limit for limit in limits}
    further = [f"latency_ms@{name}" for name in record.get("platforms") or {}]
    for key in dict.fromkeys([*(k for k in (*METRICS, *further) if k in metrics), *bounds]):
        limit = bounds.get(key)
        unit = metric_of(key if limit is None else limit.metric).unit
        kept = "" if limit is None else ("yes" if limit.excess(metrics) <= 0 else f"**no**, by {limit.excess(metrics):.1%}")
        rows.append(
            f"| {key} ({unit}) | {_number(metrics.get(key), unit)} | {_number(predicted.get(key), unit)} "
            f"| {'' if limit is None else f'`{limit}`'} | {kept} |"
        )
    test, difference, validation = (record.get(key) or {} for key in ("test", "difference", "validation"))
    notes = []
    if "accuracy_fp32" in test:
        notes.append(f"Test accuracy before quantisation (fp32 file): {test['accuracy_fp32']:.4f}.")
    if "accuracy" in validation:
        notes.append(f"Validation accuracy, on which it was chosen: {validation['accuracy']:.4f}.")
    if "agreement_int8" in difference:
        notes.append(f"The int8 file names the same class as the fp32 file on {difference['agreement_int8']:.2%} of the test images.")
    if "max_abs_fp32" in difference:
        notes.append(f"Largest difference of logits between the fp32 file and PyTorch: {difference['max_abs_fp32']:.2g}.")
    return "\n".join(rows) + ("\n\n" + " ".join(notes) if notes else "")


def _number(value: Any, unit: str) -> str:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return _DECIMALS.get(unit, "{:g}").format(value)


def _how(record: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    place = (
        f"{device.get('cpu') or device.get('name', 'unknown device')}, {device.get('runtime', 'onnxruntime')} {device.get('version', '')}"
    )
    place = place.rstrip()
    tested = bool(record.get("test"))
    images = "the test images, which were read once" if tested else "the *validation* images; the test images have not been read yet"
    lines = [
        "## How it was measured",
        "",
        f"* **Device:** {place}, {device.get('threads', 1)} thread(s), batch {device.get('batch', 1)}.",
        f"* **Accuracy and top5:** of the exported file itself, on {images}.",
        "* **peak_bytes, params, macs:** computed from the operators.",
    ]
    latency = record.get("latency")
    if latency:
        lines.append(
            f"* **Latency:** median of {latency['runs']} runs after warm-up, "
            f"95 % interval of the median {latency['low']:.4f} to {latency['high']:.4f} ms, "
            f"p10 {latency['p10']:.4f}, p90 {latency['p90']:.4f} ms."
            + (" **The series was noisy**: other work shared the machine, so read it as an upper estimate." if latency.get("noisy") else "")
        )
    for name, one in (record.get("platforms") or {}).items():
        how = f"median of {one['runs']} runs there" if one.get("measured") is not False else "by a model of the device: **not measured**"
        lines.append(f"* **Latency on {name}:** {one['p50']:.4f} ms, {how}.")
    report = record.get("int8")
    if report:
        floats = f" ({', '.join(report['float_ops'])})" if report["float_ops"] else ""
        lines.append(f"* **Integer operators:** {report['int8_ops']} on integers, {report['float_op_count']} in float{floats}.")
    return "\n".join(lines)


def _loading(model: Path, data: Mapping[str, Any]) -> str:
    facts = input_facts(model)
    shape = ", ".join(map(str, facts["shape"]))
    if facts["pixels"] == "uint8":
        takes = f"uint8 pixels 0..255 (n, {shape}); normalisation is inside the file"
    elif facts["pixels"] == "unit":
        takes = f"float32 pixels in 0..1 (n, {shape}); normalisation is inside the file"
    else:
        mean, std = ([round(float(v), 6) for v in data[key]] if key in data else "the training data's" for key in ("mean", "std"))
        low, high = data.get("range") or (0, 1)
        scale = (
            "pixels 0..255 divided by 255" if data.get("dtype") == "uint8" else f"pixels from {low:g} to {high:g} as in the training data"
        )
        takes = f"float32 (n, {shape}), (pixels - mean) / std per channel, {scale}, mean {mean}, std {std}"
    source = ""
    if model.with_name("model.py").is_file():
        source = (
            " `model.py` is the same network as PyTorch source to edit: `load()` reads `model.safetensors`; it takes normalised images."
        )
    return (
        "## Use\n\n```python\nimport onnxruntime\n"
        f'session = onnxruntime.InferenceSession("{model.name}", providers=["CPUExecutionProvider"])\n'
        'logits = session.run(None, {"input": images})[0]  # (n, classes)\n```\n\n'
        f"`images`: {takes}.{source}"
    )


def _making(record: Mapping[str, Any]) -> str:
    training, arch = record.get("training") or {}, record.get("arch") or {}
    lines = ["## How it was made", ""]
    if training:
        origin = {"supernet": "weights inherited from the supernet, then trained", "scratch": "trained from scratch"}
        start = origin.get(str(training.get("from")), str(training.get("from")))
        lines.append(f"* **Training:** {start} for {training.get('epochs', '?')} epochs, {float(training.get('seconds', 0)):.0f} s.")
    if arch:
        lines.append("* **Architecture:** " + ", ".join(f"`{key}={value}`" for key, value in arch.items()) + ".")
    return "\n".join(lines) if len(lines) > 2 else ""


def _layers(record: Mapping[str, Any]) -> str:
    layers = record.get("layers") or []
    if not layers:
        return ""
    rows = [
        "## Layers",
        "",
        "| layer | kind | in | out | kernel / stride / groups | act | MACs | params | µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for layer in layers:
        sizes = ["x".join(str(s) for s in layer.get(key, ())) for key in ("in", "out")]
        rows.append(
            f"| {layer.get('name', '')} | {layer.get('kind', '')} | {sizes[0]} | {sizes[1]} "
            f"| {layer.get('kernel', '')} / {layer.get('stride', '')} / {layer.get('groups', '')} | {layer.get('act', '')} "
            f"| {_number(layer.get('macs'), 'count')} | {_number(layer.get('params'), 'count')} | {_number(layer.get('latency_us'), '')} |"
        )
    return "\n".join(rows)


def _versions(versions: Mapping[str, str] | None) -> str:
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    listed = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
    return f"Made on {made}" + (f" with {listed}." if listed else ".")
