"""Make the checkpoints and the TensorFlow.js models in this folder, and what TensorFlow computes.

Run once, with tensorflow 2.21, tf_keras 2.21, keras 3.15 and tensorflowjs 4.22 (installed with
``--no-deps``), none of which the tests need::

    python tests/data/tensorflow/make.py

``numbers.npz`` has the input, each model's output, and the outputs of single layers.
"""

import shutil

import numpy as np
from frameworks import HERE, B, I, T, X, fill, keras, tf, tf_keras, tfjs

numbers = {"x": X}


def stack(K, *before, **first):
    """A GRU and a Bidirectional one that differ in every size, then a Dense layer, trained once."""
    L = K.layers
    model = K.Sequential(
        [
            L.Input((None, I)),
            *before,
            L.GRU(3, return_sequences=True, name="first", **first),
            L.Bidirectional(L.GRU(2, return_sequences=True), name="both"),
            L.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    model.fit(X, np.zeros((B, T, 2)), verbose=0)  # so that there is an optimizer with slots
    return model


def note(name, model):
    numbers[name] = np.asarray(tf_keras.Model(model.inputs, model.layers[-2].output)(X))


def make_checkpoints():
    model = stack(tf_keras)
    fill(model, 1)
    model.save_weights(HERE / "keras2")
    note("keras2", model)
    model = stack(tf_keras, reset_after=False)
    fill(model, 2)
    tf.train.Checkpoint(model=model, step=tf.Variable(1)).save(HERE / "latest" / "ckpt")
    note("latest", model)
    model = stack(keras)
    fill(model, 3)
    tf.train.Checkpoint(model=model).write(HERE / "keras3")
    numbers["keras3"] = np.asarray(keras.Model(model.inputs, model.layers[-2].output)(X))
    cells = [tf_keras.layers.GRUCell(3), tf_keras.layers.GRUCell(3, use_bias=False)]
    model = tf_keras.Sequential([tf_keras.layers.Input((None, 3)), tf_keras.layers.RNN(cells)])
    fill(model, 4)
    model.save_weights(HERE / "cells")
    numbers["cells"] = np.asarray(model(X[..., :3]))
    alone = tf_keras.layers.GRU(6)
    alone(X)
    fill(alone, 5)
    tf.train.Checkpoint(layer=alone).write(HERE / "alone")
    numbers["alone"] = np.asarray(alone(X))
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, T, I))
        y = tf_keras.layers.GRU(3, name="decoder")(x)
        y2 = tf_keras.layers.GRU(5, name="encoder")(x)
        loss = tf.reduce_sum(y) + tf.reduce_sum(y2)
        step = tf.compat.v1.train.AdamOptimizer(0.1).minimize(loss)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            session.run(step, {x: X})
            saver = tf.compat.v1.train.Saver()
            saver.save(session, str(HERE / "saver"), write_meta_graph=False, write_state=False)
            numbers["decoder"], numbers["encoder"] = session.run([y, y2], {x: X})


def make_tfjs():
    model = stack(tf_keras, tf_keras.layers.Masking(0.5))
    fill(model, 6)
    for name, kinds in {
        "plain": None,
        "uint8": {"uint8": "*"},
        "uint16": {"uint16": "*"},
        "float16": {"float16": "*"},
    }.items():
        folder = HERE / f"js_{name}"
        # Small files, so that there are several.
        tfjs.converters.save_keras_model(
            model, str(folder), quantization_dtype_map=kinds, weight_shard_size_bytes=400
        )
        note(name, tfjs.converters.load_keras_model(str(folder / "model.json")))


shutil.rmtree(HERE / "latest", ignore_errors=True)
make_checkpoints()
make_tfjs()
np.savez(HERE / "numbers.npz", **numbers)
