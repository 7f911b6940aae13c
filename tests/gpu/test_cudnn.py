"""The cuDNN backend against the reference: its Python, its binding and its kernels, without a GPU.

The kernels are emulated as in test_cuda_shim, the library is fake_cudnn's.
"""

import copy
import itertools

import device_support
import numpy as np
import pytest
from cuda_emulator import needs_compiler
from cudnn_support import FLAGS, B, H, I, Machine, T
from device_support import REFERENCE, assert_near, draw, wide_call
from random_problems import layouts, make_spec, make_weights

from fastgru import activations
from fastgru.backends import cudnn, cudnn_call
from fastgru.masks import NO_MASK, plan_mask
from fastgru.problem import GRUProblem

pytestmark = needs_compiler

DTYPES = ["float16", "float32", "float64"]


@pytest.fixture
def machine():
    return Machine()


def assert_agrees(machine, problem, weights, seed=1, keep_gates=True):
    """Compare with the reference, with a tape and without."""
    plain = machine.backend.forward(problem, weights)
    out = device_support.assert_agrees(
        machine.backend, problem, weights, seed, keep_gates=keep_gates
    )
    assert plain.states is plain.workspace is None
    assert not np.shares_memory(out.y, out.states)
    for name in ("y", "state"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(out, name))
    for array in (problem.x, problem.h0, plain.y):
        assert array is None or not np.shares_memory(plain.state, array)
    assert machine.fake.alive("rnn") == machine.fake.alive("data") == []
    return plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "lengths", "equal"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_grid(machine, kind, use_bias, dtype):
    spec = make_spec(I, H, dtype, use_bias=use_bias)
    rng = np.random.default_rng(7)
    weights = make_weights(rng, spec)
    for seed, (dropout, flags) in enumerate(itertools.product(["none", "one"], FLAGS), 1):
        problem = draw(rng, spec, kind, False, dropout, flags, (B, T))
        if kind == "equal":
            problem = problem._replace(mask=plan_mask(None, [4] * B, B, T))
            problem.x[:, 4:] = np.nan
        if seed % 4 == 0:
            problem = problem._replace(h0=None)
        assert_agrees(machine, problem, weights, seed, keep_gates=bool(seed % 3))


@pytest.mark.parametrize("lengths", [[0, 6, 3, 0, 1], [0, 4, 4, 0, 4], [2, 0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_rows_without_a_step(machine, flags, lengths):
    """Nor is a NaN at their steps seen, or in the gradient of an output that nobody made."""
    spec = make_spec(I, H)
    rng = np.random.default_rng(8)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "none", False, "one", flags, (B, T))
    problem = problem._replace(mask=plan_mask(None, lengths, B, T))
    problem.x[~problem.mask.valid(T)] = np.nan
    assert_agrees(machine, problem, weights)
    problem = problem._replace(h0=None)
    assert_agrees(machine, problem, weights)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 7, 4, 2), (3, 1, 2, 5), (9, 2, 17, 33)], ids=str
)
def test_sizes(machine, shape):
    batch, steps, inputs, units = shape
    spec = make_spec(inputs, units)
    rng = np.random.default_rng(9)
    weights = make_weights(rng, spec)
    for kind, flags in itertools.product(["none", "lengths"], FLAGS):
        problem = draw(rng, spec, kind, False, "none", flags, (batch, steps))
        if problem.mask.any_empty and not problem.mask.lengths.any():
            continue
        assert_agrees(machine, problem, weights)


def test_memory_of_inputs_and_outputs(machine):
    """Any strides and alignment; what lies as cuDNN takes it goes without a copy."""
    spec = make_spec(4, 8)
    rng = np.random.default_rng(10)
    weights = make_weights(rng, spec)
    x, h0 = (rng.standard_normal(shape).astype("float32") for shape in ((4, 6, 4), (4, 8)))
    expected = assert_agrees(machine, GRUProblem(spec=spec, x=x, h0=h0), weights)
    outs = [out for _, out in layouts(np.zeros((4, 6, 8), "float32")) if out.flags.writeable]
    odd = np.empty(x.nbytes + 4, np.uint8)[4:].view("float32").reshape(x.shape)  # 4-byte aligned
    odd[...] = x
    steps_first = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    for copied, view in [(True, odd), (False, steps_first), (False, x)] + [
        (None, view) for _, view in layouts(x)
    ]:
        machine.clear()
        problem = GRUProblem(spec=spec, x=view, h0=np.asfortranarray(h0))
        y = machine.backend.forward(problem, weights).y
        np.testing.assert_allclose(y, expected.y, rtol=0, atol=1e-6)
        assert copied is None or machine.emulator.launched == ["gather_x", "spread"] * copied
        for sequences, out in itertools.product([True, False], outs):
            target = out if sequences else out[:, 2]
            problem = problem._replace(return_sequences=sequences, out=target)
            got = machine.backend.forward(problem, weights)
            assert got.y is problem.out
            wanted = y if sequences else y[:, -1]
            np.testing.assert_allclose(problem.out, wanted, rtol=0, atol=1e-6)
            problem = problem._replace(out=None)
            assert_agrees(machine, problem, weights)


def test_gradients_in_any_memory(machine):
    spec = make_spec(4, 8)
    rng = np.random.default_rng(11)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((4, 6, 4)).astype("float32")
    dy = rng.standard_normal((4, 6, 8)).astype("float32")
    for source in (x, np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)):
        problem = GRUProblem(spec=spec, x=source)
        out = machine.backend.forward(problem, weights, save=True)
        want = REFERENCE.backward(*wide_call(problem, weights), *wide(out.states, dy), None)
        odd = np.empty(dy.nbytes + 4, np.uint8)[4:].view("float32").reshape(dy.shape)
        odd[...] = dy
        for given in (dy, odd, *(view for _, view in layouts(dy))):
            workspace = copy.copy(out.workspace)
            got = machine.backend.backward(problem, weights, out.states, given, None, workspace)
            for name, g, w in zip(got._fields, got, want, strict=True):
                assert_near(g, w, spec.dtype, name)


def wide(*arrays):
    return [array.astype(float) for array in arrays]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("lengths", [None, [33, 50, 20, 0, 16], [40] * 5], ids=str)
def test_pieces_of_time(monkeypatch, flags, lengths):
    """Longer than cuDNN takes at a time, with rows that end in each piece and at its end."""
    monkeypatch.setattr(cudnn_call, "STEPS", 16)
    monkeypatch.setattr(cudnn, "TRIAL_STEPS", 16)
    machine = Machine(most_steps=16)
    spec = make_spec(I, 4)
    rng = np.random.default_rng(12)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "none", False, "none", flags, (5, 50))
    if lengths is not None:
        problem = problem._replace(mask=plan_mask(None, lengths, 5, 50))
        problem.x[~problem.mask.valid(50)] = np.nan
    assert_agrees(machine, problem, weights)
    machine.clear()
    machine.backend.forward(problem, weights)
    longest = 50 if lengths is None else max(lengths)
    assert machine.fake.calls.count("RNNForward") == -(-longest // 16)


def test_a_step_more_than_cudnn_takes():
    spec = make_spec(1, 1, "float64")  # without trials
    x = np.random.default_rng(13).standard_normal((1, 65536, 1))
    machine = Machine()
    weights = make_weights(np.random.default_rng(14), spec)
    problem = GRUProblem(spec=spec, x=x)
    got = machine.backend.forward(problem, weights)
    assert machine.fake.calls.count("RNNForward") == 2
    assert_near(got.y, REFERENCE.forward(problem, weights).y, spec.dtype, "y")


# -- both directions -------------------------------------------------------------------------------


def halves(rng, spec, kind, sequences=(True, True), zero_masked=(False, False)):
    one, other = (
        draw(rng, spec, "none", False, "none", (bool(d), sequences[d], zero_masked[d]), (B, T))
        for d in range(2)
    )
    mask = draw(rng, spec, kind, False, "none", (False,) * 3, (B, T)).mask
    one, other = one._replace(mask=mask), other._replace(x=one.x, mask=mask)
    if kind == "lengths":
        one.x[~one.mask.valid(T)] = np.nan
    return one, other


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "lengths"])
def test_both_directions_at_once(machine, kind, dtype):
    spec = make_spec(I, H, dtype)
    rng = np.random.default_rng(23)
    weights = [make_weights(rng, spec) for _ in range(2)]
    for sequences, zero_masked in itertools.product(
        itertools.product([False, True], repeat=2), FLAGS[:4]
    ):
        problems = halves(rng, spec, kind, sequences, zero_masked[1:])
        if zero_masked[1] and not zero_masked[2]:
            problems = problems[0], problems[1]._replace(h0=None)
        assert machine.backend.supports_pair(problems) is None
        machine.clear()
        outs = machine.backend.forward_pair(problems, weights, save=True)
        again = machine.backend.forward_pair(problems, weights)
        wides = [wide_call(*half) for half in zip(problems, weights, strict=True)]
        expected = [REFERENCE.forward(*half, save=True) for half in wides]
        for out, second, want in zip(outs, again, expected, strict=True):
            for name in ("y", "state", "states"):
                assert_near(getattr(out, name), getattr(want, name), spec.dtype, name)
            np.testing.assert_array_equal(second.y, out.y)
        dys = [rng.standard_normal(out.y.shape).astype(dtype) for out in outs]
        dstates = [rng.standard_normal(out.state.shape).astype(dtype) for out in outs]
        dstates[0] = None
        grads = machine.backend.backward_pair(problems, weights, dys, dstates, outs[0].workspace)
        want = [
            REFERENCE.backward(*half, out.states, dy.astype(float), dstate)
            for half, out, dy, dstate in zip(wides, expected, dys, dstates, strict=True)
        ]
        assert_near(grads[0].x, want[0].x + want[1].x, spec.dtype, "x")
        assert grads[1].x is None
        for got, wanted in zip(grads, want, strict=True):
            for name, g, w in list(zip(got._fields, got, wanted, strict=True))[1:]:
                assert_near(g, w, spec.dtype, name)


def test_both_are_packed_together_once(machine):
    spec = make_spec(I, H)
    rng = np.random.default_rng(24)
    one, other, third = (make_weights(rng, spec) for _ in range(3))
    problems = halves(rng, spec, "none")
    for pair, count in (((one, other), 2), ((one, other), 2), ((one, third), 4)):
        machine.backend.forward_pair(problems, pair)
        assert machine.emulator.launched.count("pack_weights") == count


def test_what_it_cannot_serve_in_both_directions(machine, monkeypatch):
    spec = make_spec(I, H)
    rng = np.random.default_rng(25)

    def refused(reason, kind="none", **changes):
        one, other = halves(rng, spec, kind)
        assert reason in machine.backend.supports_pair((one, other._replace(**changes)))

    refused("one layer in both directions", x=np.ones((B, T, I), "f"))
    refused("one layer in both directions", reverse=False)
    refused("one layer in both directions", spec=make_spec(I, H, use_bias=False))
    refused("different masks", mask=plan_mask(None, [1, 2, 3, 4, 5], B, T))
    refused("different masks", "lengths", mask=NO_MASK)
    refused("dropout", dropout=np.ones((B, I), "f"))
    refused("activation is not tanh", spec=make_spec(I, H, activation=activations.relu))
    monkeypatch.setattr(cudnn_call, "STEPS", 5)
    refused("more than 5 steps")
