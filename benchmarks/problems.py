"""What is computed: the named shapes, their data, and the float64 answer.

A shape is a string such as ``b32t100i128h256``: B batch, T timesteps, I input features, H units.
The reference here is written from the equations and shares no code with fastgru or with a peer.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

NAMED_SHAPES = (
    "b1t1i64h128",
    "b1t1i256h512",
    "b1t100i16h32",
    "b1t100i64h128",
    "b1t100i256h256",
    "b1t100i512h512",
    "b1t50i1024h1024",
    "b4t100i128h256",
    "b8t100i256h512",
    "b32t10i8h4",
    "b32t100i128h256",
    "b64t100i512h512",
    "b128t50i1024h1024",
    "b256t50i32h64",
)


@dataclass(frozen=True)
class Shape:
    """Sizes of one problem.

    Attributes
    ----------
    B, T, I, H : int
        Batch, timesteps, input features, units.
    """

    B: int
    T: int
    I: int
    H: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read a problem string; ``ValueError`` if it is not one."""
        match = re.fullmatch(r"b(\d+)t(\d+)i(\d+)h(\d+)", text)
        if match is None or "0" in match.groups():
            raise ValueError(f"{text!r} is not a shape; expected for example 'b32t100i128h256'")
        return cls(*(int(size) for size in match.groups()))

    def __str__(self) -> str:
        """Give the problem string back."""
        return f"b{self.B}t{self.T}i{self.I}h{self.H}"


def select_shapes(wanted: list[str]) -> list[Shape]:
    """Turn problem strings and patterns into shapes.

    Parameters
    ----------
    wanted : list of str
        Each a problem string (named or not) or a pattern over the named ones, such as ``b1t*``.
        Nothing means all named shapes.

    Returns
    -------
    list of Shape
        In the order asked for, each once.
    """
    names: list[str] = []
    for text in wanted or ["*"]:
        found = [name for name in NAMED_SHAPES if fnmatchcase(name, text)]
        if not found and any(sign in text for sign in "*?["):
            raise ValueError(
                f"no named shape matches {text!r}; there are {', '.join(NAMED_SHAPES)}"
            )
        names += found or [text]
    return [Shape.parse(name) for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Problem:
    """One GRU call in Keras' layout, gates in the order z, r, h; all arrays float32, C order.

    Attributes
    ----------
    shape : Shape
    x : (B, T, I)
    kernel : (I, 3H)
    recurrent_kernel : (H, 3H)
    bias : (2, 3H)
        Row 0 is added to the input projection, row 1 to the recurrent one (reset_after=True).
    """

    shape: Shape
    x: Float32Array
    kernel: Float32Array
    recurrent_kernel: Float32Array
    bias: Float32Array


def make_problem(shape: Shape, seed: int) -> Problem:
    """Draw a problem.

    Every weight is uniform in +-1/sqrt(H), PyTorch's own default. The recurrence then contracts, so
    rounding errors do not grow with T and one absolute bound serves every shape.
    """
    draw = np.random.default_rng([seed, shape.B, shape.T, shape.I, shape.H])
    limit = shape.H**-0.5

    def uniform(*size: int) -> Float32Array:
        return draw.uniform(-limit, limit, size).astype(np.float32)

    return Problem(
        shape=shape,
        x=draw.standard_normal((shape.B, shape.T, shape.I), dtype=np.float32),
        kernel=uniform(shape.I, 3 * shape.H),
        recurrent_kernel=uniform(shape.H, 3 * shape.H),
        bias=uniform(2, 3 * shape.H),
    )


def reference(problem: Problem) -> Float64Array:
    """Compute every output in float64, plainly.

    z = sigmoid(x Wz + h Uz + b), r = sigmoid(x Wr + h Ur + b),
    n = tanh(x Wh + b_in + r * (h Uh + b_rec)), h' = z * h + (1 - z) * n, from h = 0
    (Cho et al. 2014, in the variant with the reset gate applied after the product).

    Returns
    -------
    (B, T, H) float64
    """
    B, T, H = problem.shape.B, problem.shape.T, problem.shape.H
    W, U, bias, x = (
        array.astype(np.float64)
        for array in (problem.kernel, problem.recurrent_kernel, problem.bias, problem.x)
    )

    def sigmoid(a: Float64Array) -> Any:
        return 1.0 / (1.0 + np.exp(-a))

    h = np.zeros((B, H))
    outputs = np.empty((B, T, H))
    for t in range(T):
        p = x[:, t] @ W + bias[0]
        q = h @ U + bias[1]
        z = sigmoid(p[:, :H] + q[:, :H])
        r = sigmoid(p[:, H : 2 * H] + q[:, H : 2 * H])
        n = np.tanh(p[:, 2 * H :] + r * q[:, 2 * H :])
        h = z * h + (1.0 - z) * n
        outputs[:, t] = h
    return outputs
