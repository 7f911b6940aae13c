"""The fused loop's NEON build, run by an emulator: compiled for aarch64, against the reference."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_problems import REFERENCE, TOLERANCE, make_spec, make_weights, widened
from subprocesses import SUPPORT

from fastgru.problem import GRUProblem

weights_module = pytest.importorskip(
    "fastgru._native._weights", reason="the extension is not built"
)
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = Path(__file__).parents[2] / "fastgru" / "_native" / "kernels"
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11"]
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}; Debian: gcc-aarch64-linux-gnu, qemu-user",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("aarch64") / "program"
    here = SUPPORT / "aarch64.c"
    command = [COMPILER, *FLAGS, "-Wall", "-Werror", "-static", f"-I{SOURCES}", str(here)]
    subprocess.run([*command, *map(str, SOURCES.glob("*.c")), "-lm", "-o", str(path)], check=True)
    return path


def emulate(program, *arguments, data=b""):
    command = [EMULATOR, str(program), *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=120).stdout


def run(program, lanes, problem, weights, dy, dstate):
    """Return y of a plain call, y of one that keeps the gates, dh0, dx, and [dW; db; dU]."""
    spec, x = problem.spec, problem.x
    (B, T, I), H = x.shape, spec.units
    w, u, uh, bias = weights_module.forward_panels(spec, weights, lanes, 1)
    ut, wt = weights_module.backward_panels(weights.kernel, weights.recurrent_kernel, lanes, 1)
    numbers = np.array([spec.dtype.itemsize, B, T, I, H, spec.reset_after], np.int64)
    arrays = [numbers, x, problem.h0, w, u, *([] if uh is None else [uh]), bias, ut, wt, dy, dstate]
    out = np.frombuffer(
        emulate(program, data=b"".join(array.tobytes() for array in arrays)), spec.dtype
    )
    sizes = [(B, T, H), (B, T, H), (B, H), (B, T, I), (-1, 3 * H)]
    parts = np.split(out, np.cumsum([math.prod(size) for size in sizes[:-1]]))
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 7, 5, 3), (33, 5, 8, 2), (9, 6, 7, 34), (13, 3, 16, 64), (4, 5, 3, 21)]
)
def test_forward_and_backward(program, shape, reset_after, dtype):
    lanes = int(emulate(program, "lanes").split()[1 if dtype == "float32" else 2])
    assert lanes * np.dtype(dtype).itemsize == 16
    rng = np.random.default_rng(shape)
    B, T, I, H = shape
    spec = make_spec(I, H, dtype, reset_after=reset_after)
    weights = make_weights(rng, spec)
    x, h0, dy, dstate = (
        rng.standard_normal(size).astype(dtype) for size in ((B, T, I), (B, H), (B, T, H), (B, H))
    )
    problem = GRUProblem(spec=spec, x=x, h0=h0)
    y, kept, dh0, dx, dw = run(program, lanes, problem, weights, dy, dstate)

    wide, wide_weights = widened(problem, weights)
    expected = REFERENCE.forward(wide, wide_weights, save=True)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(y, expected.y, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(y, kept)
    grads = REFERENCE.backward(
        wide, wide_weights, expected.states, dy.astype(float), dstate.astype(float), None
    )
    weight_grads = [grads.kernel, np.atleast_2d(grads.bias), grads.recurrent_kernel]
    for got, wanted in ((dh0, grads.h0), (dx, grads.x), (dw, np.concatenate(weight_grads))):
        np.testing.assert_allclose(got, wanted, atol=20 * tolerance * abs(wanted).max())

    row = GRUProblem(spec=spec, x=x[-1:], h0=h0[-1:])
    alone = run(program, lanes, row, weights, dy[-1:], dstate[-1:])
    np.testing.assert_array_equal(alone[0], y[-1:])
