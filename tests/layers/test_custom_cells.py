"""Cells of the user's own in RNN: any object with state_size and a call."""

import copy
import pickle

import numpy as np
import pytest
from grad_support import MASKS, RESETS, B, H, I, T, fill, sequences, state

import fastgru
from fastgru import RNN, GRUCell, StackedRNNCells


class Leaky:
    """h' = a h + (1 - a) x W; counts its calls and says whether it was told to train."""

    def __init__(self, units=H, keep=0.5):
        self.units, self.keep = units, keep
        self.state_size = units
        self.built = False
        self.calls, self.trained = 0, []

    def build(self, shape):
        assert not self.built
        self.w = np.random.default_rng(shape[-1]).normal(size=(shape[-1], self.units))
        self.w = self.w.astype("float32")
        self.built = True

    def __call__(self, inputs, states, training=False):
        (h,) = states
        self.calls += 1
        self.trained.append(training)
        new = (self.keep * h + (1 - self.keep) * inputs @ self.w).astype("float32")
        return new, [new]

    def get_config(self):
        return {"units": self.units, "keep": self.keep}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Pair:
    """Two states and an output of another size; takes no ``training`` and has no build."""

    output_size = 4

    def __init__(self, features=I):
        self.state_size = (2, features)

    def __call__(self, inputs, states):
        count, total = states
        count = count + 1
        total = total + inputs
        return np.concatenate([count, total[:, :2]], axis=1), (count, total)


X = sequences("float32")


def by_hand(x, w, h0, valid, resets, keep=0.5):
    y, h = np.zeros((B, T, H), "float32"), np.array(h0)
    previous = np.zeros_like(h)
    for t in range(x.shape[1]):
        h = np.where(resets[:, t, None], 0, h).astype("float32")
        new = (keep * h + (1 - keep) * x[:, t] @ w).astype("float32")
        h = np.where(valid[:, t, None], new, h)
        previous = np.where(valid[:, t, None], new, previous)
        y[:, t] = previous
    return y, h


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_masks_resets_and_order(mask, reverse, time_major):
    layer = RNN(Leaky(), True, True, go_backwards=reverse, time_major=time_major)
    valid = np.ones((B, T), bool) if MASKS[mask] is None else MASKS[mask]
    order = slice(None, None, -1) if reverse else slice(None)
    h0 = state("float32")
    turn = (lambda a: np.swapaxes(a, 0, 1)) if time_major else (lambda a: a)
    y, final = layer(turn(X), h0, mask=turn(valid), reset_mask=turn(RESETS))
    want, want_state = by_hand(X[:, order], layer.cell.w, h0, valid[:, order], RESETS[:, order])
    np.testing.assert_array_equal(turn(y), want)
    np.testing.assert_array_equal(final, want_state)
    last = RNN(layer.cell, go_backwards=reverse, time_major=time_major)
    got = last(turn(X), h0, mask=turn(valid), reset_mask=turn(RESETS))
    np.testing.assert_array_equal(got, want[:, -1])
    zero = RNN(layer.cell, True, zero_output_for_mask=True, go_backwards=reverse)
    masked = zero(X, h0, mask=valid, reset_mask=RESETS)
    np.testing.assert_array_equal(masked, np.where(valid[:, order, None], want, 0))


def test_one_python_call_a_step_and_training_is_handed_on():
    layer = RNN(Leaky())
    layer(X)
    layer(X, training=True)
    assert layer.cell.calls == 2 * T
    assert layer.cell.trained == [False] * T + [True] * T


def test_several_states_and_an_output_of_another_size():
    layer = RNN(Pair(), return_sequences=True, return_state=True)
    assert layer.state_size == [2, I]
    assert layer.compute_output_shape(X.shape) == ((B, T, 4), (B, 2), (B, I))
    y, count, total = layer(X, lengths=[7, 0, 3, 1])
    assert y.shape == (B, T, 4)
    np.testing.assert_array_equal(count, np.array([[7, 7], [0, 0], [3, 3], [1, 1]]))
    np.testing.assert_allclose(total[2], X[2, :3].sum(0), rtol=1e-6)
    again = layer(X, [count, total])
    assert (again[1] == count + 7).all()
    with pytest.raises(ValueError, match=r"initial_state: expected 2 state\(s\)"):
        layer(X, [count])
    with pytest.raises(ValueError, match=r"initial_state\[1\]: expected shape .*\(4, 3\)"):
        layer(X, [count, count])


def test_stateful():
    layer = RNN(Pair(), stateful=True, return_state=True)
    layer(X[:, :3])
    assert [v.value.shape for v in layer.states] == [(B, 2), (B, I)]
    assert (layer(X[:, 3:])[1] == T).all()
    layer.reset_state()
    assert (layer(X)[1] == T).all()


def test_a_stack_of_our_cells_and_others():
    cells = [GRUCell(2), Leaky(H), Pair(H)]
    layer = RNN(cells, return_sequences=True, return_state=True)
    y, first, second, third = layer(X, mask=MASKS["holes"])
    gru = RNN(cells[0], return_sequences=True, return_state=True)
    middle, gru_state = gru(X, mask=MASKS["holes"])
    np.testing.assert_allclose(first[0], gru_state, atol=1e-6)
    leaky, leaky_state = RNN(cells[1], True, True)(middle, mask=MASKS["holes"])
    np.testing.assert_allclose(second, leaky_state, atol=1e-6)  # bare, as Keras has it
    assert (third[0] == MASKS["holes"].sum(1)[:, None]).all()
    assert y.shape == (B, T, 4)
    assert leaky.shape == (B, T, H)


def test_nothing_returned_shares_memory():
    layer = RNN(Leaky(), return_sequences=False, return_state=True)
    y, final = layer(X)
    np.testing.assert_array_equal(y, final)
    assert not np.shares_memory(y, final)
    h0 = state("float32")
    y, final = layer(X[:, :0], h0)
    np.testing.assert_array_equal(final, h0)
    assert not np.shares_memory(final, h0)
    assert not y.any()


def test_out_and_explain():
    layer = RNN(Leaky(), return_sequences=True)
    want = layer(X)
    out = np.empty_like(want)
    assert layer(X, out=out) is out
    np.testing.assert_array_equal(out, want)
    says = layer.explain(X)
    assert (says.backend, says.backward) == ("python", "none")
    assert "from Python" in str(says)


def test_config_and_copies():
    layer = RNN(Leaky(keep=0.25), return_state=True)
    config = layer.get_config()
    twin = RNN.from_config(config, custom_objects={"Leaky": Leaky})
    assert (twin.cell.units, twin.cell.keep) == (H, 0.25)
    for a, b in zip(layer(X), twin(X), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.cell is not layer.cell
        np.testing.assert_array_equal(other(X)[0], layer(X)[0])


def test_bidirectional_and_sequential_take_them():
    both = fastgru.Bidirectional(RNN(Leaky(), return_sequences=True))
    y = both(X, mask=MASKS["right_padded"])
    assert y.shape == (B, T, 2 * H)
    assert both.forward_layer.cell is not both.backward_layer.cell
    chain = fastgru.Sequential([both, fastgru.GRU(2)])
    assert chain(X).shape == (B, 2)


def test_stacked_cells_called_by_hand_are_the_layer(backend):
    stack = StackedRNNCells([GRUCell(H, dtype="float64"), GRUCell(2, dtype="float64")])
    layer = fill(RNN(stack, return_sequences=True, return_state=True))
    x = sequences()
    y, first, second = layer(x)
    states = stack.get_initial_state(B)
    for t in range(T):
        output, states = stack(x[:, t], states)
        np.testing.assert_allclose(output, y[:, t], atol=1e-12)
    np.testing.assert_allclose(np.asarray(states[0]).reshape(B, H), first[0], atol=1e-12)
    np.testing.assert_allclose(np.asarray(states[1]).reshape(B, 2), second[0], atol=1e-12)
    assert stack.state_size == [H, 2]
    assert stack.output_size == 2


def test_nested_stacks():
    inner = StackedRNNCells([GRUCell(2), GRUCell(3)])
    layer = fill(RNN([inner, GRUCell(H)], return_sequences=True, return_state=True))
    flat = fill(RNN([GRUCell(2), GRUCell(3), GRUCell(H)], return_sequences=True))
    np.testing.assert_array_equal(layer(X)[0], flat(X))


class Recorder:
    """A cell that is all `call` makes of it; not hashable, as a callable may be."""

    state_size = 2
    __hash__ = None

    def __init__(self, call):
        self.call = call

    def __call__(self, *arguments, **named):
        return self.call(*arguments, **named)


def test_each_cell_is_asked_for_training_by_itself():
    x = np.ones((1, 3, 2), "float32")
    seen = []

    def knows(inputs, states, training=False):
        seen.append(training)
        return inputs, [states[0]]

    def knows_not(inputs, states):
        seen.append(None)
        return inputs, [states[0]]

    for call, expected in ((knows, True), (knows_not, None)):
        for cell in Recorder(call), [fastgru.GRUCell(2), Recorder(call)]:
            seen.clear()
            fastgru.RNN(cell)(x, training=True)
            assert seen == [expected] * 3


def test_a_metaclass_of_ones_own():
    class Meta(type):
        pass

    layer = Meta("Mine", (fastgru.GRU,), {})(3)
    assert layer(np.ones((1, 2, 4), "float32")).shape == (1, 3)
