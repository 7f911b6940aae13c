"""Random histories of layers, streams and weights, beside functions that get the whole state.

Hypothesis makes the histories and shortens those that fail; FASTGRU_EXHAUSTIVE=1 makes more.
"""

import numpy as np
import pytest
from exhaustive import EVERYTHING
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fastgru

B, I, H = 3, 4, 5
SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(0, 6)
BOUNDED = settings(
    max_examples=1000 if EVERYTHING else 40,
    stateful_step_count=60 if EVERYTHING else 25,
    deadline=None,
    derandomize=not EVERYTHING,
    suppress_health_check=list(HealthCheck),
)
LAYERS = {
    "gru": {},
    "reset_after=False": {"reset_after": False},
    "relu, no bias": {"activation": "relu", "use_bias": False},
    "float64": {"dtype": "float64"},
}


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class LayerMachine(RuleBasedStateMachine):
    """A stateful layer against the function, which gets weights and state each time."""

    options: dict[str, object]

    @initialize(seed=SEEDS)
    def make(self, seed):
        self.layer = fastgru.GRU(
            H, stateful=True, return_sequences=True, return_state=True, **self.options
        )
        self.layer.build((B, None, I))
        self.dtype = self.layer.dtype
        self.state = np.zeros((B, H), self.dtype)
        self.write(seed)
        self.tape = None

    def draw(self, seed, *shape):
        return numbers(seed, *shape).astype(self.dtype)

    def expected(self, x, **arguments):
        activation = self.options.get("activation", "tanh")
        return fastgru.gru(
            x,
            *self.weights,
            **({} if len(self.weights) == 3 else {"bias": None}),
            activation=activation,
            reset_after=self.options.get("reset_after", True),
            **arguments,
        )

    def near(self, got, expected):
        bound = 2e-6 if self.dtype == "float32" else 1e-13
        np.testing.assert_allclose(got, expected, rtol=10 * bound, atol=bound)

    @rule(seed=SEEDS)
    def write(self, seed):
        shapes = [v.shape for v in self.layer.weights]
        self.weights = [0.5 * self.draw(seed + i, *shape) for i, shape in enumerate(shapes)]
        self.layer.set_weights(self.weights)

    @rule(seed=SEEDS, which=st.integers(0, 1))
    def write_one(self, seed, which):
        change = 0.1 * self.draw(seed, *self.weights[which].shape)
        self.layer.weights[which].assign_add(change)
        self.weights[which] = self.weights[which] + change

    @rule(seed=SEEDS, steps=STEPS, masked=st.booleans(), given_out=st.booleans())
    def call(self, seed, steps, masked, given_out):
        x = self.draw(seed, B, steps, I)
        arguments = {}
        if masked:
            arguments["mask"] = np.random.default_rng(seed).random((B, steps)) < 0.5
        expected, state = self.expected(x, initial_state=self.state, **arguments)
        if given_out:
            arguments["out"] = np.empty((B, steps, H), self.dtype)
        y, self.state = self.layer(x, **arguments)
        assert not given_out or y is arguments["out"]
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(self.state, state)
        y[...] = np.nan  # the user's arrays are the user's
        self.state = self.state.copy()

    @rule(seed=SEEDS)
    def call_from_given(self, seed):
        x, start = self.draw(seed, B, 3, I), self.draw(seed + 1, B, H)
        y, self.state = self.layer(x, initial_state=start)
        with fastgru.use_backend("reference"):
            expected, state = self.expected(x, initial_state=start)
        self.near(y, expected)
        self.near(self.state, state)

    @rule(
        kind=st.sampled_from(["shape", "features", "dtype", "lengths", "out", "state", "weights"])
    )
    def refused(self, kind):
        x = np.ones((B, 2, I), self.dtype)
        calls = {
            "shape": lambda: self.layer(x[:-1]),
            "features": lambda: self.layer(x[..., 1:]),
            "dtype": lambda: self.layer(x.astype(complex)),
            "lengths": lambda: self.layer(x, lengths=[1, 2, 3]),
            "out": lambda: self.layer(x, out=np.empty((B, 2, H + 1), self.dtype)),
            "state": lambda: self.layer.reset_states([np.ones((B, H + 1), self.dtype)]),
            "weights": lambda: self.layer.set_weights([*self.weights[:-1], np.ones(7)]),
        }
        with pytest.raises((ValueError, TypeError)):
            calls[kind]()

    @rule()
    def reset(self):
        self.layer.reset_state()
        self.state = np.zeros((B, H), self.dtype)

    @rule(seed=SEEDS)
    def set_state(self, seed):
        self.state = self.draw(seed, B, H)
        self.layer.reset_states([self.state])

    @rule()
    def copy(self):
        """Go on with a copy of the layer, which shares nothing with it."""
        import copy

        before, self.layer = self.layer, copy.deepcopy(self.layer)
        before.set_weights([w * np.nan for w in before.get_weights()])
        self.tape = None

    @rule(seed=SEEDS, steps=st.integers(1, 6))
    def forward(self, seed, steps):
        x = self.draw(seed, B, steps, I)
        expected, state = self.expected(x, initial_state=self.state)
        (y, self.state), self.tape = self.layer.forward(x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(self.state, state)
        self.seen, self.shape = [w.copy() for w in self.weights], y.shape

    @precondition(lambda self: self.tape is not None)
    @rule(seed=SEEDS)
    def backward(self, seed):
        dy = self.draw(seed, *self.shape)
        changed = self.layer.cell.snapshot() is not self.tape.kept["records"][0].weights
        if changed:
            with pytest.raises(ValueError, match="changed"):
                self.layer.backward(self.tape, dy)
        else:
            grads = self.layer.backward(self.tape, dy)
            assert [g.shape for g in grads.weights] == [w.shape for w in self.weights]
            with pytest.raises(ValueError, match="used"):
                self.layer.backward(self.tape, dy)
        self.tape = None

    @invariant()
    def nothing_else_has_changed(self):
        if not hasattr(self, "layer"):
            return
        np.testing.assert_array_equal(self.layer.states[0].value, self.state)
        for weight, other in zip(self.layer.weights, self.weights, strict=True):
            np.testing.assert_array_equal(weight.value, other)


class StreamMachine(RuleBasedStateMachine):
    """A stream against the layer's cells, each row run by itself."""

    options: dict[str, object]

    @initialize(seed=SEEDS, rows=st.integers(1, 6))
    def make(self, seed, rows):
        first = fastgru.GRU(H, return_sequences=True, **self.options)
        second = fastgru.GRU(3, **self.options)
        self.layer = fastgru.Sequential([first, second])
        self.layer.build((None, None, I))
        self.cells = [first.cell, second.cell]
        self.rows = rows
        self.stream = self.layer.stream(rows)
        self.dtype = first.dtype
        self.states = [np.zeros((rows, n), self.dtype) for n in (H, 3)]
        self.write(seed)

    @rule(seed=SEEDS)
    def write(self, seed):
        old = self.layer.get_weights()
        self.layer.set_weights([numbers(seed, *w.shape).astype(w.dtype) / 2 for w in old])

    @rule(data=st.data(), seed=SEEDS, plain=st.booleans())
    def step(self, data, seed, plain):
        rows = data.draw(st.none() | st.permutations(range(self.rows)))
        chosen = list(range(self.rows)) if rows is None else rows[: data.draw(STEPS)]
        x = numbers(seed, len(chosen), I).astype(self.dtype)
        given = x if plain else np.asfortranarray(x)
        y = self.stream.step(given, None if rows is None else np.array(chosen, np.intp))
        for row, one in zip(chosen, x, strict=True):
            value = one[None]
            for cell, state in zip(self.cells, self.states, strict=True):
                value = state[row : row + 1] = cell(value, state[row : row + 1].copy())[0]
        np.testing.assert_array_equal(y, self.states[-1][chosen])

    @rule(data=st.data())
    def reset(self, data):
        rows = data.draw(st.none() | st.permutations(range(self.rows)))
        chosen = None if rows is None else rows[: data.draw(STEPS)]
        self.stream.reset(chosen)
        for state in self.states:
            state[slice(None) if chosen is None else chosen] = 0

    @rule(seed=SEEDS)
    def assign(self, seed):
        self.states = [numbers(seed, *s.shape).astype(self.dtype) for s in self.states]
        self.stream.state = self.states
        self.states = [s.copy() for s in self.states]

    @rule(kind=st.sampled_from(["rows", "twice", "features", "dtype", "state"]))
    def refused(self, kind):
        x = np.ones((self.rows, I), self.dtype)
        calls = {
            "rows": lambda: self.stream.step(x, np.arange(self.rows) + 1),
            "twice": lambda: self.stream.step(np.ones((2, I), self.dtype), [0, 0]),
            "features": lambda: self.stream.step(x[:, 1:]),
            "dtype": lambda: self.stream.step(x.astype(complex)),
            "state": lambda: setattr(self.stream, "state", [self.states[0], self.states[0]]),
        }
        with pytest.raises((ValueError, TypeError)):
            calls[kind]()

    @rule(seed=SEEDS)
    def another_stream(self, seed):
        other = self.layer.stream(self.rows)
        other.step(numbers(seed, self.rows, I).astype(self.dtype))

    @invariant()
    def states_are_as_they_were_left(self):
        if hasattr(self, "stream"):
            for one, other in zip(self.stream.state, self.states, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("base", [LayerMachine, StreamMachine])
def test_histories(base, name):
    machine = type(base.__name__, (base,), {"options": LAYERS[name]})
    run_state_machine_as_test(machine, settings=BOUNDED)
