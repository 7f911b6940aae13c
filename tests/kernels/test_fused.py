"""The fused kernels: backward beside the reference; semantics.md 12 bit for bit on every ISA."""

import numpy as np
import pytest
from random_problems import (
    ELEMENTWISE,
    REFERENCE,
    draw_problem,
    make_spec,
    make_weights,
    widened,
)
from subprocesses import run_python

from fastgru import activations
from fastgru.backends import cpu as cpu_backend
from fastgru.masks import plan_mask
from fastgru.problem import GRUProblem, GRUWeights

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
pytestmark = pytest.mark.skipif(
    not kernels.lanes(4), reason="this compiler has no vector types, which the fused kernel needs"
)
BACKEND = cpu_backend.CPUBackend()
DTYPES = ["float32", "float64"]

# Relative to the largest element: sums over all rows and steps of products that carry the rounding
# of a few hundred others.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


@pytest.fixture(params=kernels.supported_isas())
def isa(request, monkeypatch):
    cpu_backend._load()
    monkeypatch.setattr(cpu_backend, "_forced_kernel", "fused")
    before = kernels.get_isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


def forward(*arguments, save=False, **keywords):
    problem, weights = arguments
    return BACKEND.forward(problem._replace(**keywords), weights, save=save)


def assert_gradients_agree(problem, weights, seed=0, keep_workspace=True):
    rng = np.random.default_rng(seed)
    wide, wide_weights = widened(problem, weights)
    expected = REFERENCE.forward(wide, wide_weights, save=True)
    dtype = problem.spec.dtype
    dy = rng.standard_normal(expected.y.shape).astype(dtype) if seed % 5 else None
    dstate = rng.standard_normal(expected.state.shape).astype(dtype) if seed % 3 else None
    assert BACKEND.supports_backward(problem) is None
    out = BACKEND.forward(problem, weights, save=True)
    got = BACKEND.backward(
        problem, weights, out.states, dy, dstate, out.workspace if keep_workspace else None
    )
    want = REFERENCE.backward(
        wide,
        wide_weights,
        expected.states,
        None if dy is None else dy.astype(np.float64),
        None if dstate is None else dstate.astype(np.float64),
    )
    for name, g, w in zip(got._fields, got, want, strict=True):
        if w is None:
            assert g is None
            continue
        assert g.dtype == dtype
        assert g.shape == w.shape
        scale = max(1.0, np.abs(w).max(initial=0))
        np.testing.assert_allclose(
            g / scale, w / scale, rtol=0, atol=TOLERANCE[dtype.name], err_msg=name
        )


@pytest.mark.parametrize("seeds", [range(k, k + 25) for k in range(1000, 1150, 25)], ids=str)
def test_random_configurations(isa, seeds):
    for seed in seeds:
        problem, weights = draw_problem(seed)
        wide = REFERENCE.forward(*widened(problem, weights), save=True)
        out = BACKEND.forward(problem, weights, save=True)
        for name in ("y", "state", "states"):
            np.testing.assert_allclose(
                getattr(out, name),
                getattr(wide, name),
                rtol=0,
                atol={"float32": 5e-6, "float64": 1e-13}[problem.spec.dtype.name],
                err_msg=f"{seed} {name}",
            )
        assert_gradients_agree(problem, weights, seed)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=repr)
def test_gradient_of_every_activation(activation, reset_after):
    """In float64, as the activation of the candidate and of the gates."""
    rng = np.random.default_rng(3)
    for role in ("activation", "recurrent_activation"):
        spec = make_spec(5, 19, "float64", reset_after=reset_after, **{role: activation})
        weights = make_weights(rng, spec)
        # Small, since a gate without bounds makes the state grow at every step.
        weights = GRUWeights(
            weights.kernel * 0.3, weights.recurrent_kernel * 0.3, weights.bias * 0.3
        )
        x = rng.standard_normal((3, 4, 5)) * 0.5
        assert_gradients_agree(GRUProblem(spec=spec, x=x), weights, seed=1)


def test_backward_without_the_workspace():
    problem, weights = draw_problem(7)
    assert_gradients_agree(problem, weights, 7, keep_workspace=False)


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5)], ids=str)
@pytest.mark.parametrize("reset_after", [True, False])
def test_gradients_of_empty_axes(shape, reset_after):
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(4)
    spec = make_spec(inputs, units, reset_after=reset_after)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype("float32")
    assert_gradients_agree(GRUProblem(spec=spec, x=x), weights, seed=1)


def draw(dtype, kind, batch=64, steps=7, inputs=37, units=75):
    rng = np.random.default_rng(11)
    if kind == "narrow":  # few enough units that the rows of a larger batch share the vectors
        units = max(1, kernels.lanes(np.dtype(dtype).itemsize) // 2)
    other = {}
    if kind == "other":
        names = {"activation": "softsign", "recurrent_activation": "elu"}
        other = {role: activations.get(name) for role, name in names.items()}
    spec = make_spec(inputs, units, dtype, reset_after=kind != "before", **other)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    h0 = rng.standard_normal((batch, spec.units)).astype(dtype)
    return spec, weights, x, h0, rng


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["after", "before", "other", "narrow"])
class TestBitForBit:
    """docs/semantics.md 12."""

    def test_rule_12_batch_of_one_equals_batch_of_64(self, isa, dtype, kind):
        spec, weights, x, h0, _ = draw(dtype, kind)
        whole = forward(GRUProblem(spec=spec, x=x, h0=h0), weights)
        for size in (1, 2, 3, 5, 7, 9, 13):
            part = forward(GRUProblem(spec=spec, x=x[:size], h0=h0[:size]), weights)
            np.testing.assert_array_equal(part.y, whole.y[:size])
            np.testing.assert_array_equal(part.state, whole.state[:size])

    def test_rule_12_permuted_rows(self, isa, dtype, kind):
        spec, weights, x, h0, rng = draw(dtype, kind)
        lengths = rng.integers(0, 8, 64)
        order = rng.permutation(64)
        first = forward(
            GRUProblem(spec=spec, x=x, h0=h0, mask=plan_mask(None, lengths, 64, 7)), weights
        )
        mask = plan_mask(None, lengths[order], 64, 7)
        second = forward(GRUProblem(spec=spec, x=x[order], h0=h0[order], mask=mask), weights)
        np.testing.assert_array_equal(second.y, first.y[order])

    def test_rule_12_threads(self, isa, dtype, kind):
        for batch, steps in ((64, 7), (3, 60), (2, 7)):
            spec, weights, x, h0, _ = draw(dtype, kind, batch, steps, units=150)
            ys = [
                forward(GRUProblem(spec=spec, x=x, h0=h0, num_threads=n), weights).y
                for n in (1, 2, 3)
            ]
            np.testing.assert_array_equal(ys[1], ys[0])
            np.testing.assert_array_equal(ys[2], ys[0])

    def test_rule_12_cuts(self, isa, dtype, kind):
        from fastgru._native import _partition

        spec, weights, x, h0, _ = draw(dtype, kind, 10, 9, units=150)
        ys = []
        try:
            for threads, shared in ((1, False), (2, False), (4, False), (2, True), (3, True)):
                _partition.force(threads, shared)
                ys.append(forward(GRUProblem(spec=spec, x=x, h0=h0, num_threads=4), weights).y)
        finally:
            _partition.force(0, False)
        for y in ys[1:]:
            np.testing.assert_array_equal(y, ys[0])

    @pytest.mark.parametrize("masked", [False, True])
    def test_gradients_depend_on_neither_threads_nor_cuts(self, isa, dtype, kind, masked):
        from fastgru._native import _partition

        spec, weights, x, h0, rng = draw(dtype, kind, 45, 9, units=150)
        problem = GRUProblem(spec=spec, x=x, h0=h0)
        if masked:
            problem = problem._replace(mask=plan_mask(rng.random((45, 9)) < 0.97, None, 45, 9))
            problem = problem._replace(dropout=rng.random((3, 45, 37)).astype(dtype))
            problem = problem._replace(
                recurrent_dropout=rng.random((3, 45, spec.units)).astype(dtype)
            )
        dy = rng.standard_normal((45, 9, spec.units)).astype(dtype)
        found = []
        try:
            for threads, shared in ((1, False), (2, False), (4, False), (2, True), (3, True)):
                _partition.force(threads, shared)
                problem = problem._replace(num_threads=threads)
                out = BACKEND.forward(problem, weights, save=True)
                found.append(
                    BACKEND.backward(problem, weights, out.states, dy, None, out.workspace)
                )
        finally:
            _partition.force(0, False)
        for grads in found[1:]:
            for got, want in zip(grads, found[0], strict=True):
                np.testing.assert_array_equal(got, want)

    def test_rule_12_pieces(self, isa, dtype, kind):
        spec, weights, x, h0, _ = draw(dtype, kind, steps=29)
        whole = forward(GRUProblem(spec=spec, x=x, h0=h0), weights)
        pieces, state = [], h0
        for low, high in ((0, 1), (1, 4), (4, 20), (20, 29)):
            out = forward(GRUProblem(spec=spec, x=x[:, low:high], h0=state), weights)
            pieces.append(out.y)
            state = out.state
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole.y)
        np.testing.assert_array_equal(state, whole.state)

    def test_rule_12_masked_rows_change_nothing_in_others(self, isa, dtype, kind):
        spec, weights, x, h0, rng = draw(dtype, kind)
        alone = forward(GRUProblem(spec=spec, x=x, h0=h0), weights)
        mask = rng.random((64, 7)) < 0.5
        mask[::3] = True
        mixed = forward(
            GRUProblem(spec=spec, x=x, h0=h0, mask=plan_mask(mask, None, 64, 7)), weights
        )
        np.testing.assert_array_equal(mixed.y[::3], alone.y[::3])

    def test_rule_12_saving_for_backward_changes_no_output(self, isa, dtype, kind):
        spec, weights, x, h0, _ = draw(dtype, kind)
        plain = forward(GRUProblem(spec=spec, x=x, h0=h0), weights)
        saved = forward(GRUProblem(spec=spec, x=x, h0=h0), weights, save=True)
        np.testing.assert_array_equal(saved.y, plain.y)


def test_the_forced_isa_has_its_lanes(isa):
    size = {"base": 16, "avx2": 32, "avx512": 64}[isa]
    assert (kernels.lanes(4), kernels.lanes(8)) == (size // 4, size // 8)


@pytest.mark.parametrize("limit", ["1", "2"])
def test_fewer_threads_than_asked_for(limit):
    """OpenMP may give a smaller team; no thread may then outgrow its scratch."""
    code = """
        import numpy as np
        import fastgru

        rng = np.random.default_rng(0)
        for batch, steps, inputs, units in ((400, 9, 30, 40), (3, 40, 30, 200), (130, 9, 30, 330)):
            layer = fastgru.GRU(units, return_sequences=True)
            x = rng.standard_normal((batch, steps, inputs)).astype("float32")
            alone, tape = layer.forward(x, num_threads=1)
            want = layer.backward(tape, np.ones_like(alone))
            for threads in (3, 8):
                y, tape = layer.forward(x, num_threads=threads)
                assert (y == alone).all()
                got = layer.backward(tape, np.ones_like(y))
                assert (got.inputs == want.inputs).all()
                assert all((g == w).all() for g, w in zip(got.weights, want.weights))
        print("same")
    """
    assert run_python(code, OMP_THREAD_LIMIT=limit).strip() == "same"


def test_the_memory_of_a_spent_workspace_serves_the_next():
    spec, weights, x, h0, _ = draw("float32", "after")
    problem = GRUProblem(spec=spec, x=x, h0=h0)

    def gradients(out):
        return BACKEND.backward(problem, weights, out.states, out.y, None, out.workspace)

    outs = [forward(problem, weights, save=True) for _ in range(2)]  # both alive: apart
    assert not np.shares_memory(outs[0].workspace.gates, outs[1].workspace.gates)
    places = [out.workspace.gates.ctypes.data for out in outs]
    expected, found = gradients(outs[0]), gradients(outs[1])
    third = forward(problem, weights, save=True)
    assert third.workspace.gates.ctypes.data == places[1]
    for got in (found, gradients(third)):
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_at_a_zero_state_is_not_lost(dtype, isa):
    # A first step's zero states need no product; with reset_after=False what is multiplied is
    # r * h, and r may be NaN: here of one unit, where infinities cancel. So all units are NaN,
    # whether the zeros are given or not.
    spec = make_spec(3, 5, dtype, reset_after=False)
    weights = make_weights(np.random.default_rng(0), spec)
    kernel = np.ones((3, 15), dtype)
    kernel[1, 5] = -1
    weights = GRUWeights(kernel, weights.recurrent_kernel, weights.bias)
    x = np.full((1, 1, 3), np.inf, dtype)
    alone = forward(GRUProblem(spec=spec, x=x), weights).y
    zeros = forward(GRUProblem(spec=spec, x=x, h0=np.zeros((1, 5), dtype)), weights).y
    with np.errstate(invalid="ignore"):
        expected = REFERENCE.forward(GRUProblem(spec=spec, x=x), weights).y
    for y in (alone, zeros, expected):
        assert np.isnan(y).all()
