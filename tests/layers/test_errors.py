"""Errors, wrong calls: each is refused before any work, with a message that helps.

Checked for each: the type, what the message says was expected and what it got, and that nothing has
changed: weights, states, losses, dropout counters, built flags, ``out``. The same table is run
through the call and through ``forward``, on layers that are built and that are not.

Constructors, weights, configs, functions and ``backward`` are in test_errors_setup.py.
"""

import numpy as np
import pytest
from grad_support import B, H, I, T, cells_of, draws, fill, flatten

import fastgru


def photograph(layer):
    """Return everything about a layer that a refused call must leave alone."""
    parts = [layer, *getattr(layer, "layers", ()), *getattr(layer, "halves", ())]
    states = [getattr(part, "states", None) for part in parts]
    return {
        "built": [part.built for part in (*parts, *cells_of(layer))],
        "weights": [(id(v), v.value.tobytes()) for v in layer.weights],
        "states": [
            None if s is None else [None if a is None else np.asarray(a) for a in _leaves(s)]
            for s in states
        ],
        "losses": [float(loss) for loss in layer.losses],
        "draws": draws(layer),
    }


def _leaves(nested):
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in _leaves(part)]
    return [nested]


def x(dtype="float32", shape=(B, T, I)):
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def h(dtype="float32", shape=(B, H)):
    return np.random.default_rng(2).normal(size=shape).astype(dtype)


ALL = np.ones((B, T), bool)
RAGGED = [[1, 0], [1]]


def read_only(array):
    array.setflags(write=False)
    return array


def masked(array):
    return np.ma.array(array, mask=np.zeros(array.shape, bool))


class OnDevice:
    """What an array on a CUDA device looks like to a machine that has none."""

    __cuda_array_interface__ = {"shape": (B, T, I), "typestr": "<f4", "data": (0, False)}  # noqa: RUF012

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


def call(*args, **kwargs):
    return args, kwargs


SHAPE = r"mask: expected shape \(B, T\) = \(4, 7\).*got "
STATE = r"initial_state: expected shape \(B, H\) = \(4, 5\), got "
NUMBERS = r"expected numbers, got "

# What is wrong with a call of a GRU layer (B, T, I) = (4, 7, 3), H = 5, float32, return_sequences.
CALLS = {
    # sequences
    "two axes": (call(x()[0]), ValueError, r"expected three axes \(B, T, I\).*\(7, 3\).*add the"),
    "one axis": (call(x()[0, 0]), ValueError, r"sequences: expected three axes.*got shape \(3,\)"),
    "four axes": (call(x()[None]), ValueError, r"expected three axes.*got shape \(1, 4, 7, 3\)"),
    "a scalar": (call(3.0), ValueError, r"sequences: expected three axes.*got shape \(\)"),
    "an empty list": (call([]), ValueError, r"sequences: expected three axes.*got shape \(0,\)"),
    "complex": (call(x("complex64")), TypeError, r"expected real numbers, got complex64.*\.real"),
    "complex list": (call([[[1j] * I]]), TypeError, r"expected real numbers, got complex128"),
    "text": (call("abc"), TypeError, rf"sequences: {NUMBERS}dtype <U3"),
    "bytes": (call(b"abc"), TypeError, rf"sequences: {NUMBERS}dtype \|S3"),
    "objects": (call(x("O")), TypeError, rf"sequences: {NUMBERS}dtype object"),
    "None": (call(None), TypeError, rf"sequences: {NUMBERS}None"),
    "dates": (call(np.zeros((B, T, I), "M8[s]")), TypeError, rf"{NUMBERS}dtype datetime64"),
    "records": (call(np.zeros((B, T), "f4,f4,f4")), TypeError, NUMBERS),
    "ragged": (call([RAGGED]), ValueError, r"sequences: expected a rectangular array"),
    "masked array": (call(masked(x())), TypeError, r"got a numpy.ma.MaskedArray.*mask="),
    "device array": (call(OnDevice()), fastgru.BackendError, r"sequences: .*CUDA device.*CuPy"),
    # mask
    "mask of one row": (call(x(), mask=[1] * T), ValueError, rf"{SHAPE}\(7,\)"),
    "mask (T, B)": (call(x(), mask=ALL.T), ValueError, rf"{SHAPE}\(7, 4\)"),
    "mask (B, T, 1)": (call(x(), mask=ALL[..., None]), ValueError, rf"{SHAPE}\(4, 7, 1\)"),
    "mask one short": (call(x(), mask=ALL[:, 1:]), ValueError, rf"{SHAPE}\(4, 6\)"),
    "mask scalar": (call(x(), mask=True), ValueError, rf"{SHAPE}\(\)"),
    "mask of 2": (call(x(), mask=2 * ALL), ValueError, r"mask: expected only 0 and 1.*mask != 0"),
    "mask of -1": (call(x(), mask=-1 * ALL), ValueError, r"mask: expected only 0 and 1"),
    "mask of 0.5": (call(x(), mask=0.5 * ALL), ValueError, r"mask: expected only 0 and 1"),
    "mask of NaN": (call(x(), mask=np.nan * ALL), ValueError, r"mask: expected only 0 and 1"),
    "mask of text": (call(x(), mask=ALL.astype("U5")), TypeError, r"mask: expected a bool or 0/1"),
    "mask complex": (call(x(), mask=1j * ALL), TypeError, r"mask: expected a bool.*complex128"),
    "mask objects": (call(x(), mask=ALL.astype("O")), TypeError, r"mask: expected a bool.*object"),
    "mask ragged": (call(x(), mask=RAGGED), (ValueError, TypeError), r"mask: expected"),
    "mask masked": (call(x(), mask=masked(ALL)), TypeError, r"mask: expected.*MaskedArray"),
    "mask and lengths": (call(x(), mask=ALL, lengths=[T] * B), ValueError, r"not both; drop one"),
    # lengths
    "lengths too long": (call(x(), lengths=[7, 8, 1, 0]), ValueError, r"0\.\.7, got.*0 to 8"),
    "lengths negative": (call(x(), lengths=[-1, 2, 1, 0]), ValueError, r"0\.\.7, got.*-1 to 2"),
    "lengths float": (
        call(x(), lengths=[7.0] * B),
        TypeError,
        r"lengths: expected integers.*float",
    ),
    "lengths bool": (call(x(), lengths=[True] * B), TypeError, r"lengths: expected integers.*bool"),
    "lengths text": (call(x(), lengths=["7"] * B), TypeError, r"lengths: expected integers"),
    "lengths None": (call(x(), lengths=[None] * B), TypeError, r"expected integers.*object"),
    "lengths count": (call(x(), lengths=[7] * 3), ValueError, r"\(B,\) = \(4,\).*got \(3,\)"),
    "lengths column": (call(x(), lengths=[[7]] * B), ValueError, r"\(4,\), one per row.*\(4, 1\)"),
    "lengths scalar": (call(x(), lengths=7), ValueError, r"lengths: expected shape.*got \(\)"),
    "lengths empty": (call(x(), lengths=[]), ValueError, r"lengths: expected shape.*got \(0,\)"),
    "lengths ragged": (call(x(), lengths=RAGGED), (ValueError, TypeError), r"lengths: expected"),
    # reset_mask
    "reset_mask (T, B)": (call(x(), reset_mask=ALL.T), ValueError, r"reset_mask: expected shape"),
    "reset_mask of 2": (call(x(), reset_mask=2 * ALL), ValueError, r"reset_mask: expected only 0"),
    "reset_mask text": (call(x(), reset_mask="no"), TypeError, r"reset_mask: expected a bool"),
    # initial_state
    "state batch": (call(x(), h()[1:]), ValueError, rf"{STATE}\(3, 5\)"),
    "state units": (call(x(), h()[:, 1:]), ValueError, rf"{STATE}\(4, 4\)"),
    "state axes": (call(x(), h()[None, None]), ValueError, rf"{STATE}\(1, 1, 4, 5\)"),
    "state scalar": (call(x(), 0.0), ValueError, rf"{STATE}\(\)"),
    "two states": (call(x(), [h(), h()]), ValueError, r"expected 1 state\(s\).*got 2"),
    "no states": (call(x(), []), ValueError, r"initial_state: expected 1 state\(s\).*got 0"),
    "state complex": (call(x(), h("complex64")), TypeError, r"initial_state: expected real number"),
    "state text": (call(x(), "zeros"), TypeError, rf"initial_state: {NUMBERS}"),
    "state dict": (call(x(), {"h": h()}), TypeError, rf"initial_state: {NUMBERS}"),
    "state None in list": (call(x(), [None]), TypeError, rf"initial_state: {NUMBERS}"),
    "state masked": (call(x(), masked(h())), TypeError, r"initial_state: .*MaskedArray"),
    # out
    "out list": (call(x(), out=[]), TypeError, r"out: expected a NumPy array, got list"),
    "out shape": (call(x(), out=h()), ValueError, r"out: expected shape.*\(4, 7, 5\), got \(4, 5"),
    "out float64": (call(x(), out=np.zeros((B, T, H))), TypeError, r"dtype float32, got float64"),
    "out swapped": (call(x(), out=np.zeros((B, T, H), ">f4")), TypeError, r"float32, got >f4"),
    "out read-only": (
        call(x(), out=read_only(np.zeros((B, T, H), "float32"))),
        ValueError,
        r"out: expected a writeable array, got a read-only",
    ),
    # num_threads
    "no threads": (call(x(), num_threads=0), ValueError, r"expected an integer >= 1, got 0"),
    "-1 threads": (call(x(), num_threads=-1), ValueError, r"expected an integer >= 1, got -1"),
    "1.5 threads": (call(x(), num_threads=1.5), TypeError, r"expected an integer >= 1, got 1.5"),
    "'2' threads": (call(x(), num_threads="2"), TypeError, r"expected an integer >= 1, got '2'"),
    "True threads": (call(x(), num_threads=True), TypeError, r"an integer >= 1, got True"),
}

RATES = {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1, "activity_regularizer": "l2"}


def make(kind):
    """Return a layer that takes the calls of the table."""
    units, whole = H, {"return_sequences": True}
    cells = {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1}
    if kind == "not built":
        return fastgru.GRU(units, **whole, **RATES)
    if kind == "gru":
        return fill(fastgru.GRU(units, **whole, **RATES))
    if kind == "stateful":
        layer = fill(fastgru.GRU(units, stateful=True, **whole, **RATES))
        layer(x(), h())
        return layer
    if kind == "rnn":
        return fill(fastgru.RNN(fastgru.GRUCell(units, **cells), **whole))
    assert kind == "sequential"
    # Its own initial states and outputs are in the table below.
    return fastgru.Sequential(
        [fastgru.GRU(2, stateful=True, **whole, **RATES), fastgru.GRU(units, **whole)]
    )


def refused(layer, way, arguments, error, pattern):
    """Assert that a call is refused and has changed nothing."""
    args, kwargs = arguments
    out = kwargs.get("out")
    before = photograph(layer), None if not isinstance(out, np.ndarray) else out.copy()
    with pytest.raises(error, match=f"(?s){pattern}") as caught:
        getattr(layer, way)(*args, training=True, **kwargs)
    after = photograph(layer), None if not isinstance(out, np.ndarray) else out
    np.testing.assert_equal(after, before)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("way", ["__call__", "forward"])
@pytest.mark.parametrize("kind", ["gru", "not built", "stateful", "rnn"])
@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls(name, kind, way):
    refused(make(kind), way, *CALLS[name])


@pytest.mark.parametrize("name", [n for n in CALLS if "state" not in n])
def test_wrong_calls_of_a_sequential(name):
    arguments, error, pattern = CALLS[name]
    if name == "one axis":
        arguments = call(x()[0, 0])
    refused(make("sequential"), "__call__", arguments, error, pattern)


@pytest.mark.parametrize("name", [n for n in CALLS if "state" not in n and "out" not in n])
@pytest.mark.parametrize("merge_mode", ["concat", None])
def test_wrong_calls_of_a_bidirectional(name, merge_mode):
    inner = fastgru.GRU(H, stateful=True, return_sequences=True, **RATES)
    refused(fastgru.Bidirectional(inner, merge_mode), "__call__", *CALLS[name])


def test_wrong_features_once_built():
    for kind in ("gru", "stateful", "rnn"):
        wrong = call(x(shape=(B, T, 2)))
        refused(make(kind), "__call__", wrong, ValueError, r"expected I = 3 features.*got 2")
    cell = fill(fastgru.GRUCell(H))
    fresh = fastgru.RNN(cell)
    refused(fresh, "__call__", call(x(shape=(B, T, 2))), ValueError, r"I = 3.*got.*2")


def test_wrong_calls_with_time_major():
    layer = fill(fastgru.GRU(H, time_major=True, return_sequences=True))
    swapped = x(shape=(T, B, I))
    for kwargs, pattern in (
        ({"mask": ALL}, r"mask: expected shape \(T, B\) = \(7, 4\).*got \(4, 7\)"),
        ({"reset_mask": ALL}, r"reset_mask: expected shape \(T, B\) = \(7, 4\)"),
        ({"lengths": [1] * T}, r"lengths: expected shape \(B,\) = \(4,\).*got \(7,\)"),
        ({"initial_state": h(shape=(T, H))}, rf"{STATE}\(7, 5\)"),
        ({"out": np.zeros((B, T, H), "float32")}, r"out: expected shape \(T, B, H\) = \(7, 4, 5\)"),
    ):
        refused(layer, "__call__", call(swapped, **kwargs), ValueError, pattern)
    refused(layer, "__call__", call(x()[0]), ValueError, r"expected three axes \(T, B, I\)")


def test_wrong_out_of_the_last_output():
    layer = fill(fastgru.GRU(H))
    for shape in ((B, T, H), (B, H + 1), (H, B)):
        wrong = call(x(), out=np.zeros(shape, "float32"))
        refused(layer, "__call__", wrong, ValueError, r"out: expected shape \(B, H\) = \(4, 5\)")


BIDIRECTIONAL = {
    "one state": (call(x(), h()), r"expected a list of 2 states, the forward layer's first"),
    "one state in a list": (call(x(), [h()]), r"expected a list of 2 states"),
    "three states": (call(x(), [h()] * 3), r"expected a list of 2 states"),
    "wrong forward state": (call(x(), [h()[1:], h()]), rf"{STATE}\(3, 5\)"),
    "wrong backward state": (call(x(), [h(), h()[:, 1:]]), rf"{STATE}\(4, 4\)"),
    "out of one half": (
        call(x(), out=np.zeros((B, T, H), "float32")),
        r"out: expected shape.*\(4, 7, 10\), got \(4, 7, 5\)",
    ),
    "two axes and out": (
        call(x()[0], out=np.zeros((B, T, 2 * H), "float32")),
        r"sequences: expected three axes",
    ),
    "one axis and out": (call(x()[0, 0], out=h()), r"sequences: expected three axes"),
}


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_wrong_calls_of_bidirectional_alone(name, built, stateful):
    layer = fastgru.Bidirectional(fastgru.GRU(H, return_sequences=True, stateful=stateful, **RATES))
    if built:
        layer(x())
    arguments, pattern = BIDIRECTIONAL[name]
    refused(layer, "__call__", arguments, ValueError, pattern)


def test_bidirectional_without_a_merge_takes_no_out():
    layer = fastgru.Bidirectional(fastgru.GRU(H), merge_mode=None)
    refused(layer, "__call__", call(x(), out=h()), ValueError, r"merge_mode=None.*two outputs")


@pytest.mark.parametrize("built", [False, True])
def test_wrong_states_of_sequential_and_stacks(built):
    chain = make("sequential")
    stack = fastgru.RNN([fastgru.GRUCell(2, dropout=0.4), fastgru.GRUCell(H, seed=3)])
    pair = h(shape=(B, 2)), h()
    if built:
        chain(x(), [*pair])
        stack(x(), [*pair])
    for layer, states, pattern in (
        (chain, h(), r"initial_state: expected a list of 2, one entry per layer"),
        (chain, [pair[0]], r"initial_state: expected a list of 2, one entry per layer"),
        (chain, [pair[1], pair[1]], r"expected shape \(B, H\) = \(4, 2\), got \(4, 5\)"),
        (chain, [None, pair[0]], r"expected shape \(B, H\) = \(4, 5\), got \(4, 2\)"),
        (stack, h(), r"initial_state: expected a list of 2 states, got an array"),
        (stack, [pair[0]], r"initial_state: expected 2 state\(s\).*got 1"),
        (stack, pair[::-1], r"initial_state\[0\]: expected shape \(B, H\) = \(4, 2\)"),
        (stack, [[pair[0]], [pair[0]]], r"initial_state\[1\]: expected shape \(B, H\) = \(4, 5\)"),
    ):
        refused(layer, "__call__", call(x(), states), ValueError, pattern)


def test_stateful_batch_size():
    layer = make("stateful")
    refused(layer, "__call__", call(x()[1:]), ValueError, r"keeps B = 4 rows, got B = 3; use the")
    both = fastgru.Bidirectional(fastgru.GRU(H, stateful=True, **RATES))
    both(x())
    refused(both, "__call__", call(x()[1:]), ValueError, r"keeps B = 4 rows, got B = 3")
    chain = make("sequential")
    chain(x())
    refused(chain, "__call__", call(x()[1:]), ValueError, r"keeps B = 4 rows, got B = 3")


# -- a backend that was asked for ---------------------------------------------------------------


def custom(a):
    return np.tanh(a)


@pytest.mark.parametrize("way", ["__call__", "forward"])
@pytest.mark.parametrize("composed", ["alone", "second layer", "backward half", "second cell"])
def test_a_backend_that_cannot_serve_is_refused_before_any_work(composed, way):
    odd = {"activation": custom}
    inner = {"stateful": True, **RATES}
    if composed == "alone":
        layer = fastgru.GRU(H, **odd, **inner)
    elif composed == "second layer":
        first = fastgru.GRU(2, return_sequences=True, **inner)
        layer = fastgru.Sequential([first, fastgru.GRU(H, **odd, **inner)])
    elif composed == "backward half":
        other = fastgru.GRU(H, go_backwards=True, **odd, **inner)
        layer = fastgru.Bidirectional(fastgru.GRU(H, **inner), backward_layer=other)
    else:
        cells = [fastgru.GRUCell(2, dropout=0.4), fastgru.GRUCell(H, activation=custom)]
        layer = fastgru.RNN(cells, stateful=True)
    with fastgru.use_backend("cpu"):
        wrong = ValueError, r"backend 'cpu' was asked for and cannot serve.*leave the choice"
        refused(layer, way, call(x()), *wrong)
        with fastgru.use_backend("reference"):
            layer(x())
        refused(layer, way, call(x()), *wrong)


CUDNN = {
    "as it is": ({}, {}, r"host memory"),
    "activation": ({"activation": "relu"}, {}, r"activation is not tanh"),
    "gates": ({"recurrent_activation": "tanh"}, {}, r"recurrent_activation is not sigmoid"),
    "reset_after": ({"reset_after": False}, {}, r"reset_after is False"),
    "unroll": ({"unroll": True}, {}, r"unroll is True"),
    "recurrent_dropout": ({"recurrent_dropout": 0.1}, {}, r"recurrent_dropout is in use"),
    "holes": ({}, {"mask": [[1, 0, 1, 1, 1, 1, 1]] * B}, r"mask is not right-padded"),
    "resets": ({}, {"reset_mask": ALL}, r"reset_mask resets rows"),
    "several": (
        {"activation": "relu", "reset_after": False, "unroll": True},
        {},
        r"host.*activation is not tanh.*reset_after is False.*unroll is True.*use_cudnn='auto'",
    ),
}


@pytest.mark.parametrize("name", CUDNN)
def test_use_cudnn_names_each_reason(name):
    arguments, kwargs, pattern = CUDNN[name]
    layer = fastgru.GRU(H, use_cudnn=True, stateful=True, dropout=0.3, **arguments)
    pattern = rf"use_cudnn=True was asked for.*{pattern}"
    refused(layer, "__call__", call(x(), **kwargs), ValueError, pattern)
    second = fastgru.GRU(H, use_cudnn=True, **arguments)
    first = fastgru.GRU(2, stateful=True, dropout=0.3, return_sequences=True)
    chain = fastgru.Sequential([first, second])
    refused(chain, "forward", call(x(), **kwargs), ValueError, pattern)
    layer.use_cudnn = "auto"
    assert layer(x(), **kwargs).shape == (B, H)


def test_there_are_enough_wrong_calls():
    assert len(CALLS) >= 60


def test_the_photograph_sees_what_changes():
    layer = make("stateful")
    before = photograph(layer)
    layer(x(), training=True)
    after = photograph(layer)
    assert before["draws"] != after["draws"]
    assert before["losses"] != after["losses"]
    assert (flatten(before["states"][0])[0] != flatten(after["states"][0])[0]).any()
    layer.kernel.assign_add(1)
    assert photograph(layer)["weights"] != after["weights"]


@pytest.mark.parametrize("name", ["mask", "reset_mask", "lengths"])
def test_more_steps_than_any_machine_holds_are_not_read(name):
    """Views that repeat a few bytes: the steps of a mask would take hours to read."""
    rows = 2**44
    layer = fastgru.GRU(H)
    layer.build((None, None, I))
    many = np.broadcast_to(np.float32(1), (rows, T, I))
    steps = np.broadcast_to(np.int32(1), rows)
    if name != "lengths":
        steps = np.broadcast_to(np.bool_(True), (rows, T))
    with pytest.raises(MemoryError, match="sequences"):
        layer(many, **{name: steps})
    with pytest.raises(MemoryError, match="x"):
        fastgru.gru(many, layer.kernel, layer.recurrent_kernel, layer.bias, **{name: steps})


TENSORS = {
    "records gradients": (
        lambda torch: torch.ones(B, T, I, requires_grad=True),
        r"sequences: expected numbers, got a Tensor that records .*; pass sequences.detach\(\)",
    ),
    "bfloat16": (
        lambda torch: torch.ones(B, T, I, dtype=torch.bfloat16),
        r"sequences: expected an array, got Tensor; pass sequences.float\(\); NumPy: ",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_pytorch_that_numpy_cannot_read(name):
    torch = pytest.importorskip("torch", reason="its tensors")
    make, pattern = TENSORS[name]
    with pytest.raises(TypeError, match=pattern):
        fastgru.GRU(H)(make(torch))
    assert fastgru.GRU(H)(torch.ones(B, T, I, dtype=torch.float64)).dtype == "float32"


class Frame:
    """A pandas.DataFrame, as far as NumPy and the text of an error see it."""

    def __array__(self, dtype=None, copy=None):
        return np.ones((T, I))

    def to_numpy(self):
        return np.ones((T, I))


def test_what_people_pass_instead_of_three_axes():
    layer = fastgru.GRU(H)
    with pytest.raises(
        ValueError, match=r"add the batch axis with sequences\.to_numpy\(\)\[None\]$"
    ):
        layer(Frame())
    with pytest.raises(ValueError, match=r"add the batch axis with sequences\[None\]$"):
        layer([[1.0] * I] * T)
    with pytest.raises(TypeError, match=r"sequences: expected numbers, got None$"):
        layer(None)
    ragged = [[[1.0] * I] * 2, [[1.0] * I] * 3]
    how = r"pad rows of different lengths with zeros, and pass lengths=\[...\]"
    with pytest.raises(ValueError, match=f"expected a rectangular array; {how}; NumPy: "):
        layer(ragged)
    with pytest.raises(TypeError, match=f"expected numbers, got dtype object; {how}"):
        layer(np.array([np.array(row) for row in ragged], dtype=object))
    how = r"convert it with numpy\.asarray\(sequences, 'float64'\)"
    with pytest.raises(TypeError, match=f"expected numbers, got dtype object; .*{how}"):
        layer(np.ones((B, T, I), dtype=object))
    with pytest.raises(TypeError, match=r"got a dict; pass an array, or lists of numbers$"):
        layer({"x": np.ones((B, T, I))})
    with pytest.raises(TypeError, match=r"got a RaggedTensor; pad rows .*lengths"):
        layer(type("RaggedTensor", (), {})())
    with pytest.raises(
        ValueError, match=r"initial_state: .* got 4; a list holds one array for each"
    ):
        layer(np.ones((B, T, I)), initial_state=[[0.0] * H] * B)


def test_a_symbolic_tensor_of_keras():
    keras = pytest.importorskip("keras", reason="pip install keras")
    with pytest.raises(
        ValueError, match=r"^sequences: expected an array, got KerasTensor; NumPy: "
    ):
        fastgru.GRU(H)(keras.Input((T, I)))
