"""Write the models of docs/whole_model.md and what their frameworks compute.

    KERAS_BACKEND=numpy python tests/data/whole/make.py

Made with keras 3, torch 2.13.0, onnx and ONNX Runtime. outputs.npz holds the inputs ``<model>.ids``
and ``<model>.lengths``, and the frameworks' outputs ``<model>.y``. Sentences of words, of several
lengths, are padded with the word 0.
"""

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

HERE = Path(__file__).parent
WORDS, FEATURES, UNITS, CLASSES = 20, 5, 4, 3
LENGTHS = np.array([7, 3, 1, 5])
rng = np.random.default_rng(16)


def sentences():
    ids = rng.integers(1, WORDS, (len(LENGTHS), LENGTHS.max()))
    return np.where(np.arange(ids.shape[1]) < LENGTHS[:, None], ids, 0)


def draw(*shape):
    return (rng.normal(size=shape) * 0.6).astype("float32")


def of_keras(ids):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(WORDS, FEATURES, mask_zero=True, name="words"),
            layers.Bidirectional(layers.GRU(UNITS, return_sequences=True), name="both"),
            layers.GRU(UNITS, reset_after=False, name="reader"),
            layers.Dense(CLASSES, activation="softmax", name="head"),
        ]
    )
    model.set_weights([draw(*w.shape) for w in model.get_weights()])
    model.save(HERE / "classifier.keras")
    return model.predict(ids, verbose=0)


class Tagger(torch.nn.Module):
    """A class for each word: two layers, both directions, packed sequences."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, FEATURES)
        self.gru = torch.nn.GRU(FEATURES, UNITS, 2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(2 * UNITS, CLASSES)

    def forward(self, ids, lengths):
        rnn = torch.nn.utils.rnn
        x = rnn.pack_padded_sequence(self.words(ids), lengths, True, enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(self.gru(x)[0], batch_first=True)
        return self.head(y)


def of_torch(ids):
    model = Tagger()
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(draw(*parameter.shape))
    torch.save(model.state_dict(), HERE / "tagger.pt")
    with torch.no_grad():
        return model(torch.from_numpy(ids), torch.from_numpy(LENGTHS)).numpy()


def of_onnx(ids):
    """The last states of both directions, and a product with a matrix."""
    weights = {
        "words": draw(WORDS, FEATURES),
        "W": draw(2, 3 * UNITS, FEATURES),
        "R": draw(2, 3 * UNITS, UNITS),
        "B": draw(2, 6 * UNITS),
        "head": draw(2 * UNITS, CLASSES),
        "shape": np.array([-1, 2 * UNITS]),
    }
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["x"]),
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["steps", "W", "R", "B", "lengths"],
            ["", "states"],
            "encoder",
            hidden_size=UNITS,
            direction="bidirectional",
            linear_before_reset=1,
        ),
        helper.make_node("Transpose", ["states"], ["rows"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["rows", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    integers, floats = onnx.TensorProto, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("ids", integers.INT64, ["B", "T"]),
            helper.make_tensor_value_info("lengths", integers.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("y", floats, ["B", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, HERE / "encoder.onnx")
    session = onnxruntime.InferenceSession(HERE / "encoder.onnx")
    return session.run(None, {"ids": ids, "lengths": LENGTHS.astype("int32")})[0]


def main():
    outputs = {}
    for name, make in (("classifier", of_keras), ("tagger", of_torch), ("encoder", of_onnx)):
        ids = sentences()
        outputs |= {f"{name}.ids": ids, f"{name}.lengths": LENGTHS, f"{name}.y": make(ids)}
    np.savez(HERE / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
