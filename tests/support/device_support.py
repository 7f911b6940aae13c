"""Problems for the backends of a device, and how their results compare with the reference."""

from typing import NamedTuple

import numpy as np
from random_problems import draw_mask
from random_problems import widened as wide_call

from fastgru.backends.reference import ReferenceBackend
from fastgru.masks import plan_resets
from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUWeights

REFERENCE = ReferenceBackend()

# Against the reference in float64: absolute up to size 1, relative above; gradients relative to the
# largest element. A half keeps 11 bits of every state, and its rounding is passed on; a bfloat16
# keeps three bits less.
TOLERANCE = {"bfloat16": 8e-2, "float16": 1e-2, "float32": 1e-5, "float64": 1e-12}
DROPOUTS = ["none", "one", "three", "recurrent", "both"]


def assert_near(got, want, dtype, what):
    if want is None:
        assert got is None
        return
    assert (got.dtype, got.shape) == (dtype, want.shape), what
    got = got.get() if hasattr(got, "get") else got
    off = np.abs(np.asarray(got, float) - want).max(initial=0)
    assert off <= TOLERANCE[dtype.name] * max(1.0, np.abs(want).max(initial=0)), what


def draw(rng, spec, kind, resets, dropout, flags, shape=(5, 5)):
    """Return a problem with a mask of a kind, NaN where it masks."""
    batch, steps = shape
    reverse, sequences, zero_masked = flags
    x = rng.standard_normal((batch, steps, spec.input_dim)).astype(spec.dtype)
    mask = draw_mask(rng, kind, batch, steps)
    if kind == "lengths" and mask.lengths is not None and batch > 1:
        mask.lengths[0] = 0  # as the other kind has a row without any valid step
    valid = mask.valid(steps)
    if valid is not None:
        x[~valid] = np.nan

    def factors(*shape):
        return ((rng.random(shape) < 0.7) / 0.7).astype(spec.dtype)

    one, three = (batch, spec.input_dim), (3, batch, spec.input_dim)
    shapes = {"one": one, "three": three, "both": three}
    recurrent = dropout in ("recurrent", "both")
    return GRUProblem(
        spec=spec,
        x=x,
        h0=rng.standard_normal((batch, spec.units)).astype(spec.dtype),
        mask=mask,
        resets=plan_resets(rng.random((batch, steps)) < 0.3, batch, steps) if resets else None,
        dropout=factors(*shapes[dropout]) if dropout in shapes else None,
        recurrent_dropout=factors(3, batch, spec.units) if recurrent else None,
        reverse=reverse,
        return_sequences=sequences,
        zero_output_for_mask=zero_masked,
    )


class Expected(NamedTuple):
    """A problem with random gradients of its results, and what the reference makes in float64."""

    problem: GRUProblem
    weights: GRUWeights
    dy: np.ndarray | None
    dstate: np.ndarray | None
    output: GRUOutput
    grads: GRUGrads


def expect(problem, weights, seed=1):
    dtype = problem.spec.dtype
    wide = wide_call(problem, weights)
    output = REFERENCE.forward(*wide, save=True)
    rng = np.random.default_rng(seed)
    dy = rng.standard_normal(output.y.shape).astype(dtype) if seed % 5 else None
    dstate = rng.standard_normal(output.state.shape).astype(dtype) if seed % 3 else None
    given = (None if array is None else array.astype(float) for array in (dy, dstate))
    grads = REFERENCE.backward(*wide, output.states, *given)
    return Expected(problem, weights, dy, dstate, output, grads)


def moved(problem, move):
    """Return the problem where ``move`` takes arrays."""
    h0 = None if problem.h0 is None else move(problem.h0)
    return problem._replace(x=move(problem.x), h0=h0)


def assert_expected(expected, backend, keep_gates=True, move=lambda array: array):
    """Compare outputs and gradients; ``move`` takes arrays to where the backend computes."""
    given, weights, *gradients, output, grads = expected
    problem, dtype = moved(given, move), given.spec.dtype
    dy, dstate = (None if array is None else move(array) for array in gradients)
    assert backend.supports(problem) is backend.supports_backward(problem) is None
    out = backend.forward(problem, weights, save=True, keep_gates=keep_gates)
    assert (out.workspace is None) != keep_gates
    for name in ("y", "state", "states"):
        assert type(getattr(out, name)) is type(problem.x)
        assert_near(getattr(out, name), getattr(output, name), dtype, name)
    for array in (problem.x, problem.h0, out.y):
        assert array is None or not np.shares_memory(out.state, array)
    y = out.y.copy()
    out.y[...] = 7  # the user's, who may do so
    got = backend.backward(problem, weights, out.states, dy, dstate, out.workspace)
    out.y[...] = y
    for name, g, w in zip(got._fields, got, grads, strict=True):
        assert g is None or type(g) is type(problem.x)
        assert_near(g, w, dtype, name)
    return out


def assert_agrees(backend, problem, weights, seed=1, **how):
    """Compare a backend with the reference, with gradients drawn from the seed."""
    return assert_expected(expect(problem, weights, seed), backend, **how)
