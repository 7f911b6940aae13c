"""Compare the time of a GRU layer with that of other libraries: inference, training, streams.

    python benchmarks/compare.py --rounds 5 --threads 2 --output benchmarks/results/NAME
    python benchmarks/compare.py --task training --rounds 5 --threads 2

How it is made fair:

- Every peer has its own process, bound to the same processors, told the same number of threads.
  They are asked in turn, so that only one computes at a time, and in the opposite order every other
  round. OPENBLAS_CORETYPE, OPENBLAS_L2_SIZE and the like are taken out of their environment.
- Every answer is compared with a float64 reference first. A peer that is off by more than 2e-5
  anywhere (training: of the largest entry of the output or gradient) is not timed, and the run ends
  with status 1. One bound serves all sizes, because the drawn weights make the recurrence contract.
  Correct float32 is off by less than 2e-6; bfloat16 or TF32 would be beyond the bound.
- Spinning is left as each library has it, inside its own block of calls: it is part of how it is
  fast. After its block a process waits until its threads have gone quiet, and only then answers,
  so that no idle pool disturbs the next one. A pool that is still busy after a second is reported.
- A round times each peer for at least 50 ms and 5 calls, after 10 ms of warming up, and takes the
  median call. A ratio is a peer's time divided by ours in the same round; the median over the
  rounds is shown, so that a machine that drifts does not favour anyone.
- What other programs (or the hypervisor) took of these processors meanwhile is measured, stored
  with each shape and complained about: two spinning threads and one foreign one make any figure.
- What the processors allow at that moment, multiply-adds and reads from a buffer as large as the
  weights, is measured right after ours in every round, and ours is shown as a share of it.
- Each peer has its input and weights in the type and layout it likes best before the clock starts.
"""

import argparse
import json
import os
import shlex
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import report
from machine import busy_seconds, choose_cpus, describe_machine
from peers import ENVIRONMENT, PEERS
from problems import TASKS, Float64Array, Problem, Shape, least_work, make_problem, select_shapes
from worker import MissingPeer, Worker, WorkerError, parse_variables, settle

TOLERANCE = 2e-5


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Returns
    -------
    int
        0; 1 if an answer was wrong or a peer failed; 2 if ours is missing.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.read is not None:
        earlier = json.loads(options.read.read_text())
        show(earlier, options.markdown)
        if options.plot:
            report.plot(earlier, options.read.with_suffix(".png"))
        return 0
    try:
        shapes = select_shapes(options.shapes, TASKS[options.task].shapes)
        if options.task == "stream" and any(shape.T != 1 for shape in shapes):
            raise ValueError("a stream is timed a step at a time: t1")
        cpus = choose_cpus(options.threads)
        names = _peer_names(options)
        for name in names:
            parse_variables(name.partition("@")[2])
    except ValueError as error:
        parser.error(str(error))
    if options.output is not None and options.plot and find_spec("matplotlib") is None:
        parser.error("matplotlib draws the plot: install it, or pass --no-plot")

    started = datetime.now(UTC).astimezone()
    results: dict[str, Any] = {
        "task": options.task,
        "ours": options.ours,
        "created": started.isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "settings": {
            "threads": options.threads,
            "cpus": cpus,
            "rounds": options.rounds,
            "block_ms": options.block_ms,
            "min_calls": options.min_calls,
            "seed": options.seed,
            "tolerance": options.tolerance,
        },
        "machine": describe_machine(),
        "peers": {},
        "shapes": [],
    }
    with ExitStack() as stack:
        workers = start_workers([*names, "limits"], options.threads, cpus, results, stack)
        limits = workers.pop("limits", None)
        results["limits"] = results["peers"].pop("limits")
        if options.ours not in workers:
            print(f"nothing to compare with: {options.ours} is missing", file=sys.stderr)
            return 2
        for shape in shapes:
            results["shapes"].append(measure(shape, workers, limits, cpus, options))
            if options.output is not None:
                save(results, options.output, started, plot=options.plot and shape is shapes[-1])
    show(results, options.markdown)
    bad = any("failed" in f for entry in results["shapes"] for f in entry["peers"].values())
    return 1 if bad else 0


def start_workers(
    names: list[str], threads: int, cpus: list[int], results: dict[str, Any], stack: ExitStack
) -> dict[str, Worker]:
    """Start the peers one after the other; name those that are missing, with the reason.

    Parameters
    ----------
    names : list of str
    threads : int
    cpus : list of int
    results : dict
        ``results["peers"]`` is filled in.
    stack : ExitStack
        Closes the processes.

    Returns
    -------
    dict of Worker
        By name, those that run.
    """
    workers = {}
    for name in names:
        peer = name.partition("@")[0]
        worker = stack.enter_context(Worker(name, ENVIRONMENT.get(peer, {}), threads, cpus))
        record: dict[str, Any] = {"environment": worker.environment}
        try:
            record["versions"] = worker.start()
            workers[name] = worker
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}")
        except WorkerError as error:
            record["missing"] = str(error)
            kind = "missing" if isinstance(error, MissingPeer) else "failed"
            print(f"{name}: {kind}: {error}")
        results["peers"][name] = record
    return workers


def measure(
    shape: Shape,
    workers: dict[str, Worker],
    limits: Worker | None,
    cpus: list[int],
    options: argparse.Namespace,
) -> Any:
    """Check every peer's answer for one shape, then time those that are right, round by round.

    Returns
    -------
    dict
        The shape's entry of the results, with every round's figures, medians and ratios.
    """
    problem = make_problem(shape, options.seed)
    truth = TASKS[options.task].reference(problem)
    settle()
    figures = {
        name: check(worker, options.task, problem, truth, options.tolerance)
        for name, worker in workers.items()
    }
    order = [name for name in workers if "failed" not in figures[name]]
    errors = ", ".join(
        f"{name} {f['max_error']:.1e}" for name, f in figures.items() if "max_error" in f
    )
    print(f"{shape}: max error {errors}", flush=True)
    for name in order:
        figures[name]["rounds"] = []
    entry: dict[str, Any] = {"shape": str(shape), "peers": figures}
    if limits is not None:
        entry["limits"] = least_work(options.task, shape) | {"rounds": []}
    wall = foreign = 0.0
    for _ in range(options.rounds):
        for name in list(order):
            busy, start = busy_seconds(cpus), time.monotonic()
            try:
                block = workers[name].block(options.block_ms / 1e3, options.min_calls)
            except WorkerError as error:
                figures[name] = {"failed": str(error)}
                order.remove(name)
                continue
            wall += time.monotonic() - start
            foreign += busy_seconds(cpus) - busy - block["cpu_s"]
            figures[name]["rounds"].append(block)
            if not block["quiet"]:
                print(f"{shape}: {name} was still busy a second after its last call")
            if limits is not None and name == options.ours:  # right after ours: the same machine
                size = entry["limits"]["weight_bytes"]
                figure = limits.measure(options.block_ms / 1e3, size)
                entry["limits"]["rounds"].append(figure)
        order.reverse()
    disturbance = max(0.0, foreign / wall) if wall else 0.0
    if disturbance > report.DISTURBED:
        print(f"{shape}: DISTURBED: other programs took {disturbance:.2f} of {len(cpus)} cpus")
    entry["disturbance"] = round(disturbance, 3)
    for name, f in figures.items():
        if "failed" in f:
            print(f"{shape}: {name}: {f['failed']}")
    report.summarise(entry, options.ours)
    return entry


def check(
    worker: Worker, task: str, problem: Problem, truth: list[Float64Array], tolerance: float
) -> dict[str, Any]:
    """Compare a peer's answer with the reference.

    Returns
    -------
    dict
        ``max_error``; ``failed`` and ``wrong`` if it must not be timed.
    """
    try:
        answer = worker.prepare(task, problem)
    except WorkerError as failure:
        return {"failed": str(failure)}
    got, expected = ([array.shape for array in arrays] for arrays in (answer, truth))
    if got != expected:
        return {"failed": f"shapes {got}, expected {expected}", "wrong": True}
    errors = [
        np.abs(array - right).max() / (np.abs(right).max() if TASKS[task].relative else 1.0)
        for array, right in zip(answer, truth, strict=True)
    ]
    error = float(np.max(errors))
    if not error <= tolerance:  # NaN is wrong too
        return {
            "max_error": error,
            "failed": f"WRONG: off by {error:.1e}, allowed {tolerance:.1e}",
            "wrong": True,
        }
    return {"max_error": error}


def save(results: dict[str, Any], output: Path, started: datetime, *, plot: bool) -> None:
    """Write <date>-<name>.json and .md, at the end .png, into the folder of `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{started:%Y-%m-%d}-{output.name}"
    (output.parent / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (output.parent / f"{stem}.md").write_text(report.markdown(results))
    if plot and report.geometric_means(results):
        report.plot(results, output.parent / f"{stem}.png")


def show(results: dict[str, Any], as_markdown: bool) -> None:
    """Print the table."""
    print(report.markdown(results) if as_markdown else "\n" + report.text_table(results))


def _peer_names(options: argparse.Namespace) -> list[str]:
    able = [name for name, peer in PEERS.items() if hasattr(peer, options.task)]
    names = list(dict.fromkeys([options.ours, *(options.peers or able)]))
    unknown = [name for name in names if name.partition("@")[0] not in able]
    if unknown:
        raise ValueError(
            f"no peer for {options.task}: {', '.join(unknown)}; there are {', '.join(able)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare a GRU with other libraries, float32, on the CPU.",
        epilog=". ".join(
            f"{name}: {task.what}; named shapes: {' '.join(task.shapes)}"
            for name, task in TASKS.items()
        ),
    )
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="forward", help="default: %(default)s; see below")
    add("--shapes", nargs="+", default=[], help="problem strings or patterns; default: all named")
    add(
        "--peers",
        nargs="+",
        default=[],
        help=f"of {', '.join(PEERS)}; default: all that do the task; "
        "NAME@VARIABLE=value,... runs one with that in its environment, "
        "such as numpy@OPENBLAS_CORETYPE=Haswell or fastgru@FASTGRU_BACKEND=reference",
    )
    add("--ours", default="fastgru", help="the peer that the others are divided by")
    add("--rounds", type=_positive, default=5)
    add("--threads", type=_positive, default=allowed, help="default: all allowed, %(default)s")
    add("--block-ms", type=float, default=50.0, help="at least so long a block")
    add("--min-calls", type=_positive, default=5, help="at least so many calls a block")
    add("--seed", type=int, default=1)
    add("--tolerance", type=float, default=TOLERANCE, help="largest error allowed")
    add("--output", type=Path, help="FOLDER/NAME: writes FOLDER/<date>-NAME.json, .md and .png")
    add("--no-plot", dest="plot", action="store_false", help="matplotlib is not needed then")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--read", type=Path, metavar="JSON", help="show and plot an earlier run; nothing is timed")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
