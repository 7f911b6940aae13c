"""The CUDA backend on a real GPU, against the reference on the host."""

import device_support
import numpy as np
import pytest
from device_support import DROPOUTS, draw
from random_problems import draw_problem, make_spec, make_weights

from fastgru import activations
from fastgru.backends import cuda, cuda_persistent
from fastgru.problem import GRUProblem

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)


@pytest.fixture(autouse=True, scope="module")
def device():
    reason = cuda.CudaBackend().missing()
    if reason is not None:
        pytest.skip(f"needs a CUDA device: {reason}")


@pytest.fixture(params=[0, cuda_persistent.MAX_ROWS], ids=["steps", "resident"])
def path(request, monkeypatch):
    monkeypatch.setattr(cuda_persistent, "MAX_ROWS", request.param)
    return request.param


def assert_agrees(problem, weights, seed=1):
    device_support.assert_agrees(cuda.CudaBackend(), problem, weights, seed, move=cupy.asarray)


@pytest.mark.parametrize("seeds", [range(k, k + 25) for k in range(0, 500, 25)], ids=str)
def test_random_configurations(seeds, path):
    for seed in seeds:
        problem, weights = draw_problem(seed)
        if seed % 5:  # compiling takes 0.3 s; every fifth draw keeps its own activations
            problem = problem._replace(
                spec=problem.spec._replace(
                    activation=activations.tanh, recurrent_activation=activations.sigmoid
                )
            )
        assert_agrees(problem, weights, seed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("units", [128, 512, 1000])
def test_sizes(units, reset_after, dtype, path):
    spec = make_spec(64, units, dtype, reset_after=reset_after)
    rng = np.random.default_rng(1)
    weights = make_weights(rng, spec)
    for dropout in DROPOUTS:
        problem = draw(rng, spec, "steps", True, dropout, (False, True, False), (17, 9))
        assert_agrees(problem, weights)


def test_long_sequence(path):
    spec = make_spec(3, 16)
    rng = np.random.default_rng(2)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((2, 65537, 3)).astype("float32")
    assert_agrees(GRUProblem(spec=spec, x=x), weights)


def test_second_stream_and_repeatability(path):
    spec = make_spec(32, 256)
    rng = np.random.default_rng(3)
    weights = make_weights(rng, spec)
    x = cupy.asarray(rng.standard_normal((8, 50, 32)).astype("float32"))
    problem = GRUProblem(spec=spec, x=x)
    first = cuda.CudaBackend().forward(problem, weights).y.get()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        second = cuda.CudaBackend().forward(problem, weights).y
        stream.synchronize()
    np.testing.assert_array_equal(second.get(), first)
