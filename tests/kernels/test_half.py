"""float16 and bfloat16 in the native code: rounding, the reference, bits, gradients, streams."""

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np
import pytest
from exhaustive import EVERYTHING
from random_problems import REFERENCE, draw_problem, make_spec, make_weights, widened

import fastgru
from fastgru import activations
from fastgru.backends import cpu as cpu_backend
from fastgru.masks import plan_mask
from fastgru.problem import GRUProblem, GRUWeights

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
BACKEND = cpu_backend.CPUBackend()
HALVES = ["float16", "bfloat16"]
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # between 1 and the next number


@pytest.fixture(params=kernels.supported_isas())
def isa(request):
    cpu_backend._load()
    before = kernels.get_isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


@pytest.fixture(params=["fused", "blas"])
def kernel(request, monkeypatch):
    cpu_backend._load()
    if request.param == "fused" and not kernels.lanes(4):
        pytest.skip("this compiler has no vector types, which the fused kernel needs")
    monkeypatch.setattr(cpu_backend, "_forced_kernel", request.param)
    return request.param


def in_dtype(problem, weights, dtype):
    """Return the problem and weights, rounded to a dtype of 16 bits."""
    dtype = np.dtype(dtype)

    def cast(array):
        return None if array is None else array.astype(dtype)

    p = problem
    arrays = {name: cast(getattr(p, name)) for name in ("x", "h0", "dropout", "recurrent_dropout")}
    halved = p._replace(spec=p.spec._replace(dtype=dtype), **arrays)
    return halved, GRUWeights(*map(cast, (weights.kernel, weights.recurrent_kernel, weights.bias)))


def assert_close(got, want, dtype, count, what):
    """Compare with a result in float64 up to so many epsilons, relative to the largest element."""
    assert got.dtype == dtype, what
    assert got.shape == want.shape, what
    off = np.abs(got.astype(np.float64) - np.asarray(want, np.float64)).max(initial=0)
    assert off <= count * EPS[dtype] * max(1.0, np.abs(want).max(initial=0)), what


# ---- rounding ------------------------------------------------------------------------------------


def floats():
    """Floats of every exponent, ties between numbers of 16 bits, and what lies beside them."""
    if EVERYTHING:
        for high in range(1 << 16):
            yield ((np.uint32(high) << 16) + np.arange(1 << 16, dtype=np.uint32)).view(np.float32)
        return
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 1 << 20, np.uint64).astype(np.uint32)
    yield bits.view(np.float32)
    for dtype in HALVES:
        halves = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
        numbers = np.sort(halves[np.isfinite(halves)]).astype(np.float64)
        ties = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
        yield from (ties, np.nextafter(ties, np.float32(-9)), np.nextafter(ties, np.float32(9)))
        yield halves
    yield np.array([65519.996, 65520, -65520, 3.4e38, np.inf, -np.inf, np.nan, 0, -0.0], "f4")


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_to_nearest_even(isa, dtype):
    for values in floats():
        with np.errstate(over="ignore", invalid="ignore"):
            want = values.astype(dtype).astype(np.float32)
        got = values.copy()
        kernels.apply_rounding(np.dtype(dtype), got)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize("units", [64, 3])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_passes_through_a_masked_step(isa, kernel, dtype, units):
    """In as 16 bits, kept in float32, out as 16 bits: subnormal numbers and infinities too."""
    spec = make_spec(2, units, dtype)
    weights = make_weights(np.random.default_rng(0), spec)
    rows = (1 << 16) // units
    h0 = np.arange(rows * units, dtype=np.uint16).view(dtype).reshape(rows, units)
    x = np.ones((rows, 2, 2), dtype)
    mask = plan_mask(np.zeros((rows, 2), bool), None, rows, 2)
    for given in (GRUProblem(spec=spec, x=x, h0=h0, mask=mask), GRUProblem(spec=spec, x=x[:, :0])):
        problem = given._replace(h0=h0)
        state = BACKEND.forward(problem, weights).state
        nan = np.isnan(h0.astype(np.float32))
        assert np.isnan(state.astype(np.float32)[nan]).all()
        np.testing.assert_array_equal(state.view(np.uint16)[~nan], h0.view(np.uint16)[~nan])


# ---- forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seeds", [range(k, k + 20) for k in range(2000, 2120, 20)], ids=str)
def test_the_reference_has_the_same_numbers(isa, kernel, seeds, dtype):
    """Sums differ by roundings of float32; so a state may be the neighbour of the reference's.

    What a step makes of such a state is at most as far off, for gates of [0, 1]: 4 epsilons.
    """
    same = []
    for seed in seeds:
        problem, weights = in_dtype(*draw_problem(seed), dtype)
        save = bool(seed % 2)
        assert BACKEND.supports(problem) is None
        want = REFERENCE.forward(problem, weights, save=save)
        got = BACKEND.forward(problem, weights, save=save)
        for name in ("y", "state", "states") if save else ("y", "state"):
            one, other = getattr(got, name), getattr(want, name)
            assert_close(one, other, dtype, 4, f"{seed} {name}")
            same.append(np.mean(one == other) if one.size else 1)
    assert np.mean(same) > 0.97


@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_is_the_exact_one_rounded_once(isa, kernel, dtype):
    """From the same state no step is off by more than the rounding, and a little of float32."""
    rng = np.random.default_rng(5)
    for reset_after in (True, False):
        spec = make_spec(30, 70, dtype, reset_after=reset_after)
        weights = make_weights(rng, spec)
        x = rng.standard_normal((9, 1, 30)).astype(dtype)
        h0 = rng.uniform(-1, 1, (9, 70)).astype(dtype)
        problem = GRUProblem(spec=spec, x=x, h0=h0)
        exact = REFERENCE.forward(*widened(problem, weights)).state
        got = BACKEND.forward(problem, weights).state.astype(np.float64)
        above = np.nextafter(np.abs(got).astype(dtype), np.dtype(dtype).type(9)).astype(np.float64)
        assert (np.abs(got - exact) <= (above - np.abs(got)) / 2 + 2e-6).all()


def draw(dtype, kind, batch=33, steps=7, inputs=37, units=75):
    rng = np.random.default_rng(11)
    if kind == "narrow":  # few enough units that the rows of a larger batch share the vectors
        units = max(1, kernels.lanes(4) // 2)
    spec = make_spec(inputs, units, dtype, reset_after=kind != "before")
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    h0 = rng.standard_normal((batch, spec.units)).astype(dtype)
    return GRUProblem(spec=spec, x=x, h0=h0), weights, rng


def forward(problem, weights, save=False, **keywords):
    return BACKEND.forward(problem._replace(**keywords), weights, save=save)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["after", "before", "narrow"])
@pytest.mark.skipif(not kernels.lanes(4), reason="the fused kernels keep bits; there are none")
class TestBitForBit:
    """docs/semantics.md 12."""

    def test_rows_and_batches(self, isa, dtype, kind):
        problem, weights, _ = draw(dtype, kind)
        whole = forward(problem, weights)
        for size in (1, 2, 3, 5, 9, 13):
            part = forward(problem, weights, x=problem.x[:size], h0=problem.h0[:size])
            np.testing.assert_array_equal(part.y, whole.y[:size])
            np.testing.assert_array_equal(part.state, whole.state[:size])

    def test_pieces(self, isa, dtype, kind):
        problem, weights, _ = draw(dtype, kind, steps=29)
        whole = forward(problem, weights)
        pieces, state = [], problem.h0
        for low, high in ((0, 1), (1, 4), (4, 20), (20, 29)):
            out = forward(problem, weights, x=problem.x[:, low:high], h0=state)
            pieces.append(out.y)
            state = out.state
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole.y)
        np.testing.assert_array_equal(state, whole.state)

    def test_threads(self, isa, dtype, kind):
        from fastgru._native import _partition

        problem, weights, _ = draw(dtype, kind, 10, 9, units=150)
        outs = []
        try:
            for threads, shared in ((1, False), (2, False), (4, False), (2, True), (3, True)):
                _partition.force(threads, shared)
                outs.append(forward(problem, weights, save=True, num_threads=4))
        finally:
            _partition.force(0, False)
        for out in outs[1:]:
            for name in ("y", "state", "states"):
                np.testing.assert_array_equal(getattr(out, name), getattr(outs[0], name))

    def test_masked_rows_and_saving_change_nothing(self, isa, dtype, kind):
        problem, weights, rng = draw(dtype, kind)
        alone = forward(problem, weights)
        mask = rng.random((33, 7)) < 0.5
        mask[::3] = True
        plan = plan_mask(mask, None, 33, 7)
        mixed = forward(problem, weights, mask=plan)
        np.testing.assert_array_equal(mixed.y[::3], alone.y[::3])
        saved = forward(problem, weights, save=True, mask=plan)
        np.testing.assert_array_equal(saved.y, mixed.y)
        last = forward(problem, weights, mask=plan, return_sequences=False)
        np.testing.assert_array_equal(last.y, mixed.y[:, -1])
        np.testing.assert_array_equal(last.state, mixed.state)

    def test_memory_of_inputs_and_outputs(self, isa, dtype, kind):
        problem, weights, _ = draw(dtype, kind)
        whole = forward(problem, weights)
        wide = np.zeros((33, 7, 50), dtype)
        wide[..., 3:40] = problem.x
        units = problem.spec.units
        out = np.zeros((7, 33, units + 1), dtype).transpose(1, 0, 2)[..., :units]
        got = forward(problem, weights, x=wide[..., 3:40], out=out)
        assert got.y is out
        np.testing.assert_array_equal(out, whole.y)
        backwards = forward(problem, weights, x=problem.x[:, ::-1], reverse=True)
        np.testing.assert_array_equal(backwards.y, whole.y)


# ---- layers: the fast path, streams, calls of other threads --------------------------------------


def layer_of(dtype, units=40, inputs=9, **arguments):
    layer = fastgru.GRU(units, return_sequences=True, dtype=dtype, **arguments)
    layer.build((None, None, inputs))
    rng = np.random.default_rng(2)
    layer.set_weights([rng.normal(0, 0.3, v.shape).astype(v.dtype) for v in layer.weights])
    return layer, rng


@pytest.mark.parametrize("dtype", [*HALVES, "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_fast_path_streams_and_cells_have_the_same_bits(isa, dtype, reset_after):
    layer, rng = layer_of(dtype, reset_after=reset_after)
    x = rng.standard_normal((6, 5, 9)).astype(layer.compute_dtype)
    whole = layer(x, num_threads=1)  # the whole way
    assert whole.dtype == x.dtype
    fast = layer.fast_call(x)
    assert (fast is not None) == (cpu_backend._kernel(layer.cell.spec) == "fused")
    np.testing.assert_array_equal(layer(x), whole)
    some, every = layer.stream(9), layer.stream(6)
    state = np.zeros((6, 40), x.dtype)
    for t in range(5):
        y = every.step(x[:, t])
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, whole[:, t])
        rows = np.array([7, 1, 4])
        np.testing.assert_array_equal(some.step(x[:3, t], rows=rows), whole[:3, t])
        state, _ = layer.cell(x[:, t], state)
        np.testing.assert_array_equal(state, whole[:, t])
    np.testing.assert_array_equal(every.state, whole[:, -1])
    np.testing.assert_array_equal(some.state[rows], whole[:3, -1])


@pytest.mark.parametrize("dtype", HALVES)
def test_stacked_streams_of_many_rows(dtype):
    cells = [fastgru.GRUCell(units, dtype=dtype) for units in (20, 33)]
    layer = fastgru.RNN(cells, return_sequences=True)
    layer.build((None, None, 5))
    x = np.random.default_rng(1).standard_normal((2500, 3, 5)).astype(dtype)
    whole = layer(x)
    stream = layer.stream(2500)
    rows = np.random.default_rng(2).permutation(2500)
    for t in range(3):
        np.testing.assert_array_equal(stream.step(x[rows, t], rows=rows), whole[rows, t])


@pytest.mark.parametrize("dtype", HALVES)
def test_calls_of_other_threads_in_one_batch(dtype):
    from concurrent.futures import ThreadPoolExecutor

    layer, rng = layer_of(dtype, 64)
    x = rng.standard_normal((200, 2, 6, 9)).astype(dtype)
    alone = [layer(one) for one in x]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(layer, x), alone, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", HALVES)
def test_explain_says_what_serves_them(kernel, dtype):
    layer, rng = layer_of(dtype)
    x = rng.standard_normal((2, 5, 9)).astype(dtype)
    explanation = layer.explain(x)
    assert (explanation.backend, kernel in str(explanation)) == ("cpu", True)
    assert explanation.backward == ("cpu" if kernel == "fused" else "reference")
    assert f"{dtype} arrays, float32 sums" in str(explanation)


# ---- backward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seeds", [range(k, k + 15) for k in range(3000, 3060, 15)], ids=str)
def test_gradients(isa, kernel, seeds, dtype):
    """Beside float64, whose states are not rounded: each of up to 12 steps adds an epsilon.

    Those of the weights are sums over rows and steps, in the dtype of sums. No activation has
    joints, on the other side of which a rounded state would have another derivative.
    """
    for seed in seeds:
        problem, weights = draw_problem(seed)
        roles = {"activation": activations.tanh, "recurrent_activation": activations.sigmoid}
        smooth = {
            role: other
            for role, other in roles.items()
            if getattr(problem.spec, role).name not in ("tanh", "sigmoid", "softsign")
        }
        problem = problem._replace(spec=problem.spec._replace(**smooth))
        problem, weights = in_dtype(problem, weights, dtype)
        rng = np.random.default_rng(seed)
        wide, wide_weights = widened(problem, weights)
        expected = REFERENCE.forward(wide, wide_weights, save=True)
        dy = rng.standard_normal(expected.y.shape).astype(dtype) if seed % 5 else None
        dstate = rng.standard_normal(expected.state.shape).astype(dtype) if seed % 3 else None
        given = [None if a is None else a.astype(np.float64) for a in (dy, dstate)]
        want = REFERENCE.backward(wide, wide_weights, expected.states, *given)
        backend = BACKEND if BACKEND.supports_backward(problem) is None else REFERENCE
        assert (backend is BACKEND) == (kernel == "fused")
        out = BACKEND.forward(problem, weights, save=True)
        for workspace in (None, out.workspace):  # None: forward again
            got = backend.backward(problem, weights, out.states, dy, dstate, workspace)
            for name, g, w in zip(got._fields, got, want, strict=True):
                if w is None:
                    assert g is None
                    continue
                kind = dtype if name in ("x", "h0") else "float32"
                assert (g.dtype, g.shape) == (kind, w.shape)
                off = np.abs(g.astype(np.float64) - w).max(initial=0)
                assert off <= 12 * EPS[dtype] * max(1.0, np.abs(w).max(initial=0)), f"{seed} {name}"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.skipif(not kernels.lanes(4), reason="needs the fused kernels")
def test_gradients_are_the_references(isa, dtype):
    """On the same states, which are rounded: up to float32, and the rounding of x's and h0's."""
    for seed in range(4000, 4030):
        problem, weights = in_dtype(*draw_problem(seed), dtype)
        out = REFERENCE.forward(problem, weights, save=True)
        dy = np.random.default_rng(seed).standard_normal(out.y.shape).astype(dtype)
        want = REFERENCE.backward(problem, weights, out.states, dy, None)
        got = BACKEND.backward(problem, weights, out.states, dy, None)
        for name, g, w in zip(got._fields, got, want, strict=True):
            if w is None:
                continue
            assert g.dtype == w.dtype, name
            epsilon = EPS[dtype] if name in ("x", "h0") else EPS[dtype] / 2
            off = np.abs(g.astype(np.float64) - w.astype(np.float64)).max(initial=0)
            assert off <= 2 * epsilon * max(1.0, np.abs(w).max(initial=0)), f"{seed} {name}"
