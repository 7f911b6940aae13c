"""How far each library's float32 answer is from float64, over many steps.

    python benchmarks/accuracy.py --output benchmarks/results/NAME

At two kinds of weights: PyTorch's default (uniform in +-1/sqrt(H)), with which the recurrence
forgets its errors, and Keras' (glorot_uniform, orthogonal, zero biases), with which it keeps them
longer. Target: our largest and our RMS error are at most 1.5 times torch's; status 1 if not.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import records
from machine import choose_cpus
from peers import ENVIRONMENT
from problems import Problem, Shape, forward_reference, make_problem
from worker import MissingPeer, Worker

NAMES = ("fastgru", "torch", "onnxruntime", "openvino", "keras-jax", "numpy")
OURS, JUDGE = "fastgru", "torch"
TARGET = 1.5


def keras_weights(problem: Problem, seed: int) -> Problem:
    """Give the problem the weights that Keras' default initializers draw."""
    I, H = problem.shape.I, problem.shape.H
    draw = np.random.default_rng([seed, I, H])
    limit = (6 / (I + 3 * H)) ** 0.5
    # Orthonormal rows, from the columns of Q; the signs make the draw uniform.
    q, r = np.linalg.qr(draw.standard_normal((3 * H, H)))
    return replace(
        problem,
        kernel=draw.uniform(-limit, limit, (I, 3 * H)).astype(np.float32),
        recurrent_kernel=np.ascontiguousarray((q * np.sign(np.diag(r))).T, np.float32),
        bias=np.zeros((2, 3 * H), np.float32),
    )


def measure(worker: Worker, problem: Problem, truth: np.ndarray) -> dict[str, float]:
    """Compare a library's answer with the reference: ``max`` and ``rms`` of the error."""
    error = worker.prepare("forward", problem) - truth
    return {"max": float(np.abs(error).max()), "rms": float(np.sqrt(np.mean(error**2)))}


def main() -> int:
    """Run from the command line.

    Returns
    -------
    int
        1 if ours is over the target, 2 if fastgru or torch is missing.
    """
    options = _parser().parse_args()
    record = records.new_record("accuracy", {k: str(v) for k, v in vars(options).items()})
    shape = Shape.parse(options.shape)
    plain = make_problem(shape, options.seed)
    problems = {"torch's": plain, "Keras'": keras_weights(plain, options.seed)}
    truths = {weights: forward_reference(problem)[0] for weights, problem in problems.items()}
    record["versions"] = {}
    errors: dict[str, dict[str, Any]] = {weights: {} for weights in problems}
    record["errors"] = errors
    cpus = choose_cpus(1)
    for name in NAMES:
        with Worker(name, ENVIRONMENT.get(name, {}), 1, cpus) as worker:
            try:
                versions = worker.start()
            except MissingPeer as error:
                print(f"{name}: missing: {error}")
                continue
            record["versions"] |= {k: v for k, v in versions.items() if k not in ("path", "python")}
            for weights, problem in problems.items():
                errors[weights][name] = measure(worker, problem, truths[weights])
    if any(name not in errors["torch's"] for name in (OURS, JUDGE)):
        print(f"{OURS} and {JUDGE} are both needed", file=sys.stderr)
        return 2
    rows = [["weights", "library", "max error", "RMS error", "max / torch's", "RMS / torch's"]]
    over = []
    for weights, figures in errors.items():
        for name, f in figures.items():
            ratios = [f[kind] / figures[JUDGE][kind] for kind in ("max", "rms")]
            if name == OURS and max(ratios) > TARGET:
                over.append(f"{weights} weights: {max(ratios):.2f}, target {TARGET}")
            rows.append(
                [weights, name, f"{f['max']:.2e}", f"{f['rms']:.2e}", *(f"{r:.2f}" for r in ratios)]
            )
    verdict = f"Target {TARGET} times torch's error: {'OVER: ' if over else 'ok'}{'; '.join(over)}."
    print(records.text_table(rows) + "\n" + verdict)
    if options.output is not None:
        note = f"Error of float32 outputs against float64 at {shape}. {verdict}"
        records.save(record, rows, note, options.output)
    return 1 if over else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare errors against float64.")
    add = parser.add_argument
    add("--shape", default="b8t1000i64h128")
    add("--seed", type=int, default=1)
    add("--output", type=Path, help="FOLDER/NAME: writes FOLDER/<date>-NAME.json and .md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
