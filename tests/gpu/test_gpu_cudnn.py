"""The cuDNN backend on a real GPU, against the reference on the host."""

import itertools

import device_support
import numpy as np
import pytest
from device_support import REFERENCE, assert_near, draw, moved, wide_call
from random_problems import make_spec, make_weights

from fastgru.backends import cudnn
from fastgru.masks import plan_mask
from fastgru.problem import BackendError, GRUProblem

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)

ALGORITHMS = {"standard": cudnn.STANDARD, "static": cudnn.STATIC, "small": cudnn.SMALL}


@pytest.fixture(autouse=True, scope="module")
def device():
    reason = cudnn.CudnnBackend().missing()
    if reason is not None:
        pytest.skip(f"needs a device and cuDNN: {reason}")


def assert_agrees(problem, weights, seed=1):
    device_support.assert_agrees(cudnn.CudnnBackend(), problem, weights, seed, move=cupy.asarray)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "lengths"])
@pytest.mark.parametrize("units", [11, 128, 512])
def test_grid(units, kind, dtype):
    spec = make_spec(20, units, dtype)
    rng = np.random.default_rng(1)
    weights = make_weights(rng, spec)
    flags = itertools.product([False, True], repeat=3)
    for seed, (dropout, flag) in enumerate(itertools.product(["none", "one"], flags)):
        problem = draw(rng, spec, kind, False, dropout, flag, (17, 9))
        assert_agrees(problem, weights, seed)


@pytest.mark.parametrize("lengths", [[0, 6, 3, 0, 1], [0, 4, 4, 0, 4], [4] * 5], ids=str)
def test_rows_without_a_step(lengths):
    spec = make_spec(3, 16)
    rng = np.random.default_rng(2)
    weights = make_weights(rng, spec)
    for flags in itertools.product([False, True], repeat=3):
        problem = draw(rng, spec, "none", False, "none", flags, (5, 6))
        problem = problem._replace(mask=plan_mask(None, lengths, 5, 6))
        problem.x[~problem.mask.valid(6)] = np.nan
        assert_agrees(problem, weights)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_algorithm(monkeypatch, algorithm, dtype):
    """Those that the device refuses are none of the trial's choice either."""
    monkeypatch.setattr(cudnn, "_fastest", lambda *_: ALGORITHMS[algorithm])
    spec = make_spec(32, 128, dtype)
    rng = np.random.default_rng(3)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "none", False, "none", (False, True, False), (8, 20))
    try:
        assert_agrees(problem, weights)
    except BackendError as error:
        if not error.__cause__.not_supported:
            raise
        pytest.skip(f"this device: {error}")


def test_long_sequence():
    spec = make_spec(3, 16)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 65537, 3)).astype("float32")
    assert_agrees(GRUProblem(spec=spec, x=x), make_weights(rng, spec))


@pytest.mark.parametrize("kind", ["none", "lengths"])
def test_both_directions_at_once(kind):
    spec = make_spec(5, 24)
    rng = np.random.default_rng(5)
    weights = [make_weights(rng, spec) for _ in range(2)]
    one, other = (
        draw(rng, spec, kind, False, "none", (bool(d), True, False), (6, 7)) for d in range(2)
    )
    other = other._replace(x=one.x, mask=one.mask)
    halves = [moved(half, cupy.asarray) for half in (one, other)]
    halves[1] = halves[1]._replace(x=halves[0].x)
    backend = cudnn.CudnnBackend()
    assert backend.supports_pair(halves) is None
    outs = backend.forward_pair(halves, weights, save=True)
    dys = [rng.standard_normal(out.y.shape).astype("float32") for out in outs]
    given = [cupy.asarray(dy) for dy in dys]
    grads = backend.backward_pair(halves, weights, given, (None, None), outs[0].workspace)
    dx = 0
    for half, w, out, dy, grad in zip((one, other), weights, outs, dys, grads, strict=True):
        wide = wide_call(half, w)
        expected = REFERENCE.forward(*wide, save=True)
        for name in ("y", "state", "states"):
            assert_near(getattr(out, name).get(), getattr(expected, name), spec.dtype, name)
        want = REFERENCE.backward(*wide, expected.states, dy.astype(float), None)
        dx = dx + want.x
        for name in ("h0", "kernel", "recurrent_kernel", "bias"):
            assert_near(getattr(grad, name).get(), getattr(want, name), spec.dtype, name)
    assert_near(grads[0].x.get(), dx, spec.dtype, "x")


def test_second_stream_and_repeatability():
    spec = make_spec(32, 256)
    rng = np.random.default_rng(6)
    weights = make_weights(rng, spec)
    x = cupy.asarray(rng.standard_normal((8, 50, 32)).astype("float32"))
    problem, backend = GRUProblem(spec=spec, x=x), cudnn.CudnnBackend()
    first = backend.forward(problem, weights).y.get()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        second = backend.forward(problem, weights).y
        stream.synchronize()
    np.testing.assert_array_equal(second.get(), first)


def test_products_are_rounded_only_where_that_is_asked_for():
    spec = make_spec(512, 512)
    rng = np.random.default_rng(7)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((64, 4, 512)).astype("float32")
    problem = GRUProblem(spec=spec, x=x)
    assert_agrees(problem, weights)
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("this device has no TF32")
    rounded = GRUProblem(spec=spec._replace(precision="tf32"), x=x)
    got = cudnn.CudnnBackend().forward(moved(rounded, cupy.asarray), weights).y.get()
    exact = REFERENCE.forward(*wide_call(problem, weights)).y
    assert 1e-5 < np.abs(got - exact).max() < 1e-2
