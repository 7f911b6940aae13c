"""What is computed: the tasks, the named shapes, their data, and the float64 answers.

A shape is a string such as ``b32t100i128h256``: B batch, T timesteps, I input features, H units.
The reference here is written from the equations and shares no code with fastgru or with a peer.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

FORWARD_SHAPES = (
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
TRAINING_SHAPES = ("b16t50i32h64", "b32t100i128h256", "b64t50i512h512")
STREAM_SHAPES = ("b1t1i64h128", "b8t1i64h128", "b1t1i256h512")
# Enough to see that the state is carried: the second step is the first to start from one.
STREAM_CALLS = 3


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


def select_shapes(wanted: list[str], named: tuple[str, ...]) -> list[Shape]:
    """Turn problem strings and patterns into shapes.

    Parameters
    ----------
    wanted : list of str
        Each a problem string (named or not) or a pattern over the named ones, such as ``b1t*``.
        Nothing means all named shapes.
    named : tuple of str
        The task's own shapes.

    Returns
    -------
    list of Shape
        In the order asked for, each once.
    """
    names: list[str] = []
    for text in wanted or ["*"]:
        found = [name for name in named if fnmatchcase(name, text)]
        if not found and any(sign in text for sign in "*?["):
            raise ValueError(f"no named shape matches {text!r}; there are {', '.join(named)}")
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
    dy : (B, T, H)
        The gradient of the loss by every output, for training.
    """

    shape: Shape
    x: Float32Array
    kernel: Float32Array
    recurrent_kernel: Float32Array
    bias: Float32Array
    dy: Float32Array


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
        dy=draw.standard_normal((shape.B, shape.T, shape.H), dtype=np.float32),
    )


def forward_reference(problem: Problem) -> list[Float64Array]:
    """Compute every output in float64, plainly.

    Returns
    -------
    list of (B, T, H) float64
        One array.
    """
    return [np.stack([step.h for step in _run(problem, problem.x)], axis=1)]


def stream_reference(problem: Problem) -> list[Float64Array]:
    """Compute the states of the first `STREAM_CALLS` steps; each is given the same input.

    Returns
    -------
    list of (B, H) float64
    """
    x = np.repeat(problem.x, STREAM_CALLS, axis=1)
    return [step.h for step in _run(problem, x)]


def training_reference(problem: Problem) -> list[Float64Array]:
    """Compute the outputs and the gradients of ``sum(outputs * dy)``.

    Returns
    -------
    list of float64 arrays
        y (B, T, H), dx (B, T, I), and in the weights' shapes dW, dU, db.
    """
    shape = problem.shape
    W, U, x, dy = _float64(problem.kernel, problem.recurrent_kernel, problem.x, problem.dy)
    steps = list(_run(problem, problem.x))
    dx, dW, dU = np.zeros_like(x), np.zeros_like(W), np.zeros_like(U)
    db = np.zeros((2, 3 * shape.H))
    carry = np.zeros((shape.B, shape.H))
    for t in reversed(range(shape.T)):
        s = steps[t]
        dh = dy[:, t] + carry
        da_n = dh * (1.0 - s.z) * (1.0 - s.n**2)
        da_r = da_n * s.q_n * s.r * (1.0 - s.r)
        da_z = dh * (s.h_before - s.n) * s.z * (1.0 - s.z)
        da = np.concatenate([da_z, da_r, da_n], axis=1)
        dq = np.concatenate([da_z, da_r, da_n * s.r], axis=1)
        carry = dh * s.z + dq @ U.T
        dx[:, t] = da @ W.T
        dW += x[:, t].T @ da
        dU += s.h_before.T @ dq
        db += [da.sum(axis=0), dq.sum(axis=0)]
    return [np.stack([s.h for s in steps], axis=1), dx, dW, dU, db]


class _Step(NamedTuple):
    """One step: the state before it, the gates, the recurrent part of n, and the new state."""

    h_before: Float64Array
    z: Float64Array
    r: Float64Array
    n: Float64Array
    q_n: Float64Array
    h: Float64Array


def _run(problem: Problem, x: Float32Array) -> Iterator[_Step]:
    """Go through the steps of x.

    z = sigmoid(x Wz + h Uz + b), r = sigmoid(x Wr + h Ur + b),
    n = tanh(x Wh + b_in + r * (h Uh + b_rec)), h' = z * h + (1 - z) * n, from h = 0
    (Cho et al. 2014, in the variant with the reset gate applied after the product).
    """
    H = problem.shape.H
    W, U, bias, x64 = _float64(problem.kernel, problem.recurrent_kernel, problem.bias, x)

    def sigmoid(a: Float64Array) -> Any:
        return 1.0 / (1.0 + np.exp(-a))

    h = np.zeros((problem.shape.B, H))
    for t in range(x.shape[1]):
        before = h
        p = x64[:, t] @ W + bias[0]
        q = h @ U + bias[1]
        z = sigmoid(p[:, :H] + q[:, :H])
        r = sigmoid(p[:, H : 2 * H] + q[:, H : 2 * H])
        q_n = q[:, 2 * H :]
        n = np.tanh(p[:, 2 * H :] + r * q_n)
        h = z * h + (1.0 - z) * n
        yield _Step(before, z, r, n, q_n, h)


def _float64(*arrays: Float32Array) -> list[Float64Array]:
    return [array.astype(np.float64) for array in arrays]


def least_work(task: str, shape: Shape) -> dict[str, int]:
    """Count what no implementation can do without; activations are not counted.

    Returns
    -------
    dict
        ``flop``: multiplications and additions of the matrix products. Training has three products
        for each of inference. ``weight_bytes``: what has to be read again in every step, U in
        float32, and W too where the only step has no others to share its product with.
        ``weight_reads``: how often, in training once forwards and once backwards.
    """
    B, T, I, H = shape.B, shape.T, shape.I, shape.H
    products, ways = (3, 2) if task == "training" else (1, 1)
    return {
        "flop": products * 2 * B * T * 3 * H * (H + I),
        "weight_bytes": 4 * 3 * H * (H + I if T == 1 else H),
        "weight_reads": ways * T,
    }


@dataclass(frozen=True)
class Task:
    """What is timed, and how an answer is judged.

    Attributes
    ----------
    what : str
        One call, in words.
    shapes : tuple of str
        The named shapes.
    reference : callable
        Gives the arrays that a peer has to give.
    calls : int
        How many calls the reference covers, one after the other.
    relative : bool
        Errors are divided by the largest entry of their array: a gradient of a weight is a sum over
        rows and steps, and larger where there are more of them, while outputs lie within +-1.
    """

    what: str
    shapes: tuple[str, ...]
    reference: Callable[[Problem], list[Float64Array]]
    calls: int = 1
    relative: bool = False


TASKS = {
    "forward": Task("layer(x) with every output", FORWARD_SHAPES, forward_reference),
    "training": Task(
        "forward, then the gradients of x and of all weights",
        TRAINING_SHAPES,
        training_reference,
        relative=True,
    ),
    "stream": Task(
        "one time step of rows whose state is kept",
        STREAM_SHAPES,
        stream_reference,
        calls=STREAM_CALLS,
    ),
}
