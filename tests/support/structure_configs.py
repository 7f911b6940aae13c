"""Configs of models of Keras whose structure is drawn large, and the readers of such models.

All GRUs of a model have the same sizes, so that they may share their arrays in a file.
"""

import json

import numpy as np
import structure_fuzz

import fastgru
from fastgru.cli.models import describe
from fastgru.cli.models import find as find_models
from fastgru.io import load_keras_weights

I, H = 3, 2  # features and units
ROLES = ("kernel", "recurrent_kernel", "bias")
SHARED = [np.arange(n * 3 * H, dtype="f4").reshape(n, 3 * H) / 100 for n in (I, H, 2)]
OTHERS = ("Dense", "Embedding", "Dropout", "LSTM", "Masking", "LayerNormalization", "Own>Layer")
WRAPPERS = ("TimeDistributed", "Own>Wrapper", "SpectralNormalization", "Bidirectional", "RNN")
SNAKES = {"GRU": "gru", "Functional": "functional", "Sequential": "sequential"}


class Model:
    """A config, and where the GRUs in it are that have weights of their own names.

    ``places`` has (names of the models around it and its own, group in Keras 3's files).
    """

    def __init__(self, config, places):
        self.config, self.places = config, places

    def text(self, rng):
        return json.dumps(self.config, ensure_ascii=often(rng, 0.5))


# Most files are small, so that there is time for many; some have the sizes that are written here.
PARTS = (*[0.01] * 5, *[0.05] * 3, 0.2, 1)


def large(rng, most, least=0):
    """Draw a count as `structure_fuzz.large` does, of less in most of the cases."""
    if not hasattr(rng, "part"):
        rng.part = rng.choice(PARTS)
    return structure_fuzz.large(rng, max(int(most * rng.part), min(most, 5), least), least)


def often(rng, part=0.2):
    return rng.random() < part


def long_name(rng, stem, most=100_000):
    """A name that is long now and then, and has signs beyond ASCII now and then."""
    if not often(rng, 0.05):
        return stem
    sign = rng.choice(["n", "n", "n", "é", "😀", "a/", "a."])
    return sign * (large(rng, most) // len(sign)) + stem


def gru(rng, name, odd=True):
    config = {"name": name, "units": H, "reset_after": True}
    if odd and often(rng, 0.1):
        config |= rng.choice(
            [
                {"stateful": True, "batch_input_shape": [large(rng, 10**9), None, I]},
                {"batch_input_shape": [None, large(rng, 10**6), large(rng, 10**9)]},
                {"batch_shape": [1, 1, large(rng, 10**9)], "stateful": True},
                {"units": large(rng, 10**9)},
                {"seed": large(rng, 10**30), "dropout": 0.5},
                {"units": 10 ** large(rng, 30)},
                {"kernel_initializer": nested(rng, {"class_name": "Zeros", "config": {}})},
                {"dtype": nested(rng, "float32")},
                {"bias_initializer": {"class_name": "Constant", "config": {"value": 1}}},
                {"activation": long_name(rng, "tanh", 10**6)},
                {f"more{i}": i for i in range(large(rng, 3000))},
                {"recurrent_regularizer": {"class_name": "L1L2", "config": {"l1": 1e-9, "l2": 1}}},
            ]
        )
    return {"class_name": "GRU", "config": config}


def nested(rng, inner):
    for _ in range(large(rng, 90)):
        inner = {"class_name": rng.choice(["DTypePolicy", "Own"]), "config": {"inner": inner}}
    return inner


def cells(rng, name):
    """An RNN of a stack of cells, in each other now and then."""
    count = large(rng, 300, 1)
    parts = [
        {"class_name": "GRUCell", "config": {"units": H, "name": f"cell_{i}"}} for i in range(count)
    ]
    for _ in range(large(rng, 60)):
        parts = [{"class_name": "StackedRNNCells", "config": {"cells": parts}}]
    stack = {"class_name": "StackedRNNCells", "config": {"name": "stack", "cells": parts}}
    return {"class_name": "RNN", "config": {"name": name, "cell": stack}}


def wrapped(rng, inner, name):
    """A layer in wrappers, a chain of them now and then, and several layers in one."""
    if often(rng, 0.1):
        inner = [inner] * large(rng, 500, 1)
    for _ in range(rng.choice((1, 1, 1, large(rng, 80, 1)))):
        kind = long_name(rng, rng.choice(WRAPPERS))
        key = rng.choice(("layer", "layer", "cell", "inner"))
        inner = {"class_name": kind, "config": {"name": name, key: inner}}
        if kind == "Bidirectional" and often(rng, 0.3):
            inner["config"]["backward_layer"] = gru(rng, "back")
    return inner


def calls(rng, layers):
    """Give the layers of a functional model their inputs: a chain, or a graph with many ways."""
    modern, wide = often(rng, 0.5), often(rng, 0.5)
    for i, layer in enumerate(layers):
        count = min(i, rng.choice((1, 2, 2, large(rng, 10, 1))) if wide else 1)
        near = often(rng, 0.5)
        before = [layers[i - 1 - n if near else rng.randrange(i)] for n in range(count)]
        names = [one["config"]["name"] for one in before]
        if modern:
            tensors = [
                {"class_name": "__keras_tensor__", "config": {"keras_history": [n, 0, 0]}}
                for n in names
            ]
            nodes = [{"args": [tensors], "kwargs": {}}] * min(len(names), 1)
        else:
            nodes = [[[n, 0, 0, {}] for n in names]] * min(len(names), 1)
        if often(rng, 0.02):
            nodes = nodes * large(rng, 300)
        layer |= {"name": layer["config"]["name"], "inbound_nodes": nodes}
    ends = [[layer["config"]["name"], 0, 0] for layer in layers[: large(rng, len(layers), 1)]]
    return {"input_layers": ends, "output_layers": [ends[-1]] * large(rng, 20, 1)}


def joined(rng):
    """Layers that join masks: each has those of the two before it."""
    layers = [
        {"class_name": "Embedding", "config": {"name": f"e{i}", "mask_zero": True}} for i in (0, 1)
    ]
    kind = rng.choice(("Concatenate", "Add", "Multiply"))
    for i in range(large(rng, 100)):
        nodes = [[[layer["config"]["name"], 0, 0, {}] for layer in layers[-2:]]]
        layers.append({"class_name": kind, "config": {"name": f"j{i}"}, "inbound_nodes": nodes})
    for layer in layers:
        layer["name"] = layer["config"]["name"]
    return layers


def other(rng, name):
    config = {"name": name, "units": large(rng, 10**9), "trainable": often(rng, 0.5)}
    if often(rng, 0.1):
        config["mask_zero"] = True
    return {"class_name": rng.choice(OTHERS), "config": config}


def heavy(rng):
    """What layers of other kinds may have in their configs."""
    kind = rng.randrange(4)
    if kind == 0:
        return {"vocabulary": [f"word_{i}" for i in range(large(rng, 100_000))]}
    if kind == 1:
        return {"text": rng.choice("aaé😀[") * large(rng, 500_000)}
    if kind == 2:
        return {"objects": [rng.choice(({}, [], {"a": 1}, 1.5))] * large(rng, 50_000)}
    return {"deep": nested(rng, [])}


def draw(rng, most=600):
    """Return a `Model`."""
    layers, own = [], []
    for _ in range(rng.choice((1, 1, 2, 3, large(rng, most, 1)))):
        own.append(gru(rng, f"gru_{len(own)}", odd=False))
    stem = long_name(rng, "gru", 300_000 // len(own))
    for i, layer in enumerate(own):
        layer["config"]["name"] = f"{stem}_{i}"
    if often(rng):
        layers += [other(rng, f"other_{i}") for i in range(large(rng, 2 * most, 1))]
        if often(rng):
            layers[-1]["config"] |= heavy(rng)
    layers += own
    if often(rng, 0.15):
        more = [gru(rng, f"odd_{i}") for i in range(large(rng, 10, 1))]
        layers += more
    if often(rng, 0.1):
        layers.append(cells(rng, long_name(rng, "cells")))
    if often(rng, 0.15):
        layers += [wrapped(rng, gru(rng, "inner"), f"wrapper_{i}") for i in range(large(rng, 9, 1))]
    if often(rng, 0.1):
        layers += [layers[-1]] * large(rng, most)
    graph = {}
    if often(rng, 0.25):
        layers = [{**layer, "config": dict(layer["config"])} for layer in layers]
        graph = calls(rng, layers)
    if often(rng, 0.1):
        layers = joined(rng) + layers
        last = [layer for layer in layers if layer["config"]["name"][:1] in "je"][-1]
        nodes = [[[last["config"]["name"], 0, 0, {}]]]
        layers = [{"inbound_nodes": nodes, **layer} for layer in layers]
    depth = large(rng, 45) if often(rng, 0.2) else 0
    names, group = [], ""
    kind = "Functional" if graph else "Sequential"
    config = {"class_name": kind, "config": {"name": "model", "layers": layers, **graph}}
    place = []
    for level in range(depth):
        name = long_name(rng, f"model_{level}")
        config["config"]["name"] = name
        beside = [gru(rng, "beside")] * large(rng, 5) if often(rng, 0.1) else []
        outer = {"name": f"outer_{level}", "layers": [config, *beside]}
        config = {"class_name": "Sequential", "config": outer}
        place.append((name, SNAKES[kind]))
        kind = "Sequential"
    for name, snake in reversed(place):
        names.append(name)
        group += f"layers/{snake}/"
    places, number = [], {}
    for layer in layers:
        if layer["class_name"] == "GRU":
            count = number["gru"] = number.get("gru", -1) + 1
            below = f"gru_{count}" if count else "gru"
            places.append(((*names, layer["config"]["name"]), f"{group}layers/{below}/"))
    return Model(config, places)


# ---- readers -------------------------------------------------------------------------------------


def inspect(path):
    """Read a model as ``fastgru inspect`` does."""
    return "\n".join(describe(find_models(path)))


def loaders(rng, name):
    """Readers that load the weights into layers, some of the name that the file has."""
    both, cells, parts = rng.choice((name, "b")), large(rng, 5, 1), large(rng, 4, 1)

    def gru(name=None, **more):
        return fastgru.GRU(H, name=name, **more)

    def inner():
        return gru(return_sequences=True)

    layers = [
        lambda: gru(name),
        lambda: gru(name),
        gru,
        lambda: fastgru.Bidirectional(inner(), name=both),
        lambda: fastgru.RNN([fastgru.GRUCell(H) for _ in range(cells)]),
        lambda: fastgru.Sequential([inner() for _ in range(parts)]),
    ]
    return [lambda path, layer=layer: load_keras_weights(layer(), path) for layer in layers]


def simple(name):
    """Return a name that a layer of fastgru may have."""
    return name if name.isprintable() and len(name) < 1000 else "gru"
