"""`backward` against central differences in float64: inputs, initial states and every weight.

The loss is what `GRU.backward` documents: <outputs, output_gradients> + <state, state_gradients> +
sum(layer.losses). `differences` compares along random directions, which costs two calls a direction
and sees every element; `test_every_element` does it one element at a time.

The truncation of a central difference with step 1e-5 is of the order of 1e-10, its rounding of the
order of 1e-11 times the loss; what is asked for is 1e-6 of the gradient's length.
"""

import numpy as np
import pytest
from grad_support import (
    MASKS,
    RESETS,
    B,
    H,
    I,
    T,
    fill,
    flatten,
    gru,
    rewind,
    rng,
    sequences,
    state,
)

import fastgru
from fastgru.backends import reference

STEP, RELATIVE = 1e-5, 1e-6


class Loss:
    """The scalar whose gradient `backward` gives, as a function of everything it depends on."""

    def __init__(self, layer, x, states, seed=11, **call):
        self.layer, self.call = layer, {"training": False, **call}
        self.nested = states
        self.values = [x, *flatten(states), *(v.numpy() for v in layer.trainable_weights)]
        outputs = self._parts(self._forward()[0])
        draw = rng(seed)
        self.dy, self.dstate = ([draw.normal(size=a.shape) for a in part] for part in outputs)

    def _forward(self):
        x, *rest = self.values
        count = len(flatten(self.nested))
        for variable, value in zip(self.layer.trainable_weights, rest[count:], strict=True):
            variable.assign(value)
        rewind(self.layer)
        return self.layer.forward(x, _nest(self.nested, iter(rest[:count])), **self.call)

    def _parts(self, outputs):
        """Return the outputs and the states, each flat."""
        count = 2 if getattr(self.layer, "merge_mode", "one") is None else 1
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        states = outputs[count:]
        return outputs[:count], flatten(states) if states else []

    def __call__(self):
        outputs, _ = self._forward()
        pairs = zip(flatten(self._parts(outputs)), self.dy + self.dstate, strict=True)
        return sum(np.sum(a * d) for a, d in pairs) + sum(float(v) for v in self.layer.losses)

    def gradients(self):
        """Return what `backward` gives, in the order of ``values``."""
        _, tape = self._forward()
        dy = self.dy if len(self.dy) > 1 else self.dy[0]
        grads = self.layer.backward(tape, dy, self.dstate or None)
        return [grads.inputs, *flatten(grads.initial_state), *grads.weights]

    def along(self, index, direction):
        """Return the central difference of the loss along a direction of one of ``values``."""
        kept = self.values[index]
        self.values[index] = kept + STEP * direction
        above = self()
        self.values[index] = kept - STEP * direction
        below = self()
        self.values[index] = kept
        return (above - below) / (2 * STEP)


def _nest(pattern, values):
    if isinstance(pattern, (list, tuple)):
        return [_nest(part, values) for part in pattern]
    return next(values)


def differences(layer, x, states, *, directions=2, alive=True, **call):
    """Assert that all gradients of the layer agree with central differences."""
    loss = Loss(layer, x, states, **call)
    grads = loss.gradients()
    assert [g.shape for g in grads] == [v.shape for v in loss.values]
    draw = rng(12)
    for index, grad in enumerate(grads):
        assert grad.dtype == np.float64
        length = np.linalg.norm(grad)
        if alive:
            assert length > 1e-3, f"gradient {index} vanishes: nothing would be checked"
        for _ in range(directions):
            direction = draw.normal(size=grad.shape)
            direction /= np.linalg.norm(direction)
            numeric, analytic = loss.along(index, direction), np.sum(grad * direction)
            assert abs(analytic - numeric) <= RELATIVE * max(length, 1e-2), (
                f"gradient {index}: {analytic} by backward, {numeric} by differences"
            )


# -- the grid ----------------------------------------------------------------------------

DROPOUTS = {
    "none": {},
    "implementation 2": {"dropout": 0.4},
    "implementation 1": {"dropout": 0.4, "implementation": 1},
    "recurrent": {"recurrent_dropout": 0.3},
    "both": {"dropout": 0.4, "recurrent_dropout": 0.3},
}
GRID_MASKS = ["none", "right_padded", "holes", "empty_row"]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("rates", DROPOUTS)
@pytest.mark.parametrize("mask", GRID_MASKS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("reset_after", [True, False])
def test_grid(backend, reset_after, mask, reverse, rates, use_bias):
    layer = gru(
        reset_after=reset_after,
        go_backwards=reverse,
        use_bias=use_bias,
        return_sequences=True,
        return_state=True,
        seed=4,
        **DROPOUTS[rates],
    )
    layer.cell.seed_generator = fastgru.GRUCell(1, seed=4).seed_generator
    differences(layer, sequences(), state(), mask=MASKS[mask], training=True, directions=1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_outputs_masks_resets_and_time_major(backend, mask, zero, whole, time_major):
    layer = gru(
        return_sequences=whole,
        return_state=True,
        zero_output_for_mask=zero,
        time_major=time_major,
    )
    x, valid, resets = sequences(), MASKS[mask], RESETS
    if time_major:
        x, resets = x.transpose(1, 0, 2).copy(), resets.T
        valid = None if valid is None else valid.T
    differences(layer, x, state(), mask=valid)
    differences(layer, x, state(), mask=valid, reset_mask=resets)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("mask", ["none", "empty_row"])
def test_every_element(reset_after, mask):
    layer = gru(
        3,
        features=2,
        reset_after=reset_after,
        return_sequences=True,
        return_state=True,
        dropout=0.4,
        recurrent_dropout=0.3,
        seed=4,
        kernel_regularizer="l1_l2",
    )
    loss = Loss(
        layer,
        sequences(shape=(B, T, 2)),
        state(shape=(B, 3)),
        mask=MASKS[mask],
        training=True,
    )
    for index, grad in enumerate(loss.gradients()):
        numeric = np.empty_like(grad)
        for element in np.ndindex(*grad.shape):
            direction = np.zeros_like(grad)
            direction[element] = 1
            numeric[element] = loss.along(index, direction)
        np.testing.assert_allclose(grad, numeric, rtol=0, atol=RELATIVE * np.abs(grad).max())


# -- activations ---------------------------------------------------------------------------------

ACTIVATIONS = {
    act.name: act
    for act in vars(fastgru.activations).values()
    if isinstance(act, fastgru.activations.Activation) and act.shape_preserving
}
ACTIVATIONS["threshold"] = ACTIVATIONS["threshold"].with_params(0.15, -0.3)
for _act in (
    ACTIVATIONS["elu"].with_params(0.6),
    ACTIVATIONS["leaky_relu"].with_params(0.35),
    ACTIVATIONS["gelu"].with_params(True),
    ACTIVATIONS["relu"].with_params(0.1, 0.9, 0.2),
):
    ACTIVATIONS[f"{_act.name}{_act.params}"] = _act


@pytest.mark.parametrize("role", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(backend, name, role):
    act = ACTIVATIONS[name]
    for reset_after in (True, False):
        layer = gru(
            reset_after=reset_after,
            return_sequences=True,
            return_state=True,
            scale=0.1 if name == "exponential" else 0.3,  # a gate of exp(...) runs away
            **{role: act},
        )
        # Wide steps, so that both sides of every kink are met; none is met exactly.
        differences(layer, 2 * sequences()[:, :4], state(), alive=False, mask=MASKS["holes"][:, :4])


def test_there_are_all_of_keras_activations():
    assert len(ACTIVATIONS) >= 30
    assert {"softmax", "sparsemax", "log_softmax", "hard_sigmoid_keras2"} <= set(ACTIVATIONS)


class Cube:
    """An activation of the user's own, with its derivative."""

    def __call__(self, x):
        return np.tanh(x) ** 3

    def gradient(self, x, y):
        return 3 * np.tanh(x) ** 2 * (1 - np.tanh(x) ** 2)


@pytest.mark.parametrize("role", ["activation", "recurrent_activation"])
def test_custom_activation_with_a_derivative(role):
    layer = gru(return_sequences=True, return_state=True, **{role: Cube()})
    differences(layer, sequences(), state(), mask=MASKS["holes"])


@pytest.mark.parametrize("role", ["activation", "recurrent_activation"])
def test_custom_activation_without_a_derivative(role):
    layer = gru(**{role: lambda a: np.tanh(a)})
    y, tape = layer.forward(sequences())
    with pytest.raises(ValueError, match=rf"(?s)^{role}: backward needs its.*gradient\(x, y\)"):
        layer.backward(tape, np.ones_like(y))


# -- regularizers --------------------------------------------------------------------------------


class Quartic:
    """A regularizer of the user's own, with its gradient."""

    def __call__(self, w):
        return 0.1 * np.sum(w**4)

    def gradient(self, w):
        return 0.4 * w**3


REGULARIZERS = {
    "l1": "l1",
    "l2": "l2",
    "l1_l2": fastgru.regularizers.L1L2(0.03, 0.2),
    "orthogonal rows": fastgru.regularizers.OrthogonalRegularizer(0.5),
    "orthogonal columns": fastgru.regularizers.OrthogonalRegularizer(0.5, "columns"),
    "own": Quartic(),
}


@pytest.mark.parametrize("role", ["kernel", "recurrent", "bias"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_weight_regularizers(name, role):
    layer = gru(return_state=True, **{f"{role}_regularizer": REGULARIZERS[name]})
    index = ["kernel", "recurrent", "bias"].index(role)
    differences(layer, sequences(), state())
    y, tape = layer.forward(sequences())[0][0], layer.forward(sequences())[1]
    grads = layer.backward(tape, np.zeros_like(y))
    expected = REGULARIZERS[name] if name == "own" else layer.weights[index].regularizer
    np.testing.assert_allclose(
        grads.weights[index], expected.gradient(layer.weights[index].value), rtol=1e-14
    )
    assert not any(g.any() for i, g in enumerate(grads.weights) if i != index)


@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2", "own"])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_activity_regularizer(name, return_state, whole, time_major):
    layer = gru(
        activity_regularizer=REGULARIZERS[name],
        return_state=return_state,
        return_sequences=whole,
        time_major=time_major,
    )
    x = sequences(shape=(T, B, I) if time_major else (B, T, I))
    mask = MASKS["holes"].T if time_major else MASKS["holes"]
    differences(layer, x, state(), mask=mask)


def test_regularizer_without_a_derivative():
    for arguments, what in (
        ({"kernel_regularizer": lambda w: np.sum(w)}, "regularizer of kernel"),
        ({"activity_regularizer": lambda y: np.sum(y)}, "activity_regularizer"),
    ):
        layer = gru(**arguments)
        y, tape = layer.forward(sequences())
        with pytest.raises(ValueError, match=rf"(?s){what}: backward needs its derivative"):
            layer.backward(tape, np.ones_like(y))
        assert np.isfinite(layer.losses).all()


# -- composed layers -----------------------------------------------------------------------------


def stack(**arguments):
    cells = [
        fastgru.GRUCell(H, dtype="float64", dropout=0.3, seed=5, bias_regularizer="l2"),
        fastgru.GRUCell(2, dtype="float64", reset_after=False, recurrent_dropout=0.2, seed=6),
        fastgru.GRUCell(4, dtype="float64", use_bias=False, activation="softsign"),
    ]
    return fill(fastgru.RNN(cells, return_state=True, activity_regularizer="l2", **arguments))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_stacked_cells(backend, mask, reverse, whole, zero):
    layer = stack(go_backwards=reverse, return_sequences=whole, zero_output_for_mask=zero)
    starts = [state(shape=(B, n), seed=n) for n in (H, 2, 4)]
    call = {"mask": MASKS[mask], "reset_mask": RESETS, "training": True}
    differences(layer, sequences(), starts, directions=1, **call)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
def test_bidirectional(backend, merge_mode, mask, whole, return_state):
    inner = fastgru.GRU(
        H,
        dtype="float64",
        return_sequences=whole,
        return_state=return_state,
        activity_regularizer="l2",
        kernel_regularizer="l1",
        dropout=0.3,
        seed=8,
    )
    layer = fill(fastgru.Bidirectional(inner, merge_mode))
    call = {"mask": MASKS[mask], "reset_mask": RESETS, "training": True}
    differences(layer, sequences(), [state(), state(seed=5)], directions=1, **call)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("merge_mode", ["concat", "mul", None])
def test_bidirectional_time_major_and_unequal_halves(time_major, merge_mode):
    common = {"dtype": "float64", "return_sequences": True, "time_major": time_major}
    units = 2 if merge_mode == "concat" else H
    other = fastgru.GRU(units, go_backwards=True, reset_after=False, **common)
    layer = fill(fastgru.Bidirectional(fastgru.GRU(H, **common), merge_mode, backward_layer=other))
    x = sequences(shape=(T, B, I) if time_major else (B, T, I))
    differences(layer, x, [state(), state(shape=(B, units))])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("return_state", [False, True])
def test_sequential(backend, mask, return_state):
    common = {"dtype": "float64", "return_sequences": True}
    layer = fastgru.Sequential(
        [
            fastgru.GRU(H, dropout=0.3, seed=1, activity_regularizer="l2", **common),
            fastgru.Bidirectional(fastgru.GRU(2, kernel_regularizer="l2", **common), "sum"),
            fastgru.RNN(
                [fastgru.GRUCell(3, dtype="float64") for _ in range(2)],
                go_backwards=True,
                return_sequences=True,
            ),
            fastgru.GRU(6, dtype="float64", return_state=return_state, recurrent_dropout=0.2),
        ]
    )
    layer.layers[-1].cell.seed_generator = fastgru.GRUCell(1, seed=4).seed_generator
    fill(layer)
    starts = [
        state(),
        [state(shape=(B, 2)), state(shape=(B, 2), seed=4)],
        [state(shape=(B, 3)), state(shape=(B, 3), seed=4)],
        state(shape=(B, 6)),
    ]
    call = {"mask": MASKS[mask], "reset_mask": RESETS, "training": True}
    differences(layer, sequences(), starts, directions=1, **call)


def test_stateful_layer_starts_from_its_states():
    layer = gru(stateful=True, return_sequences=True, return_state=True)
    layer(sequences(seed=9))
    start = layer.states[0].numpy()
    plain = gru(return_sequences=True, return_state=True)
    dy, dstate = sequences(shape=(B, T, H)), state()
    _, tape = layer.forward(sequences())
    _, other = plain.forward(sequences(), start)
    got, want = layer.backward(tape, dy, dstate), plain.backward(other, dy, dstate)
    for a, b in zip([got.inputs, *got.weights], [want.inputs, *want.weights], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got.initial_state, want.initial_state)
    differences(layer, sequences(), state())


# -- that these tests can fail -------------------------------------------------------------------


def test_a_wrong_sign_in_the_step_is_seen(monkeypatch):
    wrong = staticmethod(lambda h, z, r, n: z * h - (1 - z) * n)
    monkeypatch.setattr(reference._Step, "blend", wrong)
    with fastgru.use_backend("reference"), pytest.raises(AssertionError, match="by differences"):
        differences(gru(return_sequences=True), sequences(), state())


def test_an_error_of_1e_5_in_a_derivative_is_seen(monkeypatch):
    right = reference.vjp
    monkeypatch.setattr(reference, "vjp", lambda *a: right(*a) * (1 + 1e-5))
    with fastgru.use_backend("reference"), pytest.raises(AssertionError, match="by differences"):
        differences(gru(return_sequences=True), sequences(), state())


def test_a_masked_outputs_gradient_going_nowhere_is_seen(monkeypatch):
    def forget(p, dy, valid, steps, batch):
        return np.where(valid[..., None], dy.transpose(1, 0, 2), 0)

    monkeypatch.setattr(reference, "_output_gradient_per_step", forget)
    with fastgru.use_backend("reference"), pytest.raises(AssertionError, match="by differences"):
        differences(gru(return_sequences=True), sequences(), state(), mask=MASKS["holes"])


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_float32_gradients_agree_with_float64(backend, reset_after, mask):
    # Every element is a sum over B T terms, each through at most T (I + H) rounded operations.
    bound = (B * T + T * (I + H)) * np.finfo("float32").eps
    found = []
    for dtype in ("float32", "float64"):
        layer = gru(
            reset_after=reset_after, return_sequences=True, return_state=True, dtype="float32"
        )
        weights = layer.get_weights()
        layer = gru(reset_after=reset_after, return_sequences=True, return_state=True, dtype=dtype)
        layer.set_weights(weights)
        x, h0 = sequences("float32"), state("float32")
        _, tape = layer.forward(x, h0, mask=MASKS[mask])
        dy = sequences("float32", seed=5, shape=(B, T, H))
        grads = layer.backward(tape, dy, state("float32", seed=6))
        found.append([grads.inputs, grads.initial_state, *grads.weights])
        assert {g.dtype.name for g in found[-1]} == {dtype}
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * np.abs(b).max())
