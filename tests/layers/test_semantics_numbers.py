"""docs/semantics.md, rules 8 to 12: what numbers come out; see test_semantics.py."""

import numpy as np
import pytest
from grad_support import (
    MASKS,
    RESETS,
    B,
    H,
    I,
    T,
    fill,
    gru,
    near,
    oracle,
    sequences,
    served_by,
    state,
)

import fastgru

DTYPES = ("float32", "float64")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Serve every call of the test by one backend."""
    with served_by(request.param):
        yield request.param


# -- 8 to 10 -----------------------------------------------------------------------------------


def test_rule_08_activity_loss_is_divided_by_the_batch_size(backend):
    layer = gru(activity_regularizer="l2", return_sequences=True)
    y = layer(sequences())
    assert layer.losses == [pytest.approx(0.01 * np.sum(y**2) / B, rel=1e-12)]
    time_major = gru(activity_regularizer="l2", return_sequences=True, time_major=True)
    time_major(sequences().transpose(1, 0, 2))
    assert time_major.losses == [pytest.approx(0.01 * np.sum(y**2) / B, rel=1e-12)]
    with_state = gru(activity_regularizer="l2", return_state=True)
    y, final = with_state(sequences())
    want = [pytest.approx(0.01 * np.sum(a**2) / B, rel=1e-12) for a in (y, final)]
    assert with_state.losses == want
    with_state(np.zeros((0, T, I)))
    assert with_state.losses == [0, 0]


def both_ways(merge_mode, **arguments):
    return fill(
        fastgru.Bidirectional(fastgru.GRU(H, dtype="float64", **arguments), merge_mode=merge_mode)
    )


MERGE = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}


@pytest.mark.parametrize("merge_mode", [*MERGE, None])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("whole", [False, True])
def test_rule_09_bidirectional_masks_states_and_order(backend, merge_mode, name, whole):
    layer = both_ways(merge_mode, return_sequences=whole, return_state=True)
    weights, mask, x = layer.get_weights(), MASKS[name], sequences()
    h0 = [state(), state(seed=7)]
    *outputs, first, second = layer(x, h0, mask=mask)
    arguments = {"valid": mask, "zero_output": whole}
    y, expected_first = oracle(x, weights[:3], h0[0], **arguments)
    y_rev, expected_second = oracle(x, weights[3:], h0[1], reverse=True, **arguments)
    pair = (y, y_rev[:, ::-1]) if whole else (y[:, -1], y_rev[:, -1])
    expected = list(pair) if merge_mode is None else [MERGE[merge_mode](*pair)]
    for got, want in zip(outputs, expected, strict=True):
        near(got, want)
    near(first, expected_first)
    near(second, expected_second)
    if whole and mask is not None:
        assert not any(output[~mask].any() for output in outputs)


@pytest.mark.parametrize("x", [-4.0, -2.7, -0.3, 0.0, 1.1, 2.6, 4.0])
def test_rule_10_hard_sigmoid_of_keras_3_and_of_keras_2(backend, x):
    config = {"units": 1, "recurrent_activation": "hard_sigmoid", "activation": "linear"}
    now = fastgru.GRU(1, activation="linear", recurrent_activation="hard_sigmoid", dtype="float64")
    old = fastgru.GRU.from_config({**config, "implementation": 2, "dtype": "float64"})
    new = fastgru.GRU.from_config({**config, "seed": None, "dtype": "float64"})
    assert old.recurrent_activation.name == "hard_sigmoid_keras2"
    gates = (min(max(x + 3, 0), 6) / 6, min(max(0.2 * x + 0.5, 0), 1), min(max(x + 3, 0), 6) / 6)
    for layer, z in zip((now, old, new), gates, strict=True):
        layer.build((None, None, 1))
        kernel, recurrent, bias = (np.zeros(v.shape) for v in layer.weights)
        kernel[0] = 1, 0, 2  # z = act(x), candidate 2 x
        layer.set_weights([kernel, recurrent, bias])
        near(layer(np.full((1, 1, 1), x), np.full((1, 1), 7.0)), [[z * 7 + (1 - z) * 2 * x]])


# -- 11: numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rule_11_the_layers_dtype_comes_out(backend, dtype):
    layer = gru(dtype=dtype, return_sequences=True, return_state=True, activity_regularizer="l1")
    whole_numbers = np.arange(B * T * I).reshape(B, T, I) % 3 - 1
    inputs = [whole_numbers.astype(kind) for kind in ("int8", "int64", "float16", "float32", dtype)]
    inputs += [whole_numbers.tolist(), whole_numbers.astype(float).tolist()]
    results = [layer(x, initial_state=1 + np.zeros((B, H), "int32")) for x in inputs]
    for y, final in results:
        assert y.dtype == final.dtype == dtype
        assert (y == results[0][0]).all()
        assert (final == results[0][1]).all()
    assert (layer(whole_numbers > 0)[0] == layer((whole_numbers > 0).astype(dtype))[0]).all()
    assert all(np.asarray(loss).dtype == dtype for loss in layer.losses)
    y, tape = layer.forward(whole_numbers)
    grads = layer.backward(tape, np.ones((B, T, H), int), np.ones((B, H), bool))
    assert {g.dtype.name for g in (grads.inputs, grads.initial_state, *grads.weights)} == {dtype}


def test_rule_11_python_floats_never_widen(backend):
    x, h0 = sequences("float32"), state("float32")
    layer = gru(dtype="float32", dropout=0.3, recurrent_dropout=0.2, seed=1, return_state=True)
    assert [a.dtype for a in layer(x, h0, training=True)] == [np.float32] * 2
    layer = gru(dtype="float32", activation=lambda a: 0.5 * a + 1.0)
    with fastgru.use_backend("reference"):  # the only one for a callable
        assert layer(x).dtype == np.float32
    layer = gru(dtype="float32")
    layer.kernel.assign_add(0.25)
    assert layer.kernel.dtype == np.float32
    assert layer([[[0.1] * I] * 2] * B).dtype == np.float32


@pytest.mark.parametrize("given", ["float64", "longdouble", ">f4", ">f8", "float16", "int64"])
def test_rule_11_what_is_passed_is_cast_to_the_layers_dtype(backend, given):
    layer = gru(dtype="float32", return_sequences=True, return_state=True)
    x, h0 = (100 * a for a in (sequences(), state()))
    wide, narrow = (
        (x.astype(given), h0.astype(given)),
        [a.astype(given).astype("float32") for a in (x, h0)],
    )
    for ours, expected in zip(layer(*wide), layer(*narrow), strict=True):
        assert ours.dtype == "float32"
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(layer(wide[0])[0], layer(narrow[0])[0])
    cell = layer.cell
    for own in (narrow[1], wide[1], [wide[1]]):
        y, _ = cell(wide[0][:, 0], own)
        np.testing.assert_array_equal(y, cell(narrow[0][:, 0], narrow[1])[0])
    stream, other = layer.stream(B), layer.stream(B)
    stream.state, other.state = wide[1], narrow[1]
    for t in range(2):
        np.testing.assert_array_equal(stream.step(wide[0][:, t]), other.step(narrow[0][:, t]))
    weights = [w.value for w in layer.weights]
    for ours, expected in zip(fastgru.gru(wide[0], *weights, wide[1]), layer(*narrow), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("given", ["float64", "int32"])
def test_rule_11_gradients_and_weights_are_cast(backend, given):
    layer = gru(dtype="float32", return_sequences=True, return_state=True)
    x = sequences("float32")
    wide = [(10 * a).astype(given) for a in (sequences(shape=(B, T, H)), state())]
    results = []
    for dy, dstate in (wide, [a.astype("float32") for a in wide]):
        _, tape = layer.forward(x)
        grads = layer.backward(tape, dy, dstate)
        results.append([grads.inputs, grads.initial_state, *grads.weights])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == "float32"
        np.testing.assert_array_equal(ours, expected)
    new = [(10 * w).astype(given) for w in layer.get_weights()]
    layer.set_weights(new)
    for ours, expected in zip(layer.get_weights(), new, strict=True):
        np.testing.assert_array_equal(ours, expected.astype("float32"))


def test_rule_11_numbers_that_become_infinite_are_told_of(backend):
    layer = gru(dtype="float32")
    large = np.full((I, 3 * H), 1e300)
    for given in (large, large.tolist()):
        with pytest.warns(RuntimeWarning, match="overflow encountered in cast"):
            layer.kernel.assign(given)
        assert np.isinf(layer.kernel).all()


@pytest.mark.parametrize("given", ["complex64", "O", "U5", "S5", "M8[s]", "m8[s]"])
def test_rule_11_what_is_no_real_number_is_a_type_error(backend, given):
    layer = gru(dtype="float32")
    with pytest.raises(TypeError, match=r"sequences: expected (real )?numbers"):
        layer(np.zeros((B, T, I), given))


def test_rule_11_out_has_the_exact_dtype(backend):
    layer = gru(dtype="float32")
    out = np.full((B, H), 7.0)
    with pytest.raises(TypeError, match="out: expected dtype float32, got float64"):
        layer(sequences("float32"), out=out)
    assert (out == 7).all()


def test_rule_11_explain_says_what_is_cast():
    layer = gru(dtype="float32")
    says = layer.explain(sequences(), state("float16"))
    assert says.casts == [
        "sequences: float64, cast to float32 in a copy at each call; pass float32 to save it",
        "initial_state: float16, cast to float32 in a copy at each call; pass float32 to save it",
    ]
    assert str(says).startswith(says.casts[0])
    both = fastgru.Sequential([fastgru.Bidirectional(fastgru.GRU(2))])
    assert str(both.explain(sequences())).startswith("sequences: float64, cast")
    assert not layer.explain(sequences("float32").tolist()).casts


def test_rule_11_a_custom_activation_that_widens_does_not_widen_the_result():
    def wide(a):
        return np.tanh(a.astype("float64"))

    for whole in (False, True):
        layer = gru(dtype="float32", activation=wide, return_state=True, return_sequences=whole)
        assert [a.dtype for a in layer(sequences("float32"))] == [np.float32] * 2


# -- 12: pieces, rows, threads -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [0, 1, 4, T])
@pytest.mark.parametrize("name", MASKS)
def test_rule_12_a_sequence_in_pieces_equals_the_whole(backend, dtype, cut, name):
    layer = gru(dtype=dtype, return_sequences=True, return_state=True, zero_output_for_mask=True)
    x, h0, mask = sequences(dtype), state(dtype), MASKS[name]
    first, rest = (None, None) if mask is None else (mask[:, :cut], mask[:, cut:])
    y, final = layer(x, h0, mask=mask, reset_mask=RESETS)
    y1, middle = layer(x[:, :cut], h0, mask=first, reset_mask=RESETS[:, :cut])
    y2, end = layer(x[:, cut:], middle, mask=rest, reset_mask=RESETS[:, cut:])
    near(np.concatenate([y1, y2], 1), y, dtype)
    near(end, final, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MASKS)
def test_rule_12_a_row_depends_on_no_other_row_nor_on_threads(backend, dtype, name):
    layer = gru(dtype=dtype, return_sequences=True, return_state=True)
    x, h0, mask = sequences(dtype), state(dtype), MASKS[name]
    y, final = layer(x, h0, mask=mask)
    for row in range(B):
        one = slice(row, row + 1)
        alone = layer(x[one], h0[one], mask=None if mask is None else mask[one])
        near(alone[0], y[one], dtype)
        near(alone[1], final[one], dtype)
    order = [2, 0, 3, 1]
    shuffled = layer(x[order], h0[order], mask=None if mask is None else mask[order])
    near(shuffled[0], y[order], dtype)
    for threads in (1, 2, 3):
        again = layer(x, h0, mask=mask, num_threads=threads)
        near(again[0], y, dtype)
        near(again[1], final, dtype)


def test_rule_12_the_same_call_twice_gives_the_same_bits(backend):
    layer = gru(dtype="float32", return_sequences=True, return_state=True)
    x, h0 = sequences("float32"), state("float32")
    for a, b in zip(layer(x, h0), layer(x, h0), strict=True):
        assert (a == b).all()


def test_rule_12_a_stateful_layer_in_pieces_equals_the_whole(backend):
    whole, pieces = gru(return_sequences=True), gru(return_sequences=True, stateful=True)
    x = sequences()
    joined = np.concatenate([pieces(x[:, :2]), pieces(x[:, 2:3]), pieces(x[:, 3:])], 1)
    near(joined, whole(x))
    pieces.reset_state()
    near(pieces(x), whole(x))
