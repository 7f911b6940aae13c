"""Weights that the graph makes of constants: ONNX Runtime computes the right outputs."""

import numpy as np
import pytest

from fastgru.io import from_onnx

onnx = pytest.importorskip(
    "onnx", reason="the package that reads models; pip install fastgru[onnx]"
)
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_support import gru_node, random_weights, run, run_onnxruntime, x_for  # noqa: E402

I, H = 5, 4
W, R, B = random_weights(0, 1, I, H)
QUANTISED = np.round(W * 40).astype("int8")


def op(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def tensor(array, name):
    """A tensor; an array stays as it is, a TensorProto gets the name."""
    if isinstance(array, TensorProto):
        array.name = name
        return array
    return numpy_helper.from_array(np.asarray(array), name)


def sparse(array, name, rank=1):
    """An array's numbers that are not 0, with indices (N,) or (N, axes)."""
    at = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[at], name)
    indices = at if rank == 1 else np.stack(np.unravel_index(at, array.shape), axis=-1)
    indices = numpy_helper.from_array(indices.astype("int64"), f"{name}_at")
    return helper.make_sparse_tensor(values, indices, list(array.shape))


def model_of(nodes=(), extra=(), sparse_ones=(), opset=14):
    """A GRU whose W, R and B are initializers unless the nodes or sparse tensors make them."""
    made = {name for node in nodes for name in node.output}
    made |= {one.values.name for one in sparse_ones}
    dense = [tensor(a, n) for n, a in zip("WRB", (W, R, B), strict=True) if n not in made]
    graph = helper.make_graph(
        [*nodes, gru_node(hidden_size=H, linear_before_reset=1)],
        "g",
        [helper.make_tensor_value_info("X", 1, [None] * 3)],
        [helper.make_tensor_value_info("Y", 1, None)],
        [*dense, *(tensor(array, name) for name, array in dict(extra).items())],
    )
    graph.sparse_initializer.extend(sparse_ones)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def thin(array):
    """The array with most of its numbers 0, among them the first and the last."""
    kept = np.where(np.random.default_rng(1).random(array.shape) < 0.3, array, 0)
    kept.flat[0] = kept.flat[-1] = 0
    return kept.astype(array.dtype)


def bfloat16(array):
    bits = np.ascontiguousarray(array, "float32").view(np.uint32) >> 16
    return helper.make_tensor(
        "", TensorProto.BFLOAT16, array.shape, bits.astype("<u2").tobytes(), raw=True
    )


def packed(array):
    """Integers of 4 bits, two in a byte."""
    return helper.make_tensor("", TensorProto.INT4, array.shape, array.ravel().tolist())


SCALES = np.linspace(0.01, 0.05, 3 * H, dtype="float32")
SHAPE = {"s": np.array([1, 6 * H])}
CONSTANTS = {
    "sparse W": lambda: model_of(sparse_ones=[sparse(thin(W), "W")]),
    "sparse R with an index for each axis": lambda: model_of(sparse_ones=[sparse(thin(R), "R", 2)]),
    "all sparse": lambda: model_of(
        sparse_ones=[sparse(thin(a), n) for n, a in zip("WRB", (W, R, B), strict=True)]
    ),
    "sparse without a number": lambda: model_of(sparse_ones=[sparse(np.zeros_like(B), "B")]),
    "sparse Constant": lambda: model_of(
        [helper.make_node("Constant", [], ["R"], sparse_value=sparse(thin(R), "r", 2))]
    ),
    "sparse, transposed": lambda: model_of(
        [op("Transpose", ["w"], "W", perm=[0, 2, 1])],
        sparse_ones=[sparse(np.ascontiguousarray(thin(W).transpose(0, 2, 1)), "w", 2)],
    ),
    "float16": lambda: model_of([op("Cast", ["w"], "W", to=1)], {"w": W.astype("float16")}),
    "float64": lambda: model_of([op("Cast", ["r"], "R", to=1)], {"r": R.astype("float64") / 3}),
    "bfloat16": lambda: model_of([op("Cast", ["w"], "W", to=1)], {"w": bfloat16(W)}),
    "int8 as it is": lambda: model_of([op("Cast", ["w"], "W", to=1)], {"w": (W * 3).astype("i1")}),
    "rounded to float16 and back": lambda: model_of(
        [op("Cast", ["w"], "half", to=10), op("Cast", ["half"], "W", to=1)], {"w": W / 3}
    ),
    "zeros of a shape": lambda: model_of([op("ConstantOfShape", ["s"], "B")], SHAPE),
    "ones of a shape": lambda: model_of(
        [op("ConstantOfShape", ["s"], "B", value=numpy_helper.from_array(np.ones(1, "f4") / 3))],
        SHAPE,
    ),
    "a shape that is computed": lambda: model_of(
        [
            op("Shape", ["R"], "three"),
            op("Slice", ["three", "zero", "one"], "first"),
            op("Concat", ["first", "n"], "s", axis=0),
            op("ConstantOfShape", ["s"], "B"),
        ],
        {"zero": np.array([0]), "one": np.array([1]), "n": np.array([6 * H])},
    ),
    "int8": lambda: model_of(
        [op("DequantizeLinear", ["w", "s"], "W")], {"w": QUANTISED, "s": np.float32(1 / 30)}
    ),
    "uint8 with a zero point": lambda: model_of(
        [op("DequantizeLinear", ["w", "s", "z"], "W")],
        {
            "w": (QUANTISED.astype(int) + 120).astype("uint8"),
            "s": np.float32(0.02),
            "z": np.uint8(120),
        },
    ),
    "int8 with a scale of each gate's column": lambda: model_of(
        [op("DequantizeLinear", ["w", "s", "z"], "W", axis=1)],
        {"w": QUANTISED, "s": SCALES, "z": np.arange(3 * H).astype("int8")},
    ),
    "the axis counted from the end": lambda: model_of(
        [op("DequantizeLinear", ["w", "s"], "W", axis=-2)], {"w": QUANTISED, "s": SCALES}
    ),
    "int32 bias": lambda: model_of(
        [op("DequantizeLinear", ["b", "s"], "B")],
        {"b": np.round(B * 1e6).astype("int32"), "s": np.float32(1e-6)},
    ),
    "blocks": lambda: model_of(
        [op("DequantizeLinear", ["w", "s"], "W", axis=1, block_size=5)],
        {"w": QUANTISED, "s": np.linspace(0.01, 0.03, 3 * I, dtype="f4").reshape(1, 3, I)},
        opset=21,
    ),
    "int4": lambda: model_of(
        [op("DequantizeLinear", ["w", "s"], "W")],
        {"w": packed(np.clip(QUANTISED // 5, -8, 7)), "s": np.float32(0.1)},
        opset=21,
    ),
    "a chain of many kinds": lambda: model_of(
        [
            op("DequantizeLinear", ["w", "s"], "wide", axis=0),
            op("Slice", ["wide", "zero", "most"], "w2"),
            op("Concat", ["w2", "rest"], "w3", axis=0),
            op("Transpose", ["w3"], "w4"),
            op("Cast", ["w4"], "w5", to=11),
            op("Cast", ["w5"], "w6", to=1),
            op("Transpose", ["w6"], "w7", perm=[1, 0]),
            op("Reshape", ["w7", "whole"], "W"),
        ],
        {
            "w": np.repeat(QUANTISED[0], 2, axis=0),
            "s": np.linspace(0.01, 0.05, 6 * H, dtype="f4"),
            "zero": np.array([0]),
            "most": np.array([2 * H]),
            "rest": W[0, 2 * H :],
            "whole": np.array([1, -1, I]),
        },
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_are_what_onnxruntime_makes_of_them(case):
    model, x = CONSTANTS[case](), x_for()
    y = run_onnxruntime(model, {"X": x})[0][:, 0]
    for source in (model, model.SerializeToString()):
        np.testing.assert_allclose(run(from_onnx(source, "g"), x), y, atol=1e-5)


def test_a_scale_of_float16_rounds_the_weights():
    """ONNX's text: y has the dtype of the scale; the judge is written from it."""
    scale = np.float16(0.0377)
    nodes = [op("DequantizeLinear", ["w", "s"], "h"), op("Cast", ["h"], "W", to=1)]
    layer = from_onnx(model_of(nodes, {"w": QUANTISED, "s": scale}, opset=19), "g")
    exact = np.float32(QUANTISED) * np.float32(scale)
    rounded = exact.astype("float16").astype("float32")
    assert (rounded != exact).any()
    np.testing.assert_array_equal(layer.get_weights()[0].T, rounded[0])


def test_a_cast_to_bfloat16_rounds_to_the_nearest_even_number():
    numbers = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -3.3, 1e-40, 0.1])
    w = np.resize(numbers.astype("float32"), W.shape)
    nodes = [op("Cast", ["w"], "h", to=16), op("Cast", ["h"], "W", to=1)]
    layer = from_onnx(model_of(nodes, {"w": w}), "g")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the judge of bfloat16")
    expected = w.astype(ml_dtypes.bfloat16).astype("float32")
    np.testing.assert_array_equal(layer.get_weights()[0].T, expected[0])


@pytest.mark.parametrize(
    ("node", "extra", "message"),
    [
        (op("Cast", ["w"], "W", to=9), {"w": W}, "Cast to a float or an integer type, got to=9"),
        (op("Cast", ["w"], "W", to=17), {"w": W}, "got to=17"),
        (op("Cast", ["w"], "W", to=6), {"w": W}, "numbers of float32 are not all numbers of int32"),
        (op("Cast", ["w"], "W", to=3), {"w": W.astype("i4") + 300}, "not all numbers of int8"),
        (op("Cast", ["w"], "W", to=16), {"w": W.astype("f8")}, "to bfloat16 from float32"),
        (op("Cast", ["w"], "W"), {"w": W}, "KeyError"),
        (op("ConstantOfShape", ["w"], "W"), {"w": W}, "expected shape as at most 8 integers"),
        (op("ConstantOfShape", ["w"], "W"), {"w": np.array([-1])}, "cannot be folded"),
        (op("ConstantOfShape", ["w"], "W"), {"w": np.array([1 << 40])}, "would take more than"),
        (op("ConstantOfShape", ["w"], "W"), {"w": np.full(8, 1 << 60)}, "cannot be folded"),
        (op("DequantizeLinear", ["w", "s"], "W"), {"w": W, "s": W}, "expected x of integers"),
        (op("DequantizeLinear", ["w", ""], "W"), {"w": QUANTISED}, "cannot be folded"),
        (
            op("DequantizeLinear", ["w", "s"], "W"),
            {"w": QUANTISED, "s": np.float64(1)},
            "expected scale of float32 or float16, got float64",
        ),
        (
            op("DequantizeLinear", ["w", "s", "z"], "W"),
            {"w": QUANTISED, "s": np.float32(1), "z": np.uint8(1)},
            "expected a zero point int8",
        ),
        (
            op("DequantizeLinear", ["w", "s"], "W"),
            {"w": QUANTISED, "s": SCALES[:3]},
            "expected 12 scales along axis 1",
        ),
        (
            op("DequantizeLinear", ["w", "s"], "W", axis=3),
            {"w": QUANTISED, "s": SCALES},
            "expected an axis of shape",
        ),
        (
            op("DequantizeLinear", ["w", "s"], "W", axis=1, block_size=-5),
            {"w": QUANTISED, "s": SCALES},
            "of blocks of -5",
        ),
        (
            op("DequantizeLinear", ["w", "s"], "W", axis=1, block_size=1 << 40),
            {"w": QUANTISED, "s": SCALES},
            "of blocks of 1099511627776",
        ),
        (
            op("DequantizeLinear", ["w", "s"], "W"),
            {"w": QUANTISED, "s": bfloat16(np.ones(()))},
            "a scale of bfloat16 rounds the weights",
        ),
    ],
)
def test_what_would_be_a_guess_is_refused(node, extra, message):
    with pytest.raises(ValueError, match=message):
        from_onnx(model_of([node], extra))


def altered(one, **fields):
    """A sparse W with other fields."""
    for key, value in fields.items():
        if key == "dims":
            del one.dims[:]
            one.dims.extend(value)
        else:
            getattr(one, key).CopyFrom(numpy_helper.from_array(value, "W"))
    return model_of(sparse_ones=[one])


FEW = np.array([1, 2, 3], "float32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indices": np.array([2, 1, 5])}, "in order and each once"),
        ({"indices": np.array([1, 1, 5])}, "in order and each once"),
        ({"indices": np.array([-1, 1, 5])}, "in order and each once, between 0 and 59"),
        ({"indices": np.array([1, 2, 60])}, "in order and each once"),
        ({"indices": np.array([1, 2])}, r"expected values \(N,\) and indices int64"),
        ({"indices": np.array([1, 2, 5], "int32")}, "indices int64"),
        ({"indices": np.array([[0, 0, 0], [0, 0, 1], [0, 12, 0]])}, "inside shape"),
        ({"indices": np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0]])}, "in order and each once"),
        ({"values": FEW[None], "indices": np.array([1, 2, 5])}, r"expected values \(N,\)"),
        ({"dims": [1, 12, 1 << 40]}, "would take more than"),
        ({"dims": [1 << 60] * 8}, "would take more than"),
        ({"dims": [1] * 9}, "at most 8 axes"),
        ({"dims": [1, -12, I]}, "axes of length >= 0"),
        ({"dims": [0, 1 << 60, 1 << 60]}, "in order and each once"),
    ],
)
def test_damaged_sparse_tensors(fields, message):
    one = sparse(np.zeros_like(W), "W")
    one.values.CopyFrom(numpy_helper.from_array(FEW, "W"))
    one.indices.CopyFrom(numpy_helper.from_array(np.array([1, 2, 5]), "at"))
    with pytest.raises(ValueError, match=message):
        from_onnx(altered(one, **fields))


def test_a_dense_and_a_sparse_tensor_of_one_name():
    model = model_of()
    model.graph.sparse_initializer.append(sparse(thin(W), "W"))
    with pytest.raises(ValueError, match="the name 'W' stands for two values"):
        from_onnx(model)
