"""Write the Keras 2 files of this folder, and what Keras 2 computes from them.

Run once, in this folder, in an environment with tensorflow-cpu and tf_keras (made with 2.21.0):

    python make_keras2.py

CuDNNGRU has no CPU kernel. What it would give comes from GRU(reset_after=True), whose weights
tf_keras itself converts when it loads a file that has CuDNNGRU's.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tf_keras as keras
from tf_keras import layers as L

B, T, I, H = 3, 6, 4, 5
rng = np.random.default_rng(11)
x = rng.normal(0, 1, (B, T, I)).astype("float32")
expected = {"x": x}


def randomised(model):
    model.set_weights([rng.uniform(-0.8, 0.8, w.shape) for w in model.get_weights()])
    return model


def parts_of(model, *paths):
    """What each layer at a path ("middle/gru") gives for the model's input, by its path."""
    taps = {}

    def walk(layers, tensor, before):
        for layer in layers:
            if isinstance(layer, L.InputLayer):
                continue
            path = f"{before}{layer.name}"
            if hasattr(layer, "layers"):
                tensor = walk(layer.layers, tensor, path + "/")
            else:
                tensor = layer(tensor)
            taps[path] = tensor
        return tensor

    walk(model.layers, x, "")
    return {path: taps[path].numpy() for path in paths}


def write(name, model, *paths, forms=(".h5",)):
    """Save a model, and the outputs of its recurrent layers in a chain from x."""
    for form in forms:
        model.save(f"{name}{form}")
    for path, y in parts_of(model, *paths).items():
        expected[f"{name}:{path}"] = y


# What Keras 2 began with: the reset gate before, and a hard_sigmoid of slope 0.2.
before = keras.Sequential(
    [
        keras.Input((T, I)),
        L.GRU(
            H,
            reset_after=False,
            recurrent_activation="hard_sigmoid",
            return_sequences=True,
            name="before",
        ),
        L.Bidirectional(
            L.GRU(2, recurrent_activation="hard_sigmoid", go_backwards=False),
            merge_mode="sum",
            name="both",
        ),
    ],
    name="old",
)
write("before", randomised(before), "before", "both", forms=(".h5", ".keras"))
before.save_weights("before_weights.h5")

# Nested models, RNN over cells, a frozen cell, a Lambda, layers that are no GRU.
inner = keras.Sequential(
    [
        keras.Input((T, 4)),
        L.RNN([L.GRUCell(3), L.GRUCell(3)], return_sequences=True, name="cells"),
        L.GRU(2, use_bias=False, go_backwards=True, name="low"),
    ],
    name="inner",
)
middle = keras.Sequential(
    [
        keras.Input((T, H)),
        L.Bidirectional(L.GRU(2, return_sequences=True, activation="relu"), name="both"),
        L.Dense(4),
        inner,
    ],
    name="middle",
)
nested = keras.Sequential(
    [
        keras.Input((T, I)),
        L.GRU(H, return_sequences=True, name="first"),
        L.Lambda(lambda t: t * 2),
        middle,
    ],
    name="nested",
)
randomised(nested)
inner.get_layer("cells").cell.cells[0].trainable = False
paths = ("first", "middle/both", "middle/inner/cells", "middle/inner/low")
write("nested", nested, *paths)


def stack_of(GRU, **more):
    return keras.Sequential(
        [
            keras.Input((T, I)),
            GRU(H, return_sequences=True, name="one", **more),
            L.Bidirectional(GRU(3, return_sequences=True, **more), name="two"),
            GRU(2, go_backwards=True, name="three", **more),
        ],
        name="cudnn",
    )


from tf_keras.src.layers import CuDNNGRU  # noqa: E402

cudnn = randomised(stack_of(CuDNNGRU))
cudnn.save("cudnn.h5")
cudnn.save("cudnn.keras")
cudnn.save_weights("cudnn_weights.h5")
twin = stack_of(L.GRU)
twin.load_weights("cudnn_weights.h5")
for path, y in parts_of(twin, "one", "two", "three").items():
    expected[f"cudnn:{path}"] = y

np.savez_compressed("expected_keras2.npz", **expected)
