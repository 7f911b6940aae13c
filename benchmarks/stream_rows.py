"""What it costs to step some rows of a large stream: beside as many rows that are all there are.

    python benchmarks/stream_rows.py

Other rows each time, drawn beforehand, so that their states come from memory; both are timed in
turn on one thread, and the ratio of the medians is shown. Target: at most 1.3; status 1 if missed.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
from machine import choose_cpus
from records import text_table

import fastgru

TARGET = 1.3


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Time steps of some rows of a stream.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, choose_cpus(1))
    rng = np.random.default_rng(0)
    table = [["inputs x units", "dense us", "rows us", "ratio"]]
    worst = 0.0
    for inputs, units in ((32, 64), (64, 128), (128, 256)):
        layer = fastgru.GRU(units)
        layer.build((None, None, inputs))
        dense, large = layer.stream(options.batch), layer.stream(options.rows)
        large.state = rng.standard_normal((options.rows, units), np.float32)
        x = rng.standard_normal((options.batch, inputs), np.float32)
        times: list[tuple[float, float]] = []
        for _ in range(options.steps):
            rows = rng.choice(options.rows, options.batch, replace=False, shuffle=False)
            a = timed(lambda dense=dense, x=x: dense.step(x))
            b = timed(lambda large=large, x=x, rows=rows: large.step(x, rows=rows))
            times.append((a, b))
        one, other = (statistics.median(column) for column in zip(*times, strict=True))
        worst = max(worst, other / one)
        table.append(
            [f"{inputs} x {units}", f"{1e6 * one:.1f}", f"{1e6 * other:.1f}", f"{other / one:.2f}"]
        )
    print(f"{options.batch} of {options.rows} rows beside {options.batch} of {options.batch}")
    print(text_table(table))
    return 0 if worst <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
