"""Keras compared over a systematic grid: one group of options at a time, whole products in each."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from keras_support import (
    ALONG_UNITS,
    BY_VALUE,
    ELEMENTWISE,
    Case,
    assert_same,
    backends,
    check,
    gru,
    keras,
    make_mask,
)

import fastgru

MASKS = ["none", "right", "left", "holes", "empty", "full"]
STATEFUL = {"stateful": True, "return_sequences": True, "return_state": True}
TWO_CELLS = ({"units": 4}, {"units": 3, "reset_after": False})


def test_the_grid_has_every_activation_that_keras_has():
    from keras.src.activations import ALL_OBJECTS_DICT

    aliases = {"swish", "hard_swish"}  # of silu and hard_silu
    not_for_gates = {"glu"}  # halves the units
    assert {*ELEMENTWISE, *ALONG_UNITS} == {*ALL_OBJECTS_DICT} - aliases - not_for_gates
    assert {*BY_VALUE} <= {*ELEMENTWISE, *ALONG_UNITS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("reset_after", "use_bias"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("backwards", [False, True])
def test_arithmetic(reset_after, use_bias, sequences, backwards, dtype):
    cell = {"reset_after": reset_after, "use_bias": use_bias}
    for state in (False, True):
        layer = {
            "return_sequences": sequences,
            "go_backwards": backwards,
            "return_state": state,
        }
        check(gru(cell=cell, layer=layer, initial_state=state, dtype=dtype))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [True, False])
def test_masks(mask, zeros, backwards, sequences):
    layer = {
        "return_sequences": sequences,
        "go_backwards": backwards,
        "zero_output_for_mask": zeros,
        "return_state": True,
    }
    for seed, (reset_after, dtype, start) in enumerate(
        product([True, False], ["float64", "float32"], [True, False])
    ):
        case = gru(cell={"reset_after": reset_after}, layer=layer, mask=mask, dtype=dtype)
        check(replace(case, initial_state=start, steps=7, seed=seed))


@pytest.mark.parametrize("mask_as", ["bool", "int64", "float32", "lengths"])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("merge_mode", [None, "concat"])
def test_mask_types_and_time_major(mask_as, time_major, merge_mode):
    for sequences in (True, False):
        check(
            gru(
                layer={"return_sequences": sequences, "return_state": True},
                mask="right",
                mask_as=mask_as,
                time_major=time_major,
                merge_mode=merge_mode,
                initial_state=True,
                dtype="float64",
            )
        )


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG_UNITS])
@pytest.mark.parametrize("reset_after", [True, False])
def test_activations(name, reset_after):
    layer = {"return_sequences": True}
    # As a gate some are near 1 or beyond -1, and the state grows with T: so few steps.
    for cell, steps in (({"activation": name}, 9), ({"recurrent_activation": name}, 4)):
        for dtype in ("float32", "float64"):
            cell = {**cell, "reset_after": reset_after}
            check(gru(3, cell, layer=layer, steps=steps, scale=0.4, dtype=dtype, mask="holes"))


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG_UNITS])
def test_float32_does_not_drift_in_fifty_steps(name):
    # Next to 0, where a bias of the activation adds up: with gates around 1 nothing is forgotten.
    # Keras' float32 has rounding errors of its own, so its float64 is asked.
    case = gru(2, layer={"return_sequences": True}, steps=50, batch=5, initial_state=True)
    for cell in ({"recurrent_activation": name}, {"activation": name}):
        for seed in range(3):
            cells = ({"units": 2, **cell},)
            check(replace(case, cells=cells, scale=0.02, seed=seed), judge_dtype="float64")


@pytest.mark.parametrize("kind", ["gru", "rnn", "stacked"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sequences", [True, False])
def test_cells(kind, mask, sequences):
    cells = TWO_CELLS if kind == "stacked" else ({"units": 4, "reset_after": False},)
    for backwards, zeros in product([False, True], repeat=2):
        layer = {
            "return_sequences": sequences,
            "return_state": True,
            "go_backwards": backwards,
            "zero_output_for_mask": zeros,
        }
        for start, dtype in ((True, "float64"), (False, "float32")):
            check(Case(kind, cells, layer, mask=mask, initial_state=start, dtype=dtype))


def test_three_stacked_cells_of_different_kinds():
    cells = (
        {"units": 5, "activation": "softsign", "use_bias": False},
        {"units": 2, "reset_after": False, "recurrent_activation": "hard_sigmoid"},
        {"units": 3},
    )
    for mask in MASKS:
        check(Case("stacked", cells, {"return_state": True}, mask=mask, dtype="float64"))


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", "none"])
@pytest.mark.parametrize("kind", ["gru", "rnn", "stacked"])
@pytest.mark.parametrize("mask", ["none", "left", "holes", "empty"])
def test_bidirectional(merge_mode, kind, mask):
    cells = TWO_CELLS if kind == "stacked" else ({"units": 4},)
    for sequences, state in product([True, False], repeat=2):
        layer = {"return_sequences": sequences, "return_state": state}
        case = Case(kind, cells, layer, merge_mode, mask=mask, initial_state=state)
        check(case)
        check(replace(case, dtype="float64", seed=1))


def test_bidirectional_with_a_backward_layer_and_weights_of_its_own():
    x = np.random.default_rng(4).normal(0, 1, (3, 6, 5))
    mask = make_mask("holes", 3, 6, np.random.default_rng(5))
    made = []
    for library in (fastgru, keras.layers):
        kwargs = {"dtype": "float64", "return_sequences": True}
        forward = library.GRU(4, activation="softsign", **kwargs)
        backward = library.GRU(2, reset_after=False, go_backwards=True, **kwargs)
        made.append((forward, backward))
    weights = [np.random.default_rng(6).normal(0, 0.5, s) for s in [(5, 12), (4, 12), (2, 12)]]
    weights += [np.random.default_rng(7).normal(0, 0.5, s) for s in [(5, 6), (2, 6), (6,)]]
    (mine, mine_back), (forward, backward) = made
    theirs = keras.layers.Bidirectional(forward, backward_layer=backward, dtype="float64")
    theirs.build(x.shape)
    theirs.set_weights(weights)  # Keras 3 drops its argument ``weights``
    expected = np.asarray(theirs(x, mask=mask))
    assert expected.shape == (3, 6, 6)
    ours = fastgru.Bidirectional(mine, weights=weights, backward_layer=mine_back)
    for context in backends():
        with context():
            assert_same(ours(x, mask=mask), expected, "float64")


@pytest.mark.parametrize("kind", ["gru", "rnn", "stacked"])
@pytest.mark.parametrize("merge_mode", [None, "concat", "none"])
@pytest.mark.parametrize("mask", ["none", "holes"])
def test_stateful_over_several_calls(kind, merge_mode, mask):
    cells = TWO_CELLS if kind == "stacked" else ({"units": 4},)
    for start, reset in ((False, False), (True, False), (False, True)):
        case = Case(kind, cells, STATEFUL, merge_mode, mask=mask, calls=3, initial_state=start)
        check(replace(case, reset=reset, dtype="float64"))


@pytest.mark.parametrize("rates", [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3), (1.0, 0.3), (0.4, 1.0)])
@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize(
    ("kind", "merge_mode"),
    [("gru", None), ("rnn", None), ("stacked", None), ("gru", "concat"), ("stacked", "sum")],
)
def test_dropout(rates, implementation, kind, merge_mode):
    kwargs = {
        "dropout": rates[0],
        "recurrent_dropout": rates[1],
        "implementation": implementation,
    }
    cells = ({"units": 4, **kwargs}, {"units": 3, "reset_after": False, **kwargs})
    cells = cells if kind == "stacked" else cells[:1]
    for dtype, mask in (("float64", "none"), ("float32", "holes")):
        for training, reset_after in product([True, False], repeat=2):
            first = ({**cells[0], "reset_after": reset_after}, *cells[1:])
            case = Case(kind, first, {"return_sequences": True}, merge_mode, mask=mask)
            # Two calls: each draws its own masks, and both libraries forget them in between.
            check(replace(case, training=training, calls=2, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("via", ["constructor", "ours_from_keras", "keras_from_ours"])
def test_losses(dtype, via):
    cell = {
        "kernel_regularizer": {"class_name": "L1", "config": {"l1": 0.25}},
        "recurrent_regularizer": {"class_name": "L2", "config": {"l2": 0.125}},
        "bias_regularizer": {"class_name": "L1L2", "config": {"l1": 0.5, "l2": 0.0625}},
    }
    l2 = {"class_name": "L2", "config": {"l2": 0.5}}  # a factor that float32 keeps, as Keras does
    layer = {"activity_regularizer": l2, "return_sequences": True, "return_state": True}
    check(gru(cell=cell, layer=layer, calls=2, mask="holes", dtype=dtype, via=via))
    check(gru(cell=cell, layer=layer, merge_mode="concat", dtype=dtype, via=via))


class WindowCell:
    """A cell of nobody's library, written once for both: a leaky sum and a count of steps."""

    state_size = (3, 1)
    output_size = 2

    def __init__(self, dtype):
        self.dtype = self.compute_dtype = dtype
        rng = np.random.default_rng(11)
        self.inward = rng.normal(0, 0.4, (5, 3)).astype(dtype)
        self.outward = rng.normal(0, 0.4, (3, 2)).astype(dtype)

    def __call__(self, inputs, states, training=False):
        total, count = states
        total = np.asarray(total * 0.7 + inputs @ self.inward, self.dtype)
        count = np.asarray(count + 1, self.dtype)
        return np.tanh(total @ self.outward) / count, [total, count]

    call = __call__


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_custom_cell(dtype, mask, backwards, zeros):
    rng = np.random.default_rng(12)
    x = rng.normal(0, 1, (4, 6, 5)).astype(dtype)
    valid = make_mask(mask, 4, 6, rng)
    start = [rng.normal(0, 1, (4, 3)).astype(dtype), rng.uniform(1, 3, (4, 1)).astype(dtype)]
    kwargs = {
        "return_sequences": True,
        "return_state": True,
        "go_backwards": backwards,
        "zero_output_for_mask": zeros,
        "dtype": dtype,
    }
    theirs = keras.layers.RNN(WindowCell(dtype), unroll=not zeros, **kwargs)
    ours = fastgru.RNN(WindowCell(dtype), **kwargs)
    for state in (start, None):
        if state is None:  # a count of 0 before the first step, so that nothing divides by it
            state = [np.zeros((4, 3), dtype), np.zeros((4, 1), dtype)]
        expected = theirs(x, initial_state=state, mask=valid)
        assert_same(ours(x, initial_state=state, mask=valid), expected, dtype)
    assert_same(ours(x, mask=valid), theirs(x, mask=valid), dtype)  # zeros by default
