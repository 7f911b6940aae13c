"""Tapes: each is used once, and refused after weights or states have changed."""

import copy
import pickle

import numpy as np
import pytest
from grad_support import (
    MASKS,
    RESETS,
    B,
    H,
    I,
    T,
    draws,
    fill,
    flatten,
    gru,
    rewind,
    sequences,
    state,
)

import fastgru
from fastgru.backends import cpu as cpu_backend


def gru_layer():
    return gru(return_sequences=True, return_state=True, dropout=0.3, recurrent_dropout=0.2, seed=1)


def stack_layer():
    cells = [fastgru.GRUCell(n, dtype="float64", dropout=0.3, seed=n) for n in (H, 2)]
    return fill(fastgru.RNN(cells, return_sequences=True, return_state=True))


def bidirectional_layer(merge_mode="mul"):
    inner = fastgru.GRU(H, dtype="float64", return_sequences=True, return_state=True)
    return fill(fastgru.Bidirectional(inner, merge_mode))


def sequential_layer():
    first = fastgru.GRU(2, dtype="float64", return_sequences=True, dropout=0.2, seed=4)
    last = fastgru.GRU(H, dtype="float64", return_sequences=True, return_state=True)
    return fill(fastgru.Sequential([first, fastgru.Bidirectional(first, "ave"), last]))


LAYERS = [gru_layer, stack_layer, bidirectional_layer, sequential_layer]


def gradients_like(outputs):
    draw = np.random.default_rng(3)
    y, *states = outputs
    return draw.normal(size=y.shape), [draw.normal(size=s.shape) for s in flatten(states)]


def leaves(grads):
    return [grads.inputs, *flatten(grads.initial_state), *grads.weights]


@pytest.mark.parametrize("make", LAYERS)
def test_used_twice(make):
    layer = make()
    outputs, tape = layer.forward(sequences())
    layer.backward(tape, *gradients_like(outputs))
    with pytest.raises(ValueError, match=r"tape: it has been used already; run forward"):
        layer.backward(tape, *gradients_like(outputs))


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("index", [0, -1])
def test_weights_changed(make, index):
    layer = make()
    outputs, tape = layer.forward(sequences())
    layer.weights[index].assign_add(0.5)
    with pytest.raises(ValueError, match=r"tape: the weights of .* have changed since forward"):
        layer.backward(tape, *gradients_like(outputs))
    outputs, tape = layer.forward(sequences())
    layer.set_weights(layer.get_weights())
    with pytest.raises(ValueError, match=r"have changed since forward"):
        layer.backward(tape, *gradients_like(outputs))


@pytest.mark.parametrize("make", LAYERS)
def test_of_another_layer_or_no_tape_at_all(make):
    layer, twin = make(), make()
    outputs, tape = layer.forward(sequences())
    with pytest.raises(ValueError, match=r"tape: expected .*forward\(\.\.\.\).*got"):
        twin.backward(tape, *gradients_like(outputs))
    for wrong in (None, 3, outputs):
        with pytest.raises(TypeError, match=r"tape: expected .*forward.*got"):
            layer.backward(wrong, *gradients_like(outputs))
    layer.backward(tape, *gradients_like(outputs))  # the refusals have not spent it


@pytest.mark.parametrize("make", LAYERS)
def test_a_refused_backward_leaves_the_tape_good(make):
    layer = make()
    outputs, tape = layer.forward(sequences())
    dy, dstates = gradients_like(outputs)
    for wrong_dy, wrong_states, error, pattern in (
        (dy[1:], dstates, ValueError, r"output_gradients: expected shape .*got"),
        (dy[0, 0], dstates, ValueError, r"output_gradients: expected shape"),
        (dy.astype(complex), dstates, TypeError, r"output_gradients: expected real numbers"),
        ("dy", dstates, TypeError, r"output_gradients: expected numbers"),
        (dy, [*dstates, dstates[0]], ValueError, r"state_gradients: expected .* ?\d"),
        (dy, [], ValueError, r"state_gradients: expected .* ?\d"),
        (dy, [*dstates[:-1], dstates[-1][1:]], ValueError, r"state_gradients.*: expected shape"),
        (dy, [*dstates[:-1], dstates[-1] * 1j], TypeError, r"state_gradients.*: expected real"),
    ):
        with pytest.raises(error, match=pattern):
            layer.backward(tape, wrong_dy, wrong_states)
    assert all(np.isfinite(g).all() for g in leaves(layer.backward(tape, dy, dstates)))


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("mask", ["none", "right_padded", "holes"])
def test_writing_to_inputs_and_outputs_in_between_changes_nothing(make, mask, backend):
    layer = make()
    found = []
    for spoil in (False, True):
        x, valid, resets = sequences(), MASKS[mask], RESETS.copy()
        valid = None if valid is None else valid.copy()
        starts = [state(shape=s.shape, seed=i) for i, s in enumerate(start_shapes(layer))]
        given = nest(layer, starts)
        rewind(layer)
        outputs, tape = layer.forward(x, given, mask=valid, reset_mask=resets)
        dy, dstates = gradients_like(outputs)
        if spoil:
            for array in [
                x,
                resets,
                *starts,
                *flatten(outputs),
                *([] if valid is None else [valid]),
            ]:
                array[...] = 1 - array
        found.append(leaves(layer.backward(tape, dy, dstates)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def start_shapes(layer):
    return flatten(layer.get_initial_state(B))


def nest(layer, starts):
    pattern, values = layer.get_initial_state(B), iter(starts)

    def rebuild(part):
        return [rebuild(p) for p in part] if isinstance(part, (list, tuple)) else next(values)

    return rebuild(pattern)


@pytest.mark.parametrize("make", LAYERS)
def test_other_calls_in_between_change_nothing(make):
    layer = make()
    rewind(layer)
    outputs, tape = layer.forward(sequences(), mask=MASKS["holes"])
    want = leaves(layer.backward(tape, *gradients_like(outputs)))
    rewind(layer)
    outputs, tape = layer.forward(sequences(), mask=MASKS["holes"])
    layer(sequences(seed=8, shape=(2, 3, I)), training=True)
    layer.forward(sequences(seed=9, shape=(5, 2, I)), lengths=[1, 2, 0, 2, 1])
    got = leaves(layer.backward(tape, *gradients_like(outputs)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", LAYERS)
def test_two_tapes_backward_in_any_order(make):
    layer = make()
    rewind(layer)
    first, one = layer.forward(sequences())
    second, two = layer.forward(sequences(seed=5))
    late = leaves(layer.backward(two, *gradients_like(second)))
    early = leaves(layer.backward(one, *gradients_like(first)))
    rewind(layer)
    outputs, tape = layer.forward(sequences())
    for a, b in zip(early, leaves(layer.backward(tape, *gradients_like(outputs))), strict=True):
        np.testing.assert_array_equal(a, b)
    outputs, tape = layer.forward(sequences(seed=5))
    for a, b in zip(late, leaves(layer.backward(tape, *gradients_like(outputs))), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", LAYERS)
def test_none_means_zeros(make):
    layer = make()

    def run(dy, dstates):
        rewind(layer)
        _, tape = layer.forward(sequences())
        return leaves(layer.backward(tape, dy, dstates))

    outputs, _ = layer.forward(sequences())
    dy, dstates = gradients_like(outputs)
    zero_states = [np.zeros_like(d) for d in dstates]
    for pair in (
        (run(None, dstates), run(np.zeros_like(dy), dstates)),
        (run(dy, None), run(dy, zero_states)),
        (run(None, None), run(np.zeros_like(dy), zero_states)),
    ):
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not any(g.any() for g in run(None, None))


def test_one_state_gradient_may_come_bare_or_in_a_list():
    layer = gru(return_state=True)
    found = []
    for given in (state(), [state()], (state(),)):
        (y, _), tape = layer.forward(sequences())
        found.append(leaves(layer.backward(tape, np.zeros_like(y), given)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_are_the_callers_own_arrays():
    layer = gru(return_sequences=True)
    x, dy = sequences(), sequences(shape=(B, T, H))
    _, tape = layer.forward(x, state())
    grads = layer.backward(tape, dy)
    arrays = [grads.inputs, grads.initial_state, *grads.weights]
    for i, a in enumerate(arrays):
        assert a.flags.writeable
        assert not any(np.shares_memory(a, b) for b in [x, dy, *arrays[:i]])
        assert not any(np.shares_memory(a, v.value) for v in layer.weights)


def test_only_trainable_weights_have_gradients():
    layer = gru(kernel_regularizer="l2")
    layer.recurrent_kernel.trainable = False
    y, tape = layer.forward(sequences())
    grads = layer.backward(tape, np.ones_like(y))
    assert [g.shape for g in grads.weights] == [layer.kernel.shape, layer.bias.shape]
    layer.trainable = False
    y, tape = layer.forward(sequences())
    grads = layer.backward(tape, np.ones_like(y))
    assert grads.weights == []
    assert grads.inputs.any()
    assert layer.losses == []


def test_forward_trains_by_default_and_the_call_does_not():
    layer = gru(dropout=0.5, seed=1)
    layer(sequences())
    assert draws(layer) == [[0, 0]]
    layer.forward(sequences(), training=False)
    assert draws(layer) == [[0, 0]]
    layer.forward(sequences())
    assert draws(layer) == [[1, 0]]


def test_forward_gives_what_the_call_gives(backend):
    for make in LAYERS:
        layer = make()
        rewind(layer)
        called = layer(sequences(), mask=MASKS["holes"], training=True)
        rewind(layer)
        outputs, _ = layer.forward(sequences(), mask=MASKS["holes"])
        for a, b in zip(flatten(called), flatten(outputs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_forward_writes_to_out_and_the_caller_may_write_there_again():
    layer = gru(return_sequences=True)
    out = np.empty((B, T, H))
    y, tape = layer.forward(sequences(), state(), out=out)
    assert y is out
    want = leaves(layer.backward(layer.forward(sequences(), state())[1], np.ones_like(out)))
    out[...] = np.nan
    got = leaves(layer.backward(tape, np.ones((B, T, H))))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_custom_cell_has_no_backward():
    class Sum:
        state_size = 3

        def __call__(self, inputs, states):
            new = states[0] + inputs
            return new, [new]

    layer = fastgru.RNN(Sum())
    y, tape = layer.forward(sequences("float32", shape=(B, T, 3)))
    with pytest.raises(ValueError, match=r"backward needs the derivative of the cell.*custom cell"):
        layer.backward(tape, np.ones_like(y))


def test_one_step_of_gradient_descent_lowers_the_loss():
    layer = gru(return_sequences=True, kernel_regularizer="l2", recurrent_constraint="max_norm")
    target = np.tanh(sequences(seed=20, shape=(B, T, H)))
    losses = []
    for _ in range(5):
        y, tape = layer.forward(sequences())
        losses.append(0.5 * np.sum((y - target) ** 2) + sum(layer.losses))
        for v, g in zip(
            layer.trainable_weights, layer.backward(tape, y - target).weights, strict=True
        ):
            v.assign_sub(0.005 * g)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("mask", ["none", "holes"])
def test_saving_the_states_alone_gives_the_same_gradients(make, mask):
    grads = []
    layer = make()
    for save in ("gates", "states"):
        rewind(layer)
        outputs, tape = layer.forward(sequences(), mask=MASKS[mask], save=save)
        grads.append(leaves(layer.backward(tape, *gradients_like(outputs))))
    for kept, again in zip(*grads, strict=True):
        np.testing.assert_array_equal(again, kept)


def test_saving_the_states_alone_keeps_no_gates():
    layer = gru_layer()
    _, tape = layer.forward(sequences(), save="states")
    assert tape.kept["records"][0].workspace is None
    _, tape = layer.forward(sequences())
    record = tape.kept["records"][0]
    fused = record.backend == "cpu" and cpu_backend.build_info()["kernel"] == "fused"
    assert (record.workspace is not None) == fused


def test_computing_the_gates_again_does_not_write_to_out():
    layer = gru_layer()
    out = np.empty((B, T, H))
    _, tape = layer.forward(sequences(), out=out, save="states")
    out[...] = 7
    layer.backward(tape, np.ones((B, T, H)))
    assert (out == 7).all()


def test_save_knows_two_words():
    layer = fastgru.GRU(H)
    with pytest.raises(ValueError, match="save: expected 'gates' or 'states', got 'all'"):
        layer.forward(sequences(), save="all")
    assert not layer.built


def test_a_tape_can_be_copied_and_pickled():
    x = np.random.default_rng(0).random((2, 3, 4), "float32")
    _, tape = fastgru.GRU(3, return_sequences=True).forward(x, lengths=[3, 1])
    kept = tape.kept["records"][0].problem
    for other in copy.copy(tape), copy.deepcopy(tape), pickle.loads(pickle.dumps(tape)):
        (record,) = other.kept["records"]
        assert not other.used
        assert bool((record.problem.x == kept.x).all())
        np.testing.assert_array_equal(record.problem.mask.lengths, [3, 1])
        assert record.problem == record.problem
        assert record.problem != copy.copy(record.problem)
