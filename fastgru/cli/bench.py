"""``fastgru bench``: measures the speed of inference on this machine, in a few seconds.

It does not compare with other libraries; benchmarks/ in the repository does.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import fastgru
from fastgru.cli.terminal import columns
from fastgru.io.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

T = 64
BATCHES = (1, 8, 32, 128)
UNITS = (64, 256)  # I = H


class Result(NamedTuple):
    """One measurement with sequences (B, T, H): ``seconds`` is the median of ``calls`` calls."""

    batch: int
    units: int
    threads: int
    seconds: float
    calls: int

    @property
    def rate(self) -> float:
        """Multiplications and additions of the matrix products, in 1e9 per second."""
        return 2 * self.batch * T * 3 * self.units * 2 * self.units / self.seconds / 1e9


def measure(seconds: float, threads: int | None = None) -> list[Result]:
    """Measure each shape with one thread and with all (or ``threads``), ``seconds`` each."""
    if not seconds > 0:
        raise ValueError(f"--seconds: expected a positive number, got {seconds}")
    rng = np.random.default_rng(0)
    results = []
    counts = sorted({1, threads or fastgru.get_num_threads()})
    for units, batch, count in itertools.product(UNITS, BATCHES, counts):
        layer = fastgru.GRU(units, return_sequences=True)
        x = rng.normal(size=(batch, T, units)).astype("float32")
        layer(x, num_threads=count)  # packs the weights, starts the threads
        times: list[float] = []
        while sum(times) < seconds or len(times) < 3:
            start = time.perf_counter()
            layer(x, num_threads=count)
            times.append(time.perf_counter() - start)
        results.append(Result(batch, units, count, statistics.median(times), len(times)))
    return results


def table(results: Sequence[Result]) -> list[str]:
    """Return the results as lines of text."""
    heading = ("B", "T", "I", "H", "threads", "ms", "sequences/s", "GFLOP/s", "calls")
    rows: list[tuple[str, ...]] = [heading]
    for r in results:
        sizes = map(str, (r.batch, T, r.units, r.units, r.threads))
        speeds = f"{r.seconds * 1e3:.3f}", f"{r.batch / r.seconds:,.0f}", f"{r.rate:.1f}"
        rows.append((*sizes, *speeds, str(r.calls)))
    return columns(rows)


def plot(results: Sequence[Result], path: str) -> bool:
    """Draw GFLOP/s over the batch size; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for units, threads in sorted({(r.units, r.threads) for r in results}):
        line = [r for r in results if (r.units, r.threads) == (units, threads)]
        name = f"H = {units}, {threads} thread{'s' * (threads > 1)}"
        axes.plot([r.batch for r in line], [r.rate for r in line], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"batch size (T = {T}, I = H, float32)")
    axes.set_ylabel("GFLOP/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title(f"fastgru {fastgru.__version__}, inference")
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format=Path(path).suffix[1:] or None)
    return True
