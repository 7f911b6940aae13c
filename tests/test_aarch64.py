"""The fused loop's NEON build, run by an emulator: compiled for aarch64, against the reference."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_native import REFERENCE, TOLERANCE, make_spec, make_weights, widened

from fastgru.masks import NO_MASK
from fastgru.problem import GRUProblem

packing = pytest.importorskip("fastgru._native.packing", reason="the extension is not built")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = Path(__file__).parents[1] / "fastgru" / "_native"
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11"]
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}; Debian: gcc-aarch64-linux-gnu, qemu-user",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("aarch64") / "program"
    here = Path(__file__).with_suffix("").parent / "aarch64.c"
    command = [COMPILER, *FLAGS, "-Wall", "-Werror", "-static", f"-I{SOURCES}", str(here)]
    subprocess.run([*command, str(SOURCES / "gates.c"), "-lm", "-o", str(path)], check=True)
    return path


def emulate(program, *arguments, data=b""):
    command = [EMULATOR, str(program), *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=120).stdout


def run(program, lanes, problem, weights, dy, dstate):
    """Return y of a plain call, y of one that keeps the gates, dh0 and d (B, T, 4, H)."""
    spec, x = problem.spec, problem.x
    (B, T, I), H = x.shape, spec.units
    w, u, uh, bias = packing.forward_panels(spec, weights, lanes)
    ut = packing.backward_panels(weights.recurrent_kernel, lanes)
    numbers = np.array([spec.dtype.itemsize, B, T, I, H, spec.reset_after], np.int64)
    arrays = [numbers, x, problem.h0, w, u, *([] if uh is None else [uh]), bias, ut, dy, dstate]
    out = np.frombuffer(
        emulate(program, data=b"".join(array.tobytes() for array in arrays)), spec.dtype
    )
    y, kept, dh0, d = np.split(out, np.cumsum([B * T * H, B * T * H, B * H]))
    return y.reshape(B, T, H), kept.reshape(B, T, H), dh0.reshape(B, H), d.reshape(B, T, 4, H)


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
    problem = GRUProblem(spec, x, h0, NO_MASK)
    y, kept, dh0, d = run(program, lanes, problem, weights, dy, dstate)

    wide, wide_weights = widened(problem, weights)
    expected = REFERENCE.forward(wide, wide_weights, save=True)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(y, expected.y, **close)
    np.testing.assert_array_equal(y, kept)
    grads = REFERENCE.backward(
        wide, wide_weights, expected.states, dy.astype(float), dstate.astype(float), None
    )
    dx = np.concatenate([d[:, :, 1], d[:, :, 2], d[:, :, 0]], axis=2) @ weights.kernel.T
    for got, wanted in ((dh0, grads.h0), (dx, grads.x)):
        np.testing.assert_allclose(got, wanted, atol=20 * close["atol"] * abs(wanted).max())

    row = GRUProblem(spec, x[-1:], h0[-1:], NO_MASK)
    alone = run(program, lanes, row, weights, dy[-1:], dstate[-1:])
    np.testing.assert_array_equal(alone[0], y[-1:])
