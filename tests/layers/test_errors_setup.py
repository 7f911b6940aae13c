"""Errors, everything but calls: constructors, weights, states, configs, functions.

Each is checked for its type and for a message that says what was expected and what it got; what
already existed is unchanged afterwards. Wrong calls are in test_errors.py, tapes in test_tape.py.
"""

import numpy as np
import pytest
from grad_support import B, H, I, T, fill, flatten, gru, sequences, state

import fastgru
from fastgru import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells


class Cell:
    """A cell of the user's own."""

    state_size = 3

    def __call__(self, inputs, states):
        return states[0], states


def backwards(units=3, **arguments):
    return GRU(units, go_backwards=True, **arguments)


SHARED = GRU(3, return_sequences=True)

# What is built wrongly: the call, the error, what its message says.
CONSTRUCTORS = {
    "no units": (lambda: GRU(0), ValueError, r"units: expected a positive integer, got 0"),
    "negative units": (lambda: GRU(-3), ValueError, r"units: expected a positive integer, got -3"),
    "4.0 units": (lambda: GRU(4.0), TypeError, r"units: expected a positive integer, got 4.0"),
    "'4' units": (lambda: GRUCell("4"), TypeError, r"units: expected a positive integer, got '4'"),
    "True units": (lambda: GRU(True), TypeError, r"units: expected a positive integer, got True"),
    "None units": (lambda: GRU(None), TypeError, r"units: expected a positive integer, got None"),
    "dropout below": (lambda: GRU(3, dropout=-0.1), ValueError, r"dropout: .*\[0, 1\], got -0.1"),
    "dropout above": (lambda: GRU(3, dropout=1.1), ValueError, r"dropout: .*\[0, 1\], got 1.1"),
    "dropout NaN": (lambda: GRU(3, dropout=np.nan), ValueError, r"dropout: .*\[0, 1\], got nan"),
    "dropout text": (lambda: GRU(3, dropout="0.5"), TypeError, r"dropout: .*\[0, 1\], got '0.5'"),
    "dropout True": (lambda: GRU(3, dropout=True), TypeError, r"dropout: .*\[0, 1\], got True"),
    "dropout None": (lambda: GRU(3, dropout=None), TypeError, r"dropout: .*\[0, 1\], got None"),
    "recurrent above": (
        lambda: GRU(3, recurrent_dropout=2),
        ValueError,
        r"recurrent_dropout: expected a number in \[0, 1\], got 2",
    ),
    "implementation 0": (lambda: GRU(3, implementation=0), ValueError, r"expected 1 or 2, got 0"),
    "implementation 3": (lambda: GRUCell(3, implementation=3), ValueError, r"1 or 2, got 3"),
    "seed text": (lambda: GRU(3, seed="x"), TypeError, r"seed: expected an integer or None"),
    "seed 0.5": (lambda: GRU(3, seed=0.5), TypeError, r"seed: expected an integer.*got 0.5"),
    "seed -1": (lambda: GRU(3, seed=-1), ValueError, r"seed: expected a non-negative.*got -1"),
    "int8": (lambda: GRU(3, dtype="int8"), ValueError, r"expected 'float32'.*got 'int8'"),
    "int": (lambda: GRU(3, dtype=int), ValueError, r"expected 'float32', 'float64'"),
    "mixed policy": (
        lambda: GRU(3, dtype="mixed_float32"),
        ValueError,
        r"dtype: expected 'float32', .*'mixed_bfloat16', got 'mixed_float32'",
    ),
    "dtype list": (lambda: GRU(3, dtype=["float32"]), ValueError, r"dtype: expected 'float32', "),
    "name": (lambda: GRU(3, name=5), TypeError, r"name: expected a string or None, got 5"),
    "use_cudnn": (
        lambda: GRU(3, use_cudnn="yes"),
        ValueError,
        r"'auto', True or False, got 'yes'",
    ),
    "use_cudnn 1": (lambda: GRU(3, use_cudnn=1), ValueError, r"'auto', True or False, got 1"),
    "precision": (lambda: GRU(3, precision="half"), ValueError, r"None or 'tf32', got 'half'"),
    "tf32": (
        lambda: GRU(3, precision="tf32", dtype="float64"),
        ValueError,
        r"'tf32' is a precision of float32 products, got dtype 'float64'",
    ),
    "activation": (lambda: GRU(3, "tnah"), ValueError, r"'tnah'.*[Dd]id you mean 'tanh'"),
    "activation 3": (lambda: GRU(3, 3), ValueError, r"3.*activation.*expected"),
    "glu": (lambda: GRU(3, "glu"), ValueError, r"activation: expected.*keeps.*shape.*'glu'"),
    "gates glu": (
        lambda: GRU(3, recurrent_activation="glu"),
        ValueError,
        r"recurrent_activation: expected.*'glu'",
    ),
    "threshold": (lambda: GRU(3, "threshold"), ValueError, r"threshold.*with_params"),
    "initializer": (
        lambda: GRU(3, kernel_initializer="glorot"),
        ValueError,
        r"initializer 'glorot'.*glorot_uniform",
    ),
    "initializer 3": (lambda: GRU(3, bias_initializer=3), ValueError, r"3 as initializer"),
    "regularizer": (lambda: GRU(3, kernel_regularizer="l3"), ValueError, r"regularizer 'l3'.*l2"),
    "activity": (lambda: GRU(3, activity_regularizer=0.1), ValueError, r"0.1 as regularizer"),
    "constraint": (
        lambda: GRU(3, bias_constraint="max"),
        ValueError,
        r"constraint 'max'.*max_norm",
    ),
    "unknown argument": (lambda: GRU(3, units2=3), TypeError, r"units2"),
    # RNN and stacks
    "no cell": (lambda: RNN(None), ValueError, r"cell: expected an object with __call__.*None"),
    "a class": (lambda: RNN(GRUCell), ValueError, r"cell: expected a state_size.*GRUCell"),
    "a function": (lambda: RNN(len), ValueError, r"cell: expected a state_size.*got None on"),
    "no cells": (lambda: RNN([]), ValueError, r"cells: expected at least one cell"),
    "empty stack": (lambda: StackedRNNCells([]), ValueError, r"cells: expected at least one"),
    "stack of 3": (lambda: StackedRNNCells([3]), ValueError, r"cell: expected an object.*got 3"),
    "cell twice": (lambda: RNN([SHARED.cell] * 2), ValueError, r"expected different cells"),
    "cells' dtypes": (
        lambda: RNN([GRUCell(3), GRUCell(3, dtype="float64")]),
        ValueError,
        r"dtype float32, got float64",
    ),
    "cell's dtype": (
        lambda: RNN(GRUCell(3), dtype="float64"),
        ValueError,
        r"dtype: expected .*float64.*float32",
    ),
    # Bidirectional
    "both of a cell": (
        lambda: Bidirectional(GRUCell(3)),
        ValueError,
        r"layer: expected.*GRU or RNN",
    ),
    "both of both": (lambda: Bidirectional(Bidirectional(GRU(3))), ValueError, r"layer: expected"),
    "both of None": (lambda: Bidirectional(None), ValueError, r"layer: expected.*got None"),
    "merge_mode": (lambda: Bidirectional(GRU(3), "max"), ValueError, r"merge_mode: .*got 'max'"),
    "backward 3": (
        lambda: Bidirectional(GRU(3), backward_layer=3),
        ValueError,
        r"backward_layer: expected.*GRU or RNN layer, got 3",
    ),
    "same way": (
        lambda: Bidirectional(GRU(3), backward_layer=GRU(3)),
        ValueError,
        r"backward_layer: expected a go_backwards other than the layer's",
    ),
    "backward dtype": (
        lambda: Bidirectional(GRU(3), backward_layer=backwards(dtype="float64")),
        ValueError,
        r"layer's dtype = 'float32', got 'float64'",
    ),
    "backward units": (
        lambda: Bidirectional(GRU(3), "sum", backward_layer=backwards(2)),
        ValueError,
        r"merge_mode='sum' expects as many units as the layer's 3, got 2",
    ),
    "both dtype": (lambda: Bidirectional(GRU(3), dtype="float64"), ValueError, r"dtype: expected"),
    # Sequential
    "no layers": (lambda: Sequential([]), ValueError, r"layers: expected at least one layer"),
    "a cell inside": (lambda: Sequential([GRUCell(3)]), ValueError, r"layers\[0\]: expected GRU"),
    "last outputs": (
        lambda: Sequential([GRU(3), GRU(3)]),
        ValueError,
        r"layers\[0\]: expected return_sequences=True",
    ),
    "states inside": (
        lambda: Sequential([GRU(3, return_sequences=True, return_state=True), GRU(3)]),
        ValueError,
        r"layers\[0\]: expected .*return_state=False",
    ),
    "two outputs inside": (
        lambda: Sequential([Bidirectional(SHARED, None), GRU(3)]),
        ValueError,
        r"layers\[0\]: expected .*one merged output",
    ),
    "dtypes inside": (
        lambda: Sequential([SHARED, GRU(3, dtype="float64")]),
        ValueError,
        r"layers\[1\]: expected dtype = 'float32'.*got 'float64'",
    ),
    "orders inside": (
        lambda: Sequential([SHARED, GRU(3, time_major=True)]),
        ValueError,
        r"layers\[1\]: expected time_major = False",
    ),
    "layer twice": (lambda: Sequential([SHARED, SHARED]), ValueError, r"expected different layers"),
}
for _name in ("stateful", "return_sequences", "return_state", "time_major"):
    CONSTRUCTORS[f"backward {_name}"] = (
        lambda name=_name: Bidirectional(GRU(3), backward_layer=backwards(**{name: True})),
        ValueError,
        rf"backward_layer: expected the layer's {_name} = False, got True",
    )


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name):
    build, error, pattern = CONSTRUCTORS[name]
    with pytest.raises(error, match=f"(?s){pattern}"):
        build()


def test_a_refused_bidirectional_has_not_touched_the_layers():
    layer = GRU(3, return_sequences=True)
    other = GRU(2, go_backwards=True, use_cudnn=False, return_sequences=True)
    with pytest.raises(ValueError, match="merge_mode='sum'"):
        Bidirectional(layer, "sum", backward_layer=other)
    assert other.use_cudnn is False
    assert not other.zero_output_for_mask
    assert not layer.zero_output_for_mask


# -- weights -------------------------------------------------------------------------------------

GOOD = gru(dtype="float32").get_weights()
WEIGHTS = {
    "a number": (5, TypeError, r"expected a list of arrays as get_weights\(\) gives, got int"),
    "None": (None, TypeError, r"expected a list of arrays"),
    "too few": (GOOD[:2], ValueError, r"expected 3 weights.*bias.*got 2"),
    "too many": (GOOD * 2, ValueError, r"expected 3 weights.*got 6"),
    "shape": (
        [*GOOD[:2], GOOD[2][:1]],
        ValueError,
        r"bias: expected shape \(2, 15\), got \(1, 15",
    ),
    "flat bias": ([*GOOD[:2], GOOD[2].ravel()], ValueError, r"bias: expected shape.*got \(30,\)"),
    "first": (
        [GOOD[0].T, *GOOD[1:]],
        ValueError,
        r"kernel: expected shape \(3, 15\), got \(15, 3",
    ),
    "complex": ([*GOOD[:2], GOOD[2] * 1j], TypeError, r"bias: expected real numbers"),
    "text": ([*GOOD[:2], "bias"], TypeError, r"bias: expected numbers"),
    "ragged": ([*GOOD[:2], [[1], [1, 2]]], ValueError, r"bias: expected a rectangular array"),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", ["gru", "cell", "bidirectional", "sequential", "rnn"])
def test_set_weights(name, kind):
    values, error, pattern = WEIGHTS[name]
    layer = {
        "gru": lambda: GRU(H),
        "cell": lambda: GRUCell(H),
        "rnn": lambda: RNN(GRUCell(H)),
        "bidirectional": lambda: Bidirectional(GRU(H)),
        "sequential": lambda: Sequential([GRU(H)]),
    }[kind]()
    if kind == "bidirectional":
        pattern = pattern.replace("expected 3", "expected 6").replace("got 6", "got 12")
        values = [*GOOD, *values] if isinstance(values, list) else values
        pattern = pattern.replace("got 2", "got 5").replace("got 12", "got 9")
    fill(layer)
    before = [v.value for v in layer.weights]
    with pytest.raises(error, match=f"(?s){pattern}"):
        layer.set_weights(values)
    assert all(v.value is old for v, old in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize(
    "make", [lambda: GRU(3), lambda: Bidirectional(GRU(3)), lambda: GRUCell(3)]
)
def test_weights_before_build(make):
    layer = make()
    for wrong in (lambda: layer.set_weights([]), layer.count_params):
        with pytest.raises(ValueError, match=r"no weights yet; call build\(input_shape\)"):
            wrong()
    assert not layer.built


@pytest.mark.parametrize(
    "make", [lambda: GRU(3), lambda: Bidirectional(GRU(3)), lambda: RNN(GRUCell(3))]
)
@pytest.mark.parametrize("shape", [(4, 3), (1, 2, 3, 4), (3,), 5, None, "abc", (2, 3, None)])
def test_build_shapes(make, shape):
    layer = make()
    with pytest.raises((ValueError, TypeError), match=r"input_shape: expected"):
        layer.build(shape)
    assert not layer.built
    assert layer.weights == []


def test_build_for_another_size():
    layer = gru()
    kernel = layer.kernel.value
    with pytest.raises(ValueError, match=r"built for I = 3 features, got.*8"):
        layer.build((None, None, 8))
    assert layer.kernel.value is kernel


@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.zeros((2, 15), "c8"), "x"])
@pytest.mark.parametrize("role", ["kernel", "recurrent", "bias"])
def test_a_failing_initializer_leaves_the_layer_unbuilt(role, value):
    layer = GRU(H, **{f"{role}_initializer": lambda shape, dtype: value})
    with pytest.raises((ValueError, TypeError), match=f"from {role}_initializer"):
        layer(sequences("float32"))
    assert not layer.built
    assert layer.weights == []
    assert not layer.cell.built


@pytest.mark.parametrize("values", [[np.zeros((3, 15), "f4")] * 6, GOOD[:2] * 2, GOOD * 4])
def test_initial_weights_of_bidirectional_that_do_not_fit(values):
    layer = Bidirectional(GRU(H), weights=values)
    for _ in range(2):  # and again, not silently without them
        with pytest.raises(ValueError, match=r"kernel: expected shape|expected 3 weights"):
            layer(sequences("float32"))
        assert not layer.built
        assert layer.weights == []
    with pytest.raises(ValueError, match=r"weights: expected a list of as many arrays for the"):
        Bidirectional(GRU(H), weights=values[1:])


# -- states --------------------------------------------------------------------------------------


def test_reset_states_of_a_layer_that_is_not_stateful():
    for layer in (gru(), fill(Bidirectional(GRU(3))), Sequential([GRU(3)]), RNN(Cell())):
        with pytest.raises(AttributeError, match=r"stateful"):
            layer.reset_states()
    for layer in (gru(), fill(Bidirectional(GRU(3)))):
        with pytest.raises(AttributeError, match=r"not stateful; build it with stateful=True"):
            layer.reset_states([state()] * 2)
    gru().reset_state()  # Keras 3's own does nothing there


def test_reset_states_before_the_batch_size_is_known():
    layer = GRU(3, stateful=True)
    for given in (None, np.zeros((2, 3))):
        with pytest.raises(ValueError, match=r"batch size is not known yet; call the layer or"):
            layer.reset_states(given)
    layer.build((None, None, I))
    with pytest.raises(ValueError, match=r"batch size is not known yet"):
        layer.reset_states()
    both = Bidirectional(GRU(3, stateful=True))
    with pytest.raises(ValueError, match=r"batch size is not known yet"):
        both.reset_states()


def test_reset_states_of_a_wrong_shape_or_dtype():
    layer = gru(stateful=True, dtype="float32")
    layer(sequences("float32"))
    pair = fill(Bidirectional(GRU(H, stateful=True)))
    pair(sequences("float32"))
    good = state("float32")
    for owner, wrap in ((layer, lambda s: s), (layer, lambda s: [s]), (pair, lambda s: [good, s])):
        before = [v.value for v in flatten_variables(owner.states)]
        for wrong, pattern in (
            (good[1:], r"expected shape \(4, 5\), got \(3, 5\)"),
            (good[:, 1:], r"expected shape \(4, 5\), got \(4, 4\)"),
            (good * 1j, r"expected real numbers"),
            ("zeros", r"expected numbers"),
        ):
            with pytest.raises(ValueError, match=pattern):
                owner.reset_states(wrap(wrong))
            after = [v.value for v in flatten_variables(owner.states)]
            for a, b in zip(after, before, strict=True):
                np.testing.assert_array_equal(a, b)
    for owner, given in ((layer, [good, good]), (layer, []), (pair, [good]), (pair, good)):
        with pytest.raises(ValueError, match=r"states: expected (1|a list of 2)"):
            owner.reset_states(given)


def flatten_variables(states):
    return [v for s in states for v in (s if isinstance(s, (list, tuple)) else [s])]


# -- configs -------------------------------------------------------------------------------------

CUSTOM = {"module": "mine", "class_name": "Mine", "config": {}, "registered_name": "Mine"}
CONFIGS = {
    "GRU None": (GRU, None, TypeError, r"config: expected a dict.*got None"),
    "GRU list": (GRU, [], TypeError, r"config: expected a dict.*got \[\]"),
    "GRU empty": (GRU, {}, ValueError, r"config: expected the key 'units'"),
    "GRUCell empty": (GRUCell, {}, ValueError, r"config: expected the key 'units'"),
    "RNN empty": (RNN, {}, ValueError, r"config: expected the key 'cell'"),
    "Stacked empty": (StackedRNNCells, {}, ValueError, r"config: expected the key 'cells'"),
    "Bidirectional empty": (Bidirectional, {}, ValueError, r"config: expected the key 'layer'"),
    "Sequential empty": (Sequential, {}, ValueError, r"config: expected the key 'layers'"),
    "unknown key": (GRU, {"units": 3, "nope": 1}, (TypeError, ValueError), r"nope"),
    "units": (GRU, {"units": -3}, ValueError, r"units: expected a positive integer"),
    "dtype": (GRU, {"units": 3, "dtype": "int8"}, ValueError, r"dtype: expected"),
    "policy": (
        GRU,
        {"units": 3, "dtype": {"class_name": "DTypePolicy", "config": {"name": "int8"}}},
        ValueError,
        r"dtype: expected 'float32', 'float64'",
    ),
    "activation": (GRU, {"units": 3, "activation": "nope"}, ValueError, r"activation 'nope'"),
    "custom activation": (GRU, {"units": 3, "activation": CUSTOM}, ValueError, r"custom_objects"),
    "custom regularizer": (
        GRU,
        {"units": 3, "kernel_regularizer": CUSTOM},
        ValueError,
        r"'Mine'.*custom_objects",
    ),
    "custom cell": (RNN, {"cell": CUSTOM}, ValueError, r"expected one of .*GRUCell.*got 'Mine'"),
    "cell's config": (RNN, {"cell": 3}, ValueError, r"expected a dict with 'class_name'.*got int"),
    "Dense": (
        Sequential,
        {"layers": [{"class_name": "Dense", "config": {"units": 3}}]},
        ValueError,
        r"expected one of .*got 'Dense'",
    ),
    "lambda": (
        GRU,
        {"units": 3, "activation": {"class_name": "__lambda__", "config": {"value": "x"}}},
        ValueError,
        r"nothing in a config is executed",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_from_config(name):
    cls, config, error, pattern = CONFIGS[name]
    with pytest.raises(error, match=f"(?s){pattern}"):
        cls.from_config(config)


def test_get_config_of_what_has_none():
    with pytest.raises(ValueError, match=r"Cell: it has no get_config\(\); give it one"):
        RNN(Cell()).get_config()
    with pytest.raises(ValueError, match=r"get_config"):
        GRU(3, kernel_regularizer=Cell()).get_config()


# -- cells, variables, backends ------------------------------------------------------------------

CELL = fill(GRUCell(H, dropout=0.3, seed=1))
X, S = sequences("float32", shape=(B, I)), state("float32")
CELL_CALLS = {
    "sequences": ((sequences("float32"), S), ValueError, r"inputs: expected shape \(B, I\)"),
    "features": ((X[:, 1:], S), ValueError, r"inputs: .*\(B, I\) = \(any, 3\), got \(4, 2\)"),
    "rows": ((X, S[1:]), ValueError, r"states: expected shape \(B, H\) = \(4, 5\), got \(3, 5\)"),
    "units": ((X, [S[:, 1:]]), ValueError, r"states: expected shape \(B, H\) = \(4, 5\)"),
    "two states": ((X, [S, S]), ValueError, r"states: expected one state \(B, H\), got 2"),
    "no state": ((X, []), ValueError, r"states: expected one state \(B, H\), got 0"),
    "None": ((X, None), TypeError, r"states: expected numbers"),
    "text": ((X.astype("U9"), S), TypeError, r"inputs: expected numbers, got dtype <U9"),
    "state of objects": ((X, S.astype("O")), TypeError, r"states: expected numbers, got dtype obj"),
    "complex": ((X * 1j, S), TypeError, r"inputs: expected real numbers"),
}


@pytest.mark.parametrize("name", CELL_CALLS)
def test_cell_calls(name):
    args, error, pattern = CELL_CALLS[name]
    before = list(CELL.seed_generator._counts), [v.value for v in CELL.weights]
    with pytest.raises(error, match=pattern):
        CELL(*args, training=True)
    after = list(CELL.seed_generator._counts), [v.value for v in CELL.weights]
    assert before[0] == after[0]
    assert all(a is b for a, b in zip(before[1], after[1], strict=True))


def returning(value, **attributes):
    body = {"state_size": 3, "__call__": lambda self, inputs, states: value, **attributes}
    return type("Mine", (), body)()


ROW, WIDE = np.ones((B, 3), "float32"), np.ones((B, 3))
RETURNED = {
    "no pair": (ROW, ValueError, r"Mine: expected it to return \(output, new_states\)"),
    "None": (None, (ValueError, TypeError), r"Mine: expected it to return"),
    "two states": ((ROW, [ROW, ROW]), ValueError, r"Mine: expected 1 new states"),
    "output shape": ((ROW[:, 1:], [ROW]), ValueError, r"output of Mine: expected shape"),
    "state shape": ((ROW, [ROW[1:]]), ValueError, r"state.* of Mine.*expected shape"),
    "complex": ((WIDE * 1j, [ROW]), TypeError, r"output of Mine: expected real numbers"),
}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("mask", [None, np.tri(B, T, dtype=bool)])
def test_what_a_cell_of_the_users_own_returns(name, mask):
    value, error, pattern = RETURNED[name]
    layer = RNN(returning(value), return_sequences=True, stateful=True)
    layer.build((B, T, I))
    out = np.full((B, T, 3), 7, "float32")
    with pytest.raises(error, match=pattern):
        layer(sequences("float32"), mask=mask, out=out)
    assert (out == 7).all()
    assert not any(np.asarray(s).any() for s in flatten(layer.states))


def test_what_a_cell_of_the_users_own_returns_is_cast():
    layer = RNN(returning((WIDE, [WIDE])), return_state=True)
    assert [a.dtype.name for a in layer(sequences("float32"))] == ["float32"] * 2


def test_backends_by_name():
    with pytest.raises(ValueError, match=r"backend: expected one of .*reference, got 'gpu'"):
        fastgru.use_backend("gpu").__enter__()
    assert GRU(2).explain(np.zeros((1, 1, 1), "f4")).backend == "cpu"


@pytest.mark.parametrize("count", [0, -2, 1.0, None, "2", True])
def test_numbers_of_threads(count):
    before = fastgru.get_num_threads()
    error = ValueError if type(count) is int else TypeError
    for wrong in (fastgru.set_num_threads, lambda n: fastgru.num_threads(n).__enter__()):
        with pytest.raises(error, match=rf"num_threads: expected an integer >= 1, got {count!r}"):
            wrong(count)
    assert fastgru.get_num_threads() == before
