"""Keras compared over random configurations: every option that changes numbers or shapes.

FASTGRU_KERAS_CONFIGS says how many: 300 by default; 2000 is what the project promises, float64 in
1e-12 and float32 in 2e-6 absolute, T up to 50. The seed is fixed: configuration i is the same in
every run. A failure shows the case, to be pasted into ``check(...)``.

Without bounds on the activations, or with gates outside [0, 1], the state may grow over 50 steps
beyond what an absolute bound can mean; there the weights are scaled down, see `_scale`.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras_support import ALONG_UNITS, BY_VALUE, ELEMENTWISE, Case, check

# Keras warns of a softmax over one unit, which is drawn here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")

COUNT = int(os.environ.get("FASTGRU_KERAS_CONFIGS", "300"))
CHUNK = 25
SEED = 20_251_121

INITIALIZERS = [
    *("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform"),
    *("lecun_normal", "orthogonal", "random_normal", "random_uniform", "truncated_normal"),
    *("variance_scaling", "zeros", "ones", "identity"),
]
BIAS_INITIALIZERS = ["zeros", "ones", "random_normal", "random_uniform"]
# Keras rounds a regularizer's factor to float32, so these are powers of two.
BIAS_REGULARIZERS = [
    None,
    {"class_name": "L1", "config": {"l1": 0.25}},
    {"class_name": "L2", "config": {"l2": 0.125}},
    {"class_name": "L1L2", "config": {"l1": 0.0625, "l2": 0.5}},
]
REGULARIZERS = [  # the orthogonal one is for matrices, of two rows at least
    *BIAS_REGULARIZERS,
    {"class_name": "OrthogonalRegularizer", "config": {"factor": 0.0625, "mode": "rows"}},
]
CONSTRAINTS = [None, "max_norm", "non_neg", "unit_norm"]
# A rate of 1 draws masks that neither library applies.
RATES = [0.0, 0.0, 0.0, 0.3, 0.5, 1.0]


def draw_case(choose):
    """Make a case; ``choose(options)`` picks one, the first being the simplest."""
    kind = choose(["gru", "rnn", "stacked"])
    bidirectional = choose([False, False, True])
    count = choose([2, 3]) if kind == "stacked" else 1  # Keras fails on a stack of one
    shared = {
        "implementation": choose([2, 1]),
        "dropout": choose(RATES),
        "recurrent_dropout": choose(RATES),
    }
    inputs = choose([1, 2, 3, 5, 8, 17])
    cells = ()
    for _ in range(count):
        cells += (_draw_cell(choose, cells[-1]["units"] if cells else inputs, shared),)
    layer = {
        "return_sequences": choose([True, False]),
        "return_state": choose([False, True]),
        "go_backwards": not bidirectional and choose([False, True]),
        "stateful": choose([False, False, True]),
        "zero_output_for_mask": choose([False, True]),
        "activity_regularizer": choose([None, None, None, BIAS_REGULARIZERS[2]]),
    }
    dtype = choose(["float64", "float32"])
    case = Case(
        kind=kind,
        cells=cells,
        layer=layer,
        merge_mode=choose(["concat", "sum", "mul", "ave", "none"]) if bidirectional else None,
        batch=choose([1, 2, 3, 7]),
        steps=choose(_lengths(cells, dtype)),
        inputs=inputs,
        mask=choose(["none", "right", "left", "holes", "empty", "full"]),
        mask_as=choose(["bool", "int64", "float32"]),
        initial_state=choose([False, True]),
        training=choose([True, False]),
        calls=choose([1, 1, 2, 3]) if layer["stateful"] else choose([1, 1, 1, 2]),
        reset=layer["stateful"] and choose([False, True]),
        time_major=choose([False, True]),
        dtype=dtype,
        scale=_scale(cells),
        seed=choose(range(100_000)),
    )
    changes = {"via": _draw_route(choose, case)}
    if case.mask == "right" and choose([False, True]):
        changes["mask_as"] = "lengths"
    return replace(case, **changes)


def _draw_cell(choose, inputs, shared):
    activation = choose([*["tanh"] * 10, *ELEMENTWISE, *ALONG_UNITS])
    gate = choose([*["sigmoid"] * 10, *ELEMENTWISE, *ALONG_UNITS])
    cell = {
        # log_softmax over H units is about -log(H): beyond -1, and growing with T, from H = 3.
        "units": choose([2, 1] if gate == "log_softmax" else [3, 1, 2, 4, 6, 11]),
        "activation": activation,
        "recurrent_activation": gate,
        "use_bias": choose([True, False]),
        "reset_after": choose([True, False]),
        "kernel_initializer": choose(INITIALIZERS),
        "recurrent_initializer": choose(INITIALIZERS),
        "bias_initializer": choose(BIAS_INITIALIZERS),
        **shared,
    }
    for role in ("kernel", "recurrent", "bias"):
        rows = {"kernel": inputs, "recurrent": cell["units"], "bias": 1}[role]
        options = REGULARIZERS if rows > 1 else BIAS_REGULARIZERS
        cell[f"{role}_regularizer"] = choose(options)
        cell[f"{role}_constraint"] = choose(CONSTRAINTS)
    return cell


def _draw_route(choose, case):
    """By constructor or by config, where the config can say it all."""
    routes = ["constructor"]
    names = {c[key] for c in case.cells for key in ("activation", "recurrent_activation")}
    # What Keras cannot take by name it cannot write down; and it has no time_major.
    if not names & {*BY_VALUE} and not case.time_major:
        routes.append("keras_from_ours")
        if case.cells[0]["implementation"] == 2 or case.cells[0]["recurrent_dropout"]:
            routes.append("ours_from_keras")  # Keras leaves ``implementation`` out
    return choose(routes)


# A gate in [0, 1] makes the new state an average of the old one and the candidate.
AVERAGING = {"sigmoid", "hard_sigmoid", "sparse_sigmoid", "softmax", "sparsemax"}
BOUNDED = AVERAGING | {"tanh", "softsign", "hard_tanh"}


# These are 1 at 0, so that the state forgets nothing, rounding errors included: after 50 steps of
# them Keras' float32 may be 2.7e-6 from its float64. test_keras_grid has 50 steps of them too.
AROUND_ONE = ("exponential", "squareplus")


def _lengths(cells, dtype):
    """Numbers of steps to choose from."""
    around_one = {cell["recurrent_activation"] for cell in cells} & {*AROUND_ONE}
    long = [21] if around_one and dtype == "float32" else [21, 50, 50]
    return [1, 2, 3, 5, 8, 13, *long]


def _scale(cells):
    """Bound of the weights: smaller where an activation lets the state grow without end."""
    gates = {cell["recurrent_activation"] for cell in cells}
    if gates & {*AROUND_ONE}:
        return 0.01
    if not gates <= AVERAGING:
        return 0.05
    return 0.6 if {cell["activation"] for cell in cells} <= BOUNDED else 0.2


def numbered(index):
    """Return configuration ``index`` of the fixed sequence."""
    rng = np.random.default_rng([SEED, index])
    return draw_case(lambda options: options[int(rng.integers(len(options)))])


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_random_configurations(first):
    failures = []
    for index in range(first, min(first + CHUNK, COUNT)):
        case = numbered(index)
        try:
            check(case)
        except Exception as error:  # reported below, with the case that it belongs to
            failures.append(f"{type(error).__name__}: {error}\n    {case!r}")
    assert not failures, f"{len(failures)} of {CHUNK}:\n" + "\n".join(failures)


@st.composite
def cases(draw):
    return draw_case(lambda options: draw(st.sampled_from(options)))


@given(case=cases())
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_drawn_configurations(case):
    check(case)


def test_the_sequence_reaches_every_option():
    drawn = [numbered(index) for index in range(2000)]
    cells = [cell for case in drawn for cell in case.cells]
    assert {c["activation"] for c in cells} == {*ELEMENTWISE, *ALONG_UNITS}
    assert {c["recurrent_activation"] for c in cells} == {*ELEMENTWISE, *ALONG_UNITS}
    assert {c["kernel_initializer"] for c in cells} == {*INITIALIZERS}
    for field, values in {
        "kind": {"gru", "rnn", "stacked"},
        "merge_mode": {None, "concat", "sum", "mul", "ave", "none"},
        "mask": {"none", "right", "left", "holes", "empty", "full"},
        "mask_as": {"bool", "int64", "float32", "lengths"},
        "via": {"constructor", "keras_from_ours", "ours_from_keras"},
        "dtype": {"float32", "float64"},
        "time_major": {False, True},
        "initial_state": {False, True},
        "training": {False, True},
    }.items():
        assert {getattr(case, field) for case in drawn} == values
    assert max(case.steps for case in drawn) == 50
    assert len({repr(case) for case in drawn}) == 2000
