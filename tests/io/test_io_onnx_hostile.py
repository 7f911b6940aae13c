"""from_onnx on weights that are put together, damaged, and hostile."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import subprocesses

from fastgru.io import from_onnx

onnx = pytest.importorskip(
    "onnx", reason="the package that reads models; pip install fastgru[onnx]"
)
from exhaustive import EVERYTHING  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_support import gru_node, make_model, one_node_model, random_weights  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "onnx"
I, H = 5, 4


def same_weights(model, weights):
    expected = from_onnx(one_node_model(weights), "g").get_weights()
    for ours, theirs in zip(from_onnx(model, "g").get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ---- weights that nodes put together -------------------------------------------------------------


def op(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def test_all_that_is_folded():
    w, r, b = weights = random_weights(0, 1, I, H)
    z, rest = np.split(w[0], [H])
    nodes = [
        # W from its transposed parts, cut out of a larger array.
        op("Slice", ["wide", "starts", "ends", "axes", "steps"], "even"),
        op("Transpose", ["even"], "rest", perm=[1, 0]),
        op("Concat", ["z", "rest"], "flat", axis=-2),
        op("Unsqueeze", ["flat", "zero"], "W2"),
        # R through a shape that is computed.
        op("Shape", ["r2"], "shape", start=1),
        op("Mul", ["shape", "factors"], "lengths"),
        op("Concat", ["one", "lengths", "four"], "r_shape", axis=0),
        op("Reshape", ["r2", "r_shape"], "R2"),
        # B through an axis of its own.
        op("Squeeze", ["b4", "axes2"], "b2"),
        op("Identity", ["b2"], "b1"),
        op("Expand", ["b1", "b_shape"], "B2"),
        gru_node(("W2", "R2", "B2")),
    ]
    wide = np.full((I + 1, 4 * H), np.nan, "float32")
    wide[1:, 1::2] = rest.T[:, ::-1]
    model = make_model(
        nodes,
        extra={
            "wide": wide,
            "starts": np.array([-I, 1 << 40]),
            "ends": np.array([1 << 40, -(1 << 40)]),
            "axes": np.array([0, -1]),
            "steps": np.array([1, -2]),
            "z": z,
            "zero": np.array([0]),
            "r2": r.reshape(H, 3 * H),
            "factors": np.array([1]),
            "one": np.array([1]),
            "four": np.array([-1]),
            "b4": b[None, :, None],
            "axes2": np.array([0, 2]),
            "b_shape": np.array([1, 6 * H]),
        },
    )
    same_weights(model, weights)


def test_before_opset_13_axes_were_attributes():
    w, r, b = weights = random_weights(1, 1, I, H)
    constant = helper.make_node("Constant", [], ["r"], value=numpy_helper.from_array(r[0], "r"))
    nodes = [
        op("Unsqueeze", ["w"], "W2", axes=[0]),
        constant,
        op("Slice", ["r"], "r1", starts=[0, 0], ends=[1 << 31, H], axes=[0, 1]),
        op("Unsqueeze", ["r1"], "R2", axes=[0]),
        op("Squeeze", ["b"], "B2", axes=[0]),
        gru_node(("W2", "R2", "B2")),
    ]
    same_weights(make_model(nodes, extra={"w": w[0], "b": b[None]}, opset=7), weights)


def test_a_constant_of_floats():
    node = helper.make_node("Constant", [], ["B"], value_floats=[0.5] * 6 * H)
    w, r, _ = random_weights(2, 1, I, H)
    add_axis = op("Unsqueeze", ["B", "zero"], "B1")
    model = make_model(
        [node, add_axis, gru_node(("W", "R", "B1"))], (w, r), extra={"zero": np.array([0])}
    )
    same_weights(model, (w, r, np.full((1, 6 * H), 0.5, "float32")))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (op("MatMul", ["W", "W"], "V"), "'V' is made by operator MatMul"),
        (op("Mul", ["W", "W"], "V"), "expected a length"),
        (op("Transpose", ["W"], "V", perm=[0, 1]), "made by Transpose: it cannot be folded"),
        (op("Transpose", ["W"], "V", perm=[0, 1, 1]), "made by Transpose: it cannot be folded"),
        (op("Concat", ["W", "W"], "V"), r"KeyError\('axis'\)"),
        (op("Concat", ["W", "n"], "V", axis=0), "expected one dtype"),
        (op("Concat", ["W", ""], "V", axis=0), "an input is missing"),
        (op("Unsqueeze", ["W", "W"], "V"), "expected axes as at most 8 integers"),
        (op("Unsqueeze", ["W", "n"], "V"), "cannot be folded: AxisError"),
        (op("Squeeze", ["W", "n"], "V"), "cannot be folded: AxisError"),
        (op("Reshape", ["W", "n"], "V"), "cannot reshape array"),
        (op("Expand", ["W", "n"], "V"), "broadcast"),
        (op("Expand", ["W", "negative"], "V"), "negative dimensions"),
        (op("Expand", ["W", "huge"], "V"), "dimensions too large"),
        (op("Slice", ["W"], "V"), r"KeyError\('starts'\)"),
        (op("Slice", ["W", "n", "n", "n", "zero"], "V"), "cannot be folded"),
        (op("Identity", [], "V"), "an input is missing"),
        (op("Identity", ["V"], "V"), "more than 64 nodes before it"),
        (op("Identity", ["nothing"], "V"), "nothing in the model makes the value 'nothing'"),
        (helper.make_node("Constant", [], ["V"], value_string="x"), "Constant of value_string"),
        (helper.make_node("Split", ["W"], ["V", "U"]), "'V' is made by operator Split"),
    ],
)
def test_what_cannot_be_folded(node, message):
    model = make_model(
        [node, gru_node(("V", "R", "B"))],
        random_weights(3, 1, I, H),
        extra={
            "n": np.array([7]),
            "zero": np.array([0]),
            "negative": np.array([-1, 1, 1, 1]),
            "huge": np.array([1 << 40, 1 << 40, 1, 1, 1]),
        },
    )
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


# ---- damage --------------------------------------------------------------------------------------


def change_w(model, **fields):
    tensor = model.graph.initializer[0]
    for key, value in fields.items():
        if key == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, key, value)
    return model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": [1, 3 * H, 1 << 40]}, "takes 52776558133248 bytes, got 240"),
        ({"dims": [1 << 40, 1 << 40, 1 << 40]}, "the file is damaged"),
        ({"dims": [1, -3 * H, I]}, r"axes of length >= 0, got \(1, -12, 5\)"),
        ({"dims": [-1, -3 * H, I]}, "axes of length >= 0"),
        ({"dims": [1] * 9}, "at most 8 axes"),
        ({"dims": []}, r"shape \(\) takes 4 bytes, got 240"),
        ({"dims": [1, I, 3 * H]}, r"got W \(1, 5, 12\)"),
        ({"dims": [1, 3 * H, I, 1]}, r"got W \(1, 12, 5, 1\)"),
        ({"raw_data": b"\0" * 239}, "takes 240 bytes, got 239"),
        ({"raw_data": b""}, "takes 240 bytes, got 0"),
        ({"data_type": TensorProto.DOUBLE}, "takes 480 bytes, got 240"),
        ({"data_type": TensorProto.INT32}, r"one floating dtype, got \['float32', 'int32'\]"),
        ({"data_type": TensorProto.STRING}, "expected a tensor of float32"),
        ({"data_type": 999}, "expected a tensor of float32.*got 999"),
        ({"dims": [1, 3 * H, 0], "raw_data": b""}, r"got W \(1, 12, 0\)"),
    ],
)
def test_damaged_tensors(fields, message):
    model = change_w(one_node_model(random_weights(5, 1, I, H)), **fields)
    for source in (model, model.SerializeToString()):
        with pytest.raises(ValueError, match=message):
            from_onnx(source)


def test_a_segment_and_numbers_out_of_range():
    model = one_node_model(random_weights(5, 1, I, H))
    model.graph.initializer[0].segment.begin = 1
    with pytest.raises(ValueError, match="a segment of one"):
        from_onnx(model)
    model = one_node_model(random_weights(5, 1, I, H))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.FLOAT16
    tensor.int32_data.extend([1 << 20] * math.prod(tensor.dims))
    with pytest.raises(ValueError, match="value 'W'"):
        from_onnx(model)


def test_names_that_are_no_text():
    model = one_node_model(random_weights(6, 1, I, H), linear_before_reset=1)
    data = model.SerializeToString()
    for name in (b"linear_before_reset", b"GRU", b"Y_h", b"g"):
        damaged = data.replace(bytes([len(name)]) + name, bytes([len(name), 255]) + name[1:])
        assert damaged != data
        with pytest.raises(ValueError, match=r"UTF-8|expected an ONNX model"):
            from_onnx(damaged)


@pytest.mark.parametrize("data", [b"", b"\0", b"PK\3\4" + b"\0" * 50, b"\x08\x07"])
def test_what_is_no_model(data):
    with pytest.raises(ValueError, match="expected an ONNX model"):
        from_onnx(data)


def test_every_truncation_of_a_file():
    data = (DATA / "script_state.onnx").read_bytes()
    outcomes = set()
    for length in range(len(data)):
        try:
            outcomes.add(type(from_onnx(data[:length])))
        except ValueError:
            outcomes.add(ValueError)
    assert outcomes == {ValueError, dict}  # the last fields are not needed


# ---- files that ask for much ---------------------------------------------------------------------


def quickly_refused(source, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        from_onnx(source)
    assert time.process_time() - start < 2


@pytest.mark.alone
def test_arrays_that_double_again_and_again():
    nodes = [op("Concat", [f"w{i}", f"w{i}"], f"w{i + 1}", axis=0) for i in range(60)]
    model = make_model(
        [*nodes, gru_node(("w60", "R", "B"))],
        random_weights(7, 1, I, H),
        extra={"w0": np.ones((1, 3 * H, I), "float32")},
    )
    quickly_refused(model.SerializeToString(), "would take more than")


@pytest.mark.alone
def test_chains_of_zeros_that_double_are_walked_once():
    nodes = [op("Concat", [f"h{i}", f"h{i}"], f"h{i + 1}", axis=0) for i in range(60)]
    nodes.insert(0, op("Expand", ["zero", "X"], "h0"))
    model = make_model(
        [*nodes, gru_node(start="h60")],
        random_weights(7, 1, I, H),
        extra={"zero": np.zeros(1, "float32")},
    )
    start = time.process_time()
    assert from_onnx(model, "g").units == H
    assert time.process_time() - start < 2


@pytest.mark.alone
def test_one_number_spread_over_huge_weights():
    units = 2000
    nodes = [op("Expand", ["one", f"shape{k}"], k) for k in "WRB"]
    extra = {"one": np.ones(1, "float32"), "shapeB": np.array([1, 6 * units])}
    extra["shapeW"] = np.array([1, 3 * units, 3000])
    extra["shapeR"] = np.array([1, 3 * units, units])
    model = make_model([*nodes, gru_node()], extra=extra)
    quickly_refused(model.SerializeToString(), "would take more than")


@pytest.mark.alone
def test_many_layers_that_share_their_weights():
    units = 256
    weights = random_weights(8, 1, 64, units)
    many = [gru_node(outputs=(f"Y{i}",)) for i in range(900)]
    model = make_model(many, weights, outputs=["Y0"])
    quickly_refused(model.SerializeToString(), "would take more than")


def test_a_value_of_constant_of_shape_is_one_number():
    value = numpy_helper.from_array(np.zeros(1000, "float32"), "value")
    nodes = [op("ConstantOfShape", ["X"], "h", value=value), gru_node(start="h")]
    with pytest.raises(ValueError, match=r"expected one value, got shape \(1000,\)"):
        from_onnx(make_model(nodes, random_weights(9, 1, I, H)))


@pytest.mark.alone
def test_too_many_layers():
    many = [gru_node(outputs=(f"Y{i}",)) for i in range(1001)]
    model = make_model(many, random_weights(9, 1, 1, 1), outputs=["Y0"])
    quickly_refused(model.SerializeToString(), "expected at most 1000 GRUs, got more")


@pytest.mark.alone
def test_a_thousand_layers_of_one_name_are_read():
    many = [gru_node(outputs=(f"Y{i}",)) for i in range(1000)]
    model = make_model(many, random_weights(9, 1, 1, 1), outputs=["Y0"])
    start = time.process_time()
    assert len(from_onnx(model.SerializeToString())) == 1000
    assert time.process_time() - start < 2


@pytest.mark.alone
def test_long_chains():
    nodes = [op("Identity", [f"w{i}"], f"w{i + 1}") for i in range(20000)]
    model = make_model(
        [*nodes, gru_node(("w20000", "R", "B"))],
        random_weights(10, 1, I, H),
        extra={"w0": np.ones((1, 3 * H, I), "float32")},
    )
    quickly_refused(model.SerializeToString(), "more than 64 nodes before it")


@pytest.mark.alone
@pytest.mark.parametrize("depth", [30, 70, 5000])
def test_graphs_in_graphs(depth):
    """protobuf itself refuses a hundred levels of messages; the bytes are put together by hand."""

    def field(number, data):
        size, length = len(data), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes([*length, size]) + data

    graph = b""
    for _ in range(depth):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = field(1, field(5, field(6, graph)))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"found none|expected an ONNX model|nested more"):
        from_onnx(field(7, graph))
    assert time.process_time() - start < 2


def test_graphs_in_graphs_that_no_file_can_hold():
    model = make_model([gru_node()], random_weights(11, 1, I, H))
    graph = model.graph
    for _ in range(70):
        node = graph.node.add(op_type="If")
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = attribute.g
    with pytest.raises(ValueError, match="nested more than 64"):
        from_onnx(model)


# ---- altered files -------------------------------------------------------------------------------


def made_of_constants():
    """A model with a sparse R, W of integers with scales and casts, B of a shape."""
    w, r, _ = random_weights(14, 1, I, H)
    at = np.arange(0, r.size, 3)
    extra = {
        "w": (w * 40).astype("int8"),
        "s": np.ones(3 * H, "float32"),
        "z": np.ones(3 * H, "i1"),
    }
    nodes = [
        op("DequantizeLinear", ["w", "s", "z"], "w1", axis=1),
        op("Cast", ["w1"], "w2", to=10),
        op("Cast", ["w2"], "W", to=1),
        op("ConstantOfShape", ["shape"], "B", value=numpy_helper.from_array(np.ones(1, "f4"))),
        gru_node(),
    ]
    model = make_model(nodes, extra=extra | {"shape": np.array([1, 6 * H])})
    values = numpy_helper.from_array(r.ravel()[at], "R")
    indices = numpy_helper.from_array(at, "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, r.shape))
    return model


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is set as Linux does it")
def test_altered_files(tmp_path):
    """10,000 of them with FASTGRU_EXHAUSTIVE=1."""
    options = one_node_model(
        random_weights(12, 2, I, H, "float64"),
        ["lengths"],
        direction="bidirectional",
        activations=["HardSigmoid", "LeakyRelu", "Sigmoid", "Elu"],
        activation_alpha=[0.2, 0.3, 0.4],
        activation_beta=[0.5],
    )
    (tmp_path / "options.onnx").write_bytes(options.SerializeToString())
    nested = one_node_model(random_weights(13, 1, I, H))
    node = nested.graph.node.add()
    node.CopyFrom(helper.make_node("If", ["W"], ["Z"], then_branch=nested.graph))
    (tmp_path / "nested.onnx").write_bytes(nested.SerializeToString())
    (tmp_path / "made.onnx").write_bytes(made_of_constants().SerializeToString())
    count = 10_000 if EVERYTHING else 600
    script = subprocesses.SUPPORT / "onnx_mutations.py"
    files = sorted([*DATA.glob("*.onnx"), *tmp_path.iterdir()])
    result = subprocess.run(
        [sys.executable, "-P", str(script), str(count), "7", *map(str, files)],
        env={**subprocesses.environment(), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=count,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ends = json.loads(result.stdout)
    assert ends["read"] + ends["refused"] == count
    assert min(ends["read"], ends["refused"]) > count / 20  # both ends are tested
