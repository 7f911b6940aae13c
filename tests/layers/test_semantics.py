"""docs/semantics.md, rules 1 to 6, and reset_mask: test_rule_NN_* checks rule NN, everywhere.

Rule 7 is in test_dropout.py, rules 8 to 12 are in test_semantics_numbers.py.
"""

import itertools

import numpy as np
import pytest
from grad_support import (
    MASKS,
    RESETS,
    TOLERANCE,
    B,
    H,
    I,
    T,
    fill,
    gru,
    near,
    oracle,
    rewind,
    sequences,
    served_by,
    sigmoid,
    state,
)

import fastgru

DTYPES = ("float32", "float64")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Serve every call of the test by one backend."""
    with served_by(request.param):
        yield request.param


def test_the_cpu_backend_serves_the_layers_of_these_files():
    explanation = fastgru.GRU(H).explain(sequences("float32"), mask=MASKS["holes"])
    assert explanation.backend == "cpu", explanation


# -- 1: the equations --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_rule_01_equations(backend, reset_after, use_bias, dtype):
    layer = gru(
        reset_after=reset_after,
        use_bias=use_bias,
        dtype=dtype,
        return_sequences=True,
        return_state=True,
    )
    x, h0 = sequences(dtype), state(dtype)
    y, final = layer(x, h0)
    expected, expected_state = oracle(x, layer.get_weights(), h0, reset_after=reset_after)
    near(y, expected, dtype)
    near(final, expected_state, dtype)


def test_rule_01_one_step_written_out(backend):
    x, h = sequences(shape=(B, I)), state()
    w, u = (gru(seed=9).get_weights()[i].reshape(-1, 3, H) for i in (0, 1))
    b = gru(seed=9).get_weights()[2].reshape(2, 3, H)
    z = sigmoid(x @ w[:, 0] + b[0, 0] + h @ u[:, 0] + b[1, 0])
    r = sigmoid(x @ w[:, 1] + b[0, 1] + h @ u[:, 1] + b[1, 1])
    after = np.tanh(x @ w[:, 2] + b[0, 2] + r * (h @ u[:, 2] + b[1, 2]))
    layer = gru(seed=9)
    near(layer(x[:, None], h), z * h + (1 - z) * after)
    before = fill(fastgru.GRU(H, reset_after=False, dtype="float64"))
    before.set_weights([w.reshape(I, -1), u.reshape(H, -1), b[0].reshape(-1)])
    z = sigmoid(x @ w[:, 0] + b[0, 0] + h @ u[:, 0])
    r = sigmoid(x @ w[:, 1] + b[0, 1] + h @ u[:, 1])
    candidate = np.tanh(x @ w[:, 2] + b[0, 2] + (r * h) @ u[:, 2])
    near(before(x[:, None], h), z * h + (1 - z) * candidate)
    cell = layer.cell
    near(cell(x, h)[0], z_h_blend(x, h, w, u, b))


def z_h_blend(x, h, w, u, b):
    z, r = (sigmoid(x @ w[:, g] + b[0, g] + h @ u[:, g] + b[1, g]) for g in (0, 1))
    return z * h + (1 - z) * np.tanh(x @ w[:, 2] + b[0, 2] + r * (h @ u[:, 2] + b[1, 2]))


def test_rule_01_reset_after_is_the_default():
    assert fastgru.GRU(2).reset_after is True
    assert fastgru.GRUCell(2).reset_after is True


# -- 2: masked steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rule_02_masks_agree_with_the_rule_written_out(backend, name, zero, reverse, dtype):
    layer = gru(
        return_sequences=True,
        return_state=True,
        zero_output_for_mask=zero,
        go_backwards=reverse,
        dtype=dtype,
    )
    x, h0, mask = sequences(dtype), state(dtype), MASKS[name]
    y, final = layer(x, h0, mask=mask)
    expected, expected_state = oracle(
        x, layer.get_weights(), h0, valid=mask, zero_output=zero, reverse=reverse
    )
    near(y, expected, dtype)
    near(final, expected_state, dtype)


def test_rule_02_masked_step_repeats_the_previous_output_and_keeps_the_state(backend):
    layer = gru(return_sequences=True, return_state=True)
    mask = np.ones((B, T), bool)
    mask[1, 3:5] = False
    y, final = layer(sequences(), state(), mask=mask)
    assert (y[1, 3] == y[1, 2]).all()
    assert (y[1, 4] == y[1, 2]).all()
    assert (y[1, 5] != y[1, 2]).any()
    mask[1, 2:] = False
    y, final = layer(sequences(), state(), mask=mask)
    assert (final[1] == y[1, 1]).all()


def test_rule_02_before_the_first_valid_step_the_output_is_zeros_not_the_initial_state(backend):
    layer = gru(return_sequences=True, return_state=True)
    mask = MASKS["left_padded"]
    y, _ = layer(sequences(), state() + 1, mask=mask)
    for row, valid in enumerate(mask):
        assert not y[row, ~valid].any()
        assert y[row, valid].all()


def test_rule_02_zero_output_for_mask_zeroes_every_masked_output(backend):
    layer = gru(return_sequences=True, return_state=True, zero_output_for_mask=True)
    kept = fill(fastgru.GRU(H, return_sequences=True, return_state=True, dtype="float64"))
    mask = MASKS["holes"]
    y, final = layer(sequences(), state(), mask=mask)
    other, other_final = kept(sequences(), state(), mask=mask)
    assert not y[~mask].any()
    assert (y[mask] == other[mask]).all()
    assert (final == other_final).all()
    last = gru(zero_output_for_mask=True)(sequences(), state(), mask=mask)
    assert not last[~mask[:, -1]].any()
    assert last[mask[:, -1]].all()


def test_rule_02_lengths_are_a_right_padded_mask(backend):
    lengths = np.array([7, 0, 2, 5])
    for zero, reverse, whole in itertools.product([False, True], repeat=3):
        layer = gru(
            zero_output_for_mask=zero,
            go_backwards=reverse,
            return_sequences=whole,
            return_state=True,
        )
        by_lengths = layer(sequences(), state(), lengths=lengths)
        by_mask = layer(sequences(), state(), mask=np.arange(T) < lengths[:, None])
        for a, b in zip(by_lengths, by_mask, strict=True):
            assert (a == b).all()


def test_rule_02_stacked_cells_and_pythons_cells_keep_the_rule(backend):
    stack = fill(
        fastgru.RNN(
            [fastgru.GRUCell(H, dtype="float64"), fastgru.GRUCell(2, dtype="float64")],
            return_sequences=True,
            return_state=True,
        )
    )
    weights, mask, x = stack.get_weights(), MASKS["empty_row"], sequences()
    h0 = [state(), state(seed=8, shape=(B, 2))]
    y, first, second = stack(x, h0, mask=mask)
    middle, expected_first = oracle(x, weights[:3], h0[0], valid=mask)
    expected, expected_second = oracle(middle, weights[3:], h0[1], valid=mask)
    near(y, expected)
    near(first[0], expected_first)
    near(second[0], expected_second)
    pythons = fastgru.RNN(Plain(stack.cell), return_sequences=True, return_state=True)
    z, *states = pythons(x.astype("float32"), [h.astype("float32") for h in h0], mask=mask)
    np.testing.assert_allclose(z, expected, atol=TOLERANCE["float32"])
    for a, b in zip(states, (expected_first, expected_second), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE["float32"])


class Plain:
    """A cell of the user's own that computes what a stack of two GRU cells does."""

    def __init__(self, stack):
        self.stack = stack
        self.state_size = [H, 2]
        self.output_size = 2

    def __call__(self, inputs, states, training=False):
        y, new = self.stack(inputs, list(states))
        return y.astype("float32"), [s.astype("float32") for s in new]


# -- 3: nothing to do --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_rule_03_fully_masked_row(backend, dtype, reverse):
    x, h0 = sequences(dtype), state(dtype)
    empty = np.zeros((B, T), bool)
    for whole in (False, True):
        layer = gru(dtype=dtype, return_sequences=whole, return_state=True, go_backwards=reverse)
        for given in ({"mask": empty}, {"lengths": np.zeros(B, int)}):
            y, final = layer(x, h0, **given)
            assert not y.any()
            assert (final == h0).all()
        y, final = layer(x, h0, lengths=[T, 0, 2, 0])
        assert (final[[1, 3]] == h0[[1, 3]]).all()
        assert not y[[1, 3]].any()
        assert y[0].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(B, 0, I), (0, T, I), (0, 0, I)])
@pytest.mark.parametrize("whole", [False, True])
def test_rule_03_no_steps_and_no_rows(backend, dtype, shape, whole):
    batch, steps, _ = shape
    layer = gru(dtype=dtype, return_sequences=whole, return_state=True)
    h0 = state(dtype)[:batch]
    for mask in (None, np.ones((batch, steps), bool), np.zeros((batch, steps), bool)):
        y, final = layer(np.zeros(shape, dtype), h0, mask=mask)
        assert y.shape == ((batch, steps, H) if whole else (batch, H))
        assert y.dtype == final.dtype == dtype
        assert not y.any()
        assert (final == h0).all()
    y, final = layer(np.zeros(shape, dtype), lengths=np.zeros(batch, int))
    assert not final.any()
    y, tape = layer.forward(np.zeros(shape, dtype), h0)
    grads = layer.backward(tape, np.ones_like(y[0]), np.full_like(h0, 2))
    assert grads.inputs.shape == shape
    assert (grads.initial_state == 2).all() or steps
    assert [g.shape for g in grads.weights] == [v.shape for v in layer.weights]
    assert not any(g.any() for g in grads.weights)


@pytest.mark.parametrize("shape", [(B, 0, I), (0, T, I)])
def test_rule_03_no_steps_and_no_rows_in_composed_layers(backend, shape):
    batch, steps, _ = shape
    x = np.zeros(shape)
    inner = {"dtype": "float64", "return_sequences": True}
    both = fill(fastgru.Bidirectional(fastgru.GRU(H, **inner)))
    assert both(x).shape == (batch, steps, 2 * H)
    last = fill(fastgru.Bidirectional(fastgru.GRU(H, dtype="float64")))
    assert last(x).shape == (batch, 2 * H)
    assert not last(x).any()
    chain = fill(fastgru.Sequential([fastgru.GRU(H, **inner), fastgru.GRU(2, dtype="float64")]))
    assert chain(x).shape == (batch, 2)
    cells = [fastgru.GRUCell(H, dtype="float64"), fastgru.GRUCell(2, dtype="float64")]
    assert fill(fastgru.RNN(cells))(x).shape == (batch, 2)
    for layer in (both, last, chain):
        y, tape = layer.forward(x)
        assert layer.backward(tape, np.ones_like(y)).inputs.shape == shape


# -- 4: values at masked steps -----------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rule_04_values_at_masked_steps_change_nothing(backend, name, poison, dtype):
    mask, h0 = MASKS[name], state(dtype)
    clean, dirty = sequences(dtype), sequences(dtype)
    dirty[~mask] = poison
    for reverse, zero, whole in itertools.product([False, True], repeat=3):
        layer = gru(
            dtype=dtype,
            go_backwards=reverse,
            zero_output_for_mask=zero,
            return_sequences=whole,
            return_state=True,
        )
        for a, b in zip(layer(clean, h0, mask=mask), layer(dirty, h0, mask=mask), strict=True):
            assert np.isfinite(b).all()
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", ["right_padded", "holes", "empty_row"])
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.4}, {"recurrent_dropout": 0.3}])
def test_rule_04_values_at_masked_steps_change_nothing_in_backward(
    backend, name, rates, reset_after
):
    mask = MASKS[name]
    clean, dirty = sequences(), sequences()
    dirty[~mask] = np.nan
    dy, dstate = sequences(seed=5, shape=(B, T, H)), state(seed=6)
    layer = gru(return_sequences=True, return_state=True, reset_after=reset_after, seed=3, **rates)
    found = []
    for x in (clean, dirty):
        rewind(layer)
        _, tape = layer.forward(x, state(), mask=mask, reset_mask=RESETS)
        found.append(layer.backward(tape, dy, dstate))
    one, two = found
    assert not two.inputs[~mask].any()
    np.testing.assert_array_equal(one.inputs, two.inputs)
    np.testing.assert_array_equal(one.initial_state, two.initial_state)
    for a, b in zip(one.weights, two.weights, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)


def test_rule_04_composed_layers_and_pythons_cells_do_not_read_masked_steps_either(backend):
    mask = MASKS["empty_row"]
    clean, dirty = sequences(), sequences()
    dirty[~mask] = np.nan
    inner = {"dtype": "float64", "return_sequences": True}
    layers = [
        fill(fastgru.Bidirectional(fastgru.GRU(H, **inner))),
        fill(fastgru.Sequential([fastgru.GRU(H, **inner), fastgru.GRU(2, dtype="float64")])),
        fill(fastgru.RNN([fastgru.GRUCell(n, dtype="float64") for n in (H, 2)])),
    ]
    for layer in layers:
        np.testing.assert_array_equal(layer(clean, mask=mask), layer(dirty, mask=mask))
    pythons = fastgru.RNN(Plain(layers[2].cell), return_sequences=True)
    outputs = [pythons(x.astype("float32"), mask=mask) for x in (clean, dirty)]
    assert np.isfinite(outputs[1]).all()
    np.testing.assert_array_equal(*outputs)


# -- 5 and 6: order of time --------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_rule_05_go_backwards_reverses_time_and_mask_and_keeps_processing_order(backend, name):
    mask, x, h0 = MASKS[name], sequences(), state()
    flipped = None if mask is None else mask[:, ::-1]
    backwards = gru(return_sequences=True, return_state=True, go_backwards=True)
    forwards = gru(return_sequences=True, return_state=True)
    got = backwards(x, h0, mask=mask, reset_mask=RESETS)
    want = forwards(x[:, ::-1], h0, mask=flipped, reset_mask=RESETS[:, ::-1])
    for a, b in zip(got, want, strict=True):
        near(a, b)
    first = gru(go_backwards=True)(x[:, -1:], h0)
    near(backwards(x, h0)[0][:, 0], first)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_rule_06_last_output_is_the_output_at_the_last_processed_step(backend, name, zero, reverse):
    arguments = {"zero_output_for_mask": zero, "go_backwards": reverse}
    x, h0 = sequences(), state()
    last = gru(**arguments)(x, h0, mask=MASKS[name], reset_mask=RESETS)
    every = gru(return_sequences=True, **arguments)(x, h0, mask=MASKS[name], reset_mask=RESETS)
    near(last, every[:, -1])


# -- reset_mask ---------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reset_mask_sets_the_state_to_zero_before_the_step(backend, name, reverse, dtype):
    layer = gru(dtype=dtype, return_sequences=True, return_state=True, go_backwards=reverse)
    x, h0, mask = sequences(dtype), state(dtype), MASKS[name]
    y, final = layer(x, h0, mask=mask, reset_mask=RESETS)
    expected, expected_state = oracle(
        x, layer.get_weights(), h0, valid=mask, resets=RESETS, reverse=reverse
    )
    near(y, expected, dtype)
    near(final, expected_state, dtype)


def test_reset_mask_at_a_masked_step_zeroes_the_state_and_repeats_the_output(backend):
    layer = gru(return_sequences=True, return_state=True)
    mask, resets = np.ones((B, T), bool), np.zeros((B, T), bool)
    mask[0, 5:] = False
    resets[0, 6] = True
    y, final = layer(sequences(), state(), mask=mask, reset_mask=resets)
    assert not final[0].any()
    assert (y[0, 6] == y[0, 4]).all()
    assert y[0, 4].all()


def test_reset_mask_equals_separate_sequences(backend):
    layer = gru(return_sequences=True)
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    y = layer(sequences(), state(), reset_mask=resets)
    near(y[:, :3], layer(sequences()[:, :3], state()))
    near(y[:, 3:], layer(sequences()[:, 3:]))
