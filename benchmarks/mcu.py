"""Search for a microcontroller on CIFAR-10 (subset) against MobileNetV2 scaled to the same limits, both trained for the same time.

    python benchmarks/prepare_cifar10.py --help                     # makes cifar10-20k.npz from the public data
    python benchmarks/mcu.py cifar10-20k.npz --minutes 40 --out runs/mcu

The search chooses its space first (TinyNAS), then searches in it; MobileNetV2 is trained at the two largest width multipliers that keep the
limits, one on each core, for as long as supernet and fine-tuning take together; the better by validation is the rival. Both are delivered
as int8 files, whose test accuracy is compared; SRAM and flash are planned, latency is modelled: nothing here was measured on the chip. An
interrupted run goes on when the same command is given again. Prints a table and writes `summary.json` into the run folder.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--device", default="stm32f746")
    parser.add_argument("--sram", default="256KB")
    parser.add_argument("--flash", default="1MB")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--limit-train", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    from sartor import job
    from sartor.report.terminal import Progress
    from sartor.request import SearchRequest

    out = Path(options.out)
    with Progress(plain=True) as progress:
        if (out / "config.json").is_file():
            result = job.resume(out, progress=progress)
        else:
            limits = [f"peak_bytes<={options.sram}", f"flash_bytes<={options.flash}"]
            request = SearchRequest(
                data=options.data, device=options.device, limits=limits, minutes=options.minutes, models=options.models,
                limit_train=options.limit_train, seed=options.seed, out=str(out),
            )  # fmt: skip
            result = job.search(request, progress=progress)
    summary = summarise(result)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(result, summary)


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The most accurate model by validation against the reference, on the test images."""
    best = max(result["models"], key=lambda r: r["validation"]["accuracy"], default=None)
    reference = max(result["baselines"], key=lambda r: r["validation"]["accuracy"], default=None)
    kept = ("accuracy", "peak_bytes", "flash_bytes", "macs", "latency_ms", "energy_mj", "quantisation_error")

    def row(record: dict[str, Any] | None) -> dict[str, Any] | None:
        if record is None:
            return None
        about = {"name": record["name"], "training": record["training"], "accuracy_fp32": record["test"]["accuracy_fp32"]}
        return {**about, **{key: record["metrics"][key] for key in kept if key in record["metrics"]}}

    found = {"search": row(best), "mobilenet_v2": row(reference), "seconds": result["seconds"], "limits": result["limits"]}
    if best is not None and reference is not None:
        found["difference"] = best["metrics"]["accuracy"] - reference["metrics"]["accuracy"]
    return found


def show(result: dict[str, Any], summary: dict[str, Any]) -> None:
    for line in result["notes"]:
        print(line)
    print(f"{'network':24} {'int8':>7} {'fp32':>7} {'SRAM':>9} {'flash':>10} {'MACs':>12}  epochs")
    for record in [*result["models"], *result["baselines"]]:
        m, test = record["metrics"], record["test"]
        figures = f"{m['accuracy']:7.2%} {test['accuracy_fp32']:7.2%} {m['peak_bytes']:9,.0f} {m['flash_bytes']:10,.0f} {m['macs']:12,.0f}"
        print(f"{record['name']:24} {figures}  {record['training']['epochs']}")
    if "difference" in summary:
        print(
            f"The search's choice (by validation) against MobileNetV2 on the test images: {100 * summary['difference']:+.2f} points (int8)."
        )


if __name__ == "__main__":
    main()
