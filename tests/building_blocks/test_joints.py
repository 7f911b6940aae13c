"""Derivatives at the joints of piecewise activations: rule 13 of docs/semantics.md."""

import functools
import importlib.util
import json

import numpy as np
import pytest
import subprocesses
from cuda_emulator import Emulator, needs_compiler
from device_support import assert_agrees
from joints import POINTS, activation
from random_problems import make_spec

import fastgru
from fastgru.backends.cpu import CPUBackend
from fastgru.backends.cuda import CudaBackend
from fastgru.problem import GRUProblem, GRUWeights

# Where Keras on JAX and on PyTorch disagree, and what rule 13 says: the flatter side of a clip, and
# else the side below.
DISAGREED = {
    ("relu", "negative_slope=0.25", 0): 0.25,
    ("relu", "max_value=2.0", 2): 0,
    ("relu", "max_value=2.0 negative_slope=0.25", 2): 0,
    ("relu", "max_value=2.0 negative_slope=0.25 threshold=1.0", 2): 0,
    ("relu", "max_value=2.0 threshold=-1.0", 0): 0,
    ("relu", "max_value=2.0 threshold=-1.0", 2): 0,
    ("leaky_relu", "", 0): 0.2,
    ("leaky_relu", "negative_slope=0.5", 0): 0.5,
    ("hard_tanh", "", -1): 0,
    ("hard_tanh", "", 1): 0,
    ("sparse_sigmoid", "", -1): 0,
    ("sparse_sigmoid", "", 1): 0,
}


def key(name, params, at):
    return name, " ".join(f"{name}={value}" for name, value in params.items()), at


@functools.cache  # importing the frameworks takes seconds
def derivatives(backend):
    for package in ("keras", backend):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    code = "import runpy; runpy.run_module('joints', run_name='__main__')"
    printed = subprocesses.run_python(code, KERAS_BACKEND=backend)
    return json.loads(printed.splitlines()[-1])


def ours(dtype="float64"):
    for name, params, at in POINTS:
        act = activation(name, params)
        x = np.array([at], dtype)
        yield float(act.gradient(x, act(x))[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_rule_13_derivatives_at_joints_are_keras(backend, dtype):
    """Where Keras' backends agree."""
    for point, got, want in zip(POINTS, ours(dtype), derivatives(backend), strict=True):
        if key(*point) not in DISAGREED:
            assert got == pytest.approx(want, abs=1e-6), point


def test_rule_13_where_jax_and_pytorch_disagree():
    """These and no others; there the rule decides."""
    pairs = zip(POINTS, derivatives("jax"), derivatives("torch"), strict=True)
    assert {key(*point) for point, one, two in pairs if abs(one - two) > 1e-6} == {*DISAGREED}


def test_rule_13_decides_the_others():
    got = {key(*point): value for point, value in zip(POINTS, ours(), strict=True)}
    for point, want in DISAGREED.items():
        assert got[point] == pytest.approx(want), point
    act = fastgru.activations.hard_sigmoid_keras2  # Keras 3 has none
    x = np.array([-2.5, 2.5])
    assert not act.gradient(x, act(x)).any()


def test_rule_13_the_derivative_of_a_gru_is_pytorchs():
    """Through `backward`: the update gate is 1/2, the candidate's argument is exactly 0."""
    torch = pytest.importorskip("torch", reason="needs torch")
    functions = {"selu": torch.selu, "elu": torch.nn.functional.elu, "relu": torch.relu}
    for name, function in functions.items():
        layer = fastgru.GRU(1, activation=name, use_bias=False, dtype="float64")
        layer.build((None, None, 1))
        layer.set_weights([np.array([[0, 0, 1.0]]), np.zeros((1, 3))])
        _, tape = layer.forward(np.zeros((1, 1, 1)))
        got = layer.backward(tape, np.ones((1, 1))).inputs[0, 0, 0]
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        assert got == 0.5 * float(torch.autograd.grad(function(x), x)[0])


ACTIVATIONS = sorted({activation(name, params) for name, params, _ in POINTS}, key=repr)
# Those with a formula of their own at a joint; a kernel for CUDA takes seconds to compile.
FEW = [
    fastgru.activations.relu.with_params(0.25),
    fastgru.activations.relu.with_params(0.25, None, 1.0),
    fastgru.activations.relu.with_params(0.25, 2.0),
    fastgru.activations.elu.with_params(0.5),
    fastgru.activations.selu,
]


def assert_the_references(backend, act, dtype):
    """All arguments of the activation, as candidate and as gates, are exactly at its joints."""
    x = np.array(sorted({at for *named, at in POINTS if activation(*named) == act}), dtype)
    spec = make_spec(1, 3, dtype, use_bias=False, activation=act, recurrent_activation=act)
    weights = GRUWeights(np.ones((1, 9), dtype), np.zeros((3, 9), dtype), None)
    h0 = np.random.default_rng(0).normal(size=(x.size, 3)).astype(dtype)
    problem = GRUProblem(spec=spec, x=x.reshape(-1, 1, 1), h0=h0)
    assert_agrees(backend, problem, weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=repr)
def test_rule_13_in_the_native_kernels(act, dtype):
    assert_the_references(CPUBackend(), act, dtype)


@needs_compiler
@pytest.mark.parametrize("act", FEW, ids=repr)
def test_rule_13_in_the_kernels_for_cuda(act):
    assert act in ACTIVATIONS
    assert_the_references(CudaBackend(Emulator()), act, "float32")
