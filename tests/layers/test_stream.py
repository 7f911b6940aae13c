"""Streams: `layer.stream`."""

import copy
import pickle

import numpy as np
import pytest

import fastgru
from fastgru.backends import cpu as cpu_backend
from fastgru.backends.reference import ReferenceBackend

RNG = np.random.default_rng(0)


@pytest.fixture(params=["fused", "blas", "reference"])
def served(request, monkeypatch):
    """Run the test on the native stepper, and on what stands in where there is none."""
    if request.param == "reference":
        with fastgru.use_backend("reference"):
            yield request.param
        return
    if request.param == "fused" and cpu_backend.build_info()["kernel"] != "fused":
        pytest.skip("this compiler has no vector types, which the fused kernel needs")
    monkeypatch.setattr(cpu_backend, "_forced_kernel", request.param)
    yield request.param


def layers():
    options = {"bias_initializer": "random_normal", "return_sequences": True}
    yield fastgru.GRU(19, **options)
    yield fastgru.GRU(8, reset_after=False, dtype="float64", **options)
    yield fastgru.GRU(8, activation="softmax", **options)
    yield fastgru.RNN([fastgru.GRUCell(19), fastgru.GRUCell(6)], return_sequences=True)
    yield fastgru.Sequential([fastgru.GRU(19, **options), fastgru.GRU(6, **options)])


@pytest.mark.parametrize("layer", [*layers()], ids=lambda layer: f"{layer.name}-{layer.dtype}")
def test_steps_equal_the_layer(layer, served):
    x = RNG.standard_normal((5, 7, 3)).astype(layer.dtype)
    y = layer(x)
    stream = layer.stream(5)
    for t in range(7):
        out = stream.step(x[:, t])
        if served == "fused" and layer.explain(x).backend == "cpu":
            np.testing.assert_array_equal(out, y[:, t])  # docs/semantics.md 12
        np.testing.assert_allclose(out, y[:, t], rtol=0, atol=1e-6)


@pytest.mark.parametrize("reset_after", [True, False])
def test_rows_advance_alone(served, reset_after):
    layer = fastgru.GRU(11, reset_after=reset_after, bias_initializer="random_normal")
    x = RNG.standard_normal((4, 6, 3)).astype("float32")
    y = layer(x)
    rows = np.array([7, 0, 3, 5])
    stream = layer.stream(9)
    start = RNG.standard_normal((9, 11)).astype("float32")
    start[rows] = 0
    stream.state = start
    for t in range(6):
        out = stream.step(x[:, t], rows=rows)
        assert out.shape == (4, 11)
    np.testing.assert_allclose(out, y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(stream.state[rows], y, rtol=0, atol=1e-6)
    others = np.setdiff1d(np.arange(9), rows)
    np.testing.assert_array_equal(stream.state[others], start[others])
    stream.reset([0, 5])
    assert not stream.state[[0, 5]].any()
    assert stream.state[[7, 3, 1]].any(axis=1).all()
    stream.reset()
    assert not stream.state.any()


def test_the_output_is_the_streams_own_buffer():
    layer = fastgru.GRU(4)
    layer.build((None, None, 3))
    stream = layer.stream(2)
    x = np.ones((2, 3), "float32")
    assert np.shares_memory(stream.step(x), stream.step(x))
    assert not np.shares_memory(stream.state, stream.step(x))


def test_written_weights_are_used_from_the_next_step_on():
    layer = fastgru.GRU(4, bias_initializer="ones")
    layer.build((None, None, 3))
    stream = layer.stream(2)
    x = np.ones((2, 3), "float32")
    assert stream.step(x).any()
    stream.reset()
    layer.set_weights([w * 0 for w in layer.get_weights()])
    assert not stream.step(x).any()


def test_one_weight_of_a_later_cell_is_used_from_the_next_step_on():
    layer = fastgru.RNN([fastgru.GRUCell(4), fastgru.GRUCell(5, bias_initializer="ones")])
    layer.build((None, None, 3))
    stream, x = layer.stream(2), np.ones((2, 3), "float32")
    for rows in (None, np.array([1, 0])):
        stream.step(x, rows)
        before = stream.state
        kernel = layer.weights[3]
        kernel.assign(kernel.value + 0.5)
        again = layer.stream(2)
        again.state = before
        np.testing.assert_array_equal(stream.step(x, rows), again.step(x, rows))
        again.state = before
        kernel.assign(kernel.value - 0.5)
        assert (again.step(x, rows) != stream.step(x, rows)).any()


def test_a_backend_asked_for_between_steps_serves_them(monkeypatch):
    calls = []
    forward = ReferenceBackend.forward

    def counted(*arguments, **options):
        calls.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(ReferenceBackend, "forward", counted)
    stream, x = built().stream(2), np.ones((2, 3), "float32")
    stream.step(x)
    before = stream.state
    ours = stream.step(x).copy()
    assert not calls
    stream.state = before
    with fastgru.use_backend("reference"):
        np.testing.assert_allclose(stream.step(x), ours, rtol=0, atol=1e-6)
        np.testing.assert_allclose(stream.step(x, rows=[1, 0])[0], stream.state[1])
    assert len(calls) == 2
    with fastgru.use_backend("cpu"):
        stream.step(x)
    assert len(calls) == 2
    softmax = built(activation="softmax").stream(2)
    softmax.step(x)
    before = softmax.state
    with fastgru.use_backend("cpu"), pytest.raises(ValueError, match="'softmax' is not element"):
        softmax.step(x)
    np.testing.assert_array_equal(softmax.state, before)


def test_the_number_of_threads_is_asked_for_where_it_matters(monkeypatch):
    build = cpu_backend.build_info()
    if build["kernel"] != "fused" or not build["openmp"]:
        pytest.skip("no native step, or no threads")
    asked = []
    monkeypatch.setattr(cpu_backend, "get_num_threads", lambda: asked.append(1) or 1)
    small = built().stream(2)
    layer = fastgru.GRU(512, recurrent_initializer="glorot_uniform")
    layer.build((None, None, 3))
    large = layer.stream(2)
    small.step(np.ones((2, 3), "float32"))
    assert not asked
    large.step(np.ones((2, 3), "float32"))
    assert asked


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 24])
def test_a_step_may_read_what_the_last_one_gave(rows, threads):
    layer = fastgru.GRU(384, recurrent_initializer="glorot_uniform")
    layer.build((None, None, 384))
    one, other = layer.stream(rows), layer.stream(rows)
    y = RNG.standard_normal((rows, 384)).astype("float32")
    copied = y.copy()
    with fastgru.num_threads(threads):
        for _ in range(6):
            y, copied = one.step(y), other.step(copied).copy()
            np.testing.assert_array_equal(y, copied)
        if rows > 1:  # beside each other in the buffer
            some = np.arange(5, 15)
            shifted = one.step(y[3:13], rows=some)
            np.testing.assert_array_equal(shifted, other.step(copied[3:13], rows=some))


# NumPy 2.5 asks users not to, and still lets them.
@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_the_array_that_came_back_is_the_users_to_reshape():
    stream, x = built().stream(2), np.ones((2, 3), "float32")
    y = stream.step(x)
    y.shape = (8,)
    assert stream.step(x).shape == (2, 4)
    assert stream.step(x[:1], rows=[1]).shape == (1, 4)
    assert stream.step(x[:0], rows=[]).shape == (0, 4)
    assert stream.step(x).shape == (2, 4)


def test_streams_of_copied_layers():
    layer = built(bias_initializer="random_normal")
    x = np.ones((1, 3), "float32")
    expected = layer.stream().step(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        stream = twin.stream()
        np.testing.assert_array_equal(stream.step(x), expected)
        twin.set_weights([w * 0 for w in twin.get_weights()])
        stream.reset()
        assert not stream.step(x).any()


def test_a_cell_that_was_built_anew_needs_another_stream(served):
    layer = built()
    stream, x = layer.stream(), np.ones((1, 3), "float32")
    stream.step(x)
    for rebuild in (layer.cell.forget, lambda: layer.cell.build((None, 500))):
        rebuild()
        with pytest.raises(ValueError, match="another stream"):
            stream.step(x)
    layer.cell.forget()
    layer.cell.build((None, 3))
    stream.reset()
    np.testing.assert_array_equal(stream.step(x), layer.stream().step(x))


def test_streams_share_a_layer_and_nothing_else():
    layer = fastgru.GRU(4)
    layer.build((None, None, 3))
    one, other = layer.stream(), layer.stream()
    one.step(np.ones((1, 3)).astype("float32"))
    assert one.state.any()
    assert not other.state.any()


def test_state_is_read_and_assigned_as_a_copy():
    layer = fastgru.RNN([fastgru.GRUCell(4), fastgru.GRUCell(5)])
    layer.build((None, None, 3))
    stream = layer.stream(2)
    stream.step(np.ones((2, 3), "float32"))
    saved = stream.state
    assert [s.shape for s in saved] == [(2, 4), (2, 5)]
    first = stream.step(np.ones((2, 3), "float32")).copy()
    stream.state = saved
    np.testing.assert_array_equal(stream.step(np.ones((2, 3), "float32")), first)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 6), "float32")[:, ::2],
        np.asfortranarray(np.ones((2, 3), "float32")),
        np.ones((2, 3), ">f4"),
        np.ones((2, 3), int),
        [[1.0, 1, 1], [1, 1, 1]],
        np.broadcast_to(np.float32(1), (2, 3)),
        np.frombuffer(np.ones(6, "float32").tobytes(), "float32").reshape(2, 3),
        np.frombuffer(b"?" + np.ones(6, "float32").tobytes(), "float32", 6, 1).reshape(2, 3),
        np.ones((2, 3), "float16"),
    ],
    ids=[
        *("strided", "fortran", "byte order", "int", "list", "broadcast"),
        *("read-only", "unaligned", "half"),
    ],
)
def test_any_array(x):
    layer = fastgru.GRU(4)
    layer.build((None, None, 3))
    expected = layer.stream(2).step(np.ones((2, 3), "float32"))
    np.testing.assert_array_equal(layer.stream(2).step(x), expected)


@pytest.mark.parametrize(
    "rows",
    [
        [2, 0],
        np.array([2, 0]),
        np.array([2, 0], ">i8"),
        np.array([2, 0], np.uint8),
        np.array([2, 9, 0, 9])[::2],
        np.frombuffer(np.array([2, 0]).tobytes(), np.intp),
    ],
    ids=["list", "intp", "byte order", "uint8", "strided", "read-only"],
)
def test_any_rows(rows):
    layer = built()
    x = RNG.standard_normal((2, 3)).astype("float32")
    stream = layer.stream(3)
    y = stream.step(x, rows=rows)
    np.testing.assert_array_equal(y, layer.stream(2).step(x))
    np.testing.assert_array_equal(stream.state[[2, 0]], y)
    assert not stream.state[1].any()


def built(**options):
    layer = fastgru.GRU(4, **options)
    layer.build((None, None, 3))
    return layer


class Cell:
    state_size = 4

    def __call__(self, inputs, states):
        return states[0], states


WRONG_STREAMS = [
    (lambda: fastgru.GRU(4).stream(), ValueError, "no weights yet.*build"),
    (lambda: built().stream(0), ValueError, "at least 1 row, got 0"),
    (lambda: built().stream(2.0), TypeError, "number of rows, got 2.0"),
    (lambda: built(go_backwards=True).stream(), ValueError, "needs the end of the sequence"),
    (lambda: fastgru.Bidirectional(built()).stream(), ValueError, "backward half needs the end"),
    (lambda: fastgru.RNN(Cell()).stream(), ValueError, "got a custom cell"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_STREAMS)
def test_wrong_streams(call, error, message):
    with pytest.raises(error, match=message):
        call()


WRONG_STEPS = [
    ({"x": np.ones((2, 3), "O")}, TypeError, "expected numbers, got dtype object"),
    ({"x": np.ones((3, 3), "float32")}, ValueError, r"\(n, I\) = \(2, 3\), got \(3, 3\)"),
    ({"x": np.ones((2, 4), "float32")}, ValueError, r"got \(2, 4\)"),
    ({"x": np.ones((2, 3), "float32"), "rows": [0]}, ValueError, r"\(len\(rows\), I\) = \(1, 3\)"),
    ({"x": np.ones((2, 3), "float32"), "rows": [0, 0]}, ValueError, "at most once"),
    ({"x": np.ones((2, 3), "float32"), "rows": [0, 2]}, ValueError, r"numbers in 0..1"),
    ({"x": np.ones((2, 3), "float32"), "rows": [-1, 0]}, ValueError, "from -1 to 0"),
    ({"x": np.ones((2, 3), "float32"), "rows": [0.0, 1.0]}, TypeError, "row numbers"),
    ({"x": np.ones((2, 3), "float32"), "rows": np.array([1, 1])}, ValueError, "at most once"),
    ({"x": np.ones((2, 3), "float32"), "rows": np.array([1, 2])}, ValueError, r"numbers in 0..1"),
    ({"x": np.ones((2, 3), "float32"), "rows": np.array([0, -1])}, ValueError, "from -1 to 0"),
    ({"x": np.ones((2, 3), "float32"), "rows": np.array([[0, 1]])}, TypeError, "row numbers"),
    ({"x": np.ones((2, 3), "float32"), "rows": np.array([0])}, ValueError, r"= \(1, 3\)"),
    ({"x": np.ma.ones((2, 3), "float32")}, TypeError, "MaskedArray"),
    ({"x": np.ones((2, 3), "complex64")}, TypeError, "complex"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_STEPS)
def test_wrong_steps_change_nothing(arguments, error, message):
    stream = built().stream(2)
    stream.step(np.ones((2, 3), "float32"))
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(**arguments)
    np.testing.assert_array_equal(stream.state, before)
    for rows in ([0, 1], np.array([1, 0])):  # what was refused left no mark
        stream.step(np.ones((2, 3), "float32"), rows=rows)


def test_the_native_step_takes_rows_again_and_again():
    stream, x = built().stream(3), np.ones((2, 3), "float32")
    if cpu_backend.build_info()["kernel"] != "fused":
        pytest.skip("no native step")
    for rows in ([0, 2], [0, 0], [2, 3], [2, 0], [1, 2]):
        plain = len({*rows} - {3}) == 2
        assert (stream._fast_step(x, np.array(rows)) is not None) == plain, rows


def test_wrong_states():
    stream = built().stream(2)
    with pytest.raises(ValueError, match=r"\(n, H\) = \(2, 4\), got \(3, 4\)"):
        stream.state = np.zeros((3, 4), "float32")
    with pytest.raises(ValueError, match="expected 1 array"):
        stream.state = [np.zeros((2, 4), "float32")] * 2
    with pytest.raises(ValueError, match=r"0..1"):
        stream.reset([5])


@pytest.mark.parametrize("wrong", [2**63, 2**64 - 1, 2**63 - 1])
def test_the_error_names_the_rows_that_came(wrong):
    """Beyond int64 too, where a conversion would show another number."""
    layer = fastgru.GRU(3)
    layer.build((None, None, 2))
    stream = layer.stream(4)
    rows = np.array([1, wrong], np.uint64)
    with pytest.raises(ValueError, match=rf"in 0\.\.3, got values from 1 to {wrong}$"):
        stream.step(np.zeros((2, 2), "float32"), rows=rows)
    with pytest.raises(ValueError, match=rf"in 0\.\.3, got values from 1 to {wrong}$"):
        stream.reset(rows)
