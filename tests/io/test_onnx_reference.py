"""ONNX's reference evaluator compared: operator GRU, both linear_before_reset.

The evaluator (onnx.reference) follows the operator's equations for initial states, biases, both
layouts and all three directions. It reads neither sequence_lens, clip nor activations: lengths
are compared by one run per row, cut to its length.
"""

import numpy as np
import pytest

import fastgru
from fastgru import gates

onnx = pytest.importorskip("onnx", reason="ONNX's GRU is the judge; pip install fastgru[test]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

B, T, I, H = 3, 7, 5, 4
ATOL = {"float64": 1e-13, "float32": 1e-6}

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=[0, 1])
def linear_before_reset(request):
    return request.param


def random_weights(directions, dtype, seed=0):
    """Weights as ONNX has them: W (D, 3H, I), R (D, 3H, H), B (D, 6H)."""
    rng = np.random.default_rng(seed)
    shapes = [(directions, 3 * H, I), (directions, 3 * H, H), (directions, 6 * H)]
    return [rng.normal(0, 0.6, shape).astype(dtype) for shape in shapes]


def random_inputs(directions, dtype, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (B, T, I)).astype(dtype)
    return x, rng.normal(0, 1, (directions, B, H)).astype(dtype)


def run_onnx(x, w, r, b=None, initial_h=None, *, lbr, direction="forward", layout=0):
    """Run the operator on x (B, T, I); return Y (D, B, T, H) and Y_h (D, B, H)."""
    given = {"X": x if layout else x.transpose(1, 0, 2)}
    if initial_h is not None:
        given["initial_h"] = initial_h.transpose(1, 0, 2) if layout else initial_h
    weights = {"W": w, "R": r, **({} if b is None else {"B": b})}
    names = [
        "X",
        "W",
        "R",
        "B" if b is not None else "",
        "",
        "initial_h" if initial_h is not None else "",
    ]
    node = helper.make_node(
        "GRU",
        names,
        ["Y", "Y_h"],
        hidden_size=H,
        linear_before_reset=lbr,
        direction=direction,
        layout=layout,
    )
    number = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[x.dtype.name]
    graph = helper.make_graph(
        [node],
        "gru",
        [helper.make_tensor_value_info(name, number, a.shape) for name, a in given.items()],
        [helper.make_tensor_value_info(name, number, None) for name in ("Y", "Y_h")],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    y, y_h = ReferenceEvaluator(model).run(None, given)
    if layout:  # Y (B, T, D, H), Y_h (B, D, H)
        return y.transpose(2, 0, 1, 3), y_h.transpose(1, 0, 2)
    return y.transpose(1, 2, 0, 3), y_h  # Y (T, D, B, H)


def run_ours(x, w, r, b, initial_h, *, lbr, reverse=False, **options):
    """Run fastgru.gru with one direction of ONNX's weights; outputs in input order of time."""
    layout = f"onnx_lbr{lbr}"
    kernel, recurrent, bias = gates.to_keras(layout, w, r, *([] if b is None else [b]))
    y, state = fastgru.gru(
        x,
        kernel,
        recurrent,
        bias,
        initial_h,
        reset_after=gates.LAYOUTS[layout].reset_after,
        go_backwards=reverse,
        **options,
    )
    return (y[:, ::-1] if reverse else y), state


def close(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL[ours.dtype.name])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
def test_one_direction(linear_before_reset, direction, biased, started, layout, dtype):
    w, r, b = random_weights(1, dtype)
    x, h = random_inputs(1, dtype)
    b, h = b if biased else None, h if started else None
    y, y_h = run_onnx(x, w, r, b, h, lbr=linear_before_reset, direction=direction, layout=layout)
    ours, state = run_ours(
        x,
        w[0],
        r[0],
        None if b is None else b[0],
        None if h is None else h[0],
        lbr=linear_before_reset,
        reverse=direction == "reverse",
    )
    close(ours, y[0])
    close(state, y_h[0])


def test_bidirectional_layer(linear_before_reset, dtype):
    w, r, b = random_weights(2, dtype)
    x, h = random_inputs(2, dtype)
    y, y_h = run_onnx(x, w, r, b, h, lbr=linear_before_reset, direction="bidirectional")
    layout = f"onnx_lbr{linear_before_reset}"
    weights = [a for d in range(2) for a in gates.to_keras(layout, w[d], r[d], b[d])]
    layer = fastgru.Bidirectional(
        fastgru.GRU(
            H,
            return_sequences=True,
            return_state=True,
            reset_after=bool(linear_before_reset),
            dtype=dtype,
        ),
        merge_mode=None,
        weights=weights,
    )
    forward, backward, *states = layer(x, initial_state=list(h))
    close(forward, y[0])
    close(backward, y[1])
    close(np.stack(states), y_h)


def test_lengths_are_each_row_cut_to_its_length(linear_before_reset, dtype):
    w, r, b = random_weights(1, dtype, seed=2)
    x, h = random_inputs(1, dtype, seed=3)
    lengths = np.array([4, 7, 1])
    for reverse in (False, True):
        ours, state = run_ours(
            x, w[0], r[0], b[0], h[0], lbr=linear_before_reset, reverse=reverse, lengths=lengths
        )
        for row, length in enumerate(lengths):
            y, y_h = run_onnx(
                x[row : row + 1, :length],
                w,
                r,
                b,
                h[:, row : row + 1],
                lbr=linear_before_reset,
                direction="reverse" if reverse else "forward",
            )
            close(ours[row : row + 1, :length], y[0])
            close(state[row : row + 1], y_h[0])


def test_weights_written_for_onnx(linear_before_reset, dtype):
    rng = np.random.default_rng(5)
    bias_shape = (2, 3 * H) if linear_before_reset else (3 * H,)
    shapes = [(I, 3 * H), (H, 3 * H), bias_shape]
    weights = [rng.normal(0, 0.6, shape).astype(dtype) for shape in shapes]
    layer = fastgru.GRU(
        H, return_sequences=True, reset_after=bool(linear_before_reset), dtype=dtype
    )
    x, _ = random_inputs(1, dtype)
    layer.build(x.shape)
    layer.set_weights(weights)
    w, r, b = gates.from_keras(f"onnx_lbr{linear_before_reset}", *layer.get_weights())
    y, _ = run_onnx(x, w[None], r[None], b[None], lbr=linear_before_reset)
    close(layer(x), y[0])


def test_the_two_formulas_differ(dtype):
    w, r, b = random_weights(1, dtype)
    x, h = random_inputs(1, dtype)
    before, after = (run_onnx(x, w, r, b, h, lbr=lbr)[0] for lbr in (0, 1))
    assert np.abs(before - after).max() > 0.05
