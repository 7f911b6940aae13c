"""gates.to_keras on weights that are stored as integers with scales."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastgru import gates

I, H = 3, 5
ROWS = [(3 * H, I), (3 * H, H)]
COLUMNS = [(I, 3 * H), (H, 3 * H)]
SHAPES = {
    "torch": [*ROWS, (3 * H,), (3 * H,)],
    "paddle": [*ROWS, (3 * H,), (3 * H,)],
    "onnx_lbr1": [*ROWS, (6 * H,)],
    "keras": [*COLUMNS, (2, 3 * H)],
    "lasagne": [*COLUMNS, (3 * H,)],
    "rnnoise": [*COLUMNS, (3 * H,)],
}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def integers(shape, seed, dtype="int8"):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_integers_with_one_scale(dtype):
    shapes = [*ROWS, (3 * H,), (3 * H,)]
    weights = [integers(shape, k, dtype) for k, shape in enumerate(shapes)]
    ours = gates.to_keras("torch", *weights, scale=1 / 128)
    expected = gates.to_keras("torch", *((w / 128).astype("float32") for w in weights))
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == np.float32
        assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["torch", "keras", "lasagne", "onnx_lbr1", "paddle"])
def test_integers_with_a_scale_for_each_column(kind):
    shapes = SHAPES[kind]
    w_ih, w_hh = (integers(shape, k) for k, shape in enumerate(shapes[:2]))
    biases = [draw(*shape).astype("float32") for shape in shapes[2:]]
    s_ih, s_hh = draw(3 * H, seed=4).astype("float32"), draw(3 * H, seed=5).astype("float32")
    axis = (slice(None), None) if gates.LAYOUTS[kind].matrices == "rows" else (None, slice(None))
    expected = gates.to_keras(
        kind, w_ih.astype("f4") * s_ih[axis], w_hh.astype("f4") * s_hh[axis], *biases
    )
    ours = gates.to_keras(kind, w_ih, w_hh, *biases, scale={"w_ih": s_ih, "w_hh": s_hh})
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == np.float32
        assert_array_equal(one, other)


def test_the_least_integer_can_be_negated():
    layout = gates.LAYOUTS["lasagne"]
    w = np.full((I, 3 * H), -128, "int8")
    kernel, _, _ = gates.to_keras(layout, w, np.full((H, 3 * H), -128, "int8"), scale=0.5)
    assert_array_equal(kernel[:, :H], 64)
    assert_array_equal(kernel[:, H:], -64)


def test_rnnoise_has_its_scale_in_its_row():
    weights = [integers(shape, k) for k, shape in enumerate(SHAPES["rnnoise"])]
    expected = gates.to_keras("rnnoise", *((w / 256).astype("f4") for w in weights))
    for one, other in zip(gates.to_keras("rnnoise", *weights), expected, strict=True):
        assert_array_equal(one, other)
