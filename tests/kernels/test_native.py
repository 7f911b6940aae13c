"""The CPU backend against the reference: every mask, flag, layout and thread count."""

import os
from pathlib import Path

import numpy as np
import pytest
from random_problems import (
    ELEMENTWISE,
    REFERENCE,
    TOLERANCE,
    draw_problem,
    layouts,
    make_spec,
    make_weights,
    widened,
)
from subprocesses import environment, run_python

from fastgru import activations
from fastgru.backends import cpu as cpu_backend
from fastgru.backends.cpu import CPUBackend, build_info
from fastgru.masks import NO_MASK, plan_mask
from fastgru.problem import GRUProblem, GRUWeights

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
BACKEND = CPUBackend()


@pytest.fixture(autouse=True, params=["fused", "blas"])
def kernel(request, monkeypatch):
    """Every test here runs on both kernels of the backend."""
    cpu_backend._load()
    if request.param == "fused" and not kernels.lanes(4):
        pytest.skip("this compiler has no vector types, which the fused kernel needs")
    monkeypatch.setattr(cpu_backend, "_forced_kernel", request.param)
    return request.param


def assert_agrees(problem, weights, save=True):
    """Compare y, state and states with the float64 reference; return the CPU's output."""
    assert BACKEND.supports(problem) is None
    expected = REFERENCE.forward(*widened(problem, weights), save=save)
    out = BACKEND.forward(problem, weights, save=save)
    tolerance = TOLERANCE[problem.spec.dtype.name]
    for name, got, want in zip(("y", "state", "states"), out, expected, strict=False):
        if want is None:
            assert got is None
            continue
        assert got.dtype == problem.spec.dtype
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)
    for array in (problem.x, problem.h0, out.y):
        assert array is None or not np.shares_memory(out.state, array)
    return out


@pytest.mark.parametrize("seeds", [range(k, k + 20) for k in range(0, 400, 20)], ids=str)
def test_random_configurations(seeds):
    for seed in seeds:
        problem, weights = draw_problem(seed)
        assert_agrees(problem, weights, save=bool(seed % 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 3, 40, 260), (3, 4, 20, 300), (9, 12, 33, 129), (64, 5, 30, 96)], ids=str
)
def test_threads_agree(shape, reset_after, dtype):
    """Rows split, units split (with an uneven last range) and one thread: the same numbers."""
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(1)
    spec = make_spec(inputs, units, dtype, reset_after=reset_after)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    h0 = rng.standard_normal((batch, units)).astype(dtype)
    lengths = rng.integers(0, steps + 1, batch)
    for mask in (NO_MASK, plan_mask(None, lengths, batch, steps)):
        outputs = [
            assert_agrees(GRUProblem(spec=spec, x=x, h0=h0, mask=mask, num_threads=n), weights)
            for n in (1, 2, 3)
        ]
        for other in outputs[1:]:
            np.testing.assert_allclose(
                other.y, outputs[0].y, rtol=0, atol=TOLERANCE[dtype] / 5, err_msg=str(mask.kind)
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("panels", [True, False])
def test_both_matrix_layouts(dtype, panels, monkeypatch):
    """Panels for OpenBLAS with small-matrix kernels, plain matrices (and gemv) for the others."""
    from fastgru._native import _blas

    monkeypatch.setattr(cpu_backend, "_forced_kernel", "blas")
    rng = np.random.default_rng(2)
    before = _blas.use_panels(panels)
    try:
        for reset_after in (True, False):
            spec = make_spec(600, 150, dtype, reset_after=reset_after)
            weights = make_weights(rng, spec)
            for batch, threads in ((1, 1), (1, 2), (2, 3), (30, 2)):
                x = rng.standard_normal((batch, 5, 600)).astype(dtype) * 0.3
                assert_agrees(GRUProblem(spec=spec, x=x, num_threads=threads), weights)
            assert weights.packed["blas"].panels == (3 if panels else 1)
    finally:
        _blas.use_panels(before)


def test_the_same_bits_on_fewer_threads():
    """A call that gets fewer threads than it may use rounds as one that gets them all."""
    from fastgru._native import _threads

    rng = np.random.default_rng(12)
    spec = make_spec(33, 65)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((8, 12, 33)).astype("float32")
    problem = GRUProblem(spec=spec, x=x, num_threads=3)
    expected = BACKEND.forward(problem, weights).y
    granted = _threads.lease_threads(100)
    try:
        np.testing.assert_array_equal(BACKEND.forward(problem, weights).y, expected)
    finally:
        _threads.give_back_threads(granted)


def test_chunks_and_blocks():
    """Long and wide enough that time is cut into chunks and the batch into blocks."""
    rng = np.random.default_rng(3)
    spec = make_spec(7, 40)
    weights = make_weights(rng, spec)
    for batch, steps in ((2, 3000), (700, 9), (1, 5000)):
        x = rng.standard_normal((batch, steps, 7)).astype("float32")
        for reverse in (False, True):
            assert_agrees(GRUProblem(spec=spec, x=x, reverse=reverse), weights)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=repr)
def test_activation_in_a_layer(activation, reset_after):
    rng = np.random.default_rng(11)
    for dtype in ("float32", "float64"):
        spec = make_spec(
            4,
            37,
            dtype,
            activation=activation,
            recurrent_activation=activation,
            reset_after=reset_after,
        )
        weights = make_weights(rng, spec)
        weights.recurrent_kernel[...] *= 0.1
        steps = 1 if activation.name == "exponential" else 3  # of two exponentials overflows
        x = 0.3 * rng.standard_normal((3, steps, 4)).astype(dtype)
        h0 = 0.1 * rng.standard_normal((3, 37)).astype(dtype)
        assert_agrees(GRUProblem(spec=spec, x=x, h0=h0), weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=repr)
def test_activation(activation, dtype):
    grid = np.concatenate([np.linspace(-30, 30, 6000), np.linspace(-1, 1, 2000), [0.0, -0.0]])
    values = grid.astype(dtype)
    expected = activation(values.astype(np.float64))
    kernels.apply_activation(activation, got := values.copy())
    eps = np.finfo(dtype).eps
    if activation.name == "exponential":
        np.testing.assert_allclose(got, expected, rtol=6 * eps)
    else:
        scale = np.maximum(np.abs(expected), np.maximum(np.abs(grid), 1))
        assert np.max(np.abs(got - expected) / scale) < (4 * eps if dtype == "float32" else 8 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=repr)
def test_activation_of_nan(activation, dtype):
    values = np.full(35, np.nan, dtype)
    kernels.apply_activation(activation, values)
    assert np.isnan(values).all()


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1.5e-7), ("float64", 4.5e-16)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_accuracy_of_tanh_and_sigmoid(isa, dtype, bound):
    before = kernels.get_isa()
    rng = np.random.default_rng(4)
    size = 1_000_000
    values = np.concatenate(
        [
            rng.uniform(-20, 20, size),
            rng.uniform(-1, 1, size),
            np.geomspace(1e-30, 100, size),
            -np.geomspace(1e-30, 100, size),
        ]
    ).astype(dtype)
    # longdouble for float64, float64 for float32
    wide = values.astype(np.float64 if dtype == "float32" else np.longdouble)
    kernels.set_isa(isa)
    try:
        assert kernels.get_isa() == isa
        kernels.apply_activation(activations.tanh, tanh := values.copy())
        kernels.apply_activation(activations.sigmoid, sigmoid := values.copy())
        ends = np.array([-np.inf, np.inf] * 17, dtype)
        kernels.apply_activation(activations.tanh, tanh_ends := ends.copy())
        kernels.apply_activation(activations.sigmoid, sigmoid_ends := ends.copy())
    finally:
        kernels.set_isa(before)
    assert np.max(np.abs(tanh - np.tanh(wide))) <= bound
    assert np.max(np.abs(sigmoid - 1 / (1 + np.exp(-wide)))) <= bound
    assert np.max(np.abs(tanh / np.tanh(wide) - 1)) < 4 * np.finfo(dtype).eps  # near 0 too
    np.testing.assert_array_equal(tanh_ends, np.sign(ends))
    np.testing.assert_allclose(sigmoid_ends, ends > 0, rtol=0, atol=1e-37)


@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_forced_isa_runs(isa):
    code = """
        import numpy as np
        from fastgru.backends.cpu import build_info
        print(build_info()["isa"])
        import fastgru.activations as activations
        from fastgru._native import _kernels
        a = np.linspace(-3, 3, 50)
        _kernels.apply_activation(activations.tanh, b := a.copy())
        assert abs(b - np.tanh(a)).max() < 1e-15
    """
    assert run_python(code, FASTGRU_ISA=isa).split() == [isa]


def test_unknown_isa_is_an_error():
    with pytest.raises(ValueError, match=r"FASTGRU_ISA: expected one of base.*, got 'avx1024'"):
        kernels.set_isa("avx1024")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (4, 1, 5, 7), (4, 6, 5, 7)], ids=str)
def test_input_memory(shape, dtype):
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(5)
    spec = make_spec(inputs, units, dtype)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    h0 = rng.standard_normal((batch, units)).astype(dtype)
    expected = BACKEND.forward(GRUProblem(spec=spec, x=x, h0=h0), weights)
    for name, view in layouts(x):
        for start in (h0, np.asfortranarray(h0), h0[::-1].copy()[::-1]):
            out = BACKEND.forward(GRUProblem(spec=spec, x=view, h0=start), weights)
            np.testing.assert_allclose(
                out.y, expected.y, rtol=0, atol=TOLERANCE[dtype] / 5, err_msg=name
            )
        np.testing.assert_array_equal(view, x)
    repeated = np.broadcast_to(x[:, :1], x.shape)  # stride 0
    assert_agrees(GRUProblem(spec=spec, x=repeated, h0=h0), weights)


@pytest.mark.parametrize("return_sequences", [True, False])
def test_out(return_sequences):
    rng = np.random.default_rng(6)
    spec = make_spec(3, 6)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((4, 5, 3)).astype("float32")
    mask = plan_mask(None, [5, 2, 0, 3], 4, 5)
    shape = (4, 5, 6) if return_sequences else (4, 6)

    def problem(out=None):
        return GRUProblem(
            spec=spec,
            x=x,
            h0=None,
            mask=mask,
            return_sequences=return_sequences,
            out=out,
            reverse=True,
        )

    expected = BACKEND.forward(problem(), weights).y
    outs = {
        "plain": np.empty(shape, "float32"),
        "transposed": np.empty(shape[::-1], "float32").T,
        "negative": np.empty(shape, "float32")[::-1],
        "every other row": np.empty((8, *shape[1:]), "float32")[::2],
        "time-major": np.moveaxis(np.empty((shape[-2], *shape[:-2], 6), "float32"), 0, -2),
    }
    for name, out in outs.items():
        out[...] = np.nan
        got = BACKEND.forward(problem(out), weights)
        assert got.y is out
        np.testing.assert_array_equal(out, expected, err_msg=name)


def test_state_and_states_are_apart_from_out():
    spec = make_spec(3, 6)
    weights = make_weights(np.random.default_rng(7), spec)
    x = np.ones((2, 4, 3), "float32")
    out = np.empty((2, 4, 6), "float32")
    result = BACKEND.forward(GRUProblem(spec=spec, x=x, out=out), weights, save=True)
    assert not np.shares_memory(result.states, out)
    np.testing.assert_array_equal(result.states, out)
    np.testing.assert_array_equal(result.state, out[:, -1])
    assert not np.shares_memory(result.state, out)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5), (0, 0, 0, 5)], ids=str)
def test_empty_axes(shape, return_sequences):
    """docs/semantics.md 3: B = 0 and T = 0 are legal; I = 0 leaves the biases."""
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(8)
    spec = make_spec(inputs, units)
    weights = make_weights(rng, spec)
    h0 = rng.standard_normal((batch, units)).astype("float32")
    x = np.zeros((batch, steps, inputs), "float32")
    out = assert_agrees(
        GRUProblem(spec=spec, x=x, h0=h0, return_sequences=return_sequences), weights
    )
    if steps == 0:
        np.testing.assert_array_equal(out.state, h0)
        assert not out.y.any()


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_at_masked_steps_changes_no_bit(reverse):
    """docs/semantics.md 4."""
    rng = np.random.default_rng(9)
    spec = make_spec(5, 20)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((6, 8, 5)).astype("float32")
    valid = rng.random((6, 8)) < 0.5
    valid[2] = False
    mask = plan_mask(valid, None, 6, 8)
    dirty = np.where(valid[..., None], x, np.float32("nan"))
    for dropout in (None, np.full((6, 5), 1.25, "float32")):
        clean_out, dirty_out = (
            BACKEND.forward(
                GRUProblem(spec=spec, x=a, mask=mask, dropout=dropout, reverse=reverse),
                weights,
                save=True,
            )
            for a in (x, dirty)
        )
        for name in ("y", "state", "states"):
            np.testing.assert_array_equal(getattr(clean_out, name), getattr(dirty_out, name))


def test_decaying_state_keeps_its_speed_and_the_floating_point_mode():
    """Subnormal numbers are zeros inside the call only."""
    spec = make_spec(
        1, 8, activation=activations.linear, recurrent_activation=activations.linear, use_bias=False
    )
    kernel = np.zeros((1, 24), "float32")
    recurrent = np.concatenate([np.zeros((8, 16)), np.eye(8) * 0.01], 1).astype("float32")
    out = BACKEND.forward(
        GRUProblem(
            spec=spec,
            x=np.zeros((1, 40, 1), "float32"),
            h0=np.ones((1, 8), "float32"),
            mask=NO_MASK,
        ),
        GRUWeights(kernel, recurrent, None),
    )
    assert not out.state.any()
    smallest = np.array([np.finfo("float32").smallest_subnormal] * 64)
    assert (smallest * np.float32(1.0) > 0).all()


def test_supports(kernel):
    x = np.zeros((1, 2, 3), "float32")

    def reason(**changes):
        return BACKEND.supports(GRUProblem(spec=make_spec(3, 4, **changes), x=x))

    assert reason() is None
    assert reason(activation=activations.softmax) == "activation 'softmax' is not elementwise"
    assert "custom Python code" in reason(recurrent_activation=np.tanh)
    backward = BACKEND.supports_backward(GRUProblem(spec=make_spec(3, 4), x=x))
    assert backward == (None if kernel == "fused" else "the BLAS kernel has no backward")
    for activation in ELEMENTWISE:
        assert reason(activation=activation) is None, activation


def test_packed_copies_follow_the_spec(kernel):
    spec = make_spec(3, 4)
    rng = np.random.default_rng(10)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((1, 2, 3)).astype("float32")
    assert_agrees(GRUProblem(spec=spec, x=x), weights)
    packed = weights.packed[kernel]
    assert_agrees(GRUProblem(spec=make_spec(3, 4), x=x), weights)
    assert weights.packed[kernel] is packed  # an equal spec
    other = spec._replace(activation=activations.relu)
    assert_agrees(GRUProblem(spec=other, x=x), weights)
    assert weights.packed[kernel] is not packed


def test_build_info():
    info = build_info()
    assert info["extension"] == "built"
    assert info["isa"] in info["isa_supported"]
    assert isinstance(info["openmp"], bool)
    assert info["num_threads"] >= 1


def test_blas_threads_are_restored(kernel):
    code = """
        import ctypes
        from scipy.linalg import cython_blas
        library = ctypes.CDLL(cython_blas.__file__)
        get = getattr(library, "scipy_openblas_get_num_threads", None)
        if get is None:
            print("other")
        else:
            library.scipy_openblas_set_num_threads(2)
            import test_native as t
            t.test_threads_agree((64, 5, 30, 96), True, "float32")
            print(get())
    """
    env = environment(Path(__file__).parent, OPENBLAS_NUM_THREADS="2", FASTGRU_KERNEL=kernel)
    assert run_python(code, env).strip() in ("2", "other")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_child_of_fork_does_not_hang(kernel):
    code = """
        import os, sys, signal
        import test_native as t
        args = (64, 5, 30, 96), True, "float32"
        t.test_threads_agree(*args)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            t.test_threads_agree(*args)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
    """
    env = environment(Path(__file__).parent, FASTGRU_KERNEL=kernel)
    assert run_python(code, env).strip() == "0"


def test_concurrent_callers():
    """Python threads share weights, the BLAS setting and nothing else."""
    from concurrent.futures import ThreadPoolExecutor

    cases = []
    for seed in range(40, 60):
        problem, weights = draw_problem(seed)
        cases.append((problem, weights, BACKEND.forward(problem, weights)))

    def check(case):
        problem, weights, expected = case
        for _ in range(20):
            out = BACKEND.forward(problem, weights)
            np.testing.assert_array_equal(out.y, expected.y)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, cases))
