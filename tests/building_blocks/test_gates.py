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


def paddle_step(origin_mode):
    def step(x, h, w_x, w_h, b):
        """paddle.fluid.layers.dynamic_gru: weights of u, r (D, 2D) and c (D, D) in one buffer."""
        w_ux, w_rx, w_cx = np.split(w_x, 3, axis=1)
        w_uh, w_rh = np.split(w_h.ravel()[: 2 * H * H].reshape(H, 2 * H), 2, axis=1)
        w_ch = w_h.ravel()[2 * H * H :].reshape(H, H)
        b_u, b_r, b_c = np.split(b.ravel(), 3)
        u = sigmoid(x @ w_ux + h @ w_uh + b_u)
        r = sigmoid(x @ w_rx + h @ w_rh + b_r)
        c = np.tanh(x @ w_cx + (r * h) @ w_ch + b_c)
        return u * h + (1 - u) * c if origin_mode else (1 - u) * h + u * c

    return step


def lasagne_step(x, h, w_in, w_hid, b):
    """lasagne.layers.GRULayer: matrices stacked as reset, update, hidden_update."""
    w_xr, w_xu, w_xc = np.split(w_in, 3, axis=1)
    w_hr, w_hu, w_hc = np.split(w_hid, 3, axis=1)
    b_r, b_u, b_c = np.split(b, 3)
    r = sigmoid(x @ w_xr + h @ w_hr + b_r)
    u = sigmoid(x @ w_xu + h @ w_hu + b_u)
    c = np.tanh(x @ w_xc + r * (h @ w_hc) + b_c)
    return (1 - u) * h + u * c


def rnnoise_step(x, h, w, r, b):
    """RNNoise's compute_gru, of numbers that are scaled already; element by element as in C."""
    out = np.empty_like(h)
    for row in range(len(x)):
        z, reset = np.empty(H), np.empty(H)
        for i in range(H):
            z[i] = sigmoid(b[i] + w[:, i] @ x[row] + r[:, i] @ h[row])
            reset[i] = sigmoid(b[H + i] + w[:, H + i] @ x[row] + r[:, H + i] @ h[row])
        for i in range(H):
            total = b[2 * H + i] + w[:, 2 * H + i] @ x[row]
            total += r[:, 2 * H + i] @ (h[row] * reset)
            out[row, i] = z[i] * h[row, i] + (1 - z[i]) * np.tanh(total)
    return out


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
    "paddle": (torch_step, [*ROWS, (3 * H,), (3 * H,)]),  # its text has torch's equations
    "paddle_dynamic_gru": (paddle_step(False), [*COLUMNS, (3 * H,)]),
    "paddle_dynamic_gru_origin": (paddle_step(True), [*COLUMNS, (3 * H,)]),
    "lasagne": (lasagne_step, [*COLUMNS, (3 * H,)]),
    "rnnoise": (rnnoise_step, [*COLUMNS, (3 * H,)]),
}
EVERY = pytest.mark.parametrize("name", SOURCES)
FLOATS = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


def source_weights(name):
    return [draw(*shape, seed=k) for k, shape in enumerate(SOURCES[name][1])]


def keras_weights(name):
    bias = draw(2, 3 * H) if gates.LAYOUTS[name].reset_after else draw(3 * H)
    if name == "lasagne":
        bias[1, 2 * H :] = 0  # it has no recurrent bias of the candidate
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
    if name == "lasagne":
        weights[2][1] = 0
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


# ---- what a Layout may say -----------------------------------------------------------------------

SUMS = [
    gates.Layout(order, matrices, "sum", True, complementary)
    for order in ("zrh", "rzh", "hzr")
    for matrices in ("columns", "rows")
    for complementary in (False, True)
]


def one_bias_step(layout):
    """act(x W + b + r * (h U)), with the share of the old state z, or of the new one u."""

    def step(x, h, w, u, b):
        if layout.matrices == "rows":
            w, u = w.T, u.T
        w, u, b = (
            dict(zip(layout.gates, np.split(array, 3, axis=-1), strict=True)) for array in (w, u, b)
        )
        share = sigmoid(x @ w["z"] + h @ u["z"] + b["z"])
        r = sigmoid(x @ w["r"] + h @ u["r"] + b["r"])
        c = np.tanh(x @ w["h"] + b["h"] + r * (h @ u["h"]))
        return (1 - share) * h + share * c if layout.complementary else share * h + (1 - share) * c

    return step


@pytest.mark.parametrize("layout", SUMS, ids=str)
def test_one_bias_and_reset_after(layout):
    shapes = ROWS if layout.matrices == "rows" else COLUMNS
    weights = [draw(*shape, seed=k) for k, shape in enumerate([*shapes, (3 * H,)])]
    x, h = draw(B, I, seed=8), draw(B, H, seed=9)
    converted = gates.to_keras(layout, *weights)
    assert converted[2].shape == (2, 3 * H)
    assert not converted[2][1].any()
    expected = one_bias_step(layout)(x, h, *weights)
    assert_allclose(keras_step(x, h, *converted, True), expected, atol=1e-14)
    for ours, theirs in zip(gates.from_keras(layout, *converted), weights, strict=True):
        assert_array_equal(ours, theirs)
    converted[2][1, : 2 * H] = 0.25  # gates add their two biases
    back = gates.from_keras(layout, *converted)
    expected = keras_step(x, h, *converted, True)
    assert_allclose(one_bias_step(layout)(x, h, *back), expected, atol=1e-14)
    converted[2][1, 3 * H - 1] = 0.25
    with pytest.raises(ValueError, match="expected zeros as the candidate's recurrent bias"):
        gates.from_keras(layout, *converted)


@pytest.mark.parametrize("order", ["zrh", "rzh", "hzr", "rhz"])
def test_the_recurrent_bias_of_the_candidate_wherever_it_stands(order):
    layout = gates.Layout(order, "rows", "split_h", True)
    kernel, recurrent_kernel, bias = keras_weights("keras")
    *weights, b = gates.from_keras(layout, kernel, recurrent_kernel, bias)
    x, h = draw(B, I, seed=8), draw(B, H, seed=9)
    parts = dict(zip(order, np.split(b[: 3 * H], 3), strict=True))
    assert_allclose(parts["z"], bias[:, :H].sum(axis=0))
    assert_array_equal(parts["h"], bias[0, 2 * H :])
    assert_array_equal(b[3 * H :], bias[1, 2 * H :])
    back = gates.to_keras(layout, *weights, b)
    expected = keras_step(x, h, kernel, recurrent_kernel, bias, True)
    assert_allclose(keras_step(x, h, *back, True), expected, atol=1e-14)


@pytest.mark.parametrize("kind", ["keras_reset_before", "torch", "onnx_lbr1", "cudnn_gru"])
def test_complementary_is_the_other_share_of_every_layout(kind):
    layout = gates.LAYOUTS[kind]._replace(complementary=True)
    weights = source_weights(kind)
    plain = gates.to_keras(kind, *weights)
    x, h = draw(B, I, seed=8), draw(B, H, seed=9)
    old = keras_step(x, h, *plain, layout.reset_after)
    new = keras_step(x, h, *gates.to_keras(layout, *weights), layout.reset_after)
    bias = plain[2].sum(axis=0) if layout.reset_after else plain[2]
    z = sigmoid(x @ plain[0][:, :H] + h @ plain[1][:, :H] + bias[:H])
    candidate = (old - z * h) / (1 - z)
    assert_allclose(new, (1 - z) * h + z * candidate, atol=1e-12)


def test_a_bias_of_one_row_as_paddle_stores_it():
    weights = source_weights("paddle_dynamic_gru")
    expected = gates.to_keras("paddle_dynamic_gru", *weights)
    ours = gates.to_keras("paddle_dynamic_gru", *weights[:2], weights[2][None])
    for one, other in zip(ours, expected, strict=True):
        assert_array_equal(one, other)


TORCH = source_weights("torch")
INTEGERS = [np.ones(shape, "int8") for shape in COLUMNS]
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
        (
            lambda: gates.to_keras("onnx_lbr1", *TORCH),
            ValueError,
            "belong to torch or cudnn or paddle",
        ),
        (lambda: gates.to_keras("torch", *TORCH[:3], TORCH[3][:-1]), ValueError, r"\(14,\)"),
        (lambda: gates.from_keras("keras", *KERAS[:2], KERAS[2][0]), ValueError, r"\(2, 15\)"),
        (lambda: gates.from_keras("onnx_lbr0", *KERAS), ValueError, "the other reset_after"),
        (lambda: gates.from_keras("torch", KERAS[0].T, KERAS[1]), ValueError, r"got \(15, 3\)"),
        (
            lambda: gates.to_keras("torch", TORCH[0].astype(int), TORCH[1]),
            TypeError,
            "w_ih of float16",
        ),
        (lambda: gates.to_keras("keras", *INTEGERS), ValueError, "w_ih is of int8: pass scale="),
        (
            lambda: gates.to_keras("keras", *INTEGERS, scale=draw(4)),
            ValueError,
            r"scale of w_ih: expected one number, or one for each of 15 .*got shape \(4,\)",
        ),
        (
            lambda: gates.to_keras("cudnn_gru", *INTEGERS, scale=draw(3 * H)),
            ValueError,
            "expected one number, since this layout has no columns",
        ),
        (
            lambda: gates.to_keras(
                "paddle_dynamic_gru", *INTEGERS, scale={"w_ih": 1, "w_hh": draw(3 * H)}
            ),
            ValueError,
            "scale of w_hh: expected one number, since",
        ),
        (
            lambda: gates.to_keras("keras", *INTEGERS, scale={"kernel": 1}),
            ValueError,
            "scale: expected names among w_ih, w_hh",
        ),
        (
            lambda: gates.to_keras("keras", *INTEGERS, scale=np.nan),
            ValueError,
            "expected finite numbers",
        ),
        (
            lambda: gates.to_keras("keras", INTEGERS[0].astype("u1"), INTEGERS[1], scale=1),
            TypeError,
            "got uint8",
        ),
        (
            lambda: gates.to_keras(gates.Layout("zrh", "column", "sum", True), *KERAS[:2]),
            ValueError,
            "expected matrices among columns",
        ),
        (
            lambda: gates.to_keras(gates.Layout("zrh", "rows", "one", True), *TORCH[:2]),
            ValueError,
            "expected biases among both",
        ),
        (
            lambda: gates.to_keras(gates.Layout("hzr", "candidate_apart", "sum", True), *KERAS[:2]),
            ValueError,
            "expected gates that end in 'h'",
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
