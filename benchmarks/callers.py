"""Throughput of several Python threads that call one layer, beside ONNX Runtime's one session.

    python benchmarks/callers.py --callers 4 --cpus 0 1 2 3 --output benchmarks/results/NAME
    python benchmarks/callers.py --callers 2 4 8 32 --cpus 2 3

What a server does: every caller computes on its own thread alone (one thread a call), and all share
the weights. Each library has its own process, asked in turn and in the opposite order every other
round; both are bound to the same processors, and both answers are checked against float64 first.
A caller warms up, waits for the others, and then calls for as long as the round lasts.

Targets: 1.6 times the throughput of ONNX Runtime, a 99th percentile of at most 3 times the median,
and with more callers than processors 0.9 of the throughput of as many callers as processors. A
target that is missed makes the status 1.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import records
from compare import TOLERANCE
from machine import busy_seconds, choose_cpus
from peers import ENVIRONMENT, PEERS
from problems import Problem, Shape, forward_reference, make_problem
from report import DISTURBED
from worker import REMOVED_VARIABLES, THREAD_VARIABLES, settle

NAMES = ("fastgru", "onnxruntime")
THROUGHPUT_TARGET = 1.6
TAIL_TARGET = 3.0
KEEP_TARGET = 0.9
WARM_SECONDS = 0.02


def call_together(
    groups: Sequence[tuple[Callable[[], Any], int]], seconds: float
) -> tuple[list[dict[str, float]], float]:
    """Let threads call at the same time.

    Parameters
    ----------
    groups : sequence of (callable, int)
        What is called, by how many threads.
    seconds : float

    Returns
    -------
    figures : list of dict
        For each group ``calls_per_s`` of all its threads, ``p50_us`` and ``p99_us`` of a single
        call.
    cpu_s : float
        All processor seconds from the request to the answer.
    """
    clock = time.perf_counter_ns
    together = threading.Barrier(sum(callers for _, callers in groups))
    cpu = time.process_time()
    spans: list[list[tuple[int, int]]] = [[] for _ in groups]
    times: list[list[int]] = [[] for _ in groups]

    def work(group: int) -> None:
        call = groups[group][0]
        warm_end = clock() + int(WARM_SECONDS * 1e9)
        while clock() < warm_end:
            call()
        took: list[int] = []
        together.wait()
        first = now = clock()
        end = first + int(seconds * 1e9)
        while now < end:
            start = now
            call()
            now = clock()
            took.append(now - start)
        spans[group].append((first, now))
        times[group].extend(took)

    threads = [
        threading.Thread(target=work, args=(group,))
        for group, (_, callers) in enumerate(groups)
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle()
    figures = []
    for span, took in zip(spans, times, strict=True):
        wall = max(last for _, last in span) - min(first for first, _ in span)
        p50, p99 = np.percentile(took, [50, 99]) / 1e3
        figures.append(
            {
                "calls_per_s": len(took) / (wall * 1e-9),
                "p50_us": float(p50),
                "p99_us": float(p99),
            }
        )
    return figures, round(time.process_time() - cpu, 4)


def serve(connection: Connection, name: str, problems: list[Problem], cpus: list[int]) -> None:
    """Be the process of one library: give its versions and answers, then call as it is asked to.

    What is asked for is the number of callers of each problem, and how long.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    try:
        peer = PEERS[name](1)
        prepared = [peer.forward(problem) for problem in problems]
    except ImportError as error:
        connection.send((None, str(error)))
        return
    connection.send((peer.versions(), [p.to_numpy(p.call()) for p in prepared]))
    while True:
        try:
            counts, seconds = connection.recv()
        except EOFError:  # the parent is done
            return
        calls = [p.call for p in prepared]
        connection.send(call_together(list(zip(calls, counts, strict=True)), seconds))


def start(library: str, serve: Callable[..., None], *arguments: Any) -> Connection:
    """Start the process of a library, which runs ``serve(connection, *arguments)``.

    It ends with this one.
    """
    for variable in REMOVED_VARIABLES:
        os.environ.pop(variable, None)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1") | ENVIRONMENT.get(library, {}))
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=serve, args=(there, *arguments), daemon=True).start()
    there.close()  # so that recv raises when the process has died
    return here


def introduce(
    libraries: dict[str, str],
    serve: Callable[..., None],
    problems: list[Problem],
    cpus: list[int],
    record: dict[str, Any],
) -> dict[str, Connection] | None:
    """Start a process for each name, of its library, and check its answers against float64.

    Their versions go into the record. None, and the reason on stderr, if one is missing or wrong.
    """
    truths = [forward_reference(problem)[0] for problem in problems]
    connections = {}
    record["versions"] = {}
    for name, library in libraries.items():
        connections[name] = start(library, serve, name, problems, cpus)
        versions, answers = connections[name].recv()
        if versions is None:
            print(f"{name}: missing: {answers}", file=sys.stderr)
            return None
        for answer, truth in zip(answers, truths, strict=True):
            error = float(np.abs(answer - truth).max())
            if not error <= TOLERANCE:
                print(f"{name}: WRONG: off by {error:.1e}", file=sys.stderr)
                return None
        record["versions"] |= {k: v for k, v in versions.items() if k != "path"}
    return connections


def measure(
    connections: dict[str, Connection], cpus: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """Ask both in turn, for one caller and for each number of callers.

    Returns
    -------
    dict
        By library, and in it by number of callers: the medians, and ``rounds``.
    """
    counts = sorted({1, *options.callers})
    results: dict[str, Any] = {
        name: {count: {"rounds": []} for count in counts} for name in connections
    }
    order = list(connections)
    foreign = wall = 0.0
    for _ in range(options.rounds):
        for count in counts:
            for name in order:
                busy, begin = busy_seconds(cpus), time.monotonic()
                connections[name].send(([count], options.seconds))
                (figures,), cpu_s = connections[name].recv()
                figures["tail"] = figures["p99_us"] / figures["p50_us"]
                wall += time.monotonic() - begin
                foreign += busy_seconds(cpus) - busy - cpu_s
                results[name][count]["rounds"].append(figures)
        order.reverse()
    for by_count in results.values():
        for figures in by_count.values():
            for key in ("calls_per_s", "p50_us", "p99_us", "tail"):
                figures[key] = statistics.median(r[key] for r in figures["rounds"])
    results["disturbance"] = round(max(0.0, foreign / wall), 3)
    return results


def judge(
    results: dict[str, Any], cpus: list[int], callers: list[int]
) -> tuple[list[list[str]], bool]:
    """Make the table, a row for each library and number of callers, and say if targets are met."""
    rows = [["callers", "library", "calls/s", "p50 us", "p99 us", "p99/p50", "gain", "ratio", ""]]
    good = True
    for count in sorted({1, *callers}):
        ours, theirs = (results[name][count] for name in NAMES)
        ratio = ours["ratio"] = statistics.median(
            a["calls_per_s"] / b["calls_per_s"]
            for a, b in zip(ours["rounds"], theirs["rounds"], strict=True)
        )
        full = results["fastgru"].get(len(cpus), ours)
        met = (
            ratio >= THROUGHPUT_TARGET
            and ours["tail"] <= TAIL_TARGET
            and (count < len(cpus) or ours["calls_per_s"] >= KEEP_TARGET * full["calls_per_s"])
        )
        good = good and (met or count not in callers)
        for name in NAMES:
            f = results[name][count]
            row = [str(count), name, *(f"{f[key]:.0f}" for key in ("calls_per_s", "p50_us"))]
            row += [f"{f['p99_us']:.0f}", f"{f['tail']:.2f}"]
            row.append(f"{f['calls_per_s'] / results[name][1]['calls_per_s']:.2f}")
            rows.append([*row, "", ""])
        rows[-2][-2:] = [f"{ratio:.2f}", ("ok" if met else "MISSED") if count in callers else ""]
    return rows, good


def main() -> int:
    """Run from the command line.

    Returns
    -------
    int
        1 if a target was missed, 2 if an answer was wrong or a library is missing.
    """
    options = _parser().parse_args()
    cpus = options.cpus
    if not cpus:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        cpus = choose_cpus(min(max(options.callers), allowed))
    record = records.new_record(
        "callers", {k: str(v) for k, v in vars(options).items()} | {"cpus": cpus}
    )
    problem = make_problem(Shape.parse(options.shape), seed=1)
    connections = introduce({name: name for name in NAMES}, serve, [problem], cpus, record)
    if connections is None:
        return 2
    results = record["results"] = measure(connections, cpus, options)
    disturbance = results["disturbance"]
    if disturbance > DISTURBED:
        print(f"DISTURBED: other programs took {disturbance:.2f} of {len(cpus)} cpus")
    rows, good = judge(results, cpus, options.callers)
    where = f"on {len(cpus)} ({', '.join(map(str, cpus))}) of {os.cpu_count()} processors"
    print(f"{options.shape} {where}\n{records.text_table(rows)}")
    if options.output is not None:
        note = (
            f"Threads of one process {where} call one layer at {options.shape}, one thread a call; "
            f"medians of {options.rounds} rounds. Gain: over one caller. Ratio: of the throughputs "
            f"within a round. Targets: ratio {THROUGHPUT_TARGET}, p99/p50 {TAIL_TARGET}, "
            f"{KEEP_TARGET} of the throughput of {len(cpus)} callers."
        )
        records.save(record, rows, note, options.output)
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time callers that share one layer.")
    add = parser.add_argument
    add("--callers", type=int, nargs="+", default=[4], help="Python threads; several: one by one")
    add("--cpus", type=int, nargs="+", help="processors; default: one a caller, if there are")
    add("--shape", default="b1t50i64h128")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=0.25, help="how long a round lasts")
    add("--output", type=Path, help="FOLDER/NAME: writes FOLDER/<date>-NAME.json and .md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
