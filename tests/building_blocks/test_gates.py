"""Each layout's own GRU step on its own weights equals Keras' step on the converted ones.

The steps are written from each library's documentation and share no code with gates.py; torch and
OpenVINO themselves are not test dependencies.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastgru import gates

B, I, H = 4, 3, 5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def keras_step(x, h, kernel, recurrent_kernel, bias, reset_after):
    """docs/semantics.md 1, gate order z, r, h."""
    wz, wr, wh = np.split(kernel, 3, axis=1)
    uz, ur, uh = np.split(recurrent_kernel, 3, axis=1)
    if bias is None:
        bias = np.zeros(6 * H if reset_after else 3 * H)
    if reset_after:
        iz, ir, ih, rz, rr, rh = np.split(bias.ravel(), 6)
        z = sigmoid(x @ wz + iz + h @ uz + rz)
        r = sigmoid(x @ wr + ir + h @ ur + rr)
        candidate = np.tanh(x @ wh + ih + r * (h @ uh + rh))
    else:
        bz, br, bh = np.split(bias, 3)
        z = sigmoid(x @ wz + h @ uz + bz)
        r = sigmoid(x @ wr + h @ ur + br)
        candidate = np.tanh(x @ wh + bh + (r * h) @ uh)
    return z * h + (1 - z) * candidate


def torch_step(x, h, w_ih, w_hh, b_ih, b_hh):
    """torch.nn.GRUCell: W_ih is (W_ir|W_iz|W_in), n = tanh(. + r * (W_hn h + b_hn))."""
    w_ir, w_iz, w_in = np.split(w_ih, 3)
    w_hr, w_hz, w_hn = np.split(w_hh, 3)
    b_ir, b_iz, b_in = np.split(b_ih, 3)
    b_hr, b_hz, b_hn = np.split(b_hh, 3)
    r = sigmoid(x @ w_ir.T + b_ir + h @ w_hr.T + b_hr)
    z = sigmoid(x @ w_iz.T + b_iz + h @ w_hz.T + b_hz)
    n = np.tanh(x @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
    return (1 - z) * n + z * h


def onnx_step(linear_before_reset):
    def step(x, h, w, r, b):
        """ONNX operator GRU: W[zrh], R[zrh], B = [Wb[zrh], Rb[zrh]]."""
        w_z, w_r, w_h = np.split(w, 3)
        r_z, r_r, r_h = np.split(r, 3)
        wb_z, wb_r, wb_h, rb_z, rb_r, rb_h = np.split(b, 6)
        zt = sigmoid(x @ w_z.T + h @ r_z.T + wb_z + rb_z)
        rt = sigmoid(x @ w_r.T + h @ r_r.T + wb_r + rb_r)
        if linear_before_reset:
            ht = np.tanh(x @ w_h.T + rt * (h @ r_h.T + rb_h) + wb_h)
        else:
            ht = np.tanh(x @ w_h.T + (rt * h) @ r_h.T + rb_h + wb_h)
        return (1 - zt) * ht + zt * h

    return step


def openvino_step(linear_before_reset):
    def step(x, h, w, r, b):
        """OpenVINO GRUCell-3: as ONNX, biases of z and r summed, of h both or their sum."""
        halves = np.split(b, 4 if linear_before_reset else 3)
        zeros = np.zeros(H)
        recurrent_h = halves[3] if linear_before_reset else zeros
        full = np.concatenate([*halves[:3], zeros, zeros, recurrent_h])
        return onnx_step(linear_before_reset)(x, h, w, r, full)

    return step


def cudnn_gru_step(x, h, kernel, recurrent_kernel, bias):
    """Keras 2's CuDNNGRU: each block's memory goes to cuDNN, which reads it as (H, n)."""

    def matrices(w):
        return [np.ascontiguousarray(k).ravel().reshape(H, -1) for k in np.split(w, 3, axis=1)]

    w_z, w_r, w_h = matrices(kernel)
    r_z, r_r, r_h = matrices(recurrent_kernel)
    stacked = np.concatenate([w_z, w_r, w_h]), np.concatenate([r_z, r_r, r_h])
    return onnx_step(True)(x, h, *stacked, bias)


ROWS = [(3 * H, I), (3 * H, H)]
COLUMNS = [(I, 3 * H), (H, 3 * H)]
SOURCES = {
    "keras": (lambda *a: keras_step(*a, True), [*COLUMNS, (2, 3 * H)]),
    "keras_reset_before": (lambda *a: keras_step(*a, False), [*COLUMNS, (3 * H,)]),
    "cudnn_gru": (cudnn_gru_step, [*COLUMNS, (6 * H,)]),
    "torch": (torch_step, [*ROWS, (3 * H,), (3 * H,)]),
    "cudnn": (torch_step, [*ROWS, (3 * H,), (3 * H,)]),
    "onnx_lbr1": (onnx_step(True), [*ROWS, (6 * H,)]),
    "onnx_lbr0": (onnx_step(False), [*ROWS, (6 * H,)]),
    "openvino_lbr1": (openvino_step(True), [*ROWS, (4 * H,)]),
    "openvino_lbr0": (openvino_step(False), [*ROWS, (3 * H,)]),
}
EVERY = pytest.mark.parametrize("name", SOURCES)
FLOATS = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


def source_weights(name):
    return [draw(*shape, seed=k) for k, shape in enumerate(SOURCES[name][1])]


def keras_weights(name):
    bias = draw(2, 3 * H) if gates.LAYOUTS[name].reset_after else draw(3 * H)
    return [draw(I, 3 * H), draw(H, 3 * H), bias]


def test_every_layout_of_the_table_is_judged_here():
    assert set(SOURCES) == set(gates.LAYOUTS)


@EVERY
def test_to_keras_keeps_the_function(name):
    step = SOURCES[name][0]
    weights = source_weights(name)
    x, h = draw(B, I, seed=8), draw(B, H, seed=9)
    converted = gates.to_keras(name, *weights)
    reset_after = gates.LAYOUTS[name].reset_after
    assert_allclose(keras_step(x, h, *converted, reset_after), step(x, h, *weights), atol=1e-14)


@EVERY
def test_from_keras_keeps_the_function(name):
    weights = keras_weights(name)
    x, h = draw(B, I, seed=8), draw(B, H, seed=9)
    step, shapes = SOURCES[name]
    converted = gates.from_keras(name, *weights)
    assert [w.shape for w in converted] == shapes
    reset_after = gates.LAYOUTS[name].reset_after
    assert_allclose(step(x, h, *converted), keras_step(x, h, *weights, reset_after), atol=1e-14)


@EVERY
@FLOATS
def test_round_trip_from_keras_is_exact(name, dtype):
    weights = [w.astype(dtype) for w in keras_weights(name)]
    if name == "openvino_lbr1":
        weights[2][1, : 2 * H] = 0  # this layout holds the sum of the biases of z and r alone
    back = gates.to_keras(name, *gates.from_keras(name, *weights))
    for ours, theirs in zip(back, weights, strict=True):
        assert ours.dtype == dtype
        assert_array_equal(ours, theirs)


@EVERY
@FLOATS
def test_round_trip_from_the_source_is_exact(name, dtype):
    weights = [w.astype(dtype) for w in source_weights(name)]
    if name == "onnx_lbr0":
        weights[2][3 * H :] = 0  # without the reset between them the two biases are one, their sum
    back = gates.from_keras(name, *gates.to_keras(name, *weights))
    for ours, theirs in zip(back, weights, strict=True):
        assert ours.dtype == dtype
        assert_array_equal(ours, theirs)


@EVERY
def test_without_bias(name):
    w_ih, w_hh = source_weights(name)[:2]
    kernel, recurrent_kernel, bias = gates.to_keras(name, w_ih, w_hh)
    assert bias is None
    assert (kernel.shape, recurrent_kernel.shape) == ((I, 3 * H), (H, 3 * H))
    back = gates.from_keras(name, kernel, recurrent_kernel)
    assert len(back) == 2
    assert_array_equal(back[0], w_ih)
    assert_array_equal(back[1], w_hh)


@EVERY
def test_results_are_new_and_contiguous_and_the_source_may_be_read_only(name):
    given = [np.asfortranarray(w) for w in source_weights(name)]
    for w in given:
        w.flags.writeable = False
    there = gates.to_keras(name, *given)
    back = gates.from_keras(name, *there)
    for result, sources in ((there, given), (back, there)):
        for array in result:
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert not any(np.shares_memory(array, source) for source in sources)


def test_cudnn_gru_is_keras_2s_own_conversion():
    """Keras 2's loader: k.T.reshape(k.shape, order="F") per input block, k.T per recurrent."""
    kernel, recurrent_kernel, bias = source_weights("cudnn_gru")
    ours = gates.to_keras("cudnn_gru", kernel, recurrent_kernel, bias)
    blocks = [k.T.reshape(k.shape, order="F") for k in np.split(kernel, 3, axis=1)]
    assert_array_equal(ours[0], np.hstack(blocks))
    assert_array_equal(ours[1], np.hstack([k.T for k in np.split(recurrent_kernel, 3, axis=1)]))
    assert_array_equal(ours[2], bias.reshape(2, -1))


def test_big_endian_arrays_come_out_native():
    weights = source_weights("torch")
    swapped = gates.to_keras("torch", *(w.astype(">f8") for w in weights))
    for ours, theirs in zip(swapped, gates.to_keras("torch", *weights), strict=True):
        assert ours.dtype == np.dtype("float64")
        assert_array_equal(ours, theirs)


def test_a_layout_of_ones_own():
    mine = gates.Layout("hzr", "columns", "pair", True)
    kernel, recurrent_kernel, bias = keras_weights("keras")
    w_ih, _, b_ih, b_hh = gates.from_keras(mine, kernel, recurrent_kernel, bias)
    assert_array_equal(w_ih, np.roll(kernel, H, axis=1))
    assert_array_equal(np.stack([b_ih, b_hh]), np.roll(bias, H, axis=1))


TORCH = source_weights("torch")
KERAS = keras_weights("keras")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: gates.to_keras("pytorch", *TORCH), ValueError, "expected a layout among keras, "),
        (lambda: gates.from_keras("tf", *KERAS), ValueError, "got 'tf'"),
        (
            lambda: gates.to_keras(gates.Layout("rzn", "rows", "pair", True), *TORCH),
            ValueError,
            "rzn",
        ),
        (lambda: gates.to_keras("keras", *TORCH[:2]), ValueError, "is it another layout"),
        (lambda: gates.to_keras("torch", *KERAS[:2]), ValueError, r"\(3H, I\) and \(3H, H\)"),
        (lambda: gates.to_keras("torch", TORCH[0][:-1], TORCH[1]), ValueError, r"got \(14, 3\)"),
        (
            lambda: gates.to_keras("onnx_lbr1", TORCH[0][None], TORCH[1][None]),
            ValueError,
            r"w\[d\]",
        ),
        (
            lambda: gates.to_keras("torch", *TORCH[:3]),
            ValueError,
            r"expected bias shapes \[\(15,\), ",
        ),
        (lambda: gates.to_keras("torch", *TORCH[:2], b_hh=TORCH[3]), ValueError, "without b_ih"),
        (lambda: gates.to_keras("onnx_lbr1", *TORCH), ValueError, "belong to torch or cudnn"),
        (lambda: gates.to_keras("torch", *TORCH[:3], TORCH[3][:-1]), ValueError, r"\(14,\)"),
        (lambda: gates.from_keras("keras", *KERAS[:2], KERAS[2][0]), ValueError, r"\(2, 15\)"),
        (lambda: gates.from_keras("onnx_lbr0", *KERAS), ValueError, "the other reset_after"),
        (lambda: gates.from_keras("torch", KERAS[0].T, KERAS[1]), ValueError, r"got \(15, 3\)"),
        (
            lambda: gates.to_keras("torch", TORCH[0].astype(int), TORCH[1]),
            TypeError,
            "w_ih of float16",
        ),
        (lambda: gates.to_keras("torch", TORCH[0] + 1j, TORCH[1]), TypeError, "complex128"),
        (lambda: gates.to_keras("torch", TORCH[0].astype("f4"), TORCH[1]), TypeError, "one dtype"),
        (
            lambda: gates.from_keras("torch", *KERAS[:2], KERAS[2].astype("f4")),
            TypeError,
            "bias float32",
        ),
    ],
)
def test_errors(call, error, says):
    with pytest.raises(error, match=says):
        call()
