"""Variable: a weight that is an array to read and is written through assign alone."""

import copy
import pickle
from unittest import mock

import numpy as np
import pytest
from grad_support import H, I, gru, sequences

import fastgru
from fastgru import Variable

VALUE = np.arange(6, dtype="float32").reshape(2, 3)


def test_attributes():
    v = Variable(VALUE, name="kernel", trainable=False, regularizer="r", constraint="c")
    assert (v.name, v.trainable, v.regularizer, v.constraint) == ("kernel", False, "r", "c")
    assert (v.shape, v.ndim, v.size, len(v)) == ((2, 3), 2, 6, 2)
    assert v.dtype == "float32"
    assert v.dtype == np.float32
    assert repr(v) == "<Variable path=kernel, shape=(2, 3), dtype=float32>"
    assert hash(v) == hash(v)
    assert float(Variable(3.5)) == 3.5


def test_the_value_is_a_read_only_copy():
    source = VALUE.copy()
    v = Variable(source)
    source[...] = 9
    np.testing.assert_array_equal(v.value, VALUE)
    for view in (v.value, v.value[0], v.value.reshape(-1), np.asarray(v), v[1]):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        v.value.setflags(write=True)
    own = v.numpy()
    own[...] = 1
    np.testing.assert_array_equal(v.value, VALUE)


def test_assign_puts_a_new_array_in_place_of_the_old():
    v = Variable(VALUE)
    old, source = v.value, VALUE + 1
    result = v.assign(source)
    source[...] = 0
    np.testing.assert_array_equal(old, VALUE)
    np.testing.assert_array_equal(v.value, VALUE + 1)
    np.testing.assert_array_equal(result, VALUE + 1)
    assert v.value is not old
    v.assign_add(np.float32(2))
    v.assign_sub([[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(v.value, VALUE + np.array([[2], [3]]))
    v.assign_add(0.5)
    assert v.dtype == np.float32
    v.assign(Variable(VALUE))
    np.testing.assert_array_equal(v.value, VALUE)
    for dtype in ("float16", "float64", "longdouble", "int64", "bool"):
        v.assign(np.ones((2, 3), dtype))
        assert v.dtype == np.float32
        assert (v.value == 1).all()
    v.assign_add(np.full((2, 3), 0.1))
    assert (v.value == np.float32(1) + np.float32(0.1)).all()
    v.assign_sub(np.full((2, 3), 0.1, "longdouble"))
    assert v.dtype == np.float32


WRONG = {
    "shape": (np.zeros((3, 2), "f4"), ValueError, r"w: expected shape \(2, 3\), got \(3, 2\)"),
    "scalar": (0.0, ValueError, r"w: expected shape \(2, 3\), got \(\)"),
    "dates": (np.zeros((2, 3), "M8[s]"), TypeError, r"w: expected numbers, got dtype datetime64"),
    "complex": (VALUE * 1j, TypeError, r"w: expected real numbers"),
    "text": ("abc", TypeError, r"w: expected numbers"),
    "ragged": ([[1], [1, 2]], ValueError, r"w: expected a rectangular array"),
    "None": (None, TypeError, r"w: expected numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_assignments_change_nothing(name):
    value, error, pattern = WRONG[name]
    owner = mock.Mock()
    v = Variable(VALUE, name="w", owner=owner)
    old = v.value
    with pytest.raises(error, match=pattern):
        v.assign(value)
    if name not in ("scalar", "shape"):
        with pytest.raises(error, match=pattern):
            v.assign_add(value)
        with pytest.raises(error, match=pattern):
            v.assign_sub(value)
    assert v.value is old
    assert owner.mock_calls == []
    v.assign(VALUE)
    owner.renewed.assert_called_once()
    assert owner._weights is owner.renewed.return_value


def test_it_is_usable_as_an_array():
    v = Variable(VALUE)
    np.testing.assert_array_equal(v + 1, VALUE + 1)
    np.testing.assert_array_equal(2 - v, 2 - VALUE)
    np.testing.assert_array_equal(v @ VALUE.T, VALUE @ VALUE.T)
    np.testing.assert_array_equal(VALUE @ np.transpose(v), VALUE @ VALUE.T)
    np.testing.assert_array_equal(-v > -2, -VALUE > -2)
    np.testing.assert_array_equal(v[:, 1], VALUE[:, 1])
    assert np.sum(v) == VALUE.sum()
    assert np.sqrt(v).dtype == np.float32
    assert (v * v == VALUE**2).all()
    assert np.asarray(v, "float64").dtype == np.float64
    assert np.array(v).flags.writeable
    assert type(np.stack([v, v])) is np.ndarray
    assert [row.tolist() for row in v] == VALUE.tolist()


def test_it_is_not_written_to_by_operators():
    v = Variable(VALUE)
    with pytest.raises(TypeError, match=r"assign"):
        v += 1
    with pytest.raises(TypeError, match=r"assign"):
        np.add(VALUE, 1, out=v)
    with pytest.raises(TypeError, match=r"item assignment"):
        v[0] = 1
    with pytest.raises((ValueError, TypeError)):
        np.add.at(v, 0, 1)
    np.testing.assert_array_equal(v.value, VALUE)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
def test_copies(how):
    v = Variable(VALUE, name="w", trainable=False)
    twin = {
        "pickle": lambda: pickle.loads(pickle.dumps(v)),
        "deepcopy": lambda: copy.deepcopy(v),
        "copy": lambda: copy.copy(v),
    }[how]()
    assert (twin.name, twin.trainable) == ("w", False)
    twin.assign(VALUE + 1)
    np.testing.assert_array_equal(v.value, VALUE)
    with pytest.raises(ValueError, match="read-only"):
        twin.value[...] = 0


@pytest.mark.parametrize("write", ["assign", "set_weights", "assign_add", "apply_constraints"])
def test_every_write_reaches_the_next_call(backend, write):
    layer = gru(kernel_constraint="non_neg", return_sequences=True)
    before = layer(sequences())
    values = layer.get_weights()
    if write == "assign":
        values[0] = np.abs(values[0])
        layer.kernel.assign(values[0])
    elif write == "assign_add":
        values[2] = values[2] + 0.25
        layer.bias.assign_add(0.25)
    elif write == "set_weights":
        values = [w + 0.1 for w in values]
        layer.set_weights(values)
    else:
        values[0] = np.maximum(values[0], 0)
        layer.apply_constraints()
    fresh = fastgru.GRU(H, dtype="float64", return_sequences=True)
    fresh.build((None, None, I))
    fresh.set_weights(values)
    after = layer(sequences())
    np.testing.assert_array_equal(after, fresh(sequences()))
    assert (after != before).any()


def test_weights_in_a_call_are_one_consistent_set():
    layer = gru()
    kept = layer.cell.snapshot()
    layer.set_weights([w + 1 for w in layer.get_weights()])
    now = layer.cell.snapshot()
    assert now.version != kept.version
    np.testing.assert_array_equal(kept.kernel + 1, now.kernel)
    assert not np.shares_memory(kept.kernel, now.kernel)


def adoptable(I=5, H=4, dtype="float32"):
    """Weights of a GRUCell(4), drawn, and an aligned byte string that holds them."""
    rng = np.random.default_rng(3)
    return [rng.normal(size=s).astype(dtype) for s in ((I, 3 * H), (H, 3 * H), (2, 3 * H))]


def test_a_cell_adopts_weights_where_they_lie():
    weights = adoptable()
    readonly = np.frombuffer(weights[0].tobytes(), "float32").reshape(weights[0].shape)
    cell = fastgru.GRUCell(4)
    cell.adopt(readonly, *weights[1:])
    assert cell.built
    for variable, array in zip(cell.weights, [readonly, *weights[1:]], strict=True):
        assert np.shares_memory(variable.value, array)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    x = np.random.default_rng(4).normal(size=(3, 5)).astype("float32")
    h = np.random.default_rng(5).normal(size=(3, 4)).astype("float32")
    other = fastgru.GRUCell(4)
    other.build((None, 5))
    other.set_weights(weights)
    np.testing.assert_array_equal(cell(x, h)[0], other(x, h)[0])
    before = weights[0].copy()
    cell.kernel.assign_add(1.0)
    np.testing.assert_array_equal(weights[0], before)  # another array took its place
    assert [v.name for v in cell.weights] == ["kernel", "recurrent_kernel", "bias"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (adoptable()[:2], r"kernel, recurrent_kernel, bias in float32 .* got"),
        (adoptable(H=3), r"\(5, 12\)"),
        (adoptable(dtype="float64"), "got float64"),
        ([w.T.copy().T for w in adoptable()], "C-contiguous"),
        ([], "got"),
    ],
)
def test_a_cell_adopts_nothing_else(weights, message):
    cell = fastgru.GRUCell(4)
    with pytest.raises(ValueError, match=message):
        cell.adopt(*weights)
    assert not cell.built
    assert cell.weights == []
    assert all(w.flags.writeable for w in weights)
