"""gru and gru_cell: the layer's arithmetic as functions of arrays."""

import numpy as np
import pytest
from grad_support import MASKS, RESETS, B, H, I, T, gru, near, sequences, state

import fastgru


def weights_of(**arguments):
    return gru(**arguments).get_weights()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_gru_is_the_layer(backend, mask, use_bias, reset_after, dtype):
    common = {"reset_after": reset_after, "go_backwards": True, "zero_output_for_mask": True}
    layer = gru(dtype=dtype, use_bias=use_bias, return_sequences=True, return_state=True, **common)
    call = {"mask": MASKS[mask], "reset_mask": RESETS}
    x, h0 = sequences(dtype), state(dtype)
    want = layer(x, h0, **call)
    got = fastgru.gru(x, *layer.get_weights(), initial_state=h0, **call, **common)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == dtype
    last, final = fastgru.gru(
        x, *layer.weights, initial_state=[h0], return_sequences=False, **call, **common
    )
    np.testing.assert_allclose(last, want[0][:, -1], atol=2e-6 if dtype == "float32" else 1e-12)
    np.testing.assert_allclose(final, want[1], atol=2e-6 if dtype == "float32" else 1e-12)


def test_gru_time_major_lengths_and_activations(backend):
    weights = weights_of()
    names = {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}
    layer = gru(return_sequences=True, return_state=True, **names)
    want, want_state = layer(sequences(), lengths=[7, 0, 3, 2])
    x = sequences().transpose(1, 0, 2)
    y, final = fastgru.gru(x, *weights, lengths=[7, 0, 3, 2], time_major=True, **names)
    assert y.shape == (T, B, H)
    assert y.flags.c_contiguous
    near(y.transpose(1, 0, 2), want)
    near(final, want_state)
    turned = MASKS["holes"].T
    y, _ = fastgru.gru(x, *weights, mask=turned, reset_mask=RESETS.T, time_major=True, **names)
    near(y.transpose(1, 0, 2), layer(sequences(), mask=MASKS["holes"], reset_mask=RESETS)[0])


def test_gru_takes_lists_and_callables():
    kernel, recurrent, bias = (w.tolist() for w in weights_of())
    y, _ = fastgru.gru(sequences("float32"), kernel, recurrent, bias, activation=np.tanh)
    near(y, gru(return_sequences=True)(sequences("float32")))


@pytest.mark.parametrize("time_major", [False, True])
def test_gru_out(backend, time_major):
    weights = weights_of()
    x = sequences(shape=(T, B, I) if time_major else (B, T, I))
    want, _ = fastgru.gru(x, *weights, time_major=time_major)
    out = np.empty_like(want)
    y, _ = fastgru.gru(x, *weights, time_major=time_major, out=out)
    assert np.shares_memory(y, out)
    np.testing.assert_array_equal(out, want)
    square = weights_of(units=I)
    want, _ = fastgru.gru(x, *square, time_major=time_major)
    fastgru.gru(x, *square, time_major=time_major, out=x)
    np.testing.assert_array_equal(x, want)


def test_gru_keeps_nothing_of_the_weights(backend):
    weights = [w.copy() for w in weights_of()]
    first, _ = fastgru.gru(sequences(), *weights)
    weights[0] *= 2
    second, _ = fastgru.gru(sequences(), *weights)
    layer = gru(return_sequences=True)
    layer.set_weights(weights)
    near(second, layer(sequences()))
    assert (first != second).any()


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gru_cell_is_one_step(backend, reset_after, use_bias, dtype):
    layer = gru(dtype=dtype, reset_after=reset_after, use_bias=use_bias)
    x, h = sequences(dtype, shape=(B, I)), state(dtype)
    got = fastgru.gru_cell(x, h, *layer.get_weights(), reset_after=reset_after)
    np.testing.assert_array_equal(got, layer.cell(x, h)[0])
    near(got, layer(x[:, None], h), dtype)
    steps = h
    for t in range(T):
        steps = fastgru.gru_cell(
            sequences(dtype)[:, t], steps, *layer.weights, reset_after=reset_after
        )
    near(steps, layer(sequences(dtype), h), dtype)


W, U, V = (w.astype("float32") for w in weights_of())
X, S = sequences("float32"), state("float32")
WRONG = {
    "x axes": ((X[0], W, U, V), {}, ValueError, r"x: expected shape \(B, T, I\) = \(any, any, 3\)"),
    "x features": ((X[..., 1:], W, U, V), {}, ValueError, r"x: expected .*got \(4, 7, 2\)"),
    "x complex": ((X * 1j, W, U, V), {}, TypeError, r"x: expected real numbers"),
    "kernel int": ((X, W.astype(int), U, V), {}, TypeError, r"kernel: expected float32 or float64"),
    "kernel axes": ((X, W[0], U, V), {}, ValueError, r"kernel: expected shape \(I, 3H\)"),
    "kernel 3H": ((X, W[:, 1:], U, V), {}, ValueError, r"kernel: expected .*\(3, 14\)"),
    "kernel empty": ((X, W[:, :0], U, V), {}, ValueError, r"kernel: expected .*\(3, 0\)"),
    "recurrent": ((X, W, U.T, V), {}, ValueError, r"recurrent_kernel: expected .*\(5, 15\)"),
    "flat bias": (
        (X, W, U, V[0]),
        {},
        ValueError,
        r"bias: expected .*\(2, 3H\), for reset_after=T",
    ),
    "two biases": (
        (X, W, U, V),
        {"reset_after": False},
        ValueError,
        r"bias: expected shape \(3H,\), for reset_after=False.*got \(2, 15\)",
    ),
    "state": ((X, W, U, V, S[1:]), {}, ValueError, r"initial_state: expected .*\(4, 5\), got \(3"),
    "states": ((X, W, U, V, [S, S]), {}, (ValueError, TypeError), r"initial_state: expected"),
    "mask": ((X, W, U, V), {"mask": [1]}, ValueError, r"mask: expected shape"),
    "both": ((X, W, U, V), {"mask": MASKS["holes"], "lengths": [1] * B}, ValueError, r"not both"),
    "lengths": ((X, W, U, V), {"lengths": [8] * B}, ValueError, r"lengths: expected values in 0"),
    "resets": ((X, W, U, V), {"reset_mask": 2 * RESETS}, ValueError, r"reset_mask: expected only"),
    "out": ((X, W, U, V), {"out": np.zeros((B, T, H))}, TypeError, r"out: expected dtype float32"),
    "out shape": ((X, W, U, V), {"out": S.copy()}, ValueError, r"out: expected shape"),
    "threads": ((X, W, U, V), {"num_threads": 0}, ValueError, r"num_threads: expected"),
    "activation": ((X, W, U, V), {"activation": "than"}, ValueError, r"'than'.*'tanh'"),
    "glu": ((X, W, U, V), {"activation": "glu"}, ValueError, r"activation: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_of_gru(name):
    args, kwargs, error, pattern = WRONG[name]
    out = kwargs.get("out")
    before = None if out is None else out.copy()
    with pytest.raises(error, match=f"(?s){pattern}"):
        fastgru.gru(*args, **kwargs)
    if out is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    ("x", "h", "error", "pattern"),
    [
        (X, S, ValueError, r"x: expected shape \(B, I\)"),
        (X[:, 0, 1:], S, ValueError, r"x: expected shape \(B, I\) = \(any, 3\), got \(4, 2\)"),
        (X[:, 0], S[1:], ValueError, r"h: expected shape \(B, H\) = \(4, 5\), got \(3, 5\)"),
        (X[:, 0], None, TypeError, r"h: expected the state \(B, H\), got None; use zeros"),
        (X[:, 0] * 1j, S, TypeError, r"x: expected real numbers"),
    ],
)
def test_wrong_calls_of_gru_cell(x, h, error, pattern):
    with pytest.raises(error, match=pattern):
        fastgru.gru_cell(x, h, W, U, V)
