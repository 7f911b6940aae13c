"""The text of the kernels, the options it is compiled with, and the structs that kernels take.

Nothing here needs a GPU or CuPy. Engines compile it: `fastgru._cuda.engine`, the tests' emulator.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastgru.dtypes import sum_dtype

# The structs of gru_step.cu, with the same members in the same order: every member has 8 bytes.
COMMON = np.dtype(
    [(name, np.int64) for name in ("B", "T", "I", "H")]
    + [(name, np.int64) for name in ("reset_after", "reverse", "sequences", "zero_masked")]
    + [(name, np.uint64) for name in ("steps", "lengths", "resets", "recurrent_dropout", "h0")]
)
RESULTS = np.dtype(
    [("y", np.uint64), ("y_b", np.int64), ("y_s", np.int64)]  # y, and its strides in elements
    + [(name, np.uint64) for name in ("states", "kept")]
)

_KEEPS_VALUE = frozenset({"linear", "tanh", "sigmoid"})
_PARAMETERS = 3  # ACT_A, ACT_B, ACT_C


# The programs: which files each consists of, after activations.cu and gru_step.cu. A program is
# compiled when one of its kernels is first launched.
PROGRAMS = {
    "steps": ("gru_kernels.cu", "cudnn.cu"),
    "forward": ("persistent.cu", "persistent_forward.cu"),
    "back": ("persistent.cu", "persistent_back.cu"),
}
# The kernels whose blocks wait for each other, and their programs; all others are in "steps".
RESIDENT = {
    "steps_after": "forward",
    "steps_before": "forward",
    "back_after": "back",
    "back_before": "back",
}


@functools.cache
def text(program: str) -> str:
    """Return the source of one of the `PROGRAMS`."""
    from pathlib import Path  # not needed to import fastgru

    folder = Path(__file__).parent
    return "".join(
        f'#line 1 "{name}"\n' + (folder / name).read_text(encoding="utf-8")
        for name in ("activations.cu", "gru_step.cu", *PROGRAMS[program])
    )


def struct(dtype: np.dtype, **members: int) -> np.ndarray:
    """Return one of the structs as a kernel's argument; members not named are 0."""
    value = np.zeros(1, dtype)
    for name, member in members.items():
        value[name] = member
    return value


def common_struct(problem: Any, **addresses: int) -> np.ndarray:
    """Return the struct `COMMON` of a GRUProblem whose arrays have these addresses."""
    return struct(
        COMMON,
        **dict(zip("BTIH", (*problem.x.shape, problem.spec.units), strict=True)),
        reset_after=problem.spec.reset_after,
        reverse=problem.reverse,
        sequences=problem.return_sequences,
        zero_masked=problem.zero_output_for_mask,
        **addresses,
    )


def options(dtype: np.dtype, activation: Any, recurrent_activation: Any) -> tuple[str, ...]:
    """Return the compiler's -D options for one dtype and pair of activations.

    Parameters
    ----------
    dtype : numpy.dtype
        float16, float32, float64, or the bfloat16 of ml_dtypes, known by its name.
    activation, recurrent_activation : fastgru.activations.Activation
        Both elementwise: activations.cu has only their formulas.
    """
    return (
        f"-DFLOAT_BITS={8 * dtype.itemsize}",
        *(("-DBFLOAT16",) if dtype.name == "bfloat16" else ()),
        *_defines("ACT", activation, sum_dtype(dtype)),
        *_defines("GATE", recurrent_activation, sum_dtype(dtype)),
    )


def _defines(macro: str, activation: Any, sums: np.dtype) -> list[str]:
    name, params = activation.name, list(activation.params)
    if name == "gelu":
        name, params = ("gelu_tanh" if params[0] else "gelu"), []
    elif name == "relu" and params[1] is None:
        name, params[1] = "relu_open", 0.0
    params += [0.0] * (_PARAMETERS - len(params))
    exact = [_literal(float(sums.type(value))) for value in params]  # rounded as in the kernel
    return [
        f"-D{macro}={name}",
        *(f"-D{macro}_{letter}={value}" for letter, value in zip("ABC", exact, strict=True)),
        f"-D{macro}_KEEPS_VALUE={int(name in _KEEPS_VALUE)}",
    ]


def _literal(value: float) -> str:
    if np.isinf(value):
        return "INFINITE" if value > 0 else "-INFINITE"
    return repr(value)
