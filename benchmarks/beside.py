"""Small calls beside long ones, of more threads than there are processors.

    python benchmarks/beside.py --output benchmarks/results/NAME

Two threads call on a row of 50 steps, two on a batch of 64, without pause, on two processors; every
call on its own thread alone. Each library has its own process, asked in turn and in the opposite
order every other round, and bound to the same processors. "No turns" is fastgru where long calls
keep their processor for as long as the system leaves it to them. Nothing is judged: how much the
small calls get, and how much the long ones, is a choice.
"""

import argparse
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import records
from callers import call_together, start
from compare import TOLERANCE
from machine import busy_seconds, choose_cpus
from peers import PEERS
from problems import Problem, Shape, forward_reference, make_problem
from report import DISTURBED

NO_TURNS = "fastgru, no turns"
NAMES = ("fastgru", NO_TURNS, "onnxruntime")
KEYS = ("calls_per_s", "p50_us", "p99_us")


def serve(connection: Connection, name: str, problems: list[Problem], cpus: list[int]) -> None:
    """Be the process of one library: give its versions and answers, then call as it is asked to."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    try:
        peer = PEERS[name.partition(",")[0]](1)
        calls = [peer.forward(problem) for problem in problems]
    except ImportError as error:
        connection.send((None, str(error)))
        return
    connection.send((peer.versions(), [c.to_numpy(c.call()) for c in calls]))
    if name == NO_TURNS:
        from fastgru._native import _threads

        _threads.set_processors(1 << 30)  # so many are never taken
    while True:
        try:
            callers, seconds = connection.recv()
        except EOFError:  # the parent is done
            return
        groups = [(c.call, count) for c, count in zip(calls, callers, strict=True)]
        connection.send(call_together(groups, seconds))


def measure(
    connections: dict[str, Connection], cpus: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """Ask all in turn; return by library the medians of small and of long calls."""
    rounds: dict[str, list[list[dict[str, float]]]] = {name: [] for name in connections}
    order = list(connections)
    foreign = wall = 0.0
    for _ in range(options.rounds):
        for name in order:
            busy, begin = busy_seconds(cpus), time.monotonic()
            connections[name].send(((options.small, options.long), options.seconds))
            figures, cpu_s = connections[name].recv()
            wall += time.monotonic() - begin
            foreign += busy_seconds(cpus) - busy - cpu_s
            rounds[name].append(figures)
        order.reverse()
    results: dict[str, Any] = {
        name: [
            {key: statistics.median(figures[group][key] for figures in taken) for key in KEYS}
            for group in range(2)
        ]
        for name, taken in rounds.items()
    }
    results["rounds"] = rounds
    results["disturbance"] = round(max(0.0, foreign / wall), 3)
    return results


def main() -> int:
    """Run from the command line; 2 if an answer was wrong or a library is missing."""
    parser = argparse.ArgumentParser(description="Time small calls beside long ones.")
    add = parser.add_argument
    add("--small", type=int, default=2, help="threads that make small calls")
    add("--long", type=int, default=2, help="threads that make long ones")
    add("--shapes", nargs=2, default=["b1t50i64h128", "b64t60i24h64"])
    add("--cpus", type=int, nargs="+", help="processors; default: two")
    add("--rounds", type=int, default=9)
    add("--seconds", type=float, default=1.0, help="how long a round lasts")
    add("--output", type=Path, help="FOLDER/NAME: writes FOLDER/<date>-NAME.json and .md")
    options = parser.parse_args()
    cpus = options.cpus or choose_cpus(2)
    record = records.new_record(
        "beside", {k: str(v) for k, v in vars(options).items()} | {"cpus": cpus}
    )
    problems = [make_problem(Shape.parse(shape), seed=1) for shape in options.shapes]
    truths = [forward_reference(problem)[0] for problem in problems]
    connections = {}
    record["versions"] = {}
    for name in NAMES:
        connections[name] = start(name.partition(",")[0], serve, name, problems, cpus)
        versions, answers = connections[name].recv()
        if versions is None:
            print(f"{name}: missing: {answers}", file=sys.stderr)
            return 2
        for answer, truth in zip(answers, truths, strict=True):
            error = float(np.abs(answer - truth).max())
            if not error <= TOLERANCE:
                print(f"{name}: WRONG: off by {error:.1e}", file=sys.stderr)
                return 2
        record["versions"] |= {k: v for k, v in versions.items() if k != "path"}
    results = record["results"] = measure(connections, cpus, options)
    if results["disturbance"] > DISTURBED:
        print(f"DISTURBED: other programs took {results['disturbance']:.2f} of {len(cpus)} cpus")
    rows = [["library", "small/s", "p50 us", "p99 us", "long/s", "p50 us", "p99 us"]]
    rows += [[name, *(f"{f[key]:.0f}" for f in results[name] for key in KEYS)] for name in NAMES]
    where = f"on {len(cpus)} ({', '.join(map(str, cpus))}) of {os.cpu_count()} processors"
    print(f"{' and '.join(options.shapes)} {where}\n{records.text_table(rows)}")
    if options.output is not None:
        note = (
            f"{options.small} threads make small calls ({options.shapes[0]}) and {options.long} "
            f"long ones ({options.shapes[1]}), all of one process, {where}, one thread a call; "
            f"medians of {options.rounds} rounds."
        )
        records.save(record, rows, note, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
