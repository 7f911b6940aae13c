"""What arrays a layer takes and gives: any strides, any source, `out=`; on both backends."""

import numpy as np
import pytest
from grad_support import MASKS, RESETS, B, H, I, T, fill, flatten, gru, sequences, state

import fastgru

DTYPES = ("float32", "float64")


def reference(dtype, **arguments):
    layer = gru(dtype=dtype, return_sequences=True, return_state=True, **arguments)
    return layer, layer(sequences(dtype), state(dtype), mask=MASKS["holes"], reset_mask=RESETS)


def strided(array):
    wide = np.full((*(2 * n for n in array.shape[:-1]), 3 * array.shape[-1]), 7, array.dtype)
    view = wide[(*[slice(None, None, 2)] * (array.ndim - 1), slice(1, None, 3))]
    view[...] = array
    assert not view.flags.c_contiguous
    return view


def flipped(array):
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[backwards])[backwards]


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


class HasArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class HasDLPack:
    """A tensor of another library: nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


LAYOUTS = {
    "strided": strided,
    "flipped": flipped,
    "misaligned": misaligned,
    "read-only": read_only,
    "Fortran": np.asfortranarray,
    "big-endian": swapped,
    "__array__": HasArray,
    "DLPack": HasDLPack,
    "memoryview": lambda a: memoryview(np.ascontiguousarray(a)),
    "lists": lambda a: a.tolist(),
    "Variable": lambda a: fastgru.Variable(a),
    "subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_source_and_layout_gives_the_same_numbers(backend, name, dtype):
    layer, want = reference(dtype)
    convert = LAYOUTS[name]
    x, h0 = convert(sequences(dtype)), state(dtype)
    h0 = [convert(h0)] if name == "lists" else convert(h0)  # a bare list is a list of states
    masks = {"mask": MASKS["holes"], "reset_mask": RESETS}
    if name in ("strided", "flipped", "read-only", "Fortran", "lists", "memoryview"):
        masks = {key: convert(value) for key, value in masks.items()}
    for a, b in zip(layer(x, h0, **masks), want, strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == np.dtype(dtype)
        assert a.dtype.isnative
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 if dtype == "float32" else 1e-15)
    outputs, tape = layer.forward(x, h0, **masks)
    dy = np.ones(outputs[0].shape, dtype)
    assert np.isfinite(layer.backward(tape, convert(dy)).inputs).all()


@pytest.mark.parametrize("name", ["Variable", "DLPack", "__array__", "lists", "memoryview"])
def test_composed_layers_take_any_source(name):
    x = sequences("float32")
    for layer in (
        fill(fastgru.Bidirectional(fastgru.GRU(H))),
        fill(fastgru.Sequential([fastgru.GRU(2, return_sequences=True), fastgru.GRU(H)])),
        fill(fastgru.RNN([fastgru.GRUCell(2), fastgru.GRUCell(H)])),
    ):
        want = layer(x)
        out = np.empty_like(want)
        assert layer(LAYOUTS[name](x), out=out) is out
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-6)


def test_float16_integers_and_bools_widen():
    layer = gru(dtype="float32")
    whole = np.arange(B * T * I).reshape(B, T, I) % 5 - 2
    want = layer(whole.astype("float32"))
    for kind in ("float16", "int8", "int64", "uint8"):
        x = np.abs(whole) if kind == "uint8" else whole
        expected = layer(x.astype("float32")) if kind == "uint8" else want
        np.testing.assert_array_equal(layer(x.astype(kind)), expected)
    assert fastgru.GRU(2, dtype="float64")(np.ones((1, 2, 3), "float32")).dtype == np.float64


def test_nothing_the_caller_passed_is_changed(backend):
    x, h0, mask, resets = sequences(), state(), MASKS["holes"].copy(), RESETS.copy()
    kept = [a.copy() for a in (x, h0, mask, resets)]
    layer = gru(return_sequences=True, return_state=True, dropout=0.3, recurrent_dropout=0.2)
    outputs, tape = layer.forward(x, h0, mask=mask, reset_mask=resets)
    dy = sequences(seed=9, shape=(B, T, H))
    kept.append(dy.copy())
    layer.backward(tape, dy)
    for a, b in zip((x, h0, mask, resets, dy), kept, strict=True):
        np.testing.assert_array_equal(a, b)
    for a in flatten(outputs):
        assert a.flags.writeable
        assert not any(np.shares_memory(a, b) for b in (x, h0))
    assert not np.shares_memory(*outputs)


@pytest.mark.parametrize("steps", [0, 1])
def test_outputs_and_states_never_share_memory(backend, steps):
    x, h0 = sequences()[:, :steps], state()
    for layer in (
        gru(return_state=True),
        gru(return_state=True, return_sequences=True),
        gru(return_state=True, return_sequences=True, time_major=True),
    ):
        x = x.transpose(1, 0, 2) if layer.time_major else x
        y, final = layer(x, h0)
        assert not np.shares_memory(y, final)
        assert not np.shares_memory(final, h0)
        first, _ = layer(x, h0)
        assert not np.shares_memory(first, y)


# -- out= ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("layout", ["C", "strided", "flipped", "misaligned", "Fortran"])
def test_out_is_written_and_returned(backend, dtype, whole, time_major, layout):
    layer = gru(dtype=dtype, return_sequences=whole, return_state=True, time_major=time_major)
    x = sequences(dtype, shape=(T, B, I) if time_major else (B, T, I))
    mask = MASKS["empty_row"].T if time_major else MASKS["empty_row"]
    want, want_state = layer(x, state(dtype), mask=mask)
    out = np.full(want.shape, np.nan, dtype)
    if layout != "C":
        out = LAYOUTS[layout](out)
    y, final = layer(x, state(dtype), mask=mask, out=out)
    assert np.shares_memory(y, out)
    assert y.shape == out.shape
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(final, want_state)


@pytest.mark.parametrize("what", ["x", "shifted x", "state", "mask"])
@pytest.mark.parametrize("time_major", [False, True])
def test_out_may_overlap_what_is_read(backend, what, time_major):
    layer = gru(I, dtype="float64", return_sequences=True, time_major=time_major)
    shape = (T, B, I) if time_major else (B, T, I)
    memory = np.zeros(2 * B * T * I)
    x = memory[: B * T * I].reshape(shape)
    x[...] = sequences(shape=shape)
    h0 = state(shape=(B, I))
    mask = MASKS["holes"].T.copy() if time_major else MASKS["holes"].copy()
    want = layer(x.copy(), h0.copy(), mask=mask.copy())
    if what == "x":
        out = x
    elif what == "shifted x":
        out = memory[5 : 5 + B * T * I].reshape(shape)
    elif what == "state":
        out = memory[B * T * I :].reshape(shape)
        view = out.reshape(-1)[3 : 3 + B * I].reshape(B, I)
        view[...] = h0
        h0 = view
    else:
        out = memory[B * T * I :].reshape(shape)
        bytes_ = out.view(np.uint8).reshape(-1)[: B * T].reshape(mask.shape).view(bool)
        bytes_[...] = mask
        mask = bytes_
    got = layer(x, h0, mask=mask, out=out)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("whole", [False, True])
def test_out_of_bidirectional(backend, merge_mode, whole):
    inner = fastgru.GRU(H, return_sequences=whole, return_state=True)
    layer = fill(fastgru.Bidirectional(inner, merge_mode))
    x = sequences("float32")
    want = layer(x, mask=MASKS["holes"])
    out = strided(np.empty_like(want[0]))
    got = layer(x, mask=MASKS["holes"], out=out)
    assert got[0] is out
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_out_of_bidirectional_may_be_its_input():
    layer = fill(fastgru.Bidirectional(fastgru.GRU(2, return_sequences=True)), features=4)
    x = sequences("float32", shape=(B, T, 4))
    want = layer(x.copy())
    np.testing.assert_array_equal(layer(x, out=x), want)


def test_out_of_sequential_may_be_its_input(backend):
    for layers in (1, 2, 3):
        chain = fastgru.Sequential([fastgru.GRU(I, return_sequences=True) for _ in range(layers)])
        fill(chain)
        x = sequences("float32")
        want = chain(x.copy(), mask=MASKS["holes"])
        np.testing.assert_array_equal(chain(x, mask=MASKS["holes"], out=x), want)


def test_out_is_what_forward_writes_too(backend):
    layer = gru(I, return_sequences=True, dtype="float64")
    x = sequences()
    dy = sequences(seed=5)
    want, tape = layer.forward(x.copy())
    grads = layer.backward(tape, dy)
    got, tape = layer.forward(x, out=x)
    assert got is x
    np.testing.assert_array_equal(got, want)
    again = layer.backward(tape, dy)
    np.testing.assert_array_equal(again.inputs, grads.inputs)
    for a, b in zip(again.weights, grads.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_float64_layer_takes_more_than_it_can_overflow():
    layer = gru(dtype="float64")
    assert np.isfinite(layer(np.full((1, 3, I), 1e300))).all()
    with pytest.warns(RuntimeWarning, match="overflow encountered in cast"):  # rule 11
        gru(dtype="float32")([[[1e300] * I]])


def test_states_of_nested_stacks_can_be_fed_back():
    inner = fastgru.StackedRNNCells([fastgru.GRUCell(4), fastgru.GRUCell(5)])
    layer = fastgru.RNN(fastgru.StackedRNNCells([inner, fastgru.GRUCell(2)]), return_state=True)
    x = np.random.default_rng(3).random((2, 6, 3), "float32")
    whole, *_ = layer(x)
    _, *states = layer(x[:, :3])
    for given in states, [s[0] for s in states], [[states[0], states[1]], states[2]]:
        np.testing.assert_array_equal(layer(x[:, 3:], initial_state=given)[0], whole)
