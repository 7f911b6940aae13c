"""What fastgru's own options cost: the time of a call with one, divided by that of a call without.

    python benchmarks/options.py --output benchmarks/results/NAME

Both calls are made in this process, on the same problem: A, B, B, A, ..., a block of at least
50 ms and 5 calls each, warmed before and idle after (`worker.time_block`). A ratio is taken within
a round; the median over the rounds is shown. It prints "over" beside a ratio that exceeds its
target and ends with status 1 if there is one. Cases without a target are there to show that no
option hides a slow path.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import records
from machine import busy_seconds, choose_cpus
from problems import Problem, Shape, make_problem
from report import DISTURBED
from worker import REMOVED_VARIABLES, time_block

sys.path.append(str(Path(__file__).resolve().parent.parent))  # an installed fastgru comes first

Call = Callable[[], Any]
Prepare = Callable[[], tuple[Call, Call]]


@dataclass(frozen=True)
class Case:
    """Two calls to compare.

    Attributes
    ----------
    name : str
    target : float or None
        The largest ratio that is good enough.
    prepare : callable
        Gives the call with the option and the one without.
    """

    name: str
    target: float | None
    prepare: Prepare


def cases() -> Iterator[Case]:
    """List all cases."""
    from fastgru import activations

    sizes = Shape(32, 100, 128, 256)
    T, rng = sizes.T, np.random.default_rng(5)
    lengths = rng.permutation(np.linspace(1, T - 1, sizes.B).round())
    padded = np.arange(T) < lengths[:, np.newaxis]
    holes = rng.permuted(np.arange(sizes.B * T) % 2 == 0).reshape(sizes.B, T)
    resets = rng.random((sizes.B, T)) < 0.05
    for both in (False, True):
        what = " forward+backward" if both else " forward"
        call = _training if both else _inference
        yield _case(f"mask, right-padded, half the steps{what}", 0.60, sizes, call, mask=padded)
        yield _case(f"mask, random holes, half the steps{what}", 0.60, sizes, call, mask=holes)
        yield _case(
            f"recurrent_dropout=0.2{what}",
            1.15,
            sizes,
            call,
            layer={"recurrent_dropout": 0.2, "seed": 1},
            training=True,
        )
        yield _case(
            f"reset_after=False{what}",
            1.35,
            Shape(8, 100, 256, 512),
            call,
            layer={"reset_after": False},
        )
        yield _case(
            f"return_sequences=False{what}", None, sizes, call, layer={"return_sequences": False}
        )
        yield _case(f"go_backwards=True{what}", None, sizes, call, layer={"go_backwards": True})
        yield _case(f"reset_mask, 5 % of the steps{what}", None, sizes, call, reset_mask=resets)
    for shape in (Shape(8, 100, 256, 512), sizes):
        yield _case("float64 forward", 2.2, shape, _inference, layer={"dtype": "float64"})
    small = Shape(8, 100, 64, 128)
    defaults = {"threshold": activations.threshold.with_params(0.1, 0.0)}
    for name in dict.fromkeys(
        value.name
        for value in vars(activations).values()
        if isinstance(value, activations.Activation) and value.shape_preserving
    ):
        if name != "tanh":
            function = {"activation": defaults.get(name, name)}
            yield _case(f"activation={name} forward", None, small, _inference, layer=function)
    # Gates outside [0, 1] make no GRU: it overflows.
    for name in ("hard_sigmoid", "hard_sigmoid_keras2", "sparse_sigmoid"):
        function = {"recurrent_activation": name}
        yield _case(f"recurrent_activation={name} forward", None, small, _inference, layer=function)


def _case(
    name: str,
    target: float | None,
    shape: Shape,
    make: Callable[..., Call],
    layer: dict[str, Any] | None = None,
    training: bool = False,
    **arguments: Any,
) -> Case:
    """Describe a case by the arguments that the option is: of the layer, or of its call.

    ``training`` is given to both calls.
    """

    def prepare() -> tuple[Call, Call]:
        problem = make_problem(shape, seed=1)
        option = make(problem, layer or {}, training, arguments)
        return option, make(problem, {}, training, {})

    return Case(f"{name} {shape}", target, prepare)


def _inference(
    problem: Problem, layer: dict[str, Any], training: bool, arguments: dict[str, Any]
) -> Call:
    gru, x = _layer(problem, layer)
    if training:
        arguments = arguments | {"training": True}
    assert np.isfinite(gru(x, **arguments)).all()  # infinities may be slower or faster
    return lambda: gru(x, **arguments)


def _training(
    problem: Problem, layer: dict[str, Any], training: bool, arguments: dict[str, Any]
) -> Call:
    gru, x = _layer(problem, layer)
    arguments = arguments | {"training": training}
    y = gru(x, **arguments)
    assert np.isfinite(y).all()
    gradients = np.random.default_rng(2).standard_normal(y.shape, x.dtype)

    def call() -> None:
        _, tape = gru.forward(x, **arguments)
        gru.backward(tape, gradients)

    return call


def _layer(problem: Problem, arguments: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """Build a layer with the problem's weights; give it and the input, in the layer's dtype."""
    import fastgru

    gru: Any = fastgru.GRU(problem.shape.H, **({"return_sequences": True} | arguments))
    gru.build(problem.x.shape)
    bias = problem.bias if gru.reset_after else problem.bias.sum(0)
    gru.set_weights([problem.kernel, problem.recurrent_kernel, bias])
    return gru, problem.x.astype(gru.dtype)


def measure(case: Case, cpus: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Time both calls of a case.

    Parameters
    ----------
    case : Case
    cpus : list of int
        Where to look for disturbance by other programs.
    options : argparse.Namespace

    Returns
    -------
    dict
        ``rounds``, medians ``option_us`` and ``plain_us``, ``ratio``, ``target``, ``disturbance``.
    """
    calls = dict(zip(("option", "plain"), case.prepare(), strict=True))
    order = list(calls)
    rounds: list[dict[str, Any]] = []
    foreign = wall = 0.0
    for _ in range(options.rounds):
        busy, start = busy_seconds(cpus), os.times()
        rounds.append({name: time_block(calls[name], options.block_ms / 1e3, 5) for name in order})
        order.reverse()
        end = os.times()
        wall += end.elapsed - start.elapsed
        ours = end.user + end.system - start.user - start.system
        foreign += busy_seconds(cpus) - busy - ours
    times = {name: [r[name]["median_us"] for r in rounds] for name in calls}
    return {
        "case": case.name,
        "option_us": statistics.median(times["option"]),
        "plain_us": statistics.median(times["plain"]),
        "ratio": statistics.median(
            a / b for a, b in zip(times["option"], times["plain"], strict=True)
        ),
        "target": case.target,
        "disturbance": round(max(0.0, foreign / wall), 3),
        "rounds": rounds,
    }


def row(result: dict[str, Any]) -> list[str]:
    """Format one case."""
    target = result["target"]
    return [
        result["case"] + (" (disturbed)" if result["disturbance"] > DISTURBED else ""),
        f"{result['option_us']:.0f}",
        f"{result['plain_us']:.0f}",
        f"{result['ratio']:.2f}",
        "-" if target is None else f"{target:.2f}",
        "-" if target is None else "over" if result["ratio"] > target else "ok",
    ]


def main() -> int:
    """Run from the command line.

    Returns
    -------
    int
        1 if a ratio exceeds its target.
    """
    options = _parser().parse_args()
    record = records.new_record("options", {k: str(v) for k, v in vars(options).items()})
    for name in REMOVED_VARIABLES:  # before SciPy's BLAS is loaded, by the first call
        os.environ.pop(name, None)
    cpus = choose_cpus(options.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    import fastgru

    fastgru.set_num_threads(options.threads)
    record["versions"] = {"fastgru": fastgru.__version__, "numpy": np.__version__}
    record["path"] = os.path.dirname(fastgru.__file__)
    record["settings"]["cpus"] = cpus
    record["cases"] = []
    rows = [["case", "with, us", "without, us", "ratio", "target", ""]]
    for case in cases():
        if any(fnmatchcase(case.name, pattern) for pattern in options.cases):
            record["cases"].append(measure(case, cpus, options))
            rows.append(row(record["cases"][-1]))
            print("  ".join(rows[-1]), flush=True)
    print("\n" + records.text_table(rows))
    if options.output is not None:
        note = (
            f"Microseconds a call, {options.threads} threads, medians of {options.rounds} rounds; "
            "ratio: time with the option divided by time without."
        )
        records.save(record, rows, note, options.output)
    return 1 if any(cells[-1] == "over" for cells in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time fastgru's options against plain calls.")
    add = parser.add_argument
    add("--cases", nargs="+", default=["*"], help="patterns over the cases' names, as '*mask*'")
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=2)
    add("--block-ms", type=float, default=50.0, help="at least so long a block")
    add("--output", type=Path, help="FOLDER/NAME: writes FOLDER/<date>-NAME.json and .md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
