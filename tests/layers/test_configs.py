"""Configs as tf.keras 2.x wrote them, as far as layers read them; and docs/semantics.md is true."""

import re
from pathlib import Path

import numpy as np
import pytest
from grad_support import B, H, I, fill, gru, near, sequences

import fastgru

KERAS_2 = {
    "name": "gru_3",
    "trainable": True,
    "batch_input_shape": (None, None, I),
    "dtype": "float64",
    "return_sequences": True,
    "return_state": False,
    "go_backwards": False,
    "stateful": False,
    "unroll": False,
    "time_major": False,
    "units": H,
    "activation": "tanh",
    "recurrent_activation": "hard_sigmoid",
    "use_bias": True,
    "kernel_initializer": {
        "class_name": "GlorotUniform",
        "config": {"seed": None, "dtype": "float32"},
    },
    "recurrent_initializer": {
        "class_name": "Orthogonal",
        "config": {"gain": 1.0, "seed": None, "dtype": "float32"},
    },
    "bias_initializer": {"class_name": "Zeros", "config": {"dtype": "float32"}},
    "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.25}},
    "recurrent_regularizer": None,
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": {"class_name": "MaxNorm", "config": {"max_value": 2, "axis": 0}},
    "recurrent_constraint": None,
    "bias_constraint": None,
    "dropout": 0.1,
    "recurrent_dropout": 0.0,
    "implementation": 2,
    "reset_after": True,
}


def cell_config(units):
    keys = ("units", "activation", "recurrent_activation", "implementation", "dtype", "reset_after")
    config = {**{key: KERAS_2[key] for key in keys}, "units": units, "name": f"cell_{units}"}
    return {"class_name": "GRUCell", "config": config}


def keras_2_gate(a):
    return np.clip(0.2 * a + 0.5, 0, 1)


def test_a_gru_of_keras_2():
    layer = fastgru.GRU.from_config(KERAS_2)
    assert (layer.name, layer.dtype, layer.units, layer.dropout) == ("gru_3", "float64", H, 0.1)
    assert layer.recurrent_activation.name == "hard_sigmoid_keras2"
    assert layer.kernel_regularizer.l2 == 0.25
    assert layer.kernel_constraint.max_value == 2
    fill(layer)
    same = gru(return_sequences=True, recurrent_activation=keras_2_gate)
    near(layer(sequences()), same(sequences()))


def test_the_slope_of_keras_2_outlives_a_round_trip():
    layer = fastgru.GRU.from_config(KERAS_2)
    again = fastgru.GRU.from_config(layer.get_config())
    assert again.recurrent_activation == layer.recurrent_activation
    assert again.get_config() == layer.get_config()
    for wrapped in (fastgru.Bidirectional(layer), fastgru.Sequential([layer])):
        twin = type(wrapped).from_config(wrapped.get_config())
        assert twin.get_config() == wrapped.get_config()


def test_before_there_was_a_choice_reset_after_was_false():
    old = {key: value for key, value in KERAS_2.items() if key != "reset_after"}
    assert fastgru.GRU.from_config(old).reset_after is False
    new = {**{k: v for k, v in old.items() if k not in ("implementation", "time_major")}, "seed": 1}
    assert fastgru.GRU.from_config(new).reset_after is True


@pytest.mark.parametrize("time_major", [False, True])
def test_composed_layers_of_keras_2(time_major):
    inner = {"class_name": "GRU", "config": {**KERAS_2, "time_major": time_major}}
    both = fastgru.Bidirectional.from_config(
        {"name": "b", "trainable": True, "dtype": "float64", "layer": inner, "merge_mode": "sum"}
    )
    assert both.forward_layer.recurrent_activation.name == "hard_sigmoid_keras2"
    assert both.backward_layer.recurrent_activation.name == "hard_sigmoid_keras2"
    assert both.time_major is time_major
    stack = {"class_name": "StackedRNNCells", "config": {"cells": [cell_config(2), cell_config(H)]}}
    rnn = fastgru.RNN.from_config(
        {"name": "r", "return_sequences": True, "time_major": time_major, "cell": stack}
    )
    assert [c.recurrent_activation.name for c in rnn.cell.cells] == ["hard_sigmoid_keras2"] * 2
    assert (rnn.dtype, rnn.time_major) == ("float64", time_major)
    model = fastgru.Sequential.from_config(
        {
            "name": "m",
            "layers": [
                {"class_name": "InputLayer", "config": {"batch_input_shape": (None, None, I)}},
                {"class_name": "Bidirectional", "config": both.get_config()},
                {"class_name": "GRU", "config": {**KERAS_2, "time_major": time_major}},
            ],
        }
    )
    assert len(model.layers) == 2
    x = sequences()
    x = x.transpose(1, 0, 2) if time_major else x
    assert model(x).shape == (*x.shape[:2], H)
    assert rnn(x).shape == (*x.shape[:2], H)
    assert B in x.shape


def test_the_page_on_semantics_names_tests_that_exist():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "semantics.md").read_text(encoding="utf-8")
    there = set()
    for path in (root / "tests").rglob("test_*.py"):
        there.update(re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named - there == set()
    assert {f"test_rule_{n:02}_" for n in range(1, 13)} <= {name[:12] + "_" for name in there}
    rules = {name for name in there if name.startswith(("test_rule_", "test_reset_mask_"))}
    assert rules - named == set()
    files = set(re.findall(r"`(tests/\w+/test_\w+\.py)`", page))
    assert files
    assert all((root / name).exists() for name in files)
