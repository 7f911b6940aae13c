"""The members of layers: attributes, shapes, states, configs, copies, backends.

What arrays a call takes, and `out=`, are in test_layers_arrays.py; cells of the user's own in
test_custom_cells.py.
"""

import copy
import inspect
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from grad_support import (
    MASKS,
    B,
    H,
    I,
    T,
    cells_of,
    draws,
    fill,
    flatten,
    gru,
    sequences,
    state,
)

import fastgru
from fastgru import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells

X, S = sequences("float32"), state("float32")


def everything():
    """Return one layer of each kind, with nothing at its default."""
    common = {"return_sequences": True, "dtype": "float64"}
    full = GRU(
        H,
        "softsign",
        "hard_sigmoid",
        False,
        "he_normal",
        fastgru.initializers.RandomUniform(-0.2, 0.3, seed=2),
        "ones",
        "l1",
        fastgru.regularizers.L2(0.3),
        "l1_l2",
        "l2",
        "non_neg",
        "max_norm",
        fastgru.constraints.UnitNorm(),
        0.1,
        0.2,
        7,
        True,
        True,
        True,
        True,
        True,
        False,
        False,
        time_major=True,
        zero_output_for_mask=True,
        implementation=1,
        dtype="float64",
        name="full",
        trainable=False,
    )
    return [
        full,
        GRU(H),
        RNN([GRUCell(H, seed=1, dropout=0.2), GRUCell(2)], return_state=True, name="stack"),
        RNN(GRUCell(3), time_major=True, activity_regularizer="l1"),
        Bidirectional(GRU(H, return_state=True, **common), merge_mode="ave"),
        Bidirectional(GRU(H), backward_layer=GRU(H, "relu", go_backwards=True), trainable=False),
        Sequential([GRU(H, **common), Bidirectional(GRU(2, **common), None)], name="model"),
    ]


NAMES = ["full", "plain", "stack", "time major", "both", "unlike halves", "model"]


@pytest.fixture(params=range(len(NAMES)), ids=NAMES)
def layer(request):
    return everything()[request.param]


# -- attributes ----------------------------------------------------------------------------------


def test_the_signature_is_the_spec():
    names = list(inspect.signature(GRU.__init__).parameters)[1:]
    assert names[:24] == [
        "units", "activation", "recurrent_activation", "use_bias",
        "kernel_initializer", "recurrent_initializer", "bias_initializer",
        "kernel_regularizer", "recurrent_regularizer", "bias_regularizer", "activity_regularizer",
        "kernel_constraint", "recurrent_constraint", "bias_constraint",
        "dropout", "recurrent_dropout", "seed", "return_sequences", "return_state",
        "go_backwards", "stateful", "unroll", "reset_after", "use_cudnn",
    ]  # fmt: skip
    call = list(inspect.signature(GRU.__call__).parameters)[1:]
    assert call == [
        "sequences", "initial_state", "mask", "training",
        "lengths", "reset_mask", "out", "num_threads",
    ]  # fmt: skip


def test_every_constructor_argument_is_an_attribute():
    full, plain = everything()[:2]
    for layer in (full, plain):
        for name, parameter in inspect.signature(GRU.__init__).parameters.items():
            if name in ("self", "kwargs"):
                continue
            value = getattr(layer, name)
            default = parameter.default
            if layer is plain and name not in ("units", "name", "dtype") and default is not None:
                if isinstance(default, str) and not isinstance(value, str):
                    assert value is not None
                else:
                    assert value == default, name
    assert (full.units, full.seed, full.dropout, full.recurrent_dropout) == (H, 7, 0.1, 0.2)
    assert full.activation == fastgru.activations.softsign
    assert full.kernel_regularizer.l1 == 0.01
    assert full.recurrent_constraint.max_value == 2
    assert (full.name, full.trainable, full.dtype) == ("full", False, "float64")
    for cls in (GRUCell, RNN, StackedRNNCells, Bidirectional, Sequential):
        for name in list(inspect.signature(cls.__init__).parameters)[1:]:
            if name not in ("layer", "weights", "kwargs"):
                example = {
                    GRUCell: lambda: GRUCell(2),
                    RNN: lambda: RNN(GRUCell(2)),
                    StackedRNNCells: lambda: StackedRNNCells([GRUCell(2)]),
                    Bidirectional: lambda: Bidirectional(GRU(2)),
                    Sequential: lambda: Sequential([GRU(2)]),
                }[cls]()
                assert hasattr(example, name), (cls, name)


def test_names_count_up_as_keras_names_do():
    first, second = GRU(2), GRU(2)
    stem, _, number = second.name.rpartition("_")
    assert stem == "gru"
    assert first.name in ("gru", f"gru_{int(number) - 1}")
    assert GRUCell(2).name.startswith("gru_cell")
    assert StackedRNNCells([GRUCell(2)]).name.startswith("stacked_rnn_cells")
    both = Bidirectional(GRU(2, name="abc"))
    assert both.name.startswith("bidirectional")
    assert (both.forward_layer.name, both.backward_layer.name) == ("forward_abc", "backward_abc")


def test_weights_and_their_shapes():
    for reset_after, use_bias in itertools.product([True, False], repeat=2):
        layer = GRU(H, reset_after=reset_after, use_bias=use_bias)
        assert not layer.built
        assert layer.weights == []
        layer.build((None, None, I))
        assert layer.built
        shapes = [(I, 3 * H), (H, 3 * H), (2, 3 * H) if reset_after else (3 * H,)]
        assert [v.shape for v in layer.weights] == shapes[: 2 + use_bias]
        assert [v.name for v in layer.weights] == ["kernel", "recurrent_kernel", "bias"][
            : 2 + use_bias
        ]
        assert layer.count_params() == sum(int(np.prod(s)) for s in shapes[: 2 + use_bias])
        assert layer.kernel is layer.cell.kernel
        assert (layer.bias is None) == (not use_bias)
        assert layer.variables == layer.weights
        values = layer.get_weights()
        values[0][...] = 5  # copies
        assert not (layer.kernel.value == 5).any()
        layer.set_weights(values)
        assert (layer.kernel.value == 5).all()


def test_weights_of_composed_layers_are_in_keras_order():
    both = fill(Bidirectional(GRU(H)))
    assert both.weights == [*both.forward_layer.weights, *both.backward_layer.weights]
    stack = fill(RNN([GRUCell(H), GRUCell(2)]))
    assert [v.shape[0] for v in stack.weights] == [I, H, 2, H, 2, 2]
    assert fill(Sequential([GRU(H, return_sequences=True), GRU(2)])).count_params() == (
        sum(v.size for v in fill(RNN([GRUCell(H), GRUCell(2)])).weights)
    )


def test_trainable_of_a_layer_and_of_a_weight():
    for make in (lambda **k: GRU(H, **k), lambda **k: Bidirectional(GRU(H), **k)):
        frozen = fill(make(trainable=False))
        assert frozen.trainable_weights == []
        assert frozen.non_trainable_weights == frozen.weights
        frozen.trainable = True
        assert frozen.trainable_weights == frozen.weights
        frozen.weights[0].trainable = False
        assert frozen.trainable_weights == frozen.weights[1:]
        assert frozen.non_trainable_weights == frozen.weights[:1]


def test_losses_and_constraints():
    layer = gru(kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2",
                kernel_constraint="non_neg", recurrent_constraint="unit_norm")  # fmt: skip
    kernel, recurrent, bias = layer.get_weights()
    assert layer.losses[1:] == [] or len(layer.losses) == 2  # no call, no activity loss yet
    y = layer(sequences())
    want = [0.01 * np.sum(y**2) / B, 0.01 * np.sum(kernel**2), 0.01 * np.sum(np.abs(bias))]
    np.testing.assert_allclose(layer.losses, want, rtol=1e-12)
    layer.apply_constraints()
    np.testing.assert_array_equal(layer.kernel.value, np.maximum(kernel, 0))
    np.testing.assert_allclose(np.linalg.norm(layer.recurrent_kernel.value, axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(layer.bias.value, bias)
    np.testing.assert_array_equal(np.sign(recurrent), np.sign(layer.recurrent_kernel.value))


# -- shapes and masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("kind", ["gru", "stack", "concat", "sum", "none", "sequential"])
def test_compute_output_shape_is_the_outputs_shape(kind, whole, states, time_major):
    common = {"return_sequences": whole, "return_state": states, "time_major": time_major}
    layer = {
        "gru": lambda: GRU(H, **common),
        "stack": lambda: RNN([GRUCell(H), GRUCell(2)], **common),
        "concat": lambda: Bidirectional(GRU(H, **common)),
        "sum": lambda: Bidirectional(GRU(H, **common), "sum"),
        "none": lambda: Bidirectional(GRU(H, **common), None),
        "sequential": lambda: Sequential(
            [GRU(2, return_sequences=True, time_major=time_major), GRU(H, **common)]
        ),
    }[kind]()
    shape = (T, B, I) if time_major else (B, T, I)
    outputs = layer(np.zeros(shape, "float32"))
    expected = layer.compute_output_shape(shape)
    # As in Keras, states come in a list per stacked cell and their shapes do not.
    assert [a.shape for a in flatten(outputs)] == shapes_in(expected)
    assert len(outputs) == len(expected) or isinstance(outputs, np.ndarray)
    unknown = shapes_in(layer.compute_output_shape((None, None, I)))
    assert [s[-1] for s in unknown] == [s[-1] for s in shapes_in(expected)]
    assert all(s[:-1] == (None,) * (len(s) - 1) for s in unknown)


def shapes_in(nested):
    if all(isinstance(n, (int, type(None))) for n in nested):
        return [tuple(nested)]
    return [shape for part in nested for shape in shapes_in(part)]


def test_compute_mask():
    mask = MASKS["holes"]
    assert GRU(H).compute_mask(X, mask) is None
    assert GRU(H, return_sequences=True, go_backwards=True).compute_mask(X, mask) is mask
    assert GRU(H, return_sequences=True, return_state=True).compute_mask(X, mask) == [mask, None]
    assert GRU(H, return_state=True).compute_mask(X, mask) == [None, None]
    both = Bidirectional(GRU(H, return_sequences=True), None)
    assert all(m is mask for m in both.compute_mask(X, mask))
    chain = Sequential([GRU(2, return_sequences=True), GRU(H)])
    assert chain.compute_mask(X, mask) is None


# -- states --------------------------------------------------------------------------------------


def test_states_of_a_stateful_layer(backend):
    layer = GRU(H, stateful=True, return_state=True)
    assert layer.states is None
    assert [s.tolist() for s in layer.get_initial_state(2)] == [[[0.0] * H] * 2]
    fill(layer)
    assert layer.states is None
    y, final = layer(X)
    assert [type(v) for v in layer.states] == [fastgru.Variable]
    assert not layer.states[0].trainable
    np.testing.assert_array_equal(layer.states[0].value, final)
    assert layer.weights == layer.cell.weights  # states are none of them
    again, _ = layer(X)
    want, _ = fill(GRU(H, return_state=True))(X, final)
    np.testing.assert_array_equal(again, want)
    layer.reset_states(S)
    np.testing.assert_array_equal(layer.states[0].value, S)
    layer.reset_states([S + 1])
    np.testing.assert_array_equal(layer.states[0].value, S + 1)
    layer.reset_state()
    assert not layer.states[0].value.any()
    np.testing.assert_array_equal(layer(X)[0], y)
    given, _ = layer(X, initial_state=S)
    np.testing.assert_array_equal(given, fill(GRU(H))(X, S))


def test_states_are_made_by_build_when_the_batch_size_is_known():
    layer = GRU(H, stateful=True, time_major=True)
    layer.build((T, B, I))
    assert layer.states[0].shape == (B, H)
    both = Bidirectional(GRU(H, stateful=True))
    both.build((B, T, I))
    assert [v.shape for v in both.states] == [(B, H)] * 2
    both.reset_states([S, S + 1])
    np.testing.assert_array_equal(both.states[1].value, S + 1)
    both.reset_state()
    assert not any(v.value.any() for v in both.states)


def test_the_states_callers_get_are_their_own():
    layer = gru(stateful=True, return_state=True)
    _, final = layer(sequences())
    kept = layer.states[0].numpy()
    final[...] = 9
    np.testing.assert_array_equal(layer.states[0].value, kept)


# -- configs and copies --------------------------------------------------------------------------


def test_config_round_trip(layer):
    config = layer.get_config()
    twin = type(layer).from_config(copy.deepcopy(config))
    assert twin.get_config() == config
    shape = (T, B, I) if layer.time_major else (B, T, I)
    for one in (layer, twin):
        fill(one)
    np.testing.assert_equal(twin.get_weights(), layer.get_weights())
    x = sequences(layer.dtype, shape=shape)
    for a, b in zip(flatten(layer(x)), flatten(twin(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_from_config_does_not_change_the_config(layer):
    config = layer.get_config()
    kept = copy.deepcopy(config)
    type(layer).from_config(config)
    assert config == kept


class Scaled(fastgru.regularizers.Regularizer):
    def __call__(self, w):
        return 2 * np.sum(w)

    def get_config(self):
        return {}


def twice_tanh(a):
    return 2 * np.tanh(a)


def test_custom_objects():
    layer = GRU(H, twice_tanh, kernel_regularizer=Scaled(), activity_regularizer=Scaled())
    custom = {"Scaled": Scaled, "twice_tanh": twice_tanh}
    for make in (lambda: layer, lambda: Bidirectional(layer), lambda: Sequential([layer])):
        config = make().get_config()
        twin = type(make()).from_config(config, custom_objects=custom)
        assert cells_of(twin)[0].activation is twice_tanh
        assert isinstance(cells_of(twin)[0].kernel_regularizer, Scaled)
        assert twin.get_config() == config
    cell = RNN(GRUCell(2), activity_regularizer=Scaled())
    again = RNN.from_config(cell.get_config(), custom_objects=custom)
    assert isinstance(again.activity_regularizer, Scaled)


COPIES = {
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
    "pickle 2": lambda o: pickle.loads(pickle.dumps(o, protocol=2)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(layer, way):
    fill(layer)
    shape = (T, B, I) if layer.time_major else (B, T, I)
    x = sequences(layer.dtype, shape=shape)
    layer(x, training=True)  # packs weights, moves states and dropout counters
    twin = COPIES[way](layer)
    assert twin.get_config() == layer.get_config()
    assert draws(twin) == draws(layer)
    weights, counts = layer.get_weights(), draws(layer)
    states = [v.numpy() for v in flatten_variables(layer)]
    got, want = (flatten(one(x, training=True)) for one in (twin, layer))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    twin.set_weights([np.zeros(v.shape, v.dtype) for v in twin.weights])
    assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), weights, strict=True))
    assert not any(f.any() for f in flatten(twin(x)) if not states)
    assert counts == [[a - (c.dropout > 0), b - (c.recurrent_dropout > 0)]
                      for (a, b), c in zip(draws(layer), cells_of(layer), strict=True)]  # fmt: skip
    with pytest.raises(ValueError, match="read-only"):
        twin.weights[0].value[...] = 1


def flatten_variables(layer):
    states = layer.states
    parts = [states] if not isinstance(states, (list, tuple)) else list(states)
    found = []
    while parts:
        part = parts.pop(0)
        if isinstance(part, (list, tuple)):
            parts = [*part, *parts]
        elif part is not None:
            found.append(part)
    return found


def test_a_copy_does_not_carry_packed_weights():
    layer = fill(GRU(64), features=32)
    small = len(pickle.dumps(layer))
    layer(sequences("float32", shape=(B, T, 32)))
    assert len(pickle.dumps(layer)) < small + 2000


# -- backends ------------------------------------------------------------------------------------


def test_explain_says_who_serves_and_runs_nothing():
    layer = GRU(H, stateful=True, dropout=0.2)
    says = layer.explain(X, mask=MASKS["holes"], training=True)
    assert (says.backend, says.reasons["cpu"]) == ("cpu", None)
    assert says.reasons["cuda"] == "the arrays are in host memory"
    assert f"b{B}t{T}i{I}h{H} float32" in str(says)
    assert (layer.built, layer.states, draws(layer)) == (False, None, [[0, 0]])
    own = GRU(H, twice_tanh).explain(X)
    assert own.backend == own.backward == "reference"
    assert own.reasons["cpu"]
    with fastgru.use_backend("reference"):
        assert layer.explain(X).backend == "reference"
    for other in (Bidirectional(GRU(H)), Sequential([GRU(H)])):
        assert other.explain(X).backend == "cpu"
    with pytest.raises(ValueError, match="expected three axes"):
        layer.explain(X[0])


def test_use_backend_nests_and_ends():
    layer = fill(GRU(H))
    with fastgru.use_backend("reference"):
        with fastgru.use_backend("cpu"):
            assert layer.explain(X).backend == "cpu"
        assert layer.explain(X).backend == "reference"
        oracle = layer(X)
    assert layer.explain(X).backend == "cpu"
    np.testing.assert_allclose(layer(X), oracle, atol=2e-6)


def test_show_config_prints(capsys):
    fastgru.show_config()
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line for line in lines}
    assert fastgru.__version__ in table["fastgru"]
    assert np.__version__ in table["numpy"]
    assert str(fastgru.get_num_threads()) in table["threads"]
    assert "reference" in table["backends"]
    assert {"scipy", "python", "machine", "gpu", "cudnn"} <= set(table)


@pytest.mark.parametrize("stateful", [False, True])
def test_first_calls_at_once_build_once(stateful):
    for make in (
        lambda: GRU(H, stateful=stateful),
        lambda: Bidirectional(GRU(H, stateful=stateful)),
        lambda: RNN([GRUCell(H), GRUCell(2)], stateful=stateful),
        lambda: Sequential([GRU(H, return_sequences=True), GRU(2, stateful=stateful)]),
    ):
        layer, barrier = make(), threading.Barrier(8)

        def first_call(_, layer=layer, barrier=barrier):
            barrier.wait()
            layer(X)
            return [id(v) for v in layer.weights]

        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(first_call, range(8)))
        assert all(ids == seen[0] for ids in seen)


def test_training_calls_at_once_keep_their_own_dropout_masks():
    layer = gru(dropout=0.5, recurrent_dropout=0.5, seed=4)
    batches = [sequences(shape=(b, T, I), seed=b) for b in (1, 2, 3, 4)] * 8

    def train(x):
        return layer(x, training=True).shape

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(train, batches)) == [(x.shape[0], H) for x in batches]
    assert draws(layer) == [[len(batches)] * 2]


@pytest.mark.parametrize("inner", [(4, 5), (4, 5, 3)])
@pytest.mark.parametrize("nested", [True, False])
def test_states_of_stacks_in_stacks_are_taken_as_they_were_given(inner, nested):
    cells = fastgru.StackedRNNCells([fastgru.GRUCell(units) for units in inner])
    parts = [fastgru.GRUCell(3), cells, fastgru.GRUCell(2)] if nested else [cells]
    layer = fastgru.RNN(fastgru.StackedRNNCells(parts), return_state=True)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    whole, *_ = layer(x)
    _, *states = layer(x[:, :3])
    again, *_ = layer(x[:, 3:], initial_state=states)
    assert np.array_equal(again, whole)
