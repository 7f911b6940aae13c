"""from_onnx: what a node and the graphs around it may say, and what is refused."""

import numpy as np
import pytest

import fastgru
from fastgru import activations
from fastgru.io import from_onnx
from fastgru.io.onnx import find

onnx = pytest.importorskip(
    "onnx", reason="the package that reads models; pip install fastgru[onnx]"
)
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_support import (  # noqa: E402
    gru_node,
    make_model,
    one_node_model,
    random_weights,
    run,
    run_onnxruntime,
    x_for,
)

B, T, I, H = 3, 6, 5, 4


# ---- what a node says ----------------------------------------------------------------------------


def test_layout_is_time_major():
    weights = random_weights(0, 1, I, H)
    first, second = (from_onnx(one_node_model(weights, layout=k), "g") for k in (0, 1))
    assert first.time_major
    assert not second.time_major
    x = x_for()
    np.testing.assert_array_equal(run(first, x), run(second, x.swapaxes(0, 1)).swapaxes(0, 1))


@pytest.mark.parametrize(
    ("outputs", "sequences", "state"),
    [(("Y", "Y_h"), True, True), (("Y",), True, False), (("", "Y_h"), False, False)],
)
def test_outputs_say_what_is_returned(outputs, sequences, state):
    for direction, directions in (("forward", 1), ("bidirectional", 2)):
        weights = random_weights(1, directions, I, H)
        layer = from_onnx(one_node_model(weights, outputs=outputs, direction=direction), "g")
        assert layer.return_sequences == sequences
        assert layer.return_state == state
        y = run(layer, x_for())
        assert y.shape == ((T, B) if sequences else (B,)) + (directions * H,)


def test_outputs_that_nobody_reads_are_not_returned():
    weights = random_weights(2, 1, I, H)
    node = gru_node(outputs=("Y", "Y_h"))
    layer = from_onnx(make_model([node], weights, outputs=("Y",)), "g")
    assert (layer.return_sequences, layer.return_state) == (True, False)
    reader = helper.make_node("Identity", ["Y_h"], ["Z"])
    layer = from_onnx(make_model([node, reader], weights, outputs=("Z",)), "g")
    assert (layer.return_sequences, layer.return_state) == (False, False)


def test_the_last_output_with_lengths_is_the_last_valid_one():
    """Where Y_h alone is read, zero_output_for_mask would give zeros."""
    weights = random_weights(3, 1, I, H)
    model = one_node_model(weights, ["lengths"], outputs=("", "Y_h"))
    layer, lengths = from_onnx(model, "g"), np.array([2, 6, 1])
    y_h = layer(x_for(), lengths=lengths)
    for row, length in enumerate(lengths):
        alone = layer(x_for()[:length, row : row + 1])
        np.testing.assert_allclose(y_h[row], alone[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("stored", "dtype", "atol"),
    [("float64", "float64", 0), ("float32", "float32", 0), ("float16", "float32", 0)],
)
def test_dtypes(stored, dtype, atol):
    weights = random_weights(4, 1, I, H, stored)
    layer = from_onnx(one_node_model(weights), "g")
    assert layer.dtype == dtype
    np.testing.assert_array_equal(layer.kernel.value, weights[0][0].T.astype(dtype))


def test_bfloat16_becomes_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own")
    weights = [w.astype(ml_dtypes.bfloat16) for w in random_weights(5, 1, I, H)]
    for raw in (True, False):
        model = one_node_model([w.astype("float32") for w in weights])
        del model.graph.initializer[:]
        for name, w in zip("WRB", weights, strict=True):
            bits = w.view(np.uint16)
            data = bits.tobytes() if raw else bits.ravel().tolist()
            tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=w.shape)
            if raw:
                tensor.raw_data = data
            else:
                tensor.int32_data.extend(data)
            model.graph.initializer.append(tensor)
        layer = from_onnx(model, "g")
        np.testing.assert_array_equal(layer.kernel.value, weights[0][0].T.astype("float32"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_are_not_raw(dtype):
    weights = random_weights(6, 1, I, H, dtype)
    expected = from_onnx(one_node_model(weights), "g").get_weights()
    model = one_node_model(weights)
    for tensor, w in zip(model.graph.initializer, weights, strict=True):
        tensor.ClearField("raw_data")
        field, values = {
            "float16": (tensor.int32_data, w.view(np.uint16)),
            "float32": (tensor.float_data, w),
            "float64": (tensor.double_data, w),
        }[dtype]
        field.extend(values.ravel().tolist())
    for ours, theirs in zip(from_onnx(model, "g").get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_node_without_bias():
    layer = from_onnx(one_node_model(random_weights(7, 1, I, H, biased=False)), "g")
    assert not layer.use_bias


def test_activations_are_ours():
    expected = {
        ("Tanh", (), ()): activations.tanh,
        ("SIGMOID", (), ()): activations.sigmoid,
        ("relu", (), ()): activations.relu,
        ("Softsign", (), ()): activations.softsign,
        ("Softplus", (), ()): activations.softplus,
        ("HardSigmoid", (), ()): activations.hard_sigmoid_keras2,
        ("HardSigmoid", (1 / 6,), (0.5,)): activations.hard_sigmoid,
        ("Affine", (1.0,), (0.0,)): activations.linear,
        ("ScaledTanh", (1.0,), (1.0,)): activations.tanh,
        ("LeakyRelu", (0.25,), ()): activations.leaky_relu.with_params(0.25),
        ("Elu", (), ()): activations.elu,
        ("Elu", (0.5,), ()): activations.elu.with_params(0.5),
        ("ThresholdedRelu", (1.0,), ()): activations.relu.with_params(threshold=1.0),
    }
    weights = random_weights(8, 1, I, H)
    for (name, alpha, beta), act in expected.items():
        options = {"activations": ["Softplus", name]}
        if alpha:
            options["activation_alpha"] = alpha
        if beta:
            options["activation_beta"] = beta
        layer = from_onnx(one_node_model(weights, **options), "g")
        assert layer.activation == act
        assert layer.recurrent_activation == activations.softplus
    leaky = from_onnx(one_node_model(weights, activations=["Sigmoid", "LeakyRelu"]), "g")
    (slope,) = leaky.activation.params
    assert slope == pytest.approx(0.01)


def test_activations_of_each_direction():
    names = ["HardSigmoid", "LeakyRelu", "Sigmoid", "Elu"]
    model = one_node_model(
        random_weights(9, 2, I, H),
        direction="bidirectional",
        activations=names,
        activation_alpha=[0.2, 0.5, 0.25],
        activation_beta=[0.5],
    )
    forward, backward = from_onnx(model, "g").halves
    assert forward.recurrent_activation == activations.hard_sigmoid_keras2
    assert forward.activation == activations.leaky_relu.with_params(0.5)
    assert backward.recurrent_activation == activations.sigmoid
    assert backward.activation == activations.elu.with_params(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 3.0}, "clip=3 limits what goes into the activations"),
        ({"direction": "sideways"}, "expected direction forward, reverse, bidirectional, got"),
        ({"layout": 2}, "expected layout 0 or 1, got 2"),
        ({"hidden_size": H + 1}, r"hidden_size 5 .* got W \(1, 12, 5\)"),
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"hidden_size": -(1 << 40)}, "hidden_size -1099511627776"),
        ({"hidden_size": 1.5}, "expected hidden_size of int, one, got 1.5"),
        ({"direction": "bidirectional"}, r"2 direction\(s\)"),
        ({"linear_before_resett": 1}, "no attribute 'linear_before_resett'"),
        ({"activations": ["Sigmoid"]}, "expected 2 activations"),
        ({"activations": ["Sigmoid", "Swish"]}, "got 'Swish'"),
        ({"activations": [1, 2]}, "expected activations of bytes"),
        ({"activations": 3}, "expected activations of bytes, several, got 3"),
        ({"layout": [1]}, r"expected layout of int, one, got \[1\]"),
        ({"activations": ["Sigmoid", "Affine"]}, "Affine has no defaults"),
        # 1 in ONNX' text; ONNX Runtime 1.x computes with 0.
        ({"activations": ["Sigmoid", "ThresholdedRelu"]}, "ThresholdedRelu has no defaults"),
        (
            {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.3]},
            r"HardSigmoid with alpha=0\.3.* is none of",
        ),
        (
            {
                "activations": ["Sigmoid", "ScaledTanh"],
                "activation_alpha": [1.7],
                "activation_beta": [0.6],
            },
            "ScaledTanh with alpha=1.7",
        ),
        ({"activation_alpha": [0.1]}, "more values than Sigmoid, Tanh take"),
        (
            {"activations": ["Sigmoid", "Elu"], "activation_alpha": [float("nan")]},
            "expected finite activation_alpha",
        ),
    ],
)
def test_nodes_that_no_layer_can_be_made_of(options, message):
    model = one_node_model(random_weights(10, 1, I, H), **options)
    with pytest.raises(ValueError, match=f"node 'g': .*{message}"):
        from_onnx(model)


def test_an_attribute_that_comes_twice():
    model = one_node_model(random_weights(10, 1, I, H), linear_before_reset=1)
    model.graph.node[0].attribute.append(helper.make_attribute("linear_before_reset", 0))
    with pytest.raises(ValueError, match="'linear_before_reset' stands there twice"):
        from_onnx(model)


# ---- initial_h -----------------------------------------------------------------------------------


def start_model(extra_nodes, extra):
    return make_model(
        [*extra_nodes, gru_node(start="h", hidden_size=H)],
        random_weights(11, 1, I, H),
        extra=extra,
    )


def sizes(*shape):
    """Nodes that make the shape (1, B, H) from X, so that it is not known before the model runs."""
    return [
        helper.make_node("Shape", ["X"], ["size"], start=1, end=2),
        helper.make_node("Concat", ["one", "size", "many"], ["shape"], axis=0),
    ], {"one": np.array([1]), "many": np.array([H])}


def test_a_start_from_zeros_is_none():
    zeros = np.zeros((1, B, H), "float32")
    nodes, extra = sizes()
    plain = from_onnx(one_node_model(random_weights(11, 1, I, H)), "g")
    for model in (
        start_model([], {"h": zeros}),
        start_model(
            [*nodes, helper.make_node("Expand", ["zero", "shape"], ["h"])],
            {**extra, "zero": np.zeros((1, 1, 1), "float32")},
        ),
        start_model([*nodes, helper.make_node("ConstantOfShape", ["shape"], ["h"])], extra),
    ):
        (found,) = find(model)
        assert "initial_state" not in found.recognised
        np.testing.assert_array_equal(run(found.layer, x_for()), run(plain, x_for()))


def test_a_constant_start_is_refused_and_the_way_round_works():
    start = np.random.default_rng(12).normal(size=(1, B, H)).astype("float32")
    nodes, extra = sizes()
    ones = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    for model in (
        start_model([], {"h": start}),
        start_model(
            [*nodes, helper.make_node("Expand", ["start", "shape"], ["h"])],
            {**extra, "start": start[:, :1]},
        ),
        start_model(
            [*nodes, helper.make_node("ConstantOfShape", ["shape"], ["h"], value=ones)], extra
        ),
    ):
        with pytest.raises(ValueError, match=r"node 'g': initial_h is the constant 'h'"):
            from_onnx(model)
    model = start_model([], {"h": start})
    model.graph.node[0].input[5] = ""
    ours = run(from_onnx(model, "g"), x_for(), initial_state=start[0])
    (y, _) = run_onnxruntime(start_model([], {"h": start}), {"X": x_for()})
    np.testing.assert_allclose(ours, y[:, 0], rtol=0, atol=1e-6)


def test_lengths_and_a_start_that_are_given_are_said():
    (found,) = find(one_node_model(random_weights(13, 1, I, H), ["h", "lengths"]))
    assert "sequence_lens is lengths= of the call" in found.recognised
    assert "initial_h is initial_state= of the call" in found.recognised
    assert found.convention == "gates z r h in rows, linear_before_reset=0"


# ---- names, graphs, sources ----------------------------------------------------------------------


def test_names_of_nodes():
    weights = random_weights(14, 1, I, H)
    nodes = [gru_node(outputs=(f"Y{i}",)) for i in range(4)]
    for node, name in zip(nodes, ["same", "same", "", ""], strict=True):
        node.name = name
    model = make_model(nodes, weights, outputs=[f"Y{i}" for i in range(4)])
    layers = from_onnx(model)
    assert list(layers) == ["same", "same_1", "Y2", "Y3"]
    assert [layer.name for layer in layers.values()] == list(layers)
    assert from_onnx(model, "Y3").name == "Y3"
    with pytest.raises(ValueError, match="one of: same, same_1, Y2, Y3; got 'Y4'"):
        from_onnx(model, "Y4")


def test_one_node_is_read_although_another_cannot_be():
    weights = random_weights(15, 1, I, H)
    nodes = [gru_node(outputs=("Y",)), gru_node(outputs=("Z",), clip=1.0)]
    nodes[1].name = "clipped"
    model = make_model(nodes, weights, outputs=["Y", "Z"])
    assert isinstance(from_onnx(model, "g"), fastgru.GRU)
    with pytest.raises(ValueError, match="'clipped': clip=1"):
        from_onnx(model)


def test_a_model_without_a_gru():
    model = make_model([helper.make_node("Identity", ["X"], ["Y"])], outputs=["Y"])
    with pytest.raises(ValueError, match="expected a GRU in it, found none"):
        from_onnx(model)
    model.graph.node[0].op_type, model.graph.node[0].domain = "GRU", "com.example"
    with pytest.raises(ValueError, match="expected a GRU in it, found none"):
        from_onnx(model)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_nested_graphs_see_the_names_outside(kind):
    weights = random_weights(16, 1, I, H)
    outside = make_model([], weights[:2], extra={"flag": np.array(True), "n": np.array(2)})
    inner = helper.make_graph(
        [gru_node(outputs=("Y",))],
        "inner",
        [],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights[2], "B")],
    )
    other = helper.make_graph([gru_node(outputs=("Y",), linear_before_reset=1)], "other", [], [])
    other.CopyFrom(inner)
    other.node[0].attribute.append(helper.make_attribute("linear_before_reset", 1))
    if kind == "If":
        node = helper.make_node("If", ["flag"], ["Y"])
        node.attribute.append(helper.make_attribute("then_branch", inner))
        node.attribute.append(helper.make_attribute("else_branch", other))
    else:
        node = helper.make_node("Loop", ["n", "flag"], ["Y"], body=inner)
    outside.graph.node.append(node)
    layers = from_onnx(outside)
    assert list(layers) == (["g", "g_1"] if kind == "If" else ["g"])
    assert [layer.reset_after for layer in layers.values()] == [False, True][: len(layers)]
    plain = from_onnx(one_node_model(weights), "g")
    np.testing.assert_array_equal(run(layers["g"], x_for()), run(plain, x_for()))


def test_functions_are_to_be_inlined():
    weights = random_weights(17, 1, I, H)
    call = helper.make_node("Mine", ["X", "W", "R", "B"], ["Y"], "call", domain="local")
    model = make_model([call], weights, outputs=["Y"])
    body = gru_node(outputs=("Y",))
    opset = [helper.make_opsetid("", 14)]
    model.functions.append(
        helper.make_function("local", "Mine", ["X", "W", "R", "B"], ["Y"], [body], opset)
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    with pytest.raises(ValueError, match=r"function 'Mine'.*inline_local_functions"):
        from_onnx(model)
    import onnx.inliner

    (layer,) = from_onnx(onnx.inliner.inline_local_functions(model)).values()
    plain = from_onnx(one_node_model(weights), "g")
    np.testing.assert_array_equal(run(layer, x_for()), run(plain, x_for()))


def test_weights_that_are_inputs():
    weights = random_weights(19, 1, I, H)
    model = make_model([gru_node()], weights[:2], inputs=["B"])
    with pytest.raises(ValueError, match="expected B to be a constant, but 'B' is an input"):
        from_onnx(model)
    # In files of IR version 3 initializers are inputs too.
    model = make_model([gru_node()], weights, inputs=["W", "R", "B"])
    assert from_onnx(model, "g").units == H


def test_names_that_nothing_makes_or_two_make():
    weights = random_weights(20, 1, I, H)
    with pytest.raises(ValueError, match="nothing in the model makes the value 'V'"):
        from_onnx(make_model([gru_node(("V", "R", "B"))], weights))
    with pytest.raises(ValueError, match="'W' stands for two values"):
        from_onnx(make_model([helper.make_node("Identity", ["R"], ["W"]), gru_node()], weights))
