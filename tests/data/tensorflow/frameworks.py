"""What `make.py` and `make_more.py` share: imports in the order that they need, input, weights.

It imports for both of them the packages for which something has to be prepared.
"""

import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_USE_LEGACY_KERAS": "1",
}

import keras
import numpy as np
import tensorflow as tf
import tf_keras

# tensorflowjs imports converters of other frameworks, of which nothing is used here.
for name in ("tensorflow_decision_forests", "tensorflow_hub", "jax", "jax.experimental"):
    sys.modules[name] = MagicMock()
sys.modules["jax.experimental.jax2tf"] = MagicMock()
setattr(np, "object", object)  # noqa: B010 - a name that NumPy has no more
tf.compat.v1.__dict__["estimator"] = MagicMock()
import tensorflowjs as tfjs  # noqa: E402
from tensorflowjs.converters import converter  # noqa: E402

__all__ = ["HERE", "B", "I", "T", "X", "converter", "fill", "keras", "tf", "tf_keras", "tfjs"]

HERE = Path(__file__).parent
B, T, I = 3, 5, 4
X = np.random.default_rng(0).normal(size=(B, T, I)).astype("float32")


def fill(model, seed):
    """Give every weight random values, biases too."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model
