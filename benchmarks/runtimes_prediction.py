"""How well latencies in several runtimes are predicted from few measurements. Resumable: finished nets are read back from the folder.

    python benchmarks/runtimes_prediction.py --setups onnxruntime:fp32 onnxruntime:int8 openvino:fp32 openvino:int8 --out runs/runtimes

For every setup (RUNTIME:PRECISION) of this host: `--nets` networks of the mobile space to judge by, stratified over the deciles of the
uncalibrated roofline, and `--train` others to learn from (together no net is in both). All are exported for the runtime, then measured in
one sitting (if not interrupted), twice; how often the two agree within 10 % is the ceiling of any prediction. Judged are: FLOPs, the
roofline before and after calibration on 10 of the training nets (chosen D-optimally), and the learned sum of costs on all of them.
ExecuTorch's lowering takes 5 to 12 seconds a net: `--setups executorch:fp32 --nets 30 --train 120`. Writes rows_SETUP.jsonl, summary.json
and scatter_SETUP.png.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from sartor.arch import Arch
from sartor.errors import UserError
from sartor.export.onnx import to_onnx
from sartor.export.quantize import quantize
from sartor.hardware import OpGraph
from sartor.hardware.calibrate import quality
from sartor.hardware.facts import system_facts
from sartor.hardware.graph import trace
from sartor.hardware.measure import Setup, measure_many
from sartor.hardware.peaks import probe_roofline
from sartor.hardware.roofline import MOST_NETWORKS, Roofline
from sartor.predictors.latency.features import graph_columns
from sartor.predictors.latency.judgement import judge
from sartor.predictors.latency.model import fit
from sartor.report.hardware_plots import scatter_png
from sartor.spaces import build

POOL = 1000  # architectures among which the deciles are formed
GROUP = 10  # files whose measurements are interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", nargs="+", default=["onnxruntime:fp32", "onnxruntime:int8", "openvino:fp32", "openvino:int8"])
    parser.add_argument("--space", default="mobile")
    parser.add_argument("--input", type=int, nargs=3, default=[3, 32, 32])
    parser.add_argument("--nets", type=int, default=100, help="networks that judge")
    parser.add_argument("--train", type=int, default=200, help="other networks that are learned from, at most")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each of the two measurements of a file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/runtimes_prediction"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    net = build(options.space, tuple(options.input), 10)
    figures: dict[str, Any] = {}
    for text in options.setups:
        runtime, _, precision = text.partition(":")
        setup = Setup(runtime, precision or "fp32", options.threads)
        try:
            figures[text] = one_setup(net, setup, options)
        except UserError as error:
            figures[text] = {"refused": str(error)}
        print(json.dumps({text: figures[text]}, indent=1), flush=True)
    (options.out / "summary.json").write_text(json.dumps(figures, indent=1))


def one_setup(net: Any, setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    model = kept_roofline(setup, options)
    chosen = stratified(net, model, options.nets + options.train, options.seed)
    judges, learners = chosen[: options.nets], chosen[options.nets :]
    rows = measure_all(net, [*judges, *learners], setup, options)
    return summary(net, rows[: len(judges)], rows[len(judges) :], model, options, f"{setup.runtime}_{setup.precision}")


def kept_roofline(setup: Setup, options: argparse.Namespace) -> Roofline:
    """The uncalibrated model: probed once a precision, so that a resumed run draws the same networks."""
    precision = setup.precision if setup.precision in ("fp32", "int8") else "fp32"
    path = options.out / f"roofline_{precision}_{setup.threads}.json"
    if not path.exists():
        path.write_text(json.dumps(probe_roofline(precision, setup.threads).to_json()))
    record = json.loads(path.read_text())
    return Roofline.from_json({**record, "runtime": setup.runtime, "precision": setup.precision})


def stratified(net: Any, model: Roofline, count: int, seed: int) -> list[Arch]:
    """`count` architectures in random order, equally many from every decile of modelled latency."""
    rng = np.random.default_rng(seed)
    pool = list(dict.fromkeys(net.space.sample(rng) for _ in range(POOL)))
    order = np.argsort([model.predict(graph_of(net, arch)) for arch in pool])
    share = -(-count // 10)
    picked = [index for decile in np.array_split(order, 10) for index in rng.choice(decile, share, replace=False)]
    return [pool[index] for index in rng.permutation(picked)[:count]]


def measure_all(net: Any, archs: list[Arch], setup: Setup, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Export every network first, which may take an hour, then measure them all in one sitting, twice: a machine's speed wanders by more
    than 10 % within an hour, which no model of networks can know."""
    name = f"{setup.runtime}_{setup.precision}_{setup.threads}"
    keys = [digest(net, arch, options.seconds) for arch in archs]
    files = []
    for number, (arch, key) in enumerate(zip(archs, keys, strict=True)):
        files.append(export(net, arch, setup, options.out / f"files_{name}" / key))
        print(f"{setup}: exported {number + 1}/{len(archs)}", flush=True)
    path = options.out / f"rows_{name}.jsonl"
    known: dict[str, list[dict[str, Any]]] = {}
    for row in kept_rows(path):
        known.setdefault(row["net"], []).append(row["measured"])
    for turn in range(2):
        todo = [number for number, key in enumerate(keys) if len(known.get(key, [])) <= turn]
        for start in range(0, len(todo), GROUP):
            group = todo[start : start + GROUP]
            measured = measure_many([files[number] for number in group], setup=setup, seconds=options.seconds, seed=turn)
            with path.open("a") as file:
                for number, one in zip(group, measured, strict=True):
                    known.setdefault(keys[number], []).append(one.to_json())
                    file.write(json.dumps({"net": keys[number], "measured": one.to_json()}) + "\n")
            print(f"{setup}: measured {start + len(group)}/{len(todo)}, turn {turn + 1} of 2", flush=True)
    return [{"arch": arch.to_json(), "measured": known[key]} for arch, key in zip(archs, keys, strict=True)]


def digest(net: Any, arch: Arch, seconds: float) -> str:
    """Of a network and of how it is measured: what is kept in a folder is read back for no other."""
    what = [net.space.fingerprint, net.input_shape, seconds, arch.to_json()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """Measurements of an interrupted run; its last line may be torn."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [row for row in found if "net" in row]


def export(net: Any, arch: Arch, setup: Setup, stem: Path) -> Path:
    """The file that the runtime takes, quantised where int8 is measured; made once."""
    stem.parent.mkdir(exist_ok=True)
    done = next((path for path in stem.parent.glob(f"{stem.name}*.ready")), None)
    if done is not None:
        return done.with_suffix("")
    path = _export(net, arch, setup, stem)
    path.with_name(f"{path.name}.ready").touch()
    return path


def _export(net: Any, arch: Arch, setup: Setup, stem: Path) -> Path:
    module = net.extract(arch).eval()
    images = np.random.default_rng(0).standard_normal((16, *net.input_shape)).astype(np.float32)
    if setup.runtime == "executorch":
        from sartor.export.executorch import to_executorch

        return to_executorch(module, net.input_shape, stem.with_suffix(".pte"), images if setup.precision == "int8" else None)
    if setup.runtime == "litert":
        from sartor.export.litert import to_tflite

        return to_tflite(module, net.input_shape, stem.with_suffix(".tflite"), images if setup.precision == "int8" else None)
    path = to_onnx(module, net.input_shape, stem.with_suffix(".onnx"))
    return path if setup.precision != "int8" else quantize(path, images, stem.with_name(f"{stem.name}_int8.onnx"), method="minmax")


def summary(
    net: Any, judges: list[dict[str, Any]], learners: list[dict[str, Any]], model: Roofline, options: argparse.Namespace, name: str
) -> dict[str, Any]:
    figures: dict[str, Any] = {"nets": len(judges), "learned from": len(learners)}
    for key in ("quiet", "p50"):
        held = [row for row in judges if all(one[key] is not None for one in row["measured"])]
        train = [row for row in learners if all(one[key] is not None for one in row["measured"])]
        if len(held) < 10 or len(train) < MOST_NETWORKS:
            figures[key] = {"usable": [len(held), len(train)]}
            continue
        first, second = (np.array([row["measured"][turn][key] for row in held]) for turn in range(2))
        measured = (first + second) / 2
        known = np.array([np.mean([one[key] for one in row["measured"]]) for row in train])
        graphs, learn = graphs_of(net, held), graphs_of(net, train)
        chosen = model.choose(learn, MOST_NETWORKS)
        calibrated = model.calibrate([(learn[i], known[i]) for i in chosen])
        lanes = system_facts().get("lanes", {}).get("fp32", 1)
        columns, _, _ = graph_columns([model.lower(graph) for graph in [*learn, *graphs]], lanes=lanes)
        learned = fit({"all": columns[: len(learn)]}, known)
        guesses = {
            "FLOPs": np.array([graph.macs for graph in graphs]) * float(np.median(known / [graph.macs for graph in learn])),
            "roofline, uncalibrated": np.array([model.predict(graph) for graph in graphs]),
            f"roofline, {MOST_NETWORKS} measured": np.array([calibrated.predict(graph) for graph in graphs]),
            f"learned, {len(train)} measured": learned.predict({"all": columns[len(learn) :]})[0],
        }
        figures[key] = {
            "usable": [len(held), len(train)],
            "range_ms": [float(measured.min()), float(measured.max())],
            "ceiling: second measurement against first": asdict(quality(second, first)),
            **{what: asdict(quality(guess, measured)) for what, guess in guesses.items()},
            "verdict": {what: judge(guess, measured, measured_again_ms=None).sentence() for what, guess in guesses.items()},
            "parameters": calibrated.to_json()["parameters"],
            "Kendall tau of the second measurement": float(kendalltau(first, second).statistic),
        }
        if key == "quiet":
            picture = scatter_png(
                measured, guesses[f"learned, {len(train)} measured"], title=f"{name}: {len(held)} networks not learned from"
            )
            (options.out / f"scatter_{name}.png").write_bytes(picture)
    return figures


def graph_of(net: Any, arch: Arch) -> OpGraph:
    return trace(net.extract(arch).eval(), net.input_shape)


def graphs_of(net: Any, rows: list[dict[str, Any]]) -> list[OpGraph]:
    return [graph_of(net, Arch.from_json(row["arch"])) for row in rows]


if __name__ == "__main__":
    main()
