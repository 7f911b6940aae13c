"""What the tests of the command line share: a model, an input, a look at what is left behind."""

import numpy as np
import savedmodel_support as support

import fastgru

B, T, I, H = 7, 5, 4, 3


def save_model(folder):
    """Write a SavedModel with one GRU (B, T, 4) -> (B, 3); return its path and that layer."""
    weights = support.random_weights(3)
    layer = fastgru.GRU(H)
    layer.build((None, None, I))
    layer.set_weights(weights)
    return str(support.write_gru(folder / "model", weights, support.CONFIG)), layer


def save_input(folder):
    """Write IN.npy; return its array (B, T, I)."""
    x = np.random.default_rng(1).normal(size=(B, T, I)).astype("float32")
    np.save(folder / "IN.npy", x)
    return x


def left_in(folder):
    """Names in a folder, hidden ones too, apart from what the tests put there."""
    given = ("IN.npy", "model", "model.fake")
    return sorted(path.name for path in folder.iterdir() if path.name not in given)
