"""The command list that issues launches and products, and the library that tests give to it."""

import ctypes
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cuda_emulator import Kernels, library, library_path, needs_compiler, shim

from fastgru._cuda import engine as engines
from fastgru._cuda.engine import Each, Launch, Product, each
from fastgru._native._command_list import CommandList
from fastgru.errors import BackendError

pytestmark = needs_compiler

# out += scale * part, and what says that this launch has run
ADD = """typedef long long Long;
extern "C" __global__ void add(float *out, const float *part, Long scale, Long *seen) {
    if (threadIdx.x < 3) out[threadIdx.x] += scale * part[threadIdx.x];
    if (threadIdx.x == 0) *seen = blockIdx.x + 10 * gridDim.x;
}"""
TWICE = """
struct Pair { long long a, b; };
extern "C" __global__ void twice(Pair pair, long long *out) { *out = 2 * pair.a + pair.b; }"""


@pytest.fixture
def engine():
    yield Kernels(ADD + TWICE, blocks=2, shared_bytes=64)
    shim("fail_at").value = 0


def test_arguments_move_from_step_to_step(engine):
    parts = np.arange(12, dtype="float32").reshape(4, 3)
    out, seen = np.zeros(3, "float32"), np.zeros(4, "int64")
    arguments = (out, each(parts[::-1]), Each(5, -2), each(seen[:, None]))
    engine.repeat(4, [Launch("add", (), 32, arguments)])
    np.testing.assert_array_equal(out, [5, 3, 1, -1] @ parts[::-1])
    assert seen.tolist() == 4 * [10]


def test_kernels_and_products_take_turns(engine):
    """The state doubles and grows in each step, so any other order gives other numbers."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((3, 3)).astype("float32") for _ in range(2))
    rows = rng.standard_normal((5, 1, 3)).astype("float32")
    h, q = np.ones((1, 3), "float32"), np.empty((1, 3), "float32")
    seen = np.zeros(1, "int64")
    calls = [
        Product(h, a, q),
        Launch("add", (), 3, (h, q, 2, seen)),
        Launch("add", (), 0, (h, q, 2, seen)),  # nothing to do
        Product(each(rows), b, q),
        Launch("add", (), 3, (h, q, Each(1, 1), seen)),
    ]
    engine.repeat(5, calls)
    want = np.ones((1, 3))
    for step in range(5):
        want += 2 * want @ a
        want += (1 + step) * (rows[step] @ b)
    np.testing.assert_allclose(h, want, rtol=1e-5)
    assert engine.launched == 5 * ["add", "add"]


def test_a_struct_goes_by_value(engine):
    pair = np.array([(3, 4)], [("a", "i8"), ("b", "i8")])
    out = np.zeros(2, "int64")
    engine.repeat(2, [Launch("twice", (), 1, (pair, each(out[:, None])))])
    assert out.tolist() == [10, 10]


def test_no_steps_and_no_calls(engine):
    out = np.zeros((2, 2), "float32")
    engine.repeat(3, [])
    engine.repeat(0, [Product(out + 1, out + 1, out)])
    engine.repeat(1, [Product(out[:0] + 1, out + 1, out[:0])])
    assert not out.any()
    engine.gemm(out[:, :0], out[:0], out + 0)
    full = out + 5
    engine.gemm(out[:, :0], out[:0], full)
    assert not full.any()


def test_threads_launch_one_after_another(engine):
    """The library of the tests has one state, and the native loop runs without the GIL."""

    def count(thread):
        out, seen = np.zeros(3, "float32"), np.zeros(1, "int64")
        engine.repeat(5000, [Launch("add", (), 3, (out, np.full(3, thread, "f"), 1, seen))])
        return out.tolist()

    with ThreadPoolExecutor(8) as threads:
        sums = list(threads.map(count, range(1, 9)))
    assert sums == [3 * [5000.0 * thread] for thread in range(1, 9)]


@pytest.mark.parametrize("failing", range(1, 10))
def test_a_failure_is_told(engine, failing):
    """Which of three calls a step, in which step; nothing is issued after it."""
    out, seen = np.zeros((3, 3), "float32"), np.zeros(1, "int64")
    q = np.zeros((3, 3), "float32")
    add = Launch("add", (), 3, (out, q, 1, seen))
    before = shim("launches").value + shim("products").value
    shim("fail_at").value = failing
    step, call = divmod(failing - 1, 3)
    what = (
        r"^cublasGemmEx: CUBLAS_STATUS_EXECUTION_FAILED"
        if call == 1
        else r"^add: CUDA_ERROR_LAUNCH_FAILED"
    )
    with pytest.raises(BackendError, match=f"{what} in step {step} of 3"):
        engine.repeat(3, [add, Product(q, q, out), add])
    assert shim("launches").value + shim("products").value == before + failing


def test_a_grid_that_does_not_fit_is_refused(engine):
    """And it is told without what an older failure had to say."""
    out, seen = np.zeros(3, "float32"), np.zeros(1, "int64")
    arguments = (out, out + 1, 1, seen)
    engine.launch_resident("add", (), 2, 32, 64, arguments)
    assert seen.tolist() == [21]  # block 1 of 2
    seen[0] = 0
    shim("fail_at").value = 1
    with pytest.raises(BackendError, match=r"LAUNCH_FAILED in step 0 of 1: told to fail$"):
        engine.launch_resident("add", (), 2, 32, 64, arguments)
    where = "in step 0 of 1: $"
    with pytest.raises(
        BackendError, match=f"^add: CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE {where}"
    ):
        engine.launch_resident("add", (), 3, 32, 64, arguments)
    with pytest.raises(BackendError, match=f"^add: CUDA_ERROR_INVALID_VALUE {where}"):
        engine.launch_resident("add", (), 2, 32, 65, arguments)
    assert seen.tolist() == [0]


def test_a_status_without_a_name():
    functions = engines._Functions(library(), ctypes.CDLL(library_path()))
    assert functions.status_name("add", 1234) == "status 1234"
    assert functions.status_name("cublasGemmEx", 1234) == "status 1234"
    assert functions.status_name("cublasGemmEx", 7) == "CUBLAS_STATUS_INVALID_VALUE"


def test_numbers_that_do_not_fit():
    """CUDA and cuBLAS take ints: more is an error, and not what its low bits are."""
    commands, most = CommandList(0, 0, 0), 2**31 - 1
    with pytest.raises(ValueError, match=f"up to {most} blocks, got {most + 1}"):
        commands.add_kernel(0, most + 1, 128, 0, False, [])
    with pytest.raises(ValueError, match="up to 24 arguments, got 25"):
        commands.add_kernel(0, 1, 128, 0, False, 25 * [(0, 0)])
    for position in range(6):
        m, n, k, lda, ldb, ldc = (2 if i != position else most + 1 for i in range(6))
        with pytest.raises(ValueError, match="expected sizes up to 2147483647"):
            commands.add_product(
                (0, 0), (m, n, k), (0, 0, 0, lda), (0, 0, 0, ldb), (0, 0, 0, ldc), 0, 0, 68, -1
            )


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "tf32", "float32", "float64"])
def test_the_products_of_the_tests_own_cublas(kind):
    """Against NumPy: both operations, leading dimensions beyond the rows; NaN in C is not read."""
    rng = np.random.default_rng(2)
    m, n, k = 4, 3, 5
    sums = np.dtype("float64" if kind == "float64" else "float32")
    code = {"float32": 0, "tf32": 0, "float64": 1, "float16": 2, "bfloat16": 14}[kind]
    compute = {"float64": 70, "tf32": 77}.get(kind, 68)
    one, zero = np.array(1, sums), np.array(0, sums)

    def matrix(rows, columns, ld):
        values = rng.standard_normal((columns, ld)).astype("float32")
        if kind == "bfloat16":
            stored = (values.view("uint32") >> 16).astype("uint16")
            return stored, (stored.astype("uint32") << 16).view("float32")[:, :rows].T
        if kind == "tf32":  # one more bit than is kept: the tie goes up
            bits = values.view("uint32") & 0xFFFFF000
            return bits.view("float32"), (bits + 0x1000 & 0xFFFFE000).view("float32")[:, :rows].T
        stored = values.astype(kind)
        return stored, stored[:, :rows].T

    for op_a, op_b in itertools.product([0, 1], repeat=2):
        (a, a_values) = matrix(*((k, m) if op_a else (m, k)), 6)
        (b, b_values) = matrix(*((n, k) if op_b else (k, n)), 7)
        c = np.full((n, 8), np.nan, sums)
        functions = engines._Functions(library(), library())
        commands = CommandList(*functions.addresses)
        commands.add_product(
            (op_a, op_b),
            (m, n, k),
            (a.ctypes.data, 0, code, 6),
            (b.ctypes.data, 0, code, 7),
            (c.ctypes.data, 0, 1 if kind == "float64" else 0, 8),
            *(one.ctypes.data, zero.ctypes.data, compute, -1),
        )
        assert commands.issue(1, 0, 1) is None
        want = (a_values.T if op_a else a_values).astype(float)
        want = want @ (b_values.T if op_b else b_values).astype(float)
        np.testing.assert_allclose(c[:, :m].T, want, rtol=1e-5, atol=1e-5)
        assert np.isnan(c[:, m:]).all()
        assert commands.issue(1, 0, 0) == (7, 0, 0)  # no handle
