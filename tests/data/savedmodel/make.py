"""Make the SavedModels in this folder, each in a zip file, and what TensorFlow computes with them.

Run once, with tensorflow 2.21, tf_keras 2.21 and keras 3.15, none of which the tests need::

    python tests/data/savedmodel/make.py

The traced graphs are cut out of each saved_model.pb: they are 99 % of its size, and only TensorFlow
could run them. All else is as it was written. An argument is a folder for the whole models.
"""

import itertools
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf import saved_model_pb2
from tf_keras.protobuf import saved_metadata_pb2

B, T, I = 3, 5, 4
HERE = Path(__file__).parent
L = tf_keras.layers


def fill(variables, rng):
    """Give every weight random values, biases too."""
    for v in variables:
        v.assign(rng.normal(0, 0.5, v.shape).astype("float32"))


def options():
    """Yield the arguments of GRU layers: each value of each option in several combinations."""
    activations = [
        ("tanh", "sigmoid"),
        ("relu", "hard_sigmoid"),
        ("softsign", "tanh"),
        (None, "sigmoid"),
    ]
    grid = itertools.product([True, False], [True, False], activations)
    for k, (reset_after, use_bias, (activation, recurrent)) in enumerate(grid):
        yield {
            "units": 2 + k % 4,
            "reset_after": reset_after,
            "use_bias": use_bias,
            "activation": activation,
            "recurrent_activation": recurrent,
            "go_backwards": (k // 2) % 2 == 1,
            "return_sequences": k % 3 != 0,
        }


def cell(arguments):
    """Make a GRUCell of a GRU's arguments."""
    return L.GRUCell(**{k: v for k, v in arguments.items() if not k.startswith(("go_", "return_"))})


def grid():
    """Make one model in which layers of every kind read the same input."""
    layers = []
    for k, a in enumerate(options()):
        loop = {key: a[key] for key in ("go_backwards", "return_sequences")}
        layers.append(L.GRU(**a, name=f"gru_{k}"))
        layers.append(L.RNN(cell(a), **loop, name=f"rnn_{k}"))
        layers.append(L.RNN([cell(a), cell(a | {"units": 3})], **loop, name=f"stacked_{k}"))
        merge = ("concat", "sum", "mul", "ave")[k % 4]
        layers.append(L.Bidirectional(L.GRU(**a), merge_mode=merge, name=f"both_{k}"))
    x = L.Input((T, I))
    return tf_keras.Model(x, {layer.name: layer(x) for layer in layers})


def nested():
    """Make models within models, two layers of one name, and a layer that is used twice."""
    encoder = tf_keras.Sequential(
        [L.GRU(6, return_sequences=True, name="gru"), L.LSTM(5, return_sequences=True)],
        name="encoder",
    )
    shared = L.GRU(3, name="shared", reset_after=False)
    a, b = L.Input((T, I)), L.Input((T, I))
    e = encoder(a)
    stacked = L.GRU(2, name="gru", time_major=False)(e)
    twice = L.Concatenate()([shared(a), shared(b), L.TimeDistributed(L.Dense(2))(e)[:, 0]])
    return tf_keras.Model([a, b], {"gru": stacked, "twice": twice, "encoder": e})


class Subclassed(tf_keras.Model):
    """A model whose layers are attributes; one is in a list, one in a dict, one never called."""

    def __init__(self):
        super().__init__()
        self.first = L.Bidirectional(
            L.GRU(3, return_sequences=True),
            backward_layer=L.GRU(2, return_sequences=True, go_backwards=True),
        )
        self.rest = [L.GRU(4, name="in_list"), {"key": L.RNN(L.GRUCell(2), name="in_dict")}]
        self.unused = L.GRU(7, name="unused")

    def call(self, x):
        y = self.first(x)
        return {"bidirectional": y, "in_list": self.rest[0](y), "in_dict": self.rest[1]["key"](y)}


class Module(tf.Module):
    """What is saved without Keras: the layer's weights are in the file, its config is not."""

    def __init__(self):
        super().__init__()
        self.encoder = L.GRU(6)
        self.decoder = L.GRU(3, reset_after=False, use_bias=True)
        self.other = L.LSTM(2)

    @tf.function(input_signature=[tf.TensorSpec([None, T, I])])
    def __call__(self, x):
        return {"encoder": self.encoder(x), "decoder": self.decoder(x), "other": self.other(x)}


def cut_graphs(folder):
    """Remove the traced graphs from a SavedModel."""
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        for field in ("graph_def", "signature_def", "saver_def", "collection_def"):
            graph.ClearField(field)
        graph.object_graph_def.concrete_functions.clear()
        for node in graph.object_graph_def.nodes:
            if node.HasField("function"):
                node.function.ClearField("function_spec")
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    shutil.rmtree(folder / "assets")


def as_before_2_5(source, folder):
    """Write the metadata where TensorFlow before 2.5 did: into the nodes of saved_model.pb."""
    shutil.copytree(source, folder)
    path, metadata_path = folder / "saved_model.pb", folder / "keras_metadata.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    metadata = saved_metadata_pb2.SavedMetadata.FromString(metadata_path.read_bytes())
    for node in metadata.nodes:
        user = model.meta_graphs[0].object_graph_def.nodes[node.node_id].user_object
        user.identifier, user.metadata = node.identifier, node.metadata
    path.write_bytes(model.SerializeToString(deterministic=True))
    metadata_path.unlink()


def pack(folder, path):
    """Write a SavedModel into a zip file that depends on its content only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                member = zipfile.ZipInfo(str(file.relative_to(folder)))
                archive.writestr(member, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def main(target):
    rng = np.random.default_rng(5)
    x, x2 = rng.normal(size=(2, B, T, I)).astype("float32")
    expected = {"x": x, "x2": x2}

    def keep(name, outputs):
        expected.update({f"{name}/{key}": value.numpy() for key, value in outputs.items()})

    for name, model, inputs in (
        ("grid", grid(), x),
        ("nested", nested(), [x, x2]),
        ("subclassed", Subclassed(), x),
    ):
        model(inputs)
        fill(model.weights, rng)
        keep(name, model(inputs))
        model.save(target / name, save_format="tf")

    module = Module()
    module(x)
    fill(module.encoder.weights + module.decoder.weights, rng)
    keep("module", module(x))
    tf.saved_model.save(module, target / "module")

    a = keras.Input((T, I))
    both = keras.layers.GRU(3, return_sequences=True, name="both")
    y = keras.layers.Bidirectional(both)(a)
    exported = keras.Model(a, {"both": y, "last": keras.layers.GRU(2, name="last")(y)})
    fill(exported.weights, rng)
    keep("exported", exported(x))
    exported.export(target / "exported", verbose=False)

    as_before_2_5(target / "nested", target / "before_2_5")
    again = tf_keras.models.load_model(target / "before_2_5")
    for key, value in again([x, x2]).items():
        np.testing.assert_array_equal(value, expected[f"nested/{key}"])

    np.savez_compressed(HERE / "expected.npz", **expected)
    for folder in sorted(target.iterdir()):
        with tempfile.TemporaryDirectory() as temporary:
            cut = Path(temporary) / folder.name
            shutil.copytree(folder, cut)
            cut_graphs(cut)
            pack(cut, HERE / f"{folder.name}.zip")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
