"""Threads that share layers whose weights are swapped under load: numbers, memory, and stalls.

    python benchmarks/soak.py --seconds 120

Eight threads on two processors call layers of several kinds, with every sort of argument, step
streams, and swap each layer's weights between two sets. Every result must equal, bit for bit, what
one thread gets with one of the two sets: all outputs of a call with the same one. Between rounds
the threads rest; what the process then holds must not grow by a megabyte (medians of the last and
of the first third of the rounds), and no call may take 50 times the median of its like.

Which of eight threads goes on is the system's choice, and Python's, every few milliseconds. What
takes microseconds takes hundreds of times as long when it is not chosen: the last rows of the table
are a loop in Python, and a hash, which lets Python's lock go as calls of more than a few
microseconds do. There is nothing of ours in them. So only calls whose median is at least a
millisecond are judged, and on a busy machine not even those can be. Status 1: something was missed.
"""

import argparse
import ctypes
import gc
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
from machine import busy_seconds, choose_cpus
from records import text_table

import fastgru

THREADS = 8
WARM_UP, ROUNDS = 3, 12  # rounds; scratch grows until it has met the largest call everywhere
FEATURES = 24
SWAPS = 0.02  # of all that is done
GROWTH = 1 << 20
M_MMAP_THRESHOLD = -3
STALL = 50
LEAST = 1e-3
JUDGED = ("numbers", "memory", "stalls")
BIN = 1.05  # times are counted by how long, in memory that does not grow; the first bin is 1 us
BINS = 400

Outputs = list[np.ndarray]


class Case(NamedTuple):
    """A call of one layer; `make` gives each thread its own, since streams are not shared."""

    name: str
    layer: int
    make: Callable[[], Callable[[], Outputs]]


def flat(outputs: Any) -> Outputs:
    """Return all arrays of nested lists and tuples."""
    if isinstance(outputs, np.ndarray):
        return [outputs]
    return [array for part in outputs for array in flat(part)]


def same(ours: Outputs, expected: Outputs) -> bool:
    """Compare all outputs of a call, bit for bit.

    By NumPy's loops, which leave Python's lock to others: by ``tobytes()`` each comparison held
    it for milliseconds, of megabytes just mapped, and it was calls in other threads that waited.
    """
    return all(
        np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))
        for a, b in zip(ours, expected, strict=True)
    )


def make_layers() -> list[Any]:
    """Make one layer of each kind, with every bias another."""
    options: dict[str, Any] = {"bias_initializer": "random_normal", "return_sequences": True}
    cells = [fastgru.GRUCell(48), fastgru.GRUCell(33, reset_after=False)]
    layers = [
        fastgru.GRU(64, **options),
        fastgru.GRU(75, reset_after=False, return_state=True, **options),
        fastgru.GRU(40, dtype="float64", **options),
        fastgru.Bidirectional(fastgru.GRU(50, **options)),
        fastgru.Sequential([fastgru.GRU(60, **options), fastgru.GRU(30, return_state=True)]),
        fastgru.RNN(cells, return_sequences=True, return_state=True),
    ]
    for layer in layers:
        layer.build((None, None, FEATURES))
    return layers


def make_cases(layers: list[Any]) -> list[Case]:
    """Make calls of every layer: two shapes, every argument, and streams."""
    rng = np.random.default_rng(0)
    batch, steps = 64, 60
    cases = []
    for number, layer in enumerate(layers):
        x = rng.standard_normal((batch, steps, FEATURES)).astype(layer.dtype)
        calls: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
            "one step": (x[:1, :1], {}),
            "one row": (x[:1], {}),
            "batch": (x, {}),
            "strided": (np.repeat(x, 2, axis=1)[:, ::2], {}),
            "lengths": (x, {"lengths": rng.integers(0, steps + 1, batch)}),
            "mask": (x, {"mask": rng.random((batch, steps)) < 0.7}),
            "reset_mask": (x, {"reset_mask": rng.random((batch, steps)) < 0.1}),
        }
        if isinstance(layer, fastgru.GRU):
            h0 = rng.standard_normal((batch, layer.units)).astype(layer.dtype)
            calls["initial_state"] = (x, {"initial_state": h0})
        for name, (sequences, arguments) in calls.items():
            cases.append(Case(name, number, lambda a=(layer, sequences, arguments): _caller(*a)))
        if not isinstance(layer, fastgru.Bidirectional):
            first = x.transpose(1, 0, 2).reshape(-1, FEATURES)[:1500]
            for name, rows in (("stream", None), ("stream rows", rng.permutation(1500)[:1000])):
                inputs = first if rows is None else first[: len(rows)]
                make = lambda a=(layer, inputs, rows): _stepper(*a)  # noqa: E731
                cases.append(Case(name, number, make))
    return cases


def _caller(layer: Any, x: np.ndarray, arguments: dict[str, Any]) -> Callable[[], Outputs]:
    return lambda: flat(layer(x, **arguments))


def _stepper(layer: Any, x: np.ndarray, rows: Any) -> Callable[[], Outputs]:
    stream = layer.stream(1500)
    rng = np.random.default_rng(1)
    start = [rng.standard_normal(s.shape).astype(s.dtype) for s in flat(stream.state)]

    def call() -> Outputs:
        stream.state = start if len(start) > 1 else start[0]
        return [stream.step(x, rows=rows).copy(), *flat(stream.state)]

    return call


class Soak:
    """Layers with two sets of weights each, calls, and what each call gives with either set."""

    def __init__(self) -> None:
        self.layers = make_layers()
        self.cases = make_cases(self.layers)
        self.weights = []
        self.expected: list[list[Outputs]] = [[] for _ in self.cases]
        self.together = threading.Barrier(THREADS + 1)
        self.until = 0.0
        self.over = False
        for layer in self.layers:
            first = layer.get_weights()
            self.weights.append((first, [1.25 * w + w.dtype.type(0.01) for w in first]))
        with fastgru.num_threads(1):
            for which in range(2):
                for layer, sets in zip(self.layers, self.weights, strict=True):
                    layer.set_weights(sets[which])
                for case, expected in zip(self.cases, self.expected, strict=True):
                    expected.append(case.make()())
        assert not any(same(*pair) for pair in self.expected), "both sets of weights give the same"

    def run(self, seconds: float) -> tuple[list["Worker"], list[int]]:
        """Let the threads work in rounds; return them, and the memory after each round."""
        workers = [Worker(self, seed) for seed in range(THREADS)]
        for worker in workers:
            worker.start()
        memory = []
        for _ in range(ROUNDS):
            self.until = time.monotonic() + seconds / ROUNDS
            try:
                for _ in ("begin", "no more swaps", "rest"):
                    self.together.wait()
            except threading.BrokenBarrierError:  # the thread that broke it says why
                break
            memory.append(resident())
        self.over = True
        if not self.together.broken:
            self.together.wait()
        for worker in workers:
            worker.join()
        return workers, memory


class Worker(threading.Thread):
    """A thread that calls and swaps at random, in rounds."""

    def __init__(self, soak: Soak, seed: int) -> None:
        super().__init__(daemon=True)
        self.soak, self.rng = soak, np.random.default_rng(seed)
        self.calls = [case.make() for case in soak.cases]
        self.calls += CONTROLS.values()
        self.times = np.full((len(self.calls), BINS), 0)  # its memory is there from now on
        self.worst = np.zeros(len(self.calls))
        self.wrong: set[str] = set()
        self.swaps = 0

    def run(self) -> None:
        """Work until all rounds are over."""
        soak = self.soak
        while True:
            try:
                soak.together.wait()
                if soak.over:
                    return
                while time.monotonic() < soak.until:
                    self.work()
                soak.together.wait()
                for call in self.calls:  # a stream keeps the weights of its last step
                    call()
                soak.together.wait()
            except threading.BrokenBarrierError:
                return
            except Exception as error:  # goes into the verdict
                self.wrong.add(f"{type(error).__name__}: {error}")
                soak.together.abort()
                return

    def work(self) -> None:
        """Swap a layer's weights, or call and judge the result."""
        soak = self.soak
        if self.rng.random() < SWAPS:
            layer = int(self.rng.integers(len(soak.layers)))
            soak.layers[layer].set_weights(soak.weights[layer][self.rng.integers(2)])
            self.swaps += 1
            return
        number = int(self.rng.integers(len(self.calls)))
        start = time.perf_counter()
        outputs = self.calls[number]()
        seconds = time.perf_counter() - start
        place = int(np.log(max(seconds * 1e6, 1)) / np.log(BIN))
        self.times[number, min(place, BINS - 1)] += 1
        self.worst[number] = max(self.worst[number], seconds)
        if number >= len(soak.cases):
            return
        if not any(same(outputs, expected) for expected in soak.expected[number]):
            case = soak.cases[number]
            self.wrong.add(f"{case.name} of layer {case.layer}: neither the old nor the new")


def python_alone() -> Outputs:
    """Compute for about as long as a call of one step, in instructions of Python."""
    total = 0
    for number in range(700):
        total += number
    return []


def hash_alone() -> Outputs:
    """Compute for about as long as a call of one row, without Python's lock."""
    hashlib.sha256(HASHED)
    return []


HASHED = bytes(100_000)
CONTROLS = {"Python alone": python_alone, "hash alone": hash_alone}


def resident() -> int:
    """Return the bytes that the process holds, but for what the allocator keeps of free memory.

    0 where the system does not tell.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def stalls(soak: Soak, workers: list[Worker]) -> tuple[list[list[str]], float]:
    """Return a table of all calls by layer and kind, and the worst that is judged, in medians."""
    times = sum(worker.times for worker in workers)
    worst = np.max([worker.worst for worker in workers], axis=0)
    medians = 1e-6 * BIN ** (np.argmax(times.cumsum(1) * 2 >= times.sum(1)[:, None], 1) + 0.5)
    rows = [["layer", "call", "calls", "median ms", "worst ms", "worst/median"]]
    judged = 0.0
    names = [(str(case.layer), case.name) for case in soak.cases]
    names += [("-", name) for name in CONTROLS]
    for name, count, median, longest in zip(names, times.sum(1), medians, worst, strict=True):
        ratio = longest / median
        if median >= LEAST:
            judged = max(judged, ratio)
        figures = [f"{1e3 * median:.3f}", f"{1e3 * longest:.1f}", f"{ratio:.0f}"]
        rows.append([*name, str(count), *figures])
    return rows, judged


def main() -> int:
    """Run from the command line; 1 if something was missed."""
    parser = argparse.ArgumentParser(description="Swap weights under eight threads' calls.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument(
        "--judge", nargs="+", choices=JUDGED, default=JUDGED, help="the rest is shown"
    )
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if len(cpus) > 2:
        cpus = choose_cpus(2)
        os.sched_setaffinity(0, cpus)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's, as malloc_trim
    if mallopt is not None:  # freed arrays go back to the system, not into its heaps' gaps
        mallopt(M_MMAP_THRESHOLD, 1 << 16)
    soak = Soak()
    gc.collect()
    gc.freeze()  # as a server should: to look through what the imports have left takes 24 ms
    busy, cpu, wall = busy_seconds(cpus), time.process_time(), time.monotonic()
    workers, memory = soak.run(options.seconds)
    foreign = busy_seconds(cpus) - busy - (time.process_time() - cpu)
    rows, judged = stalls(soak, workers)
    wrong = sorted(set().union(*(worker.wrong for worker in workers)))
    steady = memory[WARM_UP:]
    third = len(steady) // 3
    growth = float(np.median(steady[-third:]) - np.median(steady[:third])) if third else 0.0
    print(text_table(rows))
    print(
        f"{sum(int(r[2]) for r in rows[1:])} calls, {sum(w.swaps for w in workers)} swaps of "
        f"weights by {THREADS} threads on processors {cpus}; other programs took "
        f"{max(0.0, foreign / (time.monotonic() - wall)):.2f} processors"
    )
    print(f"wrong: {', '.join(wrong) or 'none'}")
    print(
        f"memory: {growth / 1e6:+.2f} MB from the first to the last third of {len(steady)} rounds "
        f"after {WARM_UP} that warm up; MB: {' '.join(f'{m / 1e6:.1f}' for m in memory)}"
    )
    print(f"stalls: the worst call of at least a millisecond took {judged:.0f} medians")
    missed = {"numbers": bool(wrong), "memory": growth > GROWTH, "stalls": judged > STALL}
    return int(any(missed[what] for what in options.judge))


if __name__ == "__main__":
    sys.exit(main())
