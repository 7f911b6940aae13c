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

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import callers
import records
from machine import busy_seconds, choose_cpus
from problems import Problem, Shape, make_problem
from report import DISTURBED

NO_TURNS = "fastgru, no turns"
LIBRARIES = {"fastgru": "fastgru", NO_TURNS: "fastgru", "onnxruntime": "onnxruntime"}
KEYS = ("calls_per_s", "p50_us", "p99_us")


def serve(connection: Connection, name: str, problems: list[Problem], cpus: list[int]) -> None:
    """Be the process of one library, as in callers.py, or of fastgru without turns."""
    if name == NO_TURNS:
        from fastgru._native import _threads
        from fastgru.backends import cpu

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
        cpu.build_info()  # which sets the true number, here and for calls in line
        _threads.set_processors(1 << 30)  # so many are never taken
    callers.serve(connection, LIBRARIES[name], problems, cpus)


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
    connections = callers.introduce(LIBRARIES, serve, problems, cpus, record)
    if connections is None:
        return 2
    results = record["results"] = measure(connections, cpus, options)
    if results["disturbance"] > DISTURBED:
        print(f"DISTURBED: other programs took {results['disturbance']:.2f} of {len(cpus)} cpus")
    rows = [["library", "small/s", "p50 us", "p99 us", "long/s", "p50 us", "p99 us"]]
    rows += [
        [name, *(f"{f[key]:.0f}" for f in results[name] for key in KEYS)] for name in LIBRARIES
    ]
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
