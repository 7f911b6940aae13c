"""Random calls of every public function with hostile arguments; run it to make many.

    python tests/support/fuzz_calls.py --calls 1000000 --seed 0
    python tests/support/fuzz_calls.py --soak 10000000

A call ends in one of two ways. It returns what the reference backend computes from plain copies of
its arguments; or it raises one of the documented errors, and weights, states, ``out`` and
arguments are as they were. What a hostile object raises itself may also come out. Every case is
made from (seed, number) alone, so that one that fails can be run again by itself.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path

import hostile_arrays
import numpy as np
from hostile_arrays import BAD, EITHER, SAME, Hostile, forms, infected

import fastgru
from fastgru.layers.nested import flatten

ERRORS = (ValueError, TypeError, MemoryError, fastgru.BackendError, Hostile)
I, H = 3, 5
# float32 has 24 bits; inputs of a few units, at most 70 steps, and sums of 12 numbers.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def make_layers(seed):
    """Return one built layer of each kind that a call may go to."""

    def gru(units=H, **options):
        return fastgru.GRU(units, bias_initializer="random_normal", seed=seed, **options)

    layers = [
        gru(),
        gru(return_sequences=True, return_state=True),
        gru(reset_after=False, return_sequences=True, dtype="float64"),
        gru(go_backwards=True, return_state=True, activation="relu"),
        gru(time_major=True, return_sequences=True, use_bias=False),
        gru(stateful=True, return_sequences=True),
        gru(zero_output_for_mask=True, return_sequences=True, recurrent_activation="hard_sigmoid"),
        gru(37, return_sequences=True),
        fastgru.RNN([fastgru.GRUCell(2, seed=seed), fastgru.GRUCell(H)], return_sequences=True),
        fastgru.Bidirectional(gru(return_sequences=True)),
        fastgru.Sequential([gru(2, return_sequences=True), gru(dtype="float32")]),
    ]
    for layer in layers:
        layer.build((2, None, I))
    return layers


class Fuzzer:
    """Makes calls; ``outcomes`` counts how they ended."""

    def __init__(self, seed):
        self.seed = seed
        self.layers = make_layers(seed)
        self.outcomes = Counter()
        self.cells = [fastgru.GRUCell(H, dtype=d, seed=seed) for d in ("float32", "float64")]
        for cell in self.cells:
            cell.build((None, I))
        self.targets = [self.call] * 5 + [self.function, self.cell, self.step, self.gradients]
        self.targets += [self.write, self.reset]

    def run(self, number):
        """Make one call; AssertionError where it ended in neither of the two ways."""
        self.rng = np.random.default_rng([self.seed, number])
        self.verdicts = []
        self.originals = []
        self.order = BAD, EITHER
        target = self.targets[self.rng.integers(len(self.targets))]
        with np.errstate(all="ignore"):
            target()

    # -- arguments -------------------------------------------------------------------------

    def numbers(self, *shape, dtype="float32", infinities=False):
        """Return random numbers, sometimes odd ones.

        Infinite inputs saturate the gates. Infinite states and weights are multiplied by gates that
        round to 0 in one formula and to 1e-38 in another, so of these there are none.
        """
        array = self.rng.standard_normal(shape).astype(dtype)
        return infected(array, self.rng, infinities) if self.rng.random() < 0.1 else array

    def hostile(self, array, chance=0.5, numbers=True, alone=False, state=False):
        """Return a form of an array, and remember what it ought to lead to.

        A list of numbers is no state: it may be a list of states. Nor is an array of three axes:
        PyTorch's ``h_0`` of one layer is (1, B, H).
        """
        form, verdict = array, SAME
        if self.rng.random() < chance:
            form, verdict = forms(array, self.rng, numbers, alone)
            if verdict == BAD and not numbers:  # -1, range(3) or {} may be lengths or options
                verdict = EITHER
        if alone and verdict == EITHER and form.shape != array.shape:
            self.order = EITHER, BAD  # what is wrong beside the array may be right beside the form
        several = isinstance(form, list) or getattr(form, "shape", ()) == (1, *array.shape)
        self.verdicts.append(EITHER if state and several else verdict)
        self.originals.append((form, self.bytes(form)))
        return form

    @property
    def verdict(self):
        return next((v for v in self.order if v in self.verdicts), SAME)

    def sizes(self):
        """Return B and T, mostly small, sometimes enough for other kernels and for threads."""
        if self.rng.random() < 0.03:
            return int(self.rng.integers(20, 70)), int(self.rng.integers(20, 70))
        return int(self.rng.integers(5)), int(self.rng.integers(7))

    def sequences(self, layer, B, T):
        shape = (T, B, I) if getattr(layer, "time_major", False) else (B, T, I)
        bounded = getattr(layer, "activation", None) is not fastgru.activations.get("relu")
        return self.numbers(*shape, dtype=layer.dtype, infinities=bounded)

    def masks(self, B, T, swap):
        """Return plain arguments that say which steps count."""
        shape = (T, B) if swap else (B, T)
        plain = {}
        kind = self.rng.integers(5)
        if kind == 0:
            plain["mask"] = self.rng.random(shape) < 0.6
        elif kind == 1:
            plain["lengths"] = self.rng.integers(0, T + 1, B)
        if self.rng.random() < 0.2:
            plain["reset_mask"] = self.rng.random(shape) < 0.2
        return plain

    # -- outcomes --------------------------------------------------------------------------

    def settle(self, name, function, expected, keeps, out=None, overlaps=False, slack=1):
        """Make a call, and check how it ended.

        Parameters
        ----------
        function, expected : callable
            The hostile call, and the reference's of plain arguments: nested arrays.
        keeps : callable
            Returns what a call that raises must leave alone.
        overlaps : bool
            ``out`` lies over an argument.
        slack : float
            By how much the result may be farther off than a forward call's.
        """
        before = keeps()
        out_before = self.bytes(out)
        try:
            got = function()
        except ERRORS as raised:
            refusal = raised
        else:
            refusal = None
        if refusal is not None:
            assert self.verdict != SAME, f"refused: {refusal!r}"
            assert str(refusal) or isinstance(refusal, (Hostile, MemoryError)), "no message"
            np.testing.assert_equal(keeps(), before)
            assert self.bytes(out) == out_before, "out was written"
            self.check_arguments()
            self.outcomes[name, type(refusal).__name__] += 1
            return
        assert self.verdict != BAD, "accepted"
        self.outcomes[name, "result"] += 1
        if not overlaps:
            self.check_arguments(out)
        if self.verdict == SAME:
            self.compare(
                [np.array(a) for a in flatten(got)],
                [np.asarray(a) for a in flatten(expected())],
                slack,
            )

    def check_arguments(self, out=None):
        for array, data in self.originals:
            if data is None or out is None or not np.may_share_memory(array, out):
                assert self.bytes(array) == data, "an argument was written"

    @staticmethod
    def bytes(array):
        whole = isinstance(array, np.ndarray) and array.size < hostile_arrays.HUGE
        return array.tobytes() if whole else None

    def compare(self, got, expected, slack):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == other.dtype
            bound = slack * TOLERANCE[other.dtype.name]
            np.testing.assert_allclose(one, other, rtol=10 * bound, atol=bound)

    # -- calls -----------------------------------------------------------------------------

    def call(self):
        layer = self.layers[self.rng.integers(len(self.layers))]
        B, T = self.sizes()
        stateful = getattr(layer, "stateful", False)
        if stateful:
            B = 2
        swap = getattr(layer, "time_major", False)
        x = self.sequences(layer, B, T)
        plain = self.masks(B, T, swap)
        given = {k: self.hostile(v, 0.3, numbers=False) for k, v in plain.items()}
        if type(layer) is fastgru.GRU and self.rng.random() < 0.4:
            plain["initial_state"] = self.numbers(B, layer.units, dtype=layer.dtype)
            given["initial_state"] = self.hostile(plain["initial_state"], 0.3, state=True)
        sequences = self.hostile(x, alone=True)
        x = x.copy()  # where out will not lie
        out, overlaps = None, False
        if self.rng.random() < 0.3:
            out, overlaps = self.output(layer, B, T, sequences)
            given["out"] = out
        if self.rng.random() < 0.1:
            choices = [
                1,
                2,
                7,
                0,
                -1,
                2.0,
                True,
                "2",
                np.int64(3),
                10**30,
                hostile_arrays.NoArray(),
            ]
            which = self.rng.integers(len(choices))
            given["num_threads"] = choices[which]
            self.verdicts.append(SAME if which in (0, 1, 2, 8) else EITHER)
        if self.rng.random() < 0.05:
            given["training"] = self.rng.choice([True, False, 1, None, "yes", 1.5])
            self.verdicts.append(EITHER)
        states = [np.array(v.value) for v in flatten(layer.states)] if stateful else None

        def expected():
            if stateful:
                after = [np.array(v.value) for v in flatten(layer.states)]
                layer.reset_states(states)
            with fastgru.use_backend("reference"):
                y = layer(x, **plain)
            if stateful and not np.isfinite(after).all():
                layer.reset_states()
            return y

        self.settle(
            type(layer).__name__,
            lambda: layer(sequences, **given),
            expected,
            lambda: self.photograph(layer),
            out,
            overlaps,
        )

    def output(self, layer, B, T, sequences):
        """Return an ``out`` that fits, or does not; and whether it lies over the sequences."""
        shape = layer.compute_output_shape((T, B, I) if layer.time_major else (B, T, I))
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        out = np.full(shape, 7, layer.dtype)
        kind = self.rng.integers(8)
        if kind < 3:
            self.verdicts.append(SAME)
            return (out, hostile_arrays.strided(out, self.rng), np.zeros_like(out))[kind], False
        if kind == 3:
            self.verdicts.append(SAME)
            return hostile_arrays.misaligned(out), False
        if kind == 4 and isinstance(sequences, np.ndarray) and sequences.flags.c_contiguous:
            memory = sequences.reshape(-1)
            size = int(np.prod(shape))
            if memory.dtype == out.dtype and memory.size >= size and memory.flags.writeable:
                self.verdicts.append(SAME)
                return memory[:size].reshape(shape), True
        form, verdict = forms(out, self.rng)
        fits = (
            isinstance(form, np.ndarray)
            and form.shape == shape
            and form.dtype == out.dtype
            and form.dtype.isnative
            and form.flags.writeable
        )
        self.verdicts.append(EITHER if fits or verdict == SAME else BAD)
        return form, False

    def photograph(self, layer):
        states = getattr(layer, "states", None)
        return (
            [v.value.tobytes() for v in layer.weights],
            None if states is None else [np.asarray(v).tobytes() for v in flatten(states) if v],
            [id(v) for v in layer.weights],
        )

    def function(self):
        B, T = self.sizes()
        dtype = ("float32", "float64")[self.rng.integers(2)]
        after = bool(self.rng.integers(2))
        shapes = {"x": (B, T, I), "kernel": (I, 3 * H), "recurrent_kernel": (H, 3 * H)}
        shapes["bias"] = (2, 3 * H) if after else (3 * H,)
        shapes["initial_state"] = (B, H)
        if self.rng.random() < 0.3:
            del shapes["bias"]
        plain = {name: self.numbers(*shape, dtype=dtype) for name, shape in shapes.items()}
        # Else roundings grow from step to step: the reference was 5e-5 off in float32, and we 2e-5.
        plain["recurrent_kernel"] = (plain["recurrent_kernel"] / 2).astype(dtype)
        given = {
            name: self.hostile(array, 0.2, alone=name == "x", state=name == "initial_state")
            for name, array in plain.items()
        }
        if given["kernel"] is not plain["kernel"]:  # whose dtype is the call's
            self.verdicts.append(EITHER)
        options = {"reset_after": after, "go_backwards": bool(self.rng.integers(2))}
        masks = self.masks(B, T, False)
        hostile = {k: self.hostile(v, 0.2, False) for k, v in masks.items()}

        def expected():
            with fastgru.use_backend("reference"):
                return fastgru.gru(**plain, **options, **masks)

        self.settle(
            "gru", lambda: fastgru.gru(**given, **options, **hostile), expected, lambda: None
        )

    def cell(self):
        cell = self.cells[self.rng.integers(2)]
        B = self.sizes()[0]
        x, h = (self.numbers(B, n, dtype=cell.dtype) for n in (I, H))
        given = self.hostile(x, 0.4), self.hostile(h, 0.4, state=True)
        if all(isinstance(g, np.ndarray) and g.ndim == 2 for g in given):
            rows = {len(g) for g in given}
            if len(rows) == 1 and rows != {B}:  # each alone is wrong, together they fit
                self.verdicts.append(EITHER)
                self.order = EITHER, BAD

        def expected():
            with fastgru.use_backend("reference"):
                return cell(x, h)[0]

        self.settle(
            "GRUCell",
            lambda: cell(*given)[0],
            expected,
            lambda: [v.value.tobytes() for v in cell.weights],
        )

    def step(self):
        layer = self.layers[self.rng.choice([0, 2, 7, 8, 10])]
        n = int(self.rng.integers(1, 5))
        stream, judge = layer.stream(n), layer.stream(n)
        start = [self.rng.standard_normal(s.shape).astype(s.dtype) for s in flatten(stream.state)]
        given_start = [self.hostile(s, 0.15, state=True) for s in start]
        x = self.numbers(n, I, dtype=layer.dtype)
        if self.rng.random() < 0.5:
            rows = self.rng.permutation(n)[: self.rng.integers(n + 1)]
            x = x[: len(rows)]
        else:
            rows = None
        given = self.hostile(x, 0.4, alone=rows is not None)
        given_rows = None if rows is None else self.hostile(rows, 0.3, False)

        def go():
            stream.state = given_start
            return [stream.step(given, given_rows), stream.state]

        def expected():
            judge.state = start
            with fastgru.use_backend("reference"):
                return [judge.step(x, rows), judge.state]

        self.settle("Stream", go, expected, lambda: None)

    def gradients(self):
        layer = self.layers[self.rng.integers(5)]
        B, T = self.sizes()
        x = self.sequences(layer, B, T)
        outputs = layer(x)
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        dy = self.rng.standard_normal(y.shape).astype(y.dtype)
        given, given_dy = self.hostile(x, 0.3, alone=True), self.hostile(dy, 0.4, alone=True)

        def go(sequences=given, gradient=given_dy):
            grads = layer.backward(layer.forward(sequences)[1], gradient)
            return [grads.inputs, grads.initial_state, *grads.weights]

        def expected():
            with fastgru.use_backend("reference"):
                return go(x, dy)

        if not (np.abs(x) < 100).all():  # 0 times infinity, elsewhere
            self.verdicts.append(EITHER)
        # Sums over all rows and steps, of which there are up to 4,900.
        self.settle("backward", go, expected, lambda: self.photograph(layer), slack=50)

    def write(self):
        """Write one weight, or all; then put the old ones back."""
        layer = self.layers[self.rng.integers(len(self.layers))]
        old = layer.get_weights()
        values = [self.numbers(*w.shape, dtype=w.dtype) for w in old]
        if self.rng.random() < 0.5:
            which = self.rng.integers(len(old))
            given = self.hostile(values[which], 0.8)

            def go():
                layer.weights[which].assign(given)
                return np.array(layer.weights[which].value)

            self.settle("assign", go, lambda: values[which], lambda: self.photograph(layer))
        else:
            given = [self.hostile(v, 0.3) for v in values]

            def go():
                layer.set_weights(given)
                return layer.get_weights()

            self.settle("set_weights", go, lambda: values, lambda: self.photograph(layer))
        layer.set_weights(old)

    def reset(self):
        layer = next(la for la in self.layers if getattr(la, "stateful", False))
        values = self.numbers(2, H)
        given = self.hostile(values, 0.8, state=True)

        def go():
            layer.reset_states([given])
            return [np.array(v.value) for v in layer.states]

        self.settle("reset_states", go, lambda: [values], lambda: self.photograph(layer))
        layer.reset_states()


def soak(calls):
    """Make many valid small calls; print how long they take, and the memory of the process."""
    layer = fastgru.GRU(H, return_state=True)
    keeping = fastgru.GRU(H, stateful=True)
    cell = fastgru.GRUCell(H)
    x, h = np.ones((2, 3, I), np.float32), np.ones((2, H), np.float32)
    out, lengths = np.empty((2, H), np.float32), np.array([1, 3])
    layer(x), keeping(x), cell(x[:, 0], h)
    step, row, rows = layer.stream(2).step, np.ones((1, I), np.float32), np.array([1])
    weights = layer.get_weights()
    # 20 calls, the quicker ones more often.
    mix = [lambda: layer(x)] * 6 + [lambda: cell(x[:, 0], h)] * 4 + [lambda: step(row, rows)] * 5
    mix += [lambda: keeping(x), lambda: layer(x, lengths=lengths), lambda: layer(x, out=out)]
    mix += [lambda: layer.backward(layer.forward(x)[1], out), lambda: layer.set_weights(weights)]
    for share in range(11):
        start = time.perf_counter()
        for _ in range(calls // (11 * len(mix)) + 1):
            for call in mix:
                call()
        seconds = time.perf_counter() - start
        status = Path("/proc/self/status").read_text()
        memory = re.search(r"VmRSS:\s+(\d+)", status)[1]
        print(f"{share + 1}/11 of {calls} calls, {seconds:.1f} s, RSS {memory} kB", flush=True)


def main():
    """Make many calls, and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="make this call alone")
    parser.add_argument("--soak", type=int, help="make so many small calls without any checks")
    arguments = parser.parse_args()
    if arguments.soak is not None:
        soak(arguments.soak)
        return
    fuzzer = Fuzzer(arguments.seed)
    if arguments.only is not None:
        fuzzer.run(arguments.only)
        return
    failed, start = 0, time.monotonic()
    for number in range(arguments.calls):
        try:
            fuzzer.run(number)
        except Exception as error:
            failed += 1
            reason = str(error).strip().splitlines() or [""]
            print(f"--seed {arguments.seed} --only {number}: {type(error).__name__} {reason[:2]}")
            outcomes = fuzzer.outcomes
            fuzzer = Fuzzer(arguments.seed)
            fuzzer.outcomes = outcomes
            if failed == 50:
                break
    seconds = time.monotonic() - start
    print(f"{number + 1} calls of seed {arguments.seed} in {seconds:.0f} s, {failed} failed")
    for (name, outcome), count in sorted(fuzzer.outcomes.items()):
        print(f"  {name:<14}{outcome:<18}{count}")


if __name__ == "__main__":
    main()
