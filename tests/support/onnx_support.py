"""ONNX models of one GRU node, and what ONNX Runtime makes of a model."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

FLOATS = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


def random_weights(seed, directions, I, H, dtype="float32", biased=True):
    """W (D, 3H, I), R (D, 3H, H) and perhaps B (D, 6H), in which all numbers differ."""
    rng = np.random.default_rng(seed)
    shapes = [(directions, 3 * H, I), (directions, 3 * H, H), (directions, 6 * H)]
    return [rng.normal(0, 0.6, shape).astype(dtype) for shape in shapes[: 2 + biased]]


def gru_node(weights=("W", "R", "B"), start="", lengths="", outputs=("Y", "Y_h"), **attributes):
    """A GRU node called "g" that reads X."""
    w, r, b = [*weights, ""][:3]
    return helper.make_node("GRU", ["X", w, r, b, lengths, start], outputs, "g", **attributes)


def make_model(nodes, weights=(), inputs=(), outputs=("Y", "Y_h"), extra=(), opset=14):
    """A model of nodes; the weights become initializers W, R, B.

    ``inputs`` are names of floats of three axes, or of int32 of one axis if called lengths.
    """
    arrays = dict(zip("WRB", weights, strict=False)) | dict(extra)
    dtype = weights[0].dtype.name if len(weights) else "float32"
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.INT32, ["B"])
        if name == "lengths"
        else helper.make_tensor_value_info(name, FLOATS[dtype], [None] * 3)
        for name in ("X", *inputs)
    }
    graph = helper.make_graph(
        nodes,
        "test",
        list(infos.values()),
        [helper.make_tensor_value_info(name, FLOATS[dtype], None) for name in outputs if name],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def one_node_model(weights, inputs=(), outputs=("Y", "Y_h"), **attributes):
    """A model of one GRU node with these weights."""
    node = gru_node(
        "WRB"[: len(weights)],
        "h" if "h" in inputs else "",
        "lengths" if "lengths" in inputs else "",
        outputs,
        **attributes,
    )
    return make_model([node], weights, inputs, outputs)


def run_onnxruntime(model, feeds):
    """Run a model, or skip the test where ONNX Runtime is missing."""
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="ONNX Runtime is the judge; pip install fastgru[test]"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, feeds)


def run(layer, x, **arguments):
    """Run a layer; return y alone."""
    outputs = layer(x, **arguments)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def x_for(layout=0):
    """X (6, 3, 5) of a node with I = 5, or with layout=1 (3, 6, 5)."""
    return np.random.default_rng(9).normal(size=(3, 6, 5) if layout else (6, 3, 5)).astype("f4")
