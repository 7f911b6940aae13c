"""to_onnx: the model gives in ONNX Runtime what the layer gives."""

import numpy as np
import pytest

import fastgru
from fastgru import activations
from fastgru.io import from_onnx, to_onnx

onnx = pytest.importorskip(
    "onnx", reason="the package that writes models; pip install fastgru[onnx]"
)
from onnx_support import run_onnxruntime  # noqa: E402

B, T, I, H = 3, 7, 5, 4
CANDIDATES = [
    "tanh",
    "relu",
    "linear",
    "softsign",
    "softplus",
    "sigmoid",
    activations.leaky_relu.with_params(0.3),
    activations.elu.with_params(0.7),
    activations.relu.with_params(threshold=0.4),
]
GATES = ["sigmoid", "hard_sigmoid", activations.hard_sigmoid_keras2]


def with_random_weights(layer, inputs, seed):
    rng = np.random.default_rng(seed)
    layer.build((None, None, inputs))
    layer.set_weights([rng.normal(0, 0.5, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def written(layer, path, **options):
    """The model of a layer, after the checks that onnx has for it."""
    to_onnx(layer, path, **options)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def flat(nested):
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in flat(part)]
    return [nested]


def compare(layer, path, x, lengths=None, states=None, nested=None):
    """Run layer and model; ``nested`` are the states as the layer's call takes them."""
    model = written(layer, path, lengths=lengths is not None, initial_state=states is not None)
    feeds = {"sequences": x}
    if lengths is not None:
        feeds["lengths"] = np.asarray(lengths, np.int32)
    names = [value.name for value in model.graph.input if value.name.startswith("initial_state")]
    feeds.update(zip(names, states or [], strict=True))
    theirs = run_onnxruntime(str(path), feeds)
    ours = flat(layer(x, states if nested is None else nested, lengths=lengths))
    assert len(ours) == len(theirs)
    for a, b, output in zip(ours, theirs, model.graph.output, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert len(output.type.tensor_type.shape.dim) == a.ndim
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(a).max(initial=0)))
    return model


def choose(rng, options):
    return options[rng.integers(len(options))]


def random_layer(rng, time_major, last):
    """A GRU or a Bidirectional, with options of all sorts."""

    def gru(**fixed):
        return fastgru.GRU(
            int(rng.integers(1, 9)) if "units" not in fixed else fixed.pop("units"),
            choose(rng, CANDIDATES),
            choose(rng, GATES),
            use_bias=bool(rng.integers(2)),
            reset_after=bool(rng.integers(2)),
            time_major=time_major,
            **fixed,
        )

    common = {
        "return_sequences": not last or bool(rng.integers(2)),
        "return_state": last and bool(rng.integers(2)),
    }
    backwards = bool(rng.integers(2))
    if rng.integers(2):
        return gru(go_backwards=backwards, zero_output_for_mask=bool(rng.integers(2)), **common)
    mode = choose(rng, ["concat", "sum", "mul", "ave", *([None] if last else [])])
    units = int(rng.integers(1, 9))
    forward = gru(units=units, go_backwards=backwards, **common)
    other = units if mode != "concat" or rng.integers(2) else units + 1
    backward = gru(units=other, go_backwards=not backwards, **common) if rng.integers(2) else None
    return fastgru.Bidirectional(forward, mode, backward_layer=backward)


@pytest.mark.parametrize("seed", range(200))
def test_random_layers_agree_with_onnxruntime(seed, tmp_path):
    rng = np.random.default_rng(seed)
    b, t, i = (int(n) for n in rng.integers(1, 8, 3))
    time_major = bool(rng.integers(2))
    depth = int(rng.integers(1, 4))
    layers = [random_layer(rng, time_major, k == depth - 1) for k in range(depth)]
    layer = layers[0] if depth == 1 and rng.integers(2) else fastgru.Sequential(layers)
    with_random_weights(layer, i, seed)
    x = rng.normal(size=(t, b, i) if time_major else (b, t, i)).astype("float32")
    lengths = rng.integers(0, t + 1, b) if rng.integers(2) else None
    states = nested = None
    if rng.integers(2):
        nested = [
            [rng.normal(size=(b, half.cell.units)).astype("float32") for half in halves]
            for halves in (getattr(one, "halves", (one,)) for one in layers)
        ]
        states = flat(nested)
        nested = nested if isinstance(layer, fastgru.Sequential) else states
    compare(layer, tmp_path / "model.onnx", x, lengths, states, nested)


# Each option by itself, so that a failure says which.


@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("zero_output_for_mask", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_lengths_and_states(
    go_backwards, zero_output_for_mask, return_sequences, time_major, tmp_path
):
    layer = fastgru.GRU(
        H,
        go_backwards=go_backwards,
        zero_output_for_mask=zero_output_for_mask,
        return_sequences=return_sequences,
        time_major=time_major,
        return_state=True,
    )
    with_random_weights(layer, I, 1)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(T, B, I) if time_major else (B, T, I)).astype("float32")
    state = rng.normal(size=(B, H)).astype("float32")
    for lengths in (None, [4, 0, 7]):
        for states in (None, [state]):
            compare(layer, tmp_path / "model.onnx", x, lengths, states)


def test_the_model_is_small_and_named(tmp_path):
    """What the outputs do not need is not there: here, the Y of the operator."""
    layer = with_random_weights(fastgru.GRU(H, time_major=True, name="encoder"), I, 3)
    model = written(layer, tmp_path / "model.onnx")
    (gru, gather, identity) = model.graph.node
    assert (gru.name, gru.op_type, list(gru.output)) == ("encoder", "GRU", ["", "Y_h"])
    assert (gather.op_type, identity.op_type) == ("Gather", "Identity")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in gru.attribute}
    assert attributes["linear_before_reset"] == 1
    assert (model.opset_import[0].version, model.ir_version) == (14, 7)
    assert [value.name for value in model.graph.input] == ["sequences"]
    assert [value.name for value in model.graph.output] == ["y"]
    assert sorted(tensor.name for tensor in model.graph.initializer if tensor.dims) == [
        "encoder.B",
        "encoder.R",
        "encoder.W",
    ]


def test_bidirectional_is_one_node_where_it_can_be(tmp_path):
    layer = fastgru.Bidirectional(fastgru.GRU(H, return_sequences=True), name="both")
    model = written(with_random_weights(layer, I, 4), tmp_path / "model.onnx")
    (node,) = [node for node in model.graph.node if node.op_type == "GRU"]
    assert node.name == "both"
    read = from_onnx(model, "both")
    for ours, theirs in zip(read.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_float16(tmp_path):
    """Layers of float16 run on devices only; the model is compared with float32."""
    weights = with_random_weights(fastgru.GRU(H), I, 5).get_weights()
    half, full = (fastgru.GRU(H, dtype=dtype) for dtype in ("float16", "float32"))
    for layer in (half, full):
        layer.build((None, None, I))
        layer.set_weights([w.astype("float16").astype(layer.dtype) for w in weights])
    written(half, tmp_path / "model.onnx")
    x = np.random.default_rng(6).normal(size=(B, T, I)).astype("float16")
    (y,) = run_onnxruntime(str(tmp_path / "model.onnx"), {"sequences": x})
    assert y.dtype == np.float16
    np.testing.assert_allclose(full(x), y, rtol=0, atol=2e-3)  # a few units of float16 near 1


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_written_is_read_again(reset_after, dtype, tmp_path):
    layer = fastgru.GRU(
        H,
        activations.elu.with_params(0.5),
        "hard_sigmoid",
        reset_after=reset_after,
        go_backwards=True,
        return_sequences=True,
        return_state=True,
        dtype=dtype,
        name="written",
    )
    with_random_weights(layer, I, 5)
    path = tmp_path / "model.onnx"
    written(layer, path)
    read = from_onnx(path, "written")
    assert read.dtype == dtype
    assert (read.activation, read.recurrent_activation) == (
        layer.activation,
        layer.recurrent_activation,
    )
    assert (read.reset_after, read.go_backwards, read.time_major) == (reset_after, True, True)
    for ours, theirs in zip(read.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x = np.random.default_rng(6).normal(size=(B, T, I)).astype(dtype)
    np.testing.assert_array_equal(read(x.swapaxes(0, 1))[0].swapaxes(0, 1), layer(x)[0])


def test_rnn_of_one_cell_and_two_layers_of_one_name(tmp_path):
    cell = fastgru.GRUCell(H)
    layers = [
        fastgru.RNN(cell, return_sequences=True, name="same"),
        fastgru.GRU(H + 1, name="same"),
    ]
    model = fastgru.Sequential(layers)
    with_random_weights(model, I, 7)
    x = np.random.default_rng(8).normal(size=(B, T, I)).astype("float32")
    proto = compare(model, tmp_path / "model.onnx", x)
    assert list(from_onnx(proto)) == ["same", "same_1"]


def test_names_that_the_model_needs_itself(tmp_path):
    x = np.random.default_rng(9).normal(size=(B, T, I)).astype("float32")
    for name in ("y", "sequences", "Y", "GRU", "lengths", "gather", ""):
        layer = with_random_weights(fastgru.GRU(H, name=name), I, 9)
        compare(layer, tmp_path / "model.onnx", x, [3, 0, 7])


# ---- refusals ------------------------------------------------------------------------------------


def custom(x):
    return x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastgru.GRU(H, name="g"), ValueError, "g: it has no weights yet"),
        (lambda: fastgru.GRUCell(H), TypeError, "expected GRU, RNN, Bidirectional or Sequential"),
        (
            lambda: with_random_weights(fastgru.GRU(H, stateful=True, name="g"), I, 1),
            ValueError,
            "g: a model keeps no state between runs",
        ),
        (
            lambda: with_random_weights(fastgru.GRU(H, "gelu"), I, 1),
            ValueError,
            "cannot express <fastgru activation gelu",
        ),
        (
            lambda: with_random_weights(
                fastgru.GRU(H, activations.relu.with_params(max_value=3.0)), I, 1
            ),
            ValueError,
            "cannot express <fastgru activation relu",
        ),
        (
            lambda: with_random_weights(fastgru.GRU(H, recurrent_activation=custom), I, 1),
            ValueError,
            "cannot express <function custom",
        ),
        (
            lambda: with_random_weights(
                fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)]), I, 1
            ),
            TypeError,
            "expected an RNN of one GRUCell, got StackedRNNCells",
        ),
    ],
)
def test_layers_that_no_model_can_be_made_of(make, error, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(error, match=message):
        to_onnx(make(), path)
    assert not path.exists()


def test_more_than_protobuf_can_write(monkeypatch, tmp_path):
    from fastgru.io import onnx_writer

    monkeypatch.setattr(onnx_writer, "MOST_BYTES", 100)
    layer = with_random_weights(fastgru.GRU(H), I, 1)
    with pytest.raises(ValueError, match="expected weights of less than 2 GB, got"):
        to_onnx(layer, tmp_path / "model.onnx")
