"""Configs both ways between Keras and fastgru, and what Keras 2 (tf.keras 2.x) wrote."""

import copy
import json

import numpy as np
import pytest
from keras_support import assert_same, keras

import fastgru

X = np.random.default_rng(0).normal(0, 1, (3, 6, 5))
MASK = np.random.default_rng(1).random((3, 6)) < 0.7

GRU = {
    "units": 4,
    "activation": "softsign",
    "recurrent_activation": "hard_sigmoid",
    "use_bias": True,
    "kernel_initializer": "he_normal",
    "recurrent_initializer": {
        "class_name": "VarianceScaling",
        "config": {"scale": 0.5, "mode": "fan_avg", "distribution": "uniform", "seed": 3},
    },
    "bias_initializer": {"class_name": "Constant", "config": {"value": 0.25}},
    "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.125}},
    "bias_regularizer": {"class_name": "L1L2", "config": {"l1": 0.5, "l2": 0.25}},
    "kernel_constraint": {"class_name": "MaxNorm", "config": {"max_value": 1.5, "axis": 0}},
    "recurrent_constraint": "unit_norm",
    "dropout": 0.25,
    "recurrent_dropout": 0.5,
    "reset_after": False,
    "seed": 7,
}
LAYER = {
    "return_sequences": True,
    "return_state": True,
    "unroll": True,
    "dtype": "float64",
    "name": "encoder",
    "trainable": False,
}


def layers_of(library):
    """The same layers of either library."""
    gru = library.GRU(**GRU, **LAYER, go_backwards=True)
    cell = {**GRU, "dtype": "float64"}
    rnn = library.RNN(library.GRUCell(**cell), **LAYER)
    cells = [library.GRUCell(**cell), library.GRUCell(2, dtype="float64")]
    stacked = library.RNN(library.StackedRNNCells(cells, dtype="float64"), **LAYER)
    options = {"return_sequences": True, "dtype": "float64"}
    both = library.Bidirectional(
        library.GRU(3, **options),
        merge_mode="ave",
        backward_layer=library.GRU(3, reset_after=False, go_backwards=True, **options),
        dtype="float64",
    )
    # Not unrolled: see keras_support. Trainable: to an outer layer of Keras all variables are.
    rolled = {**LAYER, "unroll": False, "trainable": True}
    twins = library.Bidirectional(
        library.RNN(library.StackedRNNCells(cells, dtype="float64"), **rolled),
        merge_mode=None,
        dtype="float64",
    )
    return {"gru": gru, "rnn": rnn, "stacked": stacked, "both": both, "twins": twins}


KINDS = ["gru", "rnn", "stacked", "both", "twins"]


def simplified(config):
    """What a config says, without the ways of saying it."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            return config["class_name"], simplified(config["config"])
        return {key: simplified(value) for key, value in config.items()}
    return [simplified(part) for part in config] if isinstance(config, (list, tuple)) else config


def without_names(config):
    """Leave out the names, which are counted per process."""
    if isinstance(config, dict):
        return {k: without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [without_names(part) for part in config]
    return config


def run_both(ours, theirs):
    """Give both the same weights and the same call."""
    theirs.build(X.shape)
    rng = np.random.default_rng(2)
    weights = [rng.uniform(-0.6, 0.6, v.shape) for v in theirs.weights]
    theirs.set_weights(weights)
    ours.build(X.shape)
    ours.set_weights(weights)
    expected = theirs(X, mask=MASK)
    assert_same(ours(X, mask=MASK), expected, "float64")
    np.testing.assert_allclose(
        [float(v) for v in ours.losses], [float(v) for v in theirs.losses], rtol=1e-7
    )


def no_cudnn(layer):
    for half in (
        layer,
        getattr(layer, "forward_layer", None),
        getattr(layer, "backward_layer", None),
    ):
        if hasattr(half, "use_cudnn"):
            half.use_cudnn = False
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_ours_from_keras(kind):
    theirs = no_cudnn(layers_of(keras.layers)[kind])
    config = json.loads(json.dumps(theirs.get_config()))
    before = copy.deepcopy(config)
    ours = type(layers_of(fastgru)[kind]).from_config(config)
    assert config == before, "from_config must not change its argument"
    run_both(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_keras_from_ours(kind):
    ours = layers_of(fastgru)[kind]
    config = json.loads(json.dumps(ours.get_config()))
    run_both(ours, no_cudnn(type(layers_of(keras.layers)[kind]).from_config(config)))


@pytest.mark.parametrize("kind", KINDS)
def test_configs_say_the_same(kind):
    ours = simplified(layers_of(fastgru)[kind].get_config())
    theirs = simplified(layers_of(keras.layers)[kind].get_config())
    assert without_names(ours) == without_names(theirs)
    if kind in ("gru", "rnn", "stacked"):
        assert ours["name"] == theirs["name"] == "encoder"


def keras2_gru(**changes):
    """The config of a GRU as tf.keras 2.15 writes it."""
    config = {
        "name": "gru",
        "trainable": True,
        "batch_input_shape": [None, 6, 5],
        "dtype": "float64",
        "return_sequences": True,
        "return_state": True,
        "go_backwards": False,
        "stateful": False,
        "unroll": False,
        "time_major": False,
        "units": 4,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
        "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
        "recurrent_initializer": {
            "class_name": "Orthogonal",
            "config": {"gain": 1.0, "seed": None},
        },
        "bias_initializer": {"class_name": "Zeros", "config": {}},
        "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.125}},
        "recurrent_regularizer": None,
        "bias_regularizer": None,
        "activity_regularizer": None,
        "kernel_constraint": {"class_name": "MaxNorm", "config": {"max_value": 2, "axis": 0}},
        "recurrent_constraint": None,
        "bias_constraint": None,
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "implementation": 2,
        "reset_after": True,
    }
    return {**config, **changes}


def keras2_cell(**changes):
    layer = {"batch_input_shape", "return_sequences", "return_state", "go_backwards", "stateful"}
    layer |= {"unroll", "time_major", "activity_regularizer"}
    config = keras2_gru(name="gru_cell", **changes)
    return {"class_name": "GRUCell", "config": {k: v for k, v in config.items() if k not in layer}}


def keras2_hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def keras3_gru(**changes):
    options = {"return_sequences": True, "return_state": True, "unroll": True, "use_cudnn": False}
    options |= {"dtype": "float64", "kernel_regularizer": keras.regularizers.L2(0.125)}
    return keras.layers.GRU(4, **{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"reset_after": False, "implementation": 1}, {"reset_after": False}),
        ({"recurrent_activation": "hard_sigmoid"}, {"recurrent_activation": keras2_hard_sigmoid}),
        ({"activation": "hard_sigmoid"}, {"activation": keras2_hard_sigmoid}),
        ({"go_backwards": True, "use_bias": False}, {"go_backwards": True, "use_bias": False}),
        (
            {"return_sequences": False, "activation": "relu"},
            {"return_sequences": False, "activation": "relu"},
        ),
        # Written by tf.keras under a mixed or plain policy object.
        ({"dtype": {"class_name": "Policy", "config": {"name": "float64"}}}, {}),
    ],
)
def test_keras2_gru(changes, expected):
    ours = fastgru.GRU.from_config(keras2_gru(**changes))
    assert (ours.implementation, ours.dtype) == (changes.get("implementation", 2), "float64")
    assert ours.cell.kernel_constraint.get_config() == {"max_value": 2, "axis": 0}
    run_both(ours, keras3_gru(**expected))


def test_keras2_time_major():
    ours = fastgru.GRU.from_config(keras2_gru(time_major=True, return_state=False))
    theirs = keras3_gru(return_state=False)
    theirs.build(X.shape)
    ours.build((6, 3, 5))
    ours.set_weights([np.asarray(v.value) for v in theirs.weights])
    y = ours(X.transpose(1, 0, 2), mask=MASK.T)
    assert_same(np.ascontiguousarray(y.transpose(1, 0, 2)), theirs(X, mask=MASK), "float64")


def test_keras2_before_reset_after_existed():
    config = keras2_gru()
    del config["reset_after"]  # Keras 2.0 had the reset gate before, and no choice
    run_both(fastgru.GRU.from_config(config), keras3_gru(reset_after=False))


def test_keras2_rnn_over_stacked_cells():
    cells = [keras2_cell(), keras2_cell(units=3, recurrent_activation="hard_sigmoid")]
    layer = {k: keras2_gru()[k] for k in ("name", "dtype", "return_sequences", "return_state")}
    layer |= {"time_major": False, "unroll": False, "stateful": False, "go_backwards": False}
    stack = {"class_name": "StackedRNNCells", "config": {"name": "stack", "cells": cells}}
    ours = fastgru.RNN.from_config({**layer, "cell": stack})
    second = keras.layers.GRUCell(
        3,
        recurrent_activation=keras2_hard_sigmoid,
        kernel_regularizer=keras.regularizers.L2(0.125),
        dtype="float64",
    )
    first = keras.layers.GRUCell(
        4, kernel_regularizer=keras.regularizers.L2(0.125), dtype="float64"
    )
    theirs = keras.layers.RNN(
        keras.layers.StackedRNNCells([first, second], dtype="float64"),
        return_sequences=True,
        return_state=True,
        unroll=True,
        dtype="float64",
    )
    run_both(ours, theirs)


def test_keras2_bidirectional():
    forward = keras2_gru(name="forward_gru", return_state=False, reset_after=False)
    backward = keras2_gru(name="backward_gru", return_state=False, go_backwards=True, units=2)
    config = {
        "name": "bidirectional",
        "trainable": True,
        "dtype": "float64",
        "batch_input_shape": [None, 6, 5],
        "layer": {"class_name": "GRU", "config": forward},
        "merge_mode": "concat",
        "backward_layer": {"class_name": "GRU", "config": backward},
    }
    options = {"dtype": "float64", "return_sequences": True, "use_cudnn": False}
    options["kernel_regularizer"] = keras.regularizers.L2(0.125)
    theirs = keras.layers.Bidirectional(
        keras.layers.GRU(4, reset_after=False, **options),
        backward_layer=keras.layers.GRU(2, go_backwards=True, **options),
        dtype="float64",
    )
    run_both(fastgru.Bidirectional.from_config(config), theirs)


def test_hard_sigmoid_of_keras_3_keeps_its_slope():
    theirs = keras3_gru(recurrent_activation="hard_sigmoid")
    run_both(fastgru.GRU.from_config(theirs.get_config()), theirs)


def test_weight_losses_with_keras_own_factors():
    names = {"kernel_regularizer": "l1", "recurrent_regularizer": "orthogonal_regularizer"}
    theirs = keras3_gru(**names, bias_regularizer="l2", activity_regularizer="l1")
    ours = fastgru.GRU.from_config(theirs.get_config())
    run_both(ours, theirs)
    assert len(ours.losses) == 5  # two outputs, three weights


def test_constraints():
    layers = [
        library.GRU(
            4,
            kernel_constraint="max_norm",
            recurrent_constraint="unit_norm",
            bias_constraint="non_neg",
            dtype="float64",
        )
        for library in (fastgru, keras.layers)
    ]
    ours, theirs = layers
    run_both(ours, no_cudnn(theirs))
    ours.set_weights([w * 9 for w in ours.get_weights()])
    for variable, before in zip(theirs.weights, ours.get_weights(), strict=True):
        variable.assign(variable.constraint(before))
    ours.apply_constraints()
    for mine, judge in zip(ours.get_weights(), theirs.weights, strict=True):
        np.testing.assert_allclose(mine, np.asarray(judge.value), rtol=1e-7)
