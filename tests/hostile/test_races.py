"""What other threads may do to the arguments of a call: no result is promised then, but no crash.

`racing.py` does it to calls of everything public, for seconds; FASTGRU_EXHAUSTIVE=1: ten minutes.
The other tests do at a chosen moment what there happens by chance.
"""

import mmap
import pathlib

import numpy as np
import pytest
import racing
import subprocesses
from exhaustive import EVERYTHING

import fastgru
from fastgru import device, masks
from fastgru.backends import cpu as cpu_backend
from fastgru.problem import as_array, check_out

B, T, I, H = 4, 6, 8, 64
FUSED = cpu_backend.build_info().get("kernel") == "fused"
NATIVE = cpu_backend.build_info()["extension"] == "built"
fused = pytest.mark.skipif(not FUSED, reason="the native code is not built, or not for this")
native = pytest.mark.skipif(not NATIVE, reason="NumPy alone computes, and does not hold arrays")


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def layer_of(**options):
    layer = fastgru.GRU(H, return_sequences=True, return_state=True, **options)
    layer.build((B, T, I))
    return layer


@pytest.mark.alone
@pytest.mark.parametrize("kernel", ["", "blas"])
@native
def test_no_crash_whatever_other_threads_do(kernel):
    seconds = 600 if EVERYTHING else 8
    said = subprocesses.run_python(
        f"import sys, racing; sys.argv[1:] = ['--seconds', '{seconds}']; sys.exit(racing.main())",
        timeout=20 * seconds + 300,
        FASTGRU_KERNEL=kernel,
        OMP_NUM_THREADS="2",
    )
    assert said.endswith("alive\n")
    assert "size refused" in said, "no call was ever met that held its arrays"


def test_the_racers_reach_every_public_call():
    """A new kind of call is to be added there too."""
    source = pathlib.Path(racing.__file__).read_text(encoding="utf-8")
    for name in ("GRU", "GRUCell", "RNN", "Bidirectional", "Sequential", "gru", "gru_cell"):
        assert f"fastgru.{name}" in source
    for name in ("step", "reset", "backward", "forward", "set_weights", "assign"):
        assert f".{name}" in source


# -- what is copied ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
@pytest.mark.parametrize("time_major", [False, True])
def test_masks_are_copied_before_they_are_checked(dtype, time_major):
    mask = np.tile([1, 0, 1], (B, 2)).astype(dtype)
    given = mask.T.copy() if time_major else mask.copy()
    plan = masks.plan_mask(given, None, B, T, time_major)
    resets = masks.plan_resets(given, B, T, time_major)
    given[...] = 0
    np.testing.assert_array_equal(plan.steps, mask.astype(bool))
    np.testing.assert_array_equal(resets, mask.astype(bool))
    assert plan.steps.flags.c_contiguous
    assert resets.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["intp", "int32", "uint8"])
def test_lengths_are_copied_before_they_are_checked(dtype):
    lengths = np.arange(B).astype(dtype)
    plan = masks.plan_mask(None, lengths, B, T)
    lengths[...] = 100
    np.testing.assert_array_equal(plan.lengths, np.arange(B))


class WrittenMeanwhile(np.ndarray):
    """Lengths that another thread changes as soon as they have been asked for their least."""

    def min(self, *args, **kwargs):
        least = super().min(*args, **kwargs)
        self.target[...] = 10**9
        return least


def test_what_was_checked_is_what_is_used():
    lengths = np.arange(B)
    watched = lengths.view(WrittenMeanwhile)
    watched.target = lengths
    try:
        plan = masks.plan_mask(None, watched, B, T)
    except ValueError:
        return
    assert plan.lengths.max() <= T


# -- what is held --------------------------------------------------------------------------


@native
@pytest.mark.parametrize("make", [lambda a: a, lambda a: a[1:], lambda a: a.T, np.ndarray.view])
def test_memory_stays_as_long_as_a_view_is_used(make):
    array = floats(5, 4)
    part = device.held(make(array))
    piece = part[:2].T[1:]  # a view of the view holds it too
    expected = make(array).copy()
    del part
    with pytest.raises(ValueError, match="cannot resize"):
        array.resize(1, refcheck=False)
    np.testing.assert_array_equal(piece, expected[:2].T[1:])
    del piece
    array.resize(1, refcheck=False)  # the caller's own, when the call is over


def test_a_held_view_is_what_it_was():
    array = floats(6, 4)
    view = as_array(array, np.dtype("float32"), "x")
    array.shape = (4, 6)
    assert view.shape == (6, 4)
    assert np.shares_memory(view, array)
    array.dtype = "int32"
    assert view.dtype == "float32"
    array.setflags(write=False)
    assert not device.held(array).flags.writeable
    with pytest.raises(TypeError, match="expected an ndarray"):
        device.held([1.0])


def test_outputs_are_written_through_a_view_and_returned_as_they_came():
    out = np.empty((B, T, H), "float32")
    assert check_out(out, out.shape, out.dtype, "", None) is not out
    layer, x = layer_of(), floats(B, T, I)
    y, _ = layer(x, out=out)
    assert y is out
    np.testing.assert_array_equal(out, layer(x)[0])
    swapped = np.empty((T, B, H), "float32")
    assert layer_of(time_major=True)(floats(T, B, I), out=swapped)[0] is swapped
    both = fastgru.Bidirectional(fastgru.GRU(3, return_sequences=True))
    out = np.empty((B, T, 6), "float32")
    assert both(x, out=out) is out
    assert fastgru.gru(x, *layer.get_weights(), out=(y := np.empty_like(y)))[0] is y


def resizer(*arrays):
    """A get_num_threads, asked in the middle of a call, where other threads could run."""
    met = []

    def get_num_threads():
        for array in arrays:
            with pytest.raises(ValueError, match="cannot resize"):
                array.resize(1, refcheck=False)
            array.shape = (-1,)
            met.append(array)
        return 1

    return get_num_threads, met


@fused
def test_the_fast_path_holds_its_arrays():
    from fastgru._native import _fast_path

    layer, x = layer_of(), floats(B, T, I)
    expected = layer(x)[0]
    packed = layer.cell._weights.packed["fused"]
    meddle, met = resizer(x)
    y = _fast_path.call(packed, x, True, False, False, meddle)
    np.testing.assert_array_equal(y, expected)
    assert len(met) == 1
    x, h = floats(16, I), floats(16, H)
    expected = layer.cell(x, h)[0]
    meddle, met = resizer(x, h)
    np.testing.assert_array_equal(_fast_path.step(packed, x, h, meddle), expected)
    assert len(met) == 2


def stepper_of(layer, rows, get_num_threads):
    """The native step of a stream, and the stream that owns its states."""
    from fastgru._native._stream import Stepper

    stream = layer.stream(rows)
    parts = (
        stream._specs,
        stream._cells,
        stream._states,
        stream._outputs,
        lambda cell: cell._weights,
        lambda: None,
    )
    return Stepper(parts, cpu_backend._packed_if_served, get_num_threads).step, stream


@fused
@pytest.mark.parametrize("count", [64, 1500])
def test_rows_are_those_that_were_checked(count):
    layer, x = layer_of(), floats(count, I)
    rows = np.random.default_rng(0).permutation(2000)[:count]
    named = rows.copy()

    def meddle():
        named[...] = 10**9  # far out of bounds
        return 1

    step, stream = stepper_of(layer, 2000, meddle)
    if count > 1024:  # read block after block, so that a million rows need no copy
        with pytest.raises(ValueError, match="rows: another thread has changed them"):
            step(x, named)
        assert not stream.state.any()
        np.testing.assert_array_equal(step(x, rows), layer.stream(2000).step(x, rows))
    else:
        expected = layer.stream(2000).step(x, rows)
        np.testing.assert_array_equal(step(x, named), expected)
        np.testing.assert_array_equal(stream.state[rows], expected)


@fused
def test_a_step_beside_a_step_is_refused():
    layer, x = layer_of(), floats(64, I)
    beside = []

    def meddle():
        with pytest.raises(ValueError, match="another thread is in its step") as error:
            step(x)
        beside.append(error)
        with pytest.raises(ValueError, match="cannot resize"):
            x.resize(1, refcheck=False)
        return 1

    step, _ = stepper_of(layer, 64, meddle)
    expected = layer.stream(64).step(x)
    np.testing.assert_array_equal(step(x), expected)
    np.testing.assert_array_equal(step(x)[:0], expected[:0])  # and afterwards it goes on
    assert len(beside) == 2


@fused
def test_x_of_a_step_is_read_after_others_ran():
    """A small step holds nothing; what packing lets others do is seen after it."""
    layer = fastgru.GRU(2)
    layer.build((1, 1, 3))
    x = floats(2, 3)
    stream = layer.stream(2)

    def pack(spec, weights):
        x.resize((1, 3), refcheck=False)
        return cpu_backend._packed_if_served(spec, weights)

    from fastgru._native._stream import Stepper

    parts = (
        stream._specs,
        stream._cells,
        stream._states,
        stream._outputs,
        lambda cell: cell._weights,
        lambda: None,
    )
    assert Stepper(parts, pack, lambda: 1).step(x) is None
    assert not stream.state.any()


# -- what fastgru itself keeps -------------------------------------------------------------


@native
def test_nobody_gets_at_what_owns_weights_and_states():
    layer = layer_of(stateful=True)
    x = floats(B, T, I)
    layer(x)
    stream = layer_of().stream(B)
    y = stream.step(x[:, 0])
    for array in (*(v.value for v in layer.weights), layer.states[0].value, y):
        while isinstance(array, np.ndarray):
            with pytest.raises(ValueError, match="resize"):
                array.resize(1, refcheck=False)
            array = array.base
    expected = stream.step(x[:, 1]).copy()
    y = (other := layer_of().stream(B)).step(x[:, 0])
    other._cells[0].set_weights(stream._cells[0].get_weights())
    y.base.shape = (-1,)
    y.shape = (-1,)
    other.state = np.zeros((B, H), "float32")
    other.step(x[:, 0])
    np.testing.assert_array_equal(other.step(x[:, 1]), expected)


@pytest.mark.parametrize("units", [1, 1000])
def test_attributes_that_changed_are_not_believed(units):
    """Sizes of arrays are compared with those of the weights in use, not with attributes."""
    layer, x = layer_of(), floats(B, T, I)
    expected = layer(x)[0]
    layer.cell.__dict__["units"] = units  # it cannot be set
    wrong = {"initial_state": floats(B, units)}, {"out": np.zeros((B, T, units), "float32")}
    for arguments in wrong:
        with pytest.raises(ValueError, match=f"expected shape .*{H}"):
            layer(x, **arguments)
    assert not wrong[1]["out"].any()
    step = layer.stream(3).step(x[:3, 0])
    np.testing.assert_array_equal(step, expected[:3, 0])


@native
def test_weights_of_another_size_are_not_packed():
    layer, x = layer_of(), floats(B, T, I)
    other = layer_of()
    other.cell.forget()
    other.build((B, T, I + 1))
    layer.cell._weights = (
        other.cell._weights
    )  # as if it had been built anew in the middle of a call
    with pytest.raises(ValueError, match=r"kernel: expected shape \(8, 192\)"):
        layer(x)


def test_a_stream_of_layers_that_do_not_fit():
    first, second = fastgru.GRU(H, return_sequences=True), fastgru.GRU(3)
    first.build((B, T, I))
    second.build((B, T, 5000))
    if not FUSED:
        pytest.skip("NumPy compares the shapes")
    with pytest.raises(ValueError, match="expected a cell of I = 64 features"):
        fastgru.Sequential([first, second]).stream(2)


def test_of_two_threads_one_uses_the_tape():
    layer, x = layer_of(), floats(B, T, I)
    y, tape = layer.forward(x)
    taken = dict(tape.kept)
    layer.backward(tape, np.ones_like(y[0]))
    tape.used, tape.kept = False, taken  # as a thread has seen it that was as far as its checks
    with pytest.raises(ValueError, match="used already"):
        layer.backward(tape, np.ones_like(y[0]))


@native
def test_a_mapping_cannot_be_closed_while_a_view_is_used():
    mapping = mmap.mmap(-1, 4096)
    view = device.held(np.ndarray((8, 8), "float32", mapping))
    with pytest.raises(BufferError):
        mapping.close()
    del view
    array = np.ndarray((8, 8), "float32", mapping)
    mapping.close()
    with pytest.raises(ValueError, match="mmap closed"):  # which NumPy would read
        as_array(array, np.dtype("float32"), "x")


@native
def test_a_bytearray_does_not_move_while_a_view_is_used():
    memory = bytearray(256)
    view = device.held(np.ndarray((8, 8), "float32", memory))
    with pytest.raises(BufferError):
        memory.extend(bytes(1 << 20))
    del view
    memory.clear()
