"""Make the rest of the models in this folder: those that are told apart with more care.

Run once, as `make.py`, with what it needs and Node.js with @tensorflow/tfjs 4.22 (NODE_PATH)::

    python tests/data/tensorflow/make_more.py

``more.npz`` has each model's outputs: of TensorFlow, of Keras 3, or of TensorFlow.js, by the name
of the file and of the layer.
"""

import json
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from frameworks import HERE, I, T, X, converter, fill, keras, tf, tf_keras
from tensorflow.core.protobuf import saved_model_pb2
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.saving.legacy.hdf5_format import _convert_rnn_weights

v1 = tf.compat.v1
numbers = {}


# ---- checkpoints ---------------------------------------------------------------------------------


class Coder(tf_keras.Model):
    """A model that is a class, as in TensorFlow's tutorials."""

    def __init__(self):
        super().__init__()
        self.gru = tf_keras.layers.GRU(3, return_sequences=True)
        self.out = tf_keras.layers.Dense(2)

    def call(self, x):
        return self.out(self.gru(x))


def make_two_models():
    """Two models of one class with one optimizer, whose name is not "optimizer"."""
    encoder, decoder = Coder(), Coder()
    models = [encoder, decoder]
    for seed, model in enumerate(models):
        model(X)
        fill(model, seed + 11)
    optimizer = tf_keras.optimizers.Adam(use_ema=True)
    weights = encoder.trainable_variables + decoder.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(X) + decoder(X))
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    parts = {"g_adam": optimizer, "encoder": encoder, "decoder": decoder}
    tf.train.Checkpoint(**parts).write(HERE / "two")
    numbers["two:encoder"], numbers["two:decoder"] = (np.asarray(m.gru(X)) for m in models)


def scaled(K):
    """Return a cell class that has a variable more than a GRU's."""

    class Scaled(K.layers.GRUCell):
        def build(self, shape):
            super().build(shape)
            self.gamma = self.add_weight(name="gamma", shape=(self.units,), initializer="ones")

    return Scaled


def make_cells_with_more():
    for K, file in ((tf_keras, "more_keras2"), (keras, "more_keras3")):
        layer = K.layers.RNN(scaled(K)(3), name="scaled")
        model = fill(K.Sequential([K.layers.Input((None, I)), layer]), 13)
        tf.train.Checkpoint(model=model).write(HERE / file)
    kernels = {"kernel": (I, 9), "recurrent_kernel": (3, 9), "bias": (2, 9), "gamma": (3,)}
    save_variables({f"scaled/{name}": shape for name, shape in kernels.items()}, "more_saver")


def make_savedmodels_of_cells_with_more():
    """Without configs; the graphs are cut out of saved_model.pb, as in tests/data/savedmodel."""
    module = tf.Module()
    module.layer = tf_keras.layers.RNN(scaled(tf_keras)(3), name="scaled")
    module.layer.build((None, T, I))
    models = {"module": module}
    for K, name in ((tf_keras, "keras2"), (keras, "keras3")):
        layer = K.layers.RNN(scaled(K)(3), name="scaled")
        models[name] = K.Sequential([K.layers.Input((T, I)), layer])
    with zipfile.ZipFile(HERE / "more_savedmodel.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, model in models.items():
            with tempfile.TemporaryDirectory() as folder:
                if name == "keras3":
                    model.export(folder, verbose=False)
                else:
                    tf.saved_model.save(model, folder)
                whole = saved_model_pb2.SavedModel()
                whole.ParseFromString(Path(folder, "saved_model.pb").read_bytes())
                for graph in whole.meta_graphs:
                    graph.ClearField("graph_def")
                    graph.object_graph_def.ClearField("concrete_functions")
                archive.writestr(f"{name}/saved_model.pb", whole.SerializeToString())
                for file in sorted(Path(folder, "variables").iterdir()):
                    archive.write(file, f"{name}/variables/{file.name}")


def save_variables(shapes, file, devices=1):
    """Save variables as TensorFlow 1 does, layer after layer on one device after the other."""
    rng = np.random.default_rng(14)
    values = {name: rng.normal(0, 0.5, shape).astype("float32") for name, shape in shapes.items()}
    scopes = list(dict.fromkeys(name.partition("/")[0] for name in shapes))
    with tf.Graph().as_default():
        for name, value in values.items():
            device = scopes.index(name.partition("/")[0]) % devices
            with tf.device(f"/job:localhost/replica:0/task:0/device:CPU:{device}"):
                v1.get_variable(name, initializer=value)
        config = v1.ConfigProto(device_count={"CPU": devices})
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            v1.train.Saver(sharded=devices > 1).save(
                session, str(HERE / file), write_meta_graph=False, write_state=False
            )
    return values


def make_shards():
    """Three layers in three files of data."""
    sizes = {"one": 3, "two": 2, "three": 5}
    shapes = {}
    for name, H in sizes.items():
        shapes[f"{name}/gru/kernel"] = (I, 3 * H)
        shapes[f"{name}/gru/recurrent_kernel"] = (H, 3 * H)
        shapes[f"{name}/gru/bias"] = (2, 3 * H)
    values = save_variables(shapes, "shards", devices=3)
    for name, H in sizes.items():
        layer = tf_keras.layers.GRU(H)
        layer.build((None, None, I))
        layer.set_weights([v for key, v in values.items() if key.startswith(f"{name}/")])
        numbers[f"shards:{name}"] = np.asarray(layer(X))


def make_cudnn():
    layer = CuDNNGRU(3, name="cudnn")
    layer.build((None, None, I))
    fill(layer, 15)
    tf.train.Checkpoint(layer=layer).write(HERE / "cudnn")
    gru = tf_keras.layers.GRU(3, reset_after=True)  # CuDNNGRU itself needs a GPU
    gru.build((None, None, I))
    gru.set_weights(_convert_rnn_weights(gru, layer.get_weights()))
    numbers["cudnn:cudnn"] = np.asarray(gru(X))


# ---- TensorFlow.js -------------------------------------------------------------------------------


def make_js_of_keras3():
    """A model of Keras 3, whose hard_sigmoid is another than TensorFlow.js'."""
    L = keras.layers
    hard = {"recurrent_activation": "hard_sigmoid"}
    inner = [L.GRU(2, return_sequences=True, name="z"), L.GRU(3, return_sequences=True, name="a")]
    cells = [L.GRUCell(3, **hard), L.GRUCell(2, reset_after=False)]
    layers = [
        L.GRU(3, return_sequences=True, name="last", **hard),
        L.Bidirectional(L.GRU(2, return_sequences=True, **hard), name="both"),
        keras.Sequential([L.Input((None, 4)), *inner], name="inner"),
        L.RNN(cells, return_sequences=True, name="cells"),
        L.GRU(2, return_sequences=True, use_bias=False, name="first"),
    ]
    model = fill(keras.Sequential([L.Input((None, I)), *layers]), 16)
    shutil.rmtree(HERE / "js_keras3", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        converter.dispatch_keras_keras_to_tfjs_layers_model_conversion(
            f"{folder}/model.keras", output_dir=str(HERE / "js_keras3")
        )
    y = X
    for layer in layers:
        for one in inner if layer.name == "inner" else [layer]:
            y = np.asarray(one(y))
            path = f"inner/{one.name}" if one is not layer else one.name
            numbers[f"js_keras3:{path}"] = y


def make_js_own():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["node", HERE / "make.js", folder], check=True)
        for name in ("js_own", "js_own_cells"):
            outputs = json.loads(Path(folder, name, "outputs.json").read_text())
            Path(folder, name, "outputs.json").unlink()
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(Path(folder, name), HERE / name)
            numbers[f"{name}:x"] = np.array(outputs["x"], "float32")
            numbers[f"{name}:y"] = np.array(outputs["y"], "float32")


make_two_models()
make_cells_with_more()
make_savedmodels_of_cells_with_more()
make_shards()
make_cudnn()
make_js_of_keras3()
make_js_own()
np.savez(HERE / "more.npz", **numbers)
