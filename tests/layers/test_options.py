"""What users pass and set on layers: Keras' keywords, values, misspelt names; repr and paths."""

import copy
import pickle

import numpy as np
import pytest
from grad_support import B, H, I, T, sequences, state

import fastgru
from fastgru import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells

LAYERS = {
    "gru": lambda **k: GRU(H, **k),
    "rnn": lambda **k: RNN([GRUCell(H), GRUCell(2)], **k),
    "bidirectional": lambda **k: Bidirectional(GRU(H), **k),
    "sequential": lambda **k: Sequential([GRU(H, return_sequences=True), GRU(2)], **k),
}
CELLS = {
    "cell": lambda **k: GRUCell(H, **k),
    "stack": lambda **k: StackedRNNCells([GRUCell(H), GRUCell(2)], **k),
}


# -- Keras' keywords -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(
    "keywords",
    [
        {"input_shape": (T, I)},
        {"input_shape": [None, I], "batch_size": B},
        {"batch_input_shape": (B, T, I)},
        {"batch_shape": (None, None, I), "autocast": False},
        {"input_dim": I},
        {"input_dim": I, "input_length": T, "batch_size": B},
    ],
    ids=str,
)
def test_a_layer_with_an_input_shape_is_built_at_once(make, keywords):
    layer = make(**keywords)
    assert layer.built
    assert layer.weights[0].shape == (I, 3 * H)
    assert layer.input_spec.axes == {-1: I}
    layer(sequences())


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize(
    "keywords", [{"input_shape": (I,)}, {"batch_shape": (B, I)}, {"input_dim": I}]
)
def test_a_cell_with_an_input_shape_is_built_at_once(make, keywords):
    cell = make(**keywords)
    assert cell.built
    assert cell.weights[0].shape == (I, 3 * H)


def test_a_stateful_layer_with_a_batch_shape_has_its_states():
    for keywords in (
        {"batch_input_shape": (B, T, I)},
        {"input_shape": (T, I), "batch_size": B},
        {"input_dim": I, "batch_size": B},
    ):
        layer = GRU(H, stateful=True, **keywords)
        assert layer.states[0].shape == (B, H)
    layer = GRU(H, stateful=True, time_major=True, input_dim=I, batch_size=B, input_length=T)
    assert layer.states[0].shape == (B, H)


@pytest.mark.parametrize("make", [*LAYERS.values(), *CELLS.values()], ids=[*LAYERS, *CELLS])
def test_initial_weights(make):
    shape = {"input_dim": I}
    weights = [w + 1 for w in make(**shape).get_weights()]
    late = make(weights=weights)
    assert not late.built
    late.build((None, I) if late._axes == 2 else (None, None, I))
    for layer in (late, make(weights=weights, **shape)):
        for ours, given in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(ours, given)
    with pytest.raises(ValueError, match=r"expected (3|6) weights|as many arrays"):
        make(weights=weights[:-1], **shape)
    wrong = make(weights=[*weights[:-1], weights[-1][..., 1:]])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"bias: expected shape"):
            wrong.build((None, I) if wrong._axes == 2 else (None, None, I))
        assert not wrong.built
        assert wrong.weights == []


WRONG = {
    "misspelt": (
        {"tranable": True},
        TypeError,
        "unexpected argument 'tranable'; did you mean 'tra",
    ),
    "camel case": ({"inputShape": (T, I)}, TypeError, "did you mean 'input_shape'"),
    "shape misspelt": ({"inputshape": (T, I)}, TypeError, "did you mean 'input_shape'"),
    "unknown": ({"colour": 1}, TypeError, "got an unexpected argument 'colour'$"),
    "two shapes": (
        {"input_shape": (T, I), "input_dim": I},
        ValueError,
        "expected one input shape, got input_shape and input_dim",
    ),
    "no tuple": ({"input_shape": 3}, ValueError, "input_shape: expected a tuple, got 3"),
    "axes": ({"input_shape": (B, T, I)}, ValueError, r"input_shape: expected \(T, I\), got"),
    "batch axes": ({"batch_shape": (T, I)}, ValueError, r"batch_shape: expected 3 axes, got"),
    "features": ({"input_shape": (T, None)}, ValueError, r"input_shape: expected"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_wrong_keywords(make, name):
    keywords, error, pattern = WRONG[name]
    with pytest.raises(error, match=pattern):
        make(**keywords)


def test_misspelt_options():
    for make in (lambda **k: GRU(H, **k), lambda **k: RNN(GRUCell(H), **k)):
        for wrong in ("retrun_sequences", "returnSequences", "return_sequence"):
            with pytest.raises(TypeError, match=f"'{wrong}'; did you mean 'return_sequences'"):
                make(**{wrong: True})


def test_a_users_subclass_passes_keywords_on():
    class Mine(GRU):
        def __init__(self, units, scale=1.0, **kwargs):
            super().__init__(units, **kwargs)
            self.scale = scale

    layer = Mine(H, 2.0, return_sequences=True, input_shape=(T, I))
    assert layer.built
    assert (layer.scale, layer.return_sequences) == (2.0, True)
    assert repr(layer).startswith(f"Mine(units={H}, scale=2.0, return_sequences=True, name=")
    with pytest.raises(TypeError, match="did you mean 'scale'"):
        Mine(H, scal=2.0)
    with pytest.raises(AttributeError, match="did you mean 'scale'"):
        layer.scalle = 3.0


# -- what is set afterwards ------------------------------------------------------------------------

FLAGS = ["return_sequences", "return_state", "go_backwards", "stateful", "unroll", "trainable"]
FLAGS += ["zero_output_for_mask", "time_major"]


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_checked_when_passed_and_when_set(name):
    layer = GRU(H)
    for wrong in ("yes", None, 2, 0.5, [True]):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got"):
            setattr(layer, name, wrong)
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got"):
            GRU(H, **{name: wrong})
    for right in (True, np.bool_(False), 1, 0):
        setattr(layer, name, right)
        assert getattr(layer, name) is bool(right)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "pattern"),
    [
        ("reset_after", "before", TypeError, "reset_after: expected True or False, got 'before'"),
        ("use_bias", "no", TypeError, "use_bias: expected True or False"),
        ("activation", "tahn", ValueError, "tahn"),
        ("recurrent_activation", 3, (TypeError, ValueError), "3"),
        ("dropout", 1.5, ValueError, r"dropout: expected a number in \[0, 1\], got 1.5"),
        ("recurrent_dropout", "x", TypeError, r"recurrent_dropout: expected a number"),
        ("implementation", 3, ValueError, "implementation: expected 1 or 2, got 3"),
        ("kernel_initializer", "glorot", ValueError, "glorot"),
        ("bias_regularizer", "l3", ValueError, "l3"),
        ("recurrent_constraint", "max", ValueError, "max"),
        ("units", 0, ValueError, "units: expected a positive integer, got 0"),
    ],
)
def test_options_of_a_cell_are_checked_when_passed_and_when_set(name, wrong, error, pattern):
    cell = GRUCell(H)
    before = getattr(cell, name)
    with pytest.raises(error, match=pattern):
        setattr(cell, name, wrong)
    assert getattr(cell, name) is before
    with pytest.raises(error, match=pattern):
        GRU(**{"units": H, name: wrong})


def test_what_is_set_before_build_counts():
    x, h0 = sequences("float32"), state("float32")
    cell = GRUCell(H)
    cell.activation = "relu"
    cell.reset_after = False
    cell.use_bias = False
    layer = RNN(cell)
    layer.build((None, None, I))
    same = GRU(H, "relu", use_bias=False, reset_after=False, weights=layer.get_weights())
    np.testing.assert_array_equal(layer(x, h0), same(x, h0))


@pytest.mark.parametrize("name", ["units", "reset_after", "use_bias", "activation", "precision"])
def test_what_the_weights_depend_on_cannot_be_set_after_build(name):
    cell = GRUCell(H, input_dim=I)
    value = getattr(cell, name)
    with pytest.raises(AttributeError, match=f"{name} cannot be changed any more.*another layer"):
        setattr(cell, name, value)
    cell.forget()
    setattr(cell, name, value)


def test_misspelt_attributes():
    layer = GRU(H)
    with pytest.raises(AttributeError, match=r"no attribute 'retrun_sequences'; did you mean 'ret"):
        layer.retrun_sequences = False
    with pytest.raises(AttributeError, match=r"did you mean 'stateful'"):
        layer.statefull = True
    with pytest.raises(AttributeError, match=r"did you mean 'merge_mode'"):
        Bidirectional(layer).mergemode = "sum"
    layer.note = layer.columns = "the user's own"
    assert pickle.loads(pickle.dumps(layer)).note == "the user's own"


READ_ONLY = {
    "kernel": r"kernel cannot be set; write its numbers with gru\w*\.kernel\.assign\(array\)",
    "bias": r"bias cannot be set; write its numbers with gru\w*\.bias\.assign",
    "weights": r"weights cannot be set; write their numbers with set_weights",
    "trainable_variables": r"write their numbers with set_weights",
    "units": r"units cannot be set; make another layer",
    "cell": r"cell cannot be changed any more",
    "dtype": r"dtype cannot be set",
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_cannot_be_set(name):
    layer = GRU(H, input_dim=I)
    before = getattr(layer, name)
    with pytest.raises(AttributeError, match=READ_ONLY[name]):
        setattr(layer, name, before)
    with pytest.raises(
        AttributeError, match=r"kernel cannot be set; write its numbers with gru_ce"
    ):
        layer.cell.kernel = np.zeros((I, 3 * H))


def test_a_weight_is_not_changed_in_place():
    kernel = GRU(H, input_dim=I).kernel
    before = kernel.numpy()
    with pytest.raises(TypeError, match=r"kernel: .*not changed in place.*assign_sub\(d\)"):
        kernel -= 0.1
    with pytest.raises(TypeError, match=r"use assign\(value\)"):
        np.add(kernel, 1, out=kernel)
    np.testing.assert_array_equal(before, kernel)


def test_a_layer_is_no_cell():
    for layer in (GRU(H), Bidirectional(GRU(H)), Sequential([GRU(H)])):
        with pytest.raises(ValueError, match=r"expected a cell.*got the layer.*call the layer"):
            RNN(layer)
        with pytest.raises(ValueError, match=r"expected a cell.*got the layer"):
            StackedRNNCells([layer])


def test_return_flags_of_bidirectional_can_be_set():
    layer = Bidirectional(GRU(H, input_dim=I))
    x, mask = sequences("float32"), np.arange(T) < 4
    layer.build((None, None, I))
    same = Bidirectional(GRU(H, return_sequences=True, return_state=True))
    same.build((None, None, I))
    same.set_weights(layer.get_weights())
    layer.return_sequences = layer.return_state = True
    assert layer.return_sequences
    assert layer.return_state
    for ours, expected in zip(
        layer(x, mask=np.tile(mask, (B, 1))), same(x, mask=np.tile(mask, (B, 1))), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
    with pytest.raises(TypeError, match="return_state: expected True or False"):
        layer.return_state = "both"


# -- what a layer tells ----------------------------------------------------------------------------


def test_repr_shows_what_is_not_the_default():
    layer = GRU(4, return_sequences=True, dropout=0.5, kernel_regularizer="l2", name="one")
    own = (
        "GRU(units=4, kernel_regularizer=L2(l2=0.01), dropout=0.5, return_sequences=True, "
        "name='one')"
    )
    assert repr(layer) == own
    assert repr(GRU(3, "relu", dtype="float64", name="a")) == (
        "GRU(units=3, activation='relu', dtype='float64', name='a')"
    )
    assert repr(GRU(3, lambda a: a, name="a")).startswith("GRU(units=3, activation=<function")
    both = Bidirectional(GRU(3, name="a"), "sum", name="both")
    inner = "GRU(units=3, name='forward_a')"
    assert repr(both) == f"Bidirectional({inner}, merge_mode='sum', name='both')"
    assert repr(Sequential([layer, GRU(2, name="b")], name="s")) == (
        f"Sequential([{own}, GRU(units=2, name='b')], name='s')"
    )
    stack = RNN([GRUCell(3, name="a"), GRUCell(2, reset_after=False, name="b")], name="r")
    stack.cell.name = "cells"
    assert repr(stack) == (
        "RNN(StackedRNNCells([GRUCell(units=3, name='a'), "
        "GRUCell(units=2, reset_after=False, name='b')], name='cells'), name='r')"
    )


def test_repr_of_streams_tapes_and_variables():
    layer = GRU(4, name="one", input_dim=3)
    assert repr(layer.stream(5)) == "<Stream of one/gru_cell: n=5, I=3, dtype=float32>"
    _, tape = layer.forward(np.zeros((1, 2, 3)))
    assert repr(tape) == "<Tape of one>"
    layer.backward(tape, np.zeros((1, 4)))
    assert repr(tape) == "<Tape of one, used>"
    assert repr(layer.kernel) == (
        "<Variable path=one/gru_cell/kernel, shape=(3, 12), dtype=float32>"
    )


def test_paths_are_those_of_keras():
    keras = pytest.importorskip("keras", reason="it says what its paths are")

    def tree(package):
        layers = package.layers if hasattr(package, "layers") else package
        cells = [layers.GRUCell(3, name="a"), layers.GRUCell(2, name="b")]
        stack = layers.StackedRNNCells(cells, name="cells")
        return package.Sequential(
            [
                layers.Bidirectional(layers.GRU(3, return_sequences=True, name="g"), name="both"),
                layers.RNN(stack, return_sequences=True, name="r"),
                layers.GRU(2, name="last"),
            ],
            name="s",
        )

    theirs, ours = tree(keras), tree(fastgru)
    theirs.build((None, None, I))
    ours.build((None, None, I))
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]
    assert len({w.path for w in ours.weights}) == len(ours.weights)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [w.path for w in other.weights] == [w.path for w in ours.weights]
    assert [part.path for part in ours.layers] == ["s/both", "s/r", "s/last"]


def test_paths_of_layers_of_one_name_differ():
    layer = Sequential([GRU(2, return_sequences=True, name="a"), GRU(2, name="a")], input_dim=I)
    assert len({w.path for w in layer.weights}) == 6
    assert layer.layers[1].path.endswith("/a_1")


def test_a_cell_does_not_take_its_layer_along():
    layer = GRU(64, input_dim=64)
    assert len(pickle.dumps(GRU(2, input_dim=64).cell)) < 6000
    assert copy.deepcopy(layer.cell).path == "gru_cell"


def test_nothing_is_symbolic():
    for layer in (GRU(2), GRUCell(2), Bidirectional(GRU(2))):
        for name in ("input", "output"):
            assert not hasattr(layer, name)
            with pytest.raises(AttributeError, match=f"it has no {name}: nothing is symbolic"):
                getattr(layer, name)


def test_members_that_keras_has():
    layer = GRU(H, input_dim=I, name="g")
    assert layer.supports_masking
    assert layer.non_trainable_variables == []
    layer.trainable = False
    assert layer.non_trainable_variables == layer.weights
    assert layer.input_spec.ndim == 3
    assert GRUCell(2).input_spec.ndim == 2
    x, h0 = sequences("float32"), state("float32")
    np.testing.assert_array_equal(layer.call(x, h0), layer(x, h0))
    np.testing.assert_array_equal(layer.cell.call(x[:, 0], h0)[0], layer.cell(x[:, 0], h0)[0])
    layer = GRU(H, dropout=0.5, recurrent_dropout=0.5, seed=3)
    first = (
        layer.cell.get_dropout_mask(np.ones((2, I))),
        layer.cell.get_recurrent_dropout_mask(np.ones((2, H))),
    )
    layer.reset_dropout_mask()
    layer.reset_recurrent_dropout_mask()
    assert not np.array_equal(layer.cell.get_dropout_mask(np.ones((2, I))), first[0])
    assert not np.array_equal(layer.cell.get_recurrent_dropout_mask(np.ones((2, H))), first[1])


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_inner_loop_is_that_of_keras(return_sequences, masked):
    keras = pytest.importorskip("keras", reason="it says what its layers' inner_loop gives")
    x, h0 = sequences("float32"), state("float32")
    mask = np.random.default_rng(1).random((B, T)) < 0.7 if masked else None
    if masked:
        mask[:, -1] = True
    ours = GRU(H, return_sequences=return_sequences, stateful=True, input_dim=I, batch_size=B)
    theirs = keras.layers.GRU(H, return_sequences=return_sequences)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    got = ours.inner_loop(x, [h0], mask)
    expected = theirs.inner_loop(x, [h0], mask)
    for mine, other in zip((*got[:2], *got[2]), (*expected[:2], *expected[2]), strict=True):
        other = np.asarray(other)
        if not return_sequences and mine.ndim == 3:  # Keras on JAX gives all of them with a mask
            other = other[:, -1:]
        np.testing.assert_allclose(mine, other, atol=1e-6)
    assert not np.any(ours.states[0])


def test_inner_loop_over_no_steps():
    layer = GRU(H, return_sequences=True, input_dim=I)
    last, outputs, (final,) = layer.inner_loop(np.zeros((B, 0, I)), state("float32"), None)
    assert outputs.shape == (B, 0, H)
    assert not last.any()
    np.testing.assert_array_equal(final, state("float32"))


POLICIES = ["float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]


@pytest.mark.parametrize("name", POLICIES)
def test_dtype_policies_are_those_of_keras(name):
    keras = pytest.importorskip("keras", reason="it says what its policies are")
    pytest.importorskip("ml_dtypes", reason="bfloat16 is a type of ml_dtypes")
    theirs = keras.layers.GRU(3, dtype=name)
    config = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}}
    for given in (name, theirs.dtype_policy, config):
        for layer in (GRU(3, dtype=given), GRUCell(3, dtype=given), RNN(GRUCell(3, dtype=given))):
            assert layer.dtype_policy.name == theirs.dtype_policy.name
            for what in ("dtype", "compute_dtype", "variable_dtype"):
                assert getattr(layer, what) == getattr(theirs, what)
            assert layer.get_config()["dtype"]["config"] == theirs.get_config()["dtype"]["config"]
            again = type(layer).from_config(layer.get_config())
            assert again.dtype_policy == layer.dtype_policy
    layer = GRU(3, dtype=name, return_state=True, input_dim=2)
    y, state = layer(np.ones((1, 4, 2)))
    assert y.dtype.name == state.dtype.name == theirs.compute_dtype
    assert {w.dtype.name for w in layer.weights} == {theirs.variable_dtype}
    with pytest.raises(ValueError, match="dtype: expected 'float32', 'float64'"):
        GRU(3, dtype=name + "x")
