"""Measure fastgru on an NVIDIA GPU, beside PyTorch (cuDNN) and JAX, in one run.

    python benchmarks/gpu.py --out benchmarks/results            under 8 minutes
    python benchmarks/gpu.py --out benchmarks/results --quick    under 2 minutes

Sections, in this order (--only NAME ... for some of them):

    peers    forward of our layer on CuPy arrays, as dispatched and by our own kernels, beside
             torch.nn.GRU and a jitted jax.lax.scan; float32 (nobody uses TF32) and float16
    memory   the device's memory after 10 and after many calls; whether two runs give the same bits
    paths    our kernels step by step against the persistent one, by batch; a grid barrier
    options  what cuDNN does not serve, against the same call without it, torch.compile and JAX
    cudnn    every algorithm of cuDNN's GRU by math, units and batch

Every peer has its own process and they are asked in turn. An answer is compared with float64 first;
a peer that is wrong is not timed, and the run ends with status 1. A call is timed until the device
is done. A round is a block of calls for each, in the opposite order every other round; a ratio is
taken within a round, and the median over the rounds is shown. What is not installed is named and
left out. When the time is used up, what is left is named too. The files are written after each
section.
"""

import argparse
import itertools
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import gpu_report
import records
import report
from gpu_cases import TOLERANCES, Case, make_case, option_cases, peer_cases, reference
from gpu_peers import ENVIRONMENT, serves
from machine import choose_cpus
from worker import MissingPeer, Worker, WorkerError

OURS, BARE, PROBE = "gpu-fastgru", "gpu-fastgru-plain", "gpu-probe"
KERNELS = f"{OURS}@FASTGRU_BACKEND=cuda"
NAMES = (PROBE, OURS, KERNELS, BARE, "gpu-torch", "gpu-torch-compile", "gpu-jax")


class Run:
    """One run: its workers, its results, and the time it has."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.settings, self.quick = options, options.quick
        self.workers: dict[str, Any] = {}
        self.end = time.monotonic() + options.seconds
        self.wrong = False
        self.results: dict[str, Any] = records.new_record(
            "gpu", {k: str(v) for k, v in vars(options).items()}
        )
        self.results |= {"peers": {}, "sections": {}, "skipped": []}

    def in_time(self, what: str) -> bool:
        """Say whether there is time for it; if not, note what was left out."""
        if time.monotonic() < self.end:
            return True
        self.results["skipped"].append(what)
        return False

    # ---- sections --------------------------------------------------------------------------------

    def peers(self) -> list[Any]:
        """Measure forward beside others."""
        names = [OURS, KERNELS, "gpu-torch", "gpu-jax"]
        entries = []
        truths: dict[Any, Any] = {}
        for shape, dtype in peer_cases(self.quick):
            if self.in_time(f"{shape} {dtype}"):
                case = make_case(shape, dtype)
                if shape not in truths:
                    truths[shape] = reference(case)
                entries.append(self.compare(case, truths[shape], dict.fromkeys(names, case)))
        return entries

    def options(self) -> list[Any]:
        """Measure what cuDNN does not serve."""
        entries = []
        for shape, dtype, option in option_cases(self.quick):
            if self.in_time(f"{shape} {dtype} {option}"):
                case, plain = make_case(shape, dtype, option), make_case(shape, dtype)
                asked = dict.fromkeys((OURS, "gpu-torch-compile", "gpu-jax"), case) | {BARE: plain}
                entries.append(self.compare(case, reference(case), asked, reference(plain)))
        return entries

    def paths(self) -> list[Any]:
        """Measure step by step against persistent."""
        units = (256, 512) if self.quick else (128, 256, 512, 1024)
        batches = (1, 8, 32, 64) if self.quick else (1, 2, 4, 8, 16, 32, 64, 128)
        axes = {"dtype": tuple(TOLERANCES), "units": units, "batch": batches}
        self.results["sections"]["barrier"] = self.ask("barrier")
        return self.grid("paths", axes, steps=100)

    def cudnn(self) -> list[Any]:
        """Measure the algorithms of cuDNN."""
        missing = self.ask("cudnn_missing")
        if missing:
            self.results["skipped"].append(f"cudnn ({missing})")
            return []
        units = (128, 512, 1024) if self.quick else (64, 128, 192, 256, 512, 768, 1024, 2048)
        axes = {
            "math": ("float32", "tf32", "float16", "bfloat16"),
            "algorithm": ("standard", "static", "small"),
            "units": units,
            "batch": (1, 32) if self.quick else (1, 8, 32, 128),
        }
        return self.grid("cudnn", axes)

    def memory(self) -> Any:
        """Count memory, and compare bits."""
        sizes = (
            (dtype, H, B) for dtype in TOLERANCES for H, B in ((128, 8), (512, 32), (1000, 64))
        )
        self.results["sections"]["repeats"] = [
            {"case": f"{dtype} {H} units, {B} rows", "found": self.ask("repeats", dtype, H, B)}
            for dtype, H, B in sizes
        ]
        return self.ask("memory", 1000 if self.quick else 10_000)

    # ---- asking ----------------------------------------------------------------------------------

    def ask(self, name: str, *arguments: Any) -> Any:
        """Ask the probe; an error becomes {} and a line on the terminal."""
        if PROBE not in self.workers:
            return {}
        try:
            return self.workers[PROBE].do(name, *arguments)
        except WorkerError as error:
            print(f"{name}{arguments}: {error}", flush=True)
            return {}

    def grid(self, name: str, axes: dict[str, Any], **fixed: Any) -> list[Any]:
        """Ask the probe for every combination."""
        cells = []
        for values in itertools.product(*axes.values()):
            cell = dict(zip(axes, values, strict=True))
            if PROBE in self.workers and self.in_time(" ".join(map(str, (name, *values)))):
                found = self.ask(name, *values, *fixed.values())
                if found:
                    cells.append(cell | {"found": found})
        return cells

    def compare(
        self, case: Case, truth: Any, asked: dict[str, Case], plain_truth: Any = None
    ) -> dict[str, Any]:
        """Check the answers, then time those that are right; an entry of the results."""
        peers: dict[str, Any] = {}
        for name, own in asked.items():
            if name in self.workers and serves(name, own.option):
                right = truth if own is case else plain_truth
                peers[name] = self.check(self.workers[name], own, right)
        order = [name for name, figures in peers.items() if "failed" not in figures]
        for name in order:
            peers[name]["rounds"] = []
        for _ in range(self.settings.rounds):
            for name in list(order):
                try:
                    block = self.workers[name].block(self.settings.block_ms / 1e3, 5)
                    peers[name]["rounds"].append(block)
                except WorkerError as error:
                    peers[name] = {"failed": str(error)}
                    order.remove(name)
            order.reverse()
        entry = {"case": str(case), "peers": peers}
        report.summarise(entry, OURS)
        for name, figures in peers.items():
            if "failed" in figures:
                print(f"{case}: {name}: {figures['failed']}")
        times = (f"{name} {f['median_us']:.0f}" for name, f in peers.items() if "median_us" in f)
        print(f"{case}: us {', '.join(times)}", flush=True)
        return entry

    def check(self, worker: Any, case: Case, truth: Any) -> dict[str, Any]:
        """Compare a peer's answer with the reference; what is drawn has to be finite."""
        try:
            (answer,) = worker.prepare("forward", case)
        except WorkerError as error:
            return {"failed": str(error)}
        expected = (case.shape.B, case.shape.T, case.shape.H)
        if answer.shape != expected:
            self.wrong = True
            return {"failed": f"shape {answer.shape}, expected {expected}", "wrong": True}
        allowed = TOLERANCES[case.dtype]
        error = float(
            np.abs(answer - truth).max() if truth is not None else np.abs(answer).max() - 1
        )
        if not error <= allowed:  # NaN is wrong too
            self.wrong = True
            return {"failed": f"WRONG: off by {error:.1e}, allowed {allowed:.1e}", "wrong": True}
        return {"max_error": error}


SECTIONS = {
    "peers": Run.peers,
    "memory": Run.memory,
    "paths": Run.paths,
    "options": Run.options,
    "cudnn": Run.cudnn,
}
# Whose answers a section needs.
NEEDED = {
    "peers": {OURS, KERNELS, "gpu-torch", "gpu-jax"},
    "memory": set(),
    "paths": set(),
    "options": {OURS, BARE, "gpu-torch-compile", "gpu-jax"},
    "cudnn": set(),
}


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Returns
    -------
    int
        0; 1 if an answer was wrong; 2 if fastgru finds no device.
    """
    options = parse(arguments)
    run = Run(options)
    with ExitStack() as stack:
        needed = {PROBE}.union(*(NEEDED[name] for name in options.only))
        start([name for name in NAMES if name in needed], run, stack)
        if PROBE in run.workers:
            for name in options.only:
                started = time.monotonic()
                run.results["sections"][name] = SECTIONS[name](run)
                print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
                gpu_report.save(run.results, options.out)
    gpu_report.save(run.results, options.out)
    print("\n" + gpu_report.text(run.results))
    return 2 if PROBE not in run.workers else int(run.wrong)


def start(names: list[str], run: Run, stack: ExitStack) -> None:
    """Start all processes at a time; name those that are missing, with the reason."""
    threads = len(os.sched_getaffinity(0))
    cpus = choose_cpus(threads)
    begun = {}
    for name in names:
        environment = ENVIRONMENT.get(name.partition("@")[0], {})
        begun[name] = stack.enter_context(Worker(name, environment, threads, cpus))
    for name, worker in begun.items():
        record: dict[str, Any] = {"environment": worker.environment}
        try:
            record["versions"] = worker.start()
            run.workers[name] = worker
        except WorkerError as error:
            record["missing"] = str(error)
            kind = "missing" if isinstance(error, MissingPeer) else "failed"
            print(f"{name}: {kind}: {error}", flush=True)
        run.results["peers"][name] = record


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what --quick changes is filled in."""
    parser = argparse.ArgumentParser(
        description="Measure fastgru on an NVIDIA GPU beside PyTorch and JAX."
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder: writes <date>-gpu.json and .md there")
    add("--quick", action="store_true", help="fewer sizes: under 2 minutes instead of 8")
    add("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections")
    add("--rounds", type=int, help="default: 5, quick 3")
    add("--block-ms", type=float, help="at least so long a block; default: 30, quick 20")
    add("--seconds", type=float, help="when to begin nothing new; default: 440, quick 100")
    options = parser.parse_args(arguments)
    defaults = {"rounds": (5, 3), "block_ms": (30.0, 20.0), "seconds": (440.0, 100.0)}
    for name, (usual, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    options.only = [name for name in SECTIONS if name in options.only]
    return options


if __name__ == "__main__":
    sys.exit(main())
