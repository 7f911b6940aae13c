"""Calls of everything public while other threads do to the arguments what they can.

    python tests/support/racing.py --seconds 60 --seed 1

Two threads take the arrays, lists and layers of the calls that run: they write wrong values, set
shapes, dtypes and flags, resize, replace what lists hold, swap weights, set attributes, and make
the same calls. Most of the time all is as it should be. A call may return anything and raise
anything: what counts is that the process is alive at the end (best under `.ci/sanitize address`),
and that calls of each kind returned and were met by changes.
"""

import argparse
import collections
import contextlib
import faulthandler
import sys
import threading
import time
import warnings
from functools import partial

import numpy as np

import fastgru

B, T, I, H = 16, 24, 12, 32
ROWS = 3000  # of a stream: more than it steps in one block


class Subject:
    """A kind of call: what it does, and the arrays, lists and layers that others may get at."""

    def __init__(self, name, call, *arguments, layers=()):
        self.name = name
        self.call = call
        self.arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        self.lists = [a for a in arguments if isinstance(a, list)]
        self.layers = list(layers)
        self.originals = {id(a): a.copy() for a in self.arrays}
        self.items = {id(one): list(one) for one in self.lists}
        self.weights = [layer.get_weights() for layer in self.layers]


class CustomCell:
    """A cell of the user's own, which the loop in Python runs."""

    state_size = output_size = H

    def __call__(self, inputs, states, training=False):
        new = np.tanh(states[0] + inputs.sum(axis=1, keepdims=True))
        return new, [new]


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def masks():
    """Arguments that say which steps count: as bools and numbers, and as lengths."""
    rng = np.random.default_rng(1)
    mask = rng.random((B, T)) < 0.7
    return mask, mask.astype("float32"), rng.integers(0, T + 1, B), rng.random((B, T)) < 0.1


def built(layer, inputs=I):
    layer.build((B, None, inputs))
    return layer


def layer_subjects():
    """Calls of all layers, inference and training."""
    for options in ({}, {"reset_after": False}, {"time_major": True}, {"stateful": True}):
        mask, numbers, lengths, reset = masks()
        x, h0, out, y = floats(B, T, I), floats(B, H), floats(B, T, H), floats(B, H)
        layer = built(fastgru.GRU(H, return_sequences=True, return_state=True, **options))
        name = f"GRU {options}"
        if "time_major" in options:
            arrays = [
                np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, out, mask, numbers, reset)
            ]
            x, out, mask, numbers, reset = arrays
        shared = (x, h0, out, mask, numbers, lengths, reset)
        calls = {
            "x": partial(layer, x),
            "mask": partial(layer, x, mask=mask, initial_state=h0, reset_mask=reset, out=out),
            "numbers": partial(layer, x, mask=numbers, reset_mask=reset, num_threads=2),
            "lengths": partial(layer, x, lengths=lengths, initial_state=[h0], out=out),
        }
        for kind, call in calls.items():
            yield Subject(f"{name}: {kind}", call, *shared, layers=[layer])
    x, y = floats(B, T, I), floats(B, H)
    last = built(fastgru.GRU(H, dropout=0.2, recurrent_dropout=0.2, reset_after=False))
    yield Subject("dropout", partial(last, x, training=True, out=y), x, y, layers=[last])
    narrow = built(fastgru.GRU(4, return_sequences=True))
    x = floats(8 * B, T, I)
    yield Subject("narrow", partial(narrow, x), x, layers=[narrow])
    x, mask = floats(B, T, I), masks()[0]
    custom = fastgru.RNN(CustomCell(), return_sequences=True)
    out = floats(B, T, H)
    yield Subject("custom cell", partial(custom, x, mask=mask, out=out), x, mask, out)


def composed_subjects():
    """Calls of layers of layers."""
    x, (mask, _, lengths, reset) = floats(B, T, I), masks()
    states = [floats(B, H), floats(B, H)]
    stack = built(fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)], return_sequences=True))
    yield Subject(
        "stack",
        partial(stack, x, states, mask, reset_mask=reset),
        x,
        states,
        *states,
        mask,
        reset,
        layers=[stack],
    )
    both = built(fastgru.Bidirectional(fastgru.GRU(H, return_sequences=True)))
    out = floats(B, T, 2 * H)
    call = partial(both, x, states, lengths=lengths, out=out)
    yield Subject("Bidirectional", call, x, states, *states, lengths, out, layers=[both])
    model = fastgru.Sequential([fastgru.GRU(H, return_sequences=True), fastgru.GRU(H)])
    model.build((B, T, I))
    y = floats(B, H)
    yield Subject("Sequential", partial(model, x, mask=mask, out=y), x, mask, y, layers=[model])


def training_subjects():
    """Forward and backward, of which other threads may use the tape too."""
    for make in (
        lambda: fastgru.GRU(H, return_sequences=True, return_state=True),
        lambda: fastgru.GRU(H, return_sequences=True, return_state=True, reset_after=False),
        lambda: fastgru.RNN([fastgru.GRUCell(H)] * 1, return_sequences=True, return_state=True),
    ):
        x, (mask, _, _, reset) = floats(B, T, I), masks()
        layer = built(make())
        h0, dy, dstate = floats(B, H), floats(B, T, H), floats(B, H)
        given = [dstate]

        def call(layer=layer, x=x, h0=h0, mask=mask, reset=reset, dy=dy, given=given):
            _, tape = layer.forward(x, h0, mask, reset_mask=reset)
            other = threading.Thread(target=quietly, args=(layer.backward, tape, dy, given))
            other.start()
            quietly(layer.backward, tape, dy, given)
            other.join()

        yield Subject(
            f"backward of {type(layer).__name__}",
            call,
            x,
            h0,
            mask,
            reset,
            dy,
            dstate,
            given,
            layers=[layer],
        )


def step_subjects():
    """Streams, of one cell and of two, and cells."""
    for cells in (1, 2):
        layer = built(fastgru.RNN([fastgru.GRUCell(H) for _ in range(cells)]))
        for count in (64, 2000):
            stream = layer.stream(ROWS)
            x, rows = floats(count, I), np.arange(count, dtype=np.intp)
            numbers = rows.astype("int32")
            state = [floats(ROWS, H) for _ in range(cells)]

            def call(stream=stream, x=x, rows=rows, numbers=numbers, state=state):
                y = stream.step(x, rows)
                stream.reset(numbers)
                stream.step(x, numbers)
                stream.state = state
                y.shape = (-1,)
                y.base.shape = (-1,)
                with contextlib.suppress(ValueError):
                    y.base.resize(1, refcheck=False)
                stream.step(x, rows)

            yield Subject(
                f"stream of {cells}, {count} rows",
                call,
                x,
                rows,
                numbers,
                *state,
                state,
                layers=[layer],
            )
    cell = fastgru.GRUCell(H)
    cell.build((None, I))
    x, h = floats(8 * B, I), floats(8 * B, H)
    yield Subject("cell", partial(cell, x, h), x, h)
    given = [h]
    yield Subject("cell, training", partial(cell, x, given, training=True), x, h, given)


def function_subjects():
    """The functions, and weights that are written."""
    x, (mask, _, lengths, reset) = floats(B, T, I), masks()
    weights = [floats(I, 3 * H), floats(H, 3 * H), floats(2, 3 * H)]
    h0, out = floats(B, H), floats(B, T, H)
    call = partial(fastgru.gru, x, *weights, h0, mask=mask, reset_mask=reset, out=out)
    yield Subject("gru, mask", call, x, *weights, h0, mask, reset, out)
    call = partial(fastgru.gru, x, *weights, h0, lengths=lengths, go_backwards=True)
    yield Subject("gru, lengths", call, x, *weights, h0, lengths)
    step = floats(B, I)
    yield Subject("gru_cell", partial(fastgru.gru_cell, step, h0, *weights), step, h0, *weights)
    layer = built(fastgru.GRU(H))

    def write():
        layer.set_weights(weights)
        layer.kernel.assign(weights[0])
        layer.kernel.assign_add(weights[0])
        for variable in layer.weights:
            with contextlib.suppress(AttributeError, ValueError, TypeError):
                variable.value.base.resize(1, refcheck=False)
        layer(x)

    yield Subject("set_weights", write, x, weights, *weights, layers=[layer])

    def on_reference():
        with fastgru.use_backend("reference"):
            layer(x[:2, :4], lengths=lengths[:2] % 5)

    yield Subject("reference", on_reference, layers=[layer])


def quietly(call, *arguments):
    """Call; return the type of what it raised, None if it returned."""
    try:
        call(*arguments)
    except Exception as error:  # whatever it is: no result is promised, only no crash
        return type(error)
    return None


class Racers:
    """The other threads. One at a time changes something: NumPy does not survive two."""

    def __init__(self, subject, seed):
        self.subject = subject
        self.stop = False
        self.changes = collections.Counter()
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.run, args=(np.random.default_rng((seed, i)),))
            for i in range(2)
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        for thread in self.threads:
            thread.join()

    def run(self, rng):
        subject = self.subject
        targets = [
            *((self.array, a) for a in subject.arrays for _ in range(3)),
            *((self.items, one) for one in subject.lists),
            *((self.layer, i) for i in range(len(subject.layers))),
            (self.caller, subject.call),
        ]
        while not self.stop:
            change, target = targets[rng.integers(len(targets))]
            change(target, rng)

    def caller(self, call, rng):
        self.changes["calls"] += 1
        quietly(call)

    def array(self, array, rng):
        original = self.subject.originals[id(array)]
        with self.lock:
            how = self.values, self.values, self.shape, self.dtype, self.size, self.flags
            change = how[rng.integers(len(how))]
            try:
                change(array, original, rng)
                self.changes[change.__name__] += 1
                time.sleep(float(rng.choice([0, 0, 1e-4])))  # the others' turn
            except (ValueError, TypeError, AttributeError):
                self.changes[f"{change.__name__} refused"] += 1
            finally:
                restore(array, original)

    def values(self, array, original, rng):
        kind = array.dtype.kind
        if kind in "iu":
            wrong = [-1, 0, T, T + 1, 10**9, np.iinfo(array.dtype).min, np.iinfo(array.dtype).max]
            array[rng.random(array.shape) < rng.random()] = rng.choice(wrong)
        elif kind == "b":
            array[...] = rng.random(array.shape) < rng.random()
        else:
            array[...] = rng.choice([np.nan, np.inf, -1e30, 0.0, 1.0])

    def shape(self, array, original, rng):
        array.shape = rng.permutation((*original.shape, 1, 1)[: original.ndim + 1])
        if rng.random() < 0.5:
            array.shape = (-1,)

    def dtype(self, array, original, rng):
        array.dtype = rng.choice(["uint8", "int16", "float32", "int64", "S4"])

    def size(self, array, original, rng):
        array.resize(rng.choice([0, 1, original.size // 2, 2 * original.size]), refcheck=False)

    def flags(self, array, original, rng):
        array.setflags(write=False)

    def items(self, one, rng):
        items = self.subject.items[id(one)]
        with self.lock:
            change = rng.integers(3)
            if change == 0:
                one.clear()
            elif change == 1:
                one.append(np.zeros(3))
            else:
                one[:] = [np.zeros((2, 2), "float32")] * len(items)
            self.changes["lists"] += 1
            time.sleep(0)
            one[:] = items

    def layer(self, index, rng):
        layer, weights = self.subject.layers[index], self.subject.weights[index]
        if rng.random() < 0.5:
            self.changes["weights"] += 1
            quietly(layer.set_weights, [rng.random() * w for w in weights])
            return
        inner = [layer, *getattr(layer, "layers", ()), *getattr(layer, "halves", ())]
        inner = [part for one in inner for part in (one, getattr(one, "cell", None))]
        inner += [cell for part in inner for cell in getattr(part, "cells", ())]
        part = inner[rng.integers(len(inner))]
        name = rng.choice(
            ["units", "return_sequences", "return_state", "time_major", "go_backwards", "stateful"]
        )
        with self.lock:
            if not hasattr(part, name):
                return
            before = getattr(part, name)
            try:
                setattr(part, name, int(rng.choice([1, 5, 100])) if name == "units" else not before)
                self.changes["attributes"] += 1
                time.sleep(float(rng.choice([0, 1e-4])))
                setattr(part, name, before)
            except (AttributeError, ValueError, TypeError):
                self.changes["attributes refused"] += 1


def restore(array, original):
    """Make the array what it was; a call that holds it may have to end first."""
    array.setflags(write=True)
    if array.dtype != original.dtype:
        array.shape = (-1,)
        array.dtype = original.dtype
    while array.size != original.size:
        try:
            array.resize(original.shape, refcheck=False)
        except ValueError:
            time.sleep(1e-4)
    array.shape = original.shape
    array[...] = original


def subjects():
    """All kinds of calls."""
    for some in (
        layer_subjects,
        composed_subjects,
        training_subjects,
        step_subjects,
        function_subjects,
    ):
        yield from some()


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Call while other threads change the arguments.")
    parser.add_argument("--seconds", type=float, default=60, help="of all kinds of calls together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")  # of NumPy, that shape and dtype are better not set
    np.seterr(all="ignore")
    sys.setswitchinterval(2e-5)
    kinds = list(subjects())
    changes = collections.Counter()
    bad = []
    for number, subject in enumerate(kinds):
        ends = collections.Counter()
        with Racers(subject, options.seed + number) as racers:
            end = time.monotonic() + options.seconds / len(kinds)
            while time.monotonic() < end or (not ends[None] and time.monotonic() < end + 30):
                ends[quietly(subject.call)] += 1
        changes += racers.changes
        after = quietly(subject.call)  # when the others have put all back
        returned, raised = ends.pop(None, 0), sum(ends.values())
        said = ", ".join(f"{error.__name__} {n}" for error, n in ends.most_common(4))
        print(f"{subject.name}: {returned} returned, {raised} raised: {said}", flush=True)
        if not (racers.changes and returned and after is None):
            bad.append(subject.name)
    print("changes:", ", ".join(f"{name} {n}" for name, n in sorted(changes.items())))
    print("alive" if not bad else f"not changed, always wrong, or broken afterwards: {bad}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
