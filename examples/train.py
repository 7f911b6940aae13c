"""Train a GRU with NumPy: the adding problem of Hochreiter and Schmidhuber (1997).

    python examples/train.py

A row is 30 random numbers in [0, 1], of which two are marked; the target is the sum of these two.
Who always says 1 has a mean squared error of 1/6. The program trains until the error on rows that
it has not seen is below 0.01, or says that it did not get there, and draws its loss if matplotlib
is installed. docs/training.md explains each part.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import fastgru

STEPS, UNITS, BATCH, GOAL = 30, 32, 64, 0.01


def adding_problem(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (rows, STEPS, 2), numbers and marks, and targets (rows, 1)."""
    x = np.zeros((rows, STEPS, 2), "float32")
    x[:, :, 0] = rng.random((rows, STEPS))
    half = STEPS // 2
    marked = np.stack([rng.integers(0, half, rows), rng.integers(half, STEPS, rows)], 1)
    x[np.arange(rows)[:, None], marked, 1] = 1
    return x, (x[:, :, 0] * x[:, :, 1]).sum(1, keepdims=True)


class Model:
    """A GRU and a linear output, trained by Adam with gradients clipped to a norm of 1."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        self.gru = fastgru.GRU(UNITS, input_shape=(STEPS, 2))
        draw = fastgru.initializers.GlorotUniform()
        self.kernel = fastgru.Variable(draw((UNITS, 1)), name="output/kernel")
        self.bias = fastgru.Variable(np.zeros(1, "float32"), name="output/bias")
        self.weights = [*self.gru.trainable_weights, self.kernel, self.bias]
        self.learning_rate, self.step = learning_rate, 0
        self.slots = {w.path: [np.zeros(w.shape, "float32") for _ in "mv"] for w in self.weights}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs (B, 1)."""
        return self.gru(x) @ self.kernel.value + self.bias.value

    def train(self, x: np.ndarray, target: np.ndarray) -> float:
        """Take one step down the gradient of the mean squared error, and return the error."""
        y, tape = self.gru.forward(x)
        difference = y @ self.kernel.value + self.bias.value - target
        d = 2 * difference / difference.size
        of_gru = self.gru.backward(tape, d @ self.kernel.value.T).weights
        self.update([*of_gru, y.T @ d, d.sum(axis=0)])
        return float(np.mean(difference**2))

    def update(self, gradients: list[np.ndarray]) -> None:
        """Change the weights by Adam's rule (Kingma and Ba 2015)."""
        norm = np.sqrt(sum(float(np.sum(np.square(g))) for g in gradients))
        self.step += 1
        rate = self.learning_rate * np.sqrt(1 - 0.999**self.step) / (1 - 0.9**self.step)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            gradient = gradient / max(1.0, norm)
            m, v = self.slots[weight.path]
            m += 0.1 * (gradient - m)
            v += 0.001 * (np.square(gradient) - v)
            weight.assign_sub(rate * m / (np.sqrt(v) + 1e-7))


def progress(step: int, most: int, error: float) -> None:
    """Draw a bar on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        done = 30 * step // most
        bar = "#" * done + "." * (30 - done)
        print(
            f"\r[{bar}] step {step} of at most {most}, error {error:.4f}", end="", file=sys.stderr
        )


def plot(errors: list[float], path: str) -> bool:
    """Draw the error of each step; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.semilogy(errors, linewidth=0.5)
    plt.axhline(GOAL, color="black", linestyle="--")
    plt.xlabel("step")
    plt.ylabel("mean squared error")
    plt.savefig(path, dpi=150)
    return True


def main() -> int:
    """Train; return 0 if the error got below the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="at most so many (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="train.png", help="'' for none (default: train.png)")
    options = parser.parse_args()
    fastgru.set_random_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    model = Model()
    x_test, y_test = adding_problem(rng, 1000)
    errors: list[float] = []
    error = np.inf
    while error >= GOAL and len(errors) < options.steps:
        errors.append(model.train(*adding_problem(rng, BATCH)))
        if len(errors) % 100 == 0:
            error = float(np.mean((model(x_test) - y_test) ** 2))
            progress(len(errors), options.steps, error)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(
        f"mean squared error on unseen rows: {error:.4f} after {len(errors)} steps (goal: {GOAL})"
    )
    if options.plot and plot(errors, options.plot):
        print(f"plot: {options.plot}")
    return 0 if error < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
