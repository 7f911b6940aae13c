"""Calls with nothing special to them, which go to the kernels by the fast path."""

import numpy as np
import pytest

import fastgru
from fastgru.backends import cpu as cpu_backend
from fastgru.backends.cpu import CPUBackend

RNG = np.random.default_rng(0)


@pytest.fixture
def forward_calls(monkeypatch):
    """Count the calls that went the whole way."""
    calls = []
    forward = CPUBackend.forward

    def counted(*arguments, **options):
        calls.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(CPUBackend, "forward", counted)
    return calls


def numbers(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


def takes_the_fast_path():
    cpu_backend._load()
    return cpu_backend._forced_kernel != "blas" and cpu_backend._native._kernels.lanes(4) > 0


OPTIONS = [{}, {"reset_after": False}, {"dtype": "float64"}, {"activation": "relu"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_cell_gives_the_same_by_either_road(options, rows, forward_calls):
    cell = fastgru.GRUCell(19, bias_initializer="random_normal", **options)
    x, h = numbers(rows, 3, dtype=cell.dtype), numbers(rows, 19, dtype=cell.dtype)
    kept = h.copy()
    first, _ = cell(x, h)  # builds
    del forward_calls[:]
    y, state = cell(x, h)
    assert state is y
    assert not np.shares_memory(y, first)
    assert bool(forward_calls) != takes_the_fast_path()
    for states in ([h], (h,)):
        y, state = cell(x, states)
        assert type(state) is list
        assert len(state) == 1
        assert state[0] is y
        np.testing.assert_array_equal(y, first)
    np.testing.assert_array_equal(h, kept)
    with fastgru.use_backend("reference"):
        np.testing.assert_allclose(cell(x, h)[0], y, rtol=0, atol=1e-6)
    wide = np.zeros((rows, 38), cell.dtype)
    wide[:, ::2] = h
    for array in (np.asfortranarray(h), h.astype(h.dtype.newbyteorder()), wide[:, ::2]):
        np.testing.assert_array_equal(cell(x.tolist(), array)[0], first)
        np.testing.assert_array_equal(cell(x, array)[0], first)
    cell.set_weights([w * 0 for w in cell.get_weights()])
    np.testing.assert_allclose(cell(x, h)[0], h / 2, rtol=1e-6)


def test_a_cell_in_training_still_drops():
    cell = fastgru.GRUCell(4, dropout=0.5, seed=1)
    x, h = np.ones((2, 30), "float32"), np.zeros((2, 4), "float32")
    plain = cell(x, h)[0]
    assert (cell(x, h, training=True)[0] != plain).any()
    np.testing.assert_array_equal(cell(x, h)[0], plain)


@pytest.mark.parametrize(
    ("x", "states", "error", "message"),
    [
        (np.ones((2, 4), "float32"), np.ones((2, 4), "float32"), ValueError, r"\(B, I\)"),
        (np.ones((2, 3), "float32"), np.ones((1, 4), "float32"), ValueError, "states"),
        (np.ones((2, 3), "float32"), np.ones((2, 5), "float32"), ValueError, "states"),
        (np.ones((2, 3), "complex64"), np.ones((2, 4), "float32"), TypeError, "inputs"),
        (np.ones((2, 3), "float32"), np.ones((2, 4), "complex64"), TypeError, "states"),
        (np.ones((2, 3), "float32"), [np.ones((2, 4), "float32")] * 2, ValueError, "one state"),
        (np.ones((2, 3), "float32"), [], ValueError, "one state"),
        (np.ones(3, "float32"), np.ones((1, 4), "float32"), ValueError, "inputs"),
    ],
)
def test_wrong_steps_of_a_cell_that_is_built(x, states, error, message):
    cell = fastgru.GRUCell(4)
    cell(np.ones((2, 3), "float32"), np.ones((2, 4), "float32"))
    with pytest.raises(error, match=message):
        cell(x, states)


def test_no_rows():
    cell = fastgru.GRUCell(4)
    cell.build((None, 3))
    for _ in range(2):
        assert cell(np.ones((0, 3), "float32"), np.ones((0, 4), "float32"))[0].shape == (0, 4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_a_layer_gives_the_same_by_either_road(options, steps, sequences, state, forward_calls):
    layer = fastgru.GRU(19, return_sequences=sequences, return_state=state, **options)
    x = numbers(3, steps, 5, dtype=layer.dtype)
    layer(x)
    del forward_calls[:]
    fast = layer(x)
    assert bool(forward_calls) != (takes_the_fast_path() and steps > 0)  # no steps: no strides
    whole = layer(x, lengths=[steps] * 3)
    if not state:
        fast, whole = [fast], [whole]
    for one, other in zip(fast, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    for array in (np.asfortranarray(x), x.astype(x.dtype.newbyteorder()), wide, x.tolist()):
        if steps:
            given = layer(array)
            np.testing.assert_array_equal(given[0] if state else given, whole[0])


def test_wrong_calls_of_a_layer_that_is_built():
    layer = fastgru.GRU(4)
    layer(np.ones((2, 3, 5), "float32"))
    with pytest.raises(TypeError, match="complex128"):
        layer(np.ones((2, 3, 5)) * 1j)
    with pytest.raises(ValueError, match="features"):
        layer(np.ones((2, 3, 4), "float32"))
    with pytest.raises(ValueError, match="three axes"):
        layer(np.ones((2, 5), "float32"))
    with pytest.raises(TypeError, match="MaskedArray"):
        layer(np.ma.ones((2, 3, 5), "float32"))


def test_the_instruction_set_may_change_between_calls():
    kernels = cpu_backend._load()._kernels
    layer = fastgru.GRU(19, bias_initializer="random_normal")
    x, h = numbers(2, 1, 5), np.zeros((2, 19), "float32")
    layer(x)
    stream = layer.stream(2)
    before = kernels.get_isa()
    try:
        for isa in kernels.supported_isas():
            kernels.set_isa(isa)
            expected = layer(x, lengths=[1, 1])
            for y in (layer(x), layer.cell(x[:, 0], h)[0]):
                np.testing.assert_array_equal(y, expected)
            stream.reset()
            np.testing.assert_array_equal(stream.step(x[:, 0]), expected)
    finally:
        kernels.set_isa(before)
