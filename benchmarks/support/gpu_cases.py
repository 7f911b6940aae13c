"""What gpu.py asks of every peer: sizes, options, data, and the answers in float64.

All arrays are representable in float16, so that one reference serves both dtypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from problems import Float32Array, Float64Array, Shape, make_problem

STEPS = 100
PLAIN, HOLES, BEFORE, DROPOUT = "plain", "mask with holes", "reset_after=False", "recurrent_dropout"
RATE = 0.2  # of the recurrent dropout
# The largest error allowed, absolute, of outputs within +-1. Products rounded to TF32 are off by
# more than 1e-4; a half keeps 11 bits of every state and of every product's operand.
TOLERANCES = {"float32": 2e-5, "float16": 1e-2}


@dataclass(frozen=True)
class Case:
    """One GRU call with every output, in Keras' layout, gates in the order z, r, h; float32 arrays.

    Attributes
    ----------
    shape : Shape
    dtype : str
        What the peer computes in: float32 or float16 (sums in float32).
    option : str
        PLAIN, HOLES, BEFORE or DROPOUT. With DROPOUT every peer draws three masks (B, H) a call.
    x : (B, T, I)
    kernel : (I, 3H)
    recurrent_kernel : (H, 3H)
    bias : (2, 3H); (3H,) with reset_after=False
    mask : (B, T) bool or None
        With HOLES: half of the steps; a masked one keeps the state and repeats the output.
    """

    shape: Shape
    dtype: str
    option: str
    x: Float32Array
    kernel: Float32Array
    recurrent_kernel: Float32Array
    bias: Float32Array
    mask: Any = None

    def __str__(self) -> str:
        """Name it in tables."""
        return " ".join([str(self.shape), self.dtype, *([self.option] * (self.option != PLAIN))])


def make_case(shape: Shape, dtype: str, option: str = PLAIN, seed: int = 1) -> Case:
    """Draw a case; the same arrays for every dtype and option of a shape."""
    problem = make_problem(shape, seed)
    x, kernel, recurrent_kernel, bias = (
        array.astype(np.float16).astype(np.float32)
        for array in (problem.x, problem.kernel, problem.recurrent_kernel, problem.bias)
    )
    mask = None
    if option == HOLES:
        rng = np.random.default_rng(seed)
        mask = rng.permuted(np.arange(shape.B * shape.T) % 2 == 0).reshape(shape.B, shape.T)
    if option == BEFORE:
        bias = bias[0]
    return Case(shape, dtype, option, x, kernel, recurrent_kernel, bias, mask)


def reference(case: Case) -> Float64Array | None:
    """Compute every output (B, T, H) in float64; None where they are drawn."""
    if case.option == DROPOUT:
        return None
    B, T, H = case.shape.B, case.shape.T, case.shape.H
    W, U = case.kernel.astype(float), case.recurrent_kernel.astype(float)
    bias = case.bias.astype(float).reshape(-1, 3 * H)
    p = case.x.astype(float) @ W + bias[0]
    h, y = np.zeros((B, H)), np.zeros((B, T, H))
    out = np.zeros((B, H))
    for t in range(T):
        z, r = (
            _sigmoid(p[:, t, : 2 * H] + h @ U[:, : 2 * H] + _recurrent(bias, 0, 2 * H))
            .reshape(B, 2, H)
            .transpose(1, 0, 2)
        )
        if case.option == BEFORE:
            n = np.tanh(p[:, t, 2 * H :] + (r * h) @ U[:, 2 * H :])
        else:
            n = np.tanh(p[:, t, 2 * H :] + r * (h @ U[:, 2 * H :] + bias[1, 2 * H :]))
        new = z * h + (1 - z) * n
        valid = np.ones((B, 1), bool) if case.mask is None else case.mask[:, t, np.newaxis]
        h, out = np.where(valid, new, h), np.where(valid, new, out)
        y[:, t] = out
    return y


def _recurrent(bias: Float64Array, first: int, end: int) -> Any:
    return bias[1, first:end] if len(bias) == 2 else 0.0


def _sigmoid(a: Float64Array) -> Any:
    return 1.0 / (1.0 + np.exp(-a))


def peer_cases(quick: bool) -> Iterator[tuple[Shape, str]]:
    """List what is compared with others; the input is half as wide as the layer."""
    batches, units = ((1, 32), (256, 1024)) if quick else ((1, 8, 32, 128), (128, 256, 512, 1024))
    for dtype in TOLERANCES:
        for H in units:
            for B in batches:
                yield Shape(B, STEPS, H // 2, H), dtype


def option_cases(quick: bool) -> Iterator[tuple[Shape, str, str]]:
    """List what cuDNN does not serve, or not always."""
    shapes = (Shape(32, STEPS, 128, 256), Shape(8, STEPS, 256, 512))
    for shape in shapes[: 1 if quick else 2]:
        for option in (HOLES, BEFORE, DROPOUT):
            yield shape, "float32", option
