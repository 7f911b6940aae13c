"""Write Keras 2 files whose names and order differ, and one of every activation.

Run once, in this folder, in an environment with tensorflow-cpu and tf_keras (made with 2.21.0):

    python make_keras2_places.py

The numbers are those of the model as Keras 2 loads it. For ``cell_frozen.h5`` these are not those
of the model that was saved.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tf_keras as keras
from tf_keras import layers as L

B, T, H = 2, 4, 2
rng = np.random.default_rng(13)
x = rng.normal(0, 1, (B, T, H)).astype("float32")
expected = {"x": x}


def randomised(model):
    model.set_weights([rng.uniform(-0.8, 0.8, w.shape) for w in model.get_weights()])
    return model


def nested(count):
    layers = [L.GRU(H, return_sequences=True, name=f"g{n}") for n in range(count)]
    y = inputs = keras.Input((T, H))
    for layer in layers:
        y = layer(y)
    inner = keras.Model(inputs, y, name="inner")
    outer = keras.Input((T, H))
    return layers, keras.Model(outer, inner(outer))


def write(name, model):
    model.save(f"{name}.h5")
    model.save_weights(f"{name}_weights.h5")
    loaded = keras.models.load_model(f"{name}.h5", compile=False)
    for layer in loaded.get_layer("inner").layers[1:]:
        expected[f"{name}:{layer.name}"] = layer(x).numpy()


layers, model = nested(2)
layers[0]._name, layers[1]._name = "g1", "g0"
write("swapped", randomised(model))

layers, model = nested(3)
layers[0].trainable = False
layers[0]._name, layers[1]._name, layers[2]._name = "g1", "g2", "g0"
write("swapped_frozen", randomised(model))

layers, model = nested(2)
layers[0].cell.trainable = False
write("cell_frozen", randomised(model))

names = [
    *("elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "mish", "relu", "selu"),
    *("sigmoid", "softmax", "softplus", "softsign", "swish", "tanh"),
]
objects = {
    "LeakyReLU": L.LeakyReLU(),
    "LeakyReLU_half": L.LeakyReLU(0.5),
    "ReLU_6": L.ReLU(6),
    "ELU_half": L.ELU(0.5),
}
inputs = keras.Input((T, H))
found = {
    key: L.GRU(H, activation="tanh" if key == "exponential" else what, name=key,
               recurrent_activation=what if key in ("hard_sigmoid", "exponential") else "sigmoid",
               return_sequences=True)(3 * inputs)
    for key, what in {**{name: name for name in names}, **objects}.items()
}  # fmt: skip
model = randomised(keras.Model(inputs, found))
model.save("activations.h5")
expected.update((f"activations:{key}", y) for key, y in model.predict(x, verbose=0).items())

np.savez_compressed("expected_keras2_places.npz", **expected)
