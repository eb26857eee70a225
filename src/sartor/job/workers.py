"""Training several networks at once: one process with one thread for each core.

Small networks gain little from a second thread, but two trainings side by side use two cores fully. A worker is a fresh interpreter that
opens the run folder, trains one network and leaves its weights there; it dies with its parent, and goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from sartor.errors import PLACE, UserError, unusable
from sartor.hardware.device import cores
from sartor.job.context import Job
from sartor.job.state import write_json
from sartor.layers.depthwise import quick_depthwise
from sartor.recipes.arithmetic import forward
from sartor.report.folder import store_traceback

_PROBE = 64  # images in the step that is timed
#: Ctrl-C reaches every process of a terminal: a worker leaves it to its parent, also while its imports last, and ends without a traceback.
_MAIN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from sartor.job.workers import main; main()"
_FLOOR_IMAGES, _FLOOR_SECONDS = 20_000, 20.0


@dataclass(frozen=True)
class Task:
    """One network to train: `design` names a rung of the ladder, otherwise `labels` is an architecture of the run's space."""

    name: str
    start: str  # "supernet" or "scratch"
    labels: dict[str, Any] | None = None
    design: str | None = None
    seconds: float = 0.0
    arithmetic: str = "fp32"


def trained(job: Job, name: str) -> Path:
    """Where a worker leaves the weights of `name`; a file .json beside it tells about the training."""
    return job.folder / "checkpoints" / f"{name}.trained.safetensors"


def with_shares(tasks: Sequence[Task], modules: Sequence[nn.Module], shape: tuple[int, int, int], batch: int, total: float) -> list[Task]:
    """The tasks with their arithmetic, whichever trains their module faster here, and with their part of `total` seconds of wall time on
    all cores, shared so that every network sees the same number of images.

    Networks that are quick to train get at least the time for a floor of images, so that a short run on a busy machine still delivers
    trained ones: such a run takes longer than planned.
    """
    if not modules:
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [quickest(module, shape, min(batch, _PROBE)) for module in modules]
    finally:
        torch.set_num_threads(threads)
    costs = [seconds for _, seconds in found]
    workers = min(cores(), len(modules))
    shares = [workers * total * cost / sum(costs) for cost in costs]
    floors = [min(_FLOOR_SECONDS, _FLOOR_IMAGES * cost / min(batch, _PROBE)) for cost in costs]
    # no network can be spread over workers: none gets more than the whole time
    return [
        replace(task, arithmetic=name, seconds=max(min(share, total), floor))
        for task, (name, _), share, floor in zip(tasks, found, shares, floors, strict=True)
    ]


def quickest(module: nn.Module, shape: tuple[int, int, int], batch: int) -> tuple[str, float]:
    """The arithmetic that trains `module` faster on this machine, and seconds of its step; bf16 must save a tenth to be chosen."""
    plain = _step_seconds(module, shape, batch, "fp32")
    try:
        mixed = _step_seconds(module, shape, batch, "bf16")
    except RuntimeError:  # a user's own layers need not take both
        return "fp32", plain
    return ("bf16", mixed) if mixed < 0.9 * plain else ("fp32", plain)


def _step_seconds(module: nn.Module, shape: tuple[int, int, int], batch: int, name: str) -> float:
    """Seconds of one forward and backward pass; weights and statistics stay as they are."""
    import copy

    probe = copy.deepcopy(module).train()
    probe.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub omits the keyword-only form
    x = torch.zeros(batch, *shape).to(memory_format=torch.channels_last)
    times = []
    with quick_depthwise(probe):
        for _ in range(5):
            start = time.perf_counter()
            forward(name, probe, x).sum().backward()
            times.append(time.perf_counter() - start)
    return min(times)


def train_all(job: Job, tasks: Sequence[Task]) -> None:
    """Train every task that is not trained yet, as many at a time as there are cores, the longest first.

    Raises:
        UserError: what a worker says of a user's mistake or a diverged loss; the others are stopped.
    """
    waiting = deque(sorted((t for t in tasks if not trained(job, t.name).is_file()), key=lambda t: -t.seconds))
    running: dict[subprocess.Popen[str], threading.Thread] = {}
    errors: dict[subprocess.Popen[str], list[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < cores():
                process, reader, said = _start(job, waiting.popleft())
                running[process], errors[process] = reader, said
            for process in [p for p in running if p.poll() is not None]:
                running.pop(process).join()
                if process.returncode != 0:
                    ended = f"a training process ended with code {process.returncode}; `sartor resume {job.folder}` goes on"
                    raise UserError(" ".join(errors[process]) or ended)
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _start(job: Job, task: Task) -> tuple[subprocess.Popen[str], threading.Thread, list[str]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    command = [sys.executable, "-c", _MAIN, str(job.folder), json.dumps(asdict(task)), str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(job, process.stdout, said), daemon=True)
    reader.start()
    return process, reader, said


def _read(job: Job, stream: IO[str], said: list[str]) -> None:
    for line in stream:
        message = json.loads(line)
        if "error" in message:
            said.append(message["error"])
        else:
            job.progress(message["what"], message["done"], message["total"])


def module_of(job: Job, task: Task) -> nn.Module:
    """The plain network of a task, with the weights it starts from."""
    from sartor.job.finish import inherited
    from sartor.job.ladder import rung

    torch.manual_seed(job.request.seed)
    if task.design is not None:
        return rung(job, task.design)
    assert task.labels is not None
    if task.start == "supernet":
        return inherited(job, job.net.space.from_labels(task.labels))
    fresh = job.build_net()
    module: nn.Module = fresh.extract(job.net.space.from_labels(task.labels))
    return module


def _work(folder: str, text: str, parent: int) -> None:
    """Train one task in this process."""
    from sartor.job.explore import load_weights, save_weights
    from sartor.job.finish import fit_module
    from sartor.request import SearchRequest

    torch.set_num_threads(1)
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        if time.perf_counter() - last[0] > 0.5 or done >= total:
            last[0] = time.perf_counter()
            print(json.dumps({"what": what, "done": done, "total": total}), flush=True)

    job = Job(SearchRequest.load(folder), Path(folder), progress)
    task = Task(**json.loads(text))
    if task.start == "supernet":
        load_weights(job.net, job.folder / "checkpoints" / "supernet.safetensors")
    module = module_of(job, task)
    training = fit_module(job, task, module)

    write_json(trained(job, task.name).with_suffix(".json"), training)
    save_weights(module, trained(job, task.name))


def main() -> None:
    """What a worker runs: its arguments are the run folder, the task and the parent's process id."""
    try:
        _work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except UserError as problem:
        _end(str(problem))
    except Exception as problem:
        folder = Path(sys.argv[1])
        if isinstance(problem, OSError) and problem.errno in PLACE:
            _end(unusable(problem, folder))
        what = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
        details = store_traceback(problem, folder)
        _end(f"a training failed inside sartor ({what}): the details are in {details}; `sartor resume {folder}` tries again")


def _end(sentence: str) -> None:
    print(json.dumps({"error": sentence}), flush=True)
    sys.exit(2)
