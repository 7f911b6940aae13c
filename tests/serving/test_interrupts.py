"""An interrupt ends a long call within a second and leaves weights, states and the library whole.

Each test has a process of its own. A timer in it sends SIGINT while the call computes; the call
would take several seconds, on slow machines minutes.
"""

import os

import pytest
from subprocesses import environment, run_python

pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.name != "posix", reason="sends SIGINT with os.kill"),
]

SETUP = """
import os, signal, threading, time
import numpy as np
import fastgru
from fastgru._native import _partition

rng = np.random.default_rng(0)

def numbers(*shape):
    return rng.standard_normal(shape).astype("float32")

def weights(layer):
    return [w.copy() for w in layer.get_weights()]

def interrupted(call, after=0.4, within=1.0):
    # Calls, and returns how long after the signal the call ended; None: it was over before.
    sent = []
    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(after, send)
    timer.start()
    try:
        call()
        timer.cancel()
        timer.join()
    except KeyboardInterrupt:
        late = time.monotonic() - sent[0]
        assert late < within, f"{late:.2f} s"
        return late

def same(layer, x, expected):
    # As before the interrupt, threads, barriers and leases included.
    for y, other in zip(layer(x, num_threads=2), expected):
        np.testing.assert_array_equal(y, other)
"""

FORWARD = """
layer = fastgru.GRU(64, return_state=True, bias_initializer="random_normal", OPTIONS)
x = numbers(6, 50, 8)
expected = layer(x, num_threads=2)
before = weights(layer)
long = np.broadcast_to(numbers(ROWS, 1, 8).astype(layer.dtype), (ROWS, STEPS, 8))
_partition.force(PARTITION)
assert interrupted(lambda: layer(long, ARGUMENTS))
_partition.force(0, False)
same(layer, x, expected)
for w, other in zip(layer.get_weights(), before):
    np.testing.assert_array_equal(w, other)
"""


def run(code, **variables):
    """Run code after SETUP."""
    return run_python(SETUP + code, environment(), **{"OMP_NUM_THREADS": "2", **variables})


def forward(rows=3, steps=10**7, partition="1, False", arguments="", options=""):
    values = {
        "ROWS": rows,
        "STEPS": steps,
        "PARTITION": partition,
        "ARGUMENTS": arguments,
        "OPTIONS": options,
    }
    code = FORWARD
    for name, value in values.items():
        code = code.replace(name, str(value))
    return code


FORWARDS = {
    "one thread": forward(),
    "as it is partition": forward(rows=8, partition="0, False"),
    "rows split": forward(partition="2, False"),
    "panels split": forward(partition="2, True"),
    "panels split, reset_after=False": forward(partition="2, True", options="reset_after=False"),
    # The caller's own rows are done at once, and it waits for the other thread.
    "unequal rows": forward(rows=2, partition="2, False", arguments="lengths=[1, STEPS]"),
    "masked": forward(
        arguments="mask=np.broadcast_to(np.bool([[1, 0] * (STEPS // 2)]), (3, STEPS))"
    ),
    "float64": forward(options="dtype='float64'"),
    "backwards": forward(options="go_backwards=True"),
    "training": forward(options="dropout=0.5", arguments="training=True"),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forward(name):
    run(FORWARDS[name].replace("STEPS", str(10**7)))


def test_forward_of_few_units():
    run(forward(rows=64, steps=10**6).replace("GRU(64", "GRU(4"))


def test_forward_through_blas():
    run(forward(), FASTGRU_KERNEL="blas")
    run(forward(rows=64, partition="0, False"), FASTGRU_KERNEL="blas")


def test_the_reference():
    run(forward(steps=100_000), FASTGRU_BACKEND="reference")


def test_one_step_of_many_rows():
    run("""
layer = fastgru.GRU(768)
x = np.broadcast_to(numbers(1, 1, 768), (150_000, 1, 768))
layer(x[:4])
assert interrupted(lambda: layer(x, num_threads=1), after=0.3)
""")


# The walk back through time is about the first half. Kernels without vectors make it long.
@pytest.mark.parametrize(
    ("partition", "share"),
    [("1, False", 0.2), ("1, False", 0.75), ("2, False", 0.2), ("2, True", 0.2)],
)
def test_backward(partition, share):
    run(
        """
layer = fastgru.GRU(512, return_sequences=True)
x = numbers(4, 3000, 64)
small = numbers(2, 30, 64)

def gradients(x):
    y, tape = layer.forward(x)
    start = time.monotonic()
    grads = layer.backward(tape, y)
    return time.monotonic() - start, [grads.inputs, *grads.weights]

expected = gradients(small)[1]
before = weights(layer)
_partition.force(PARTITION)
ended = None
while ended is None:  # other processes make some calls longer
    seconds, _ = gradients(x)
    y, tape = layer.forward(x)
    ended = interrupted(lambda: layer.backward(tape, y), after=SHARE * seconds)
_partition.force(0, False)
for one, other in zip(gradients(small)[1], expected):
    np.testing.assert_array_equal(one, other)
for w, other in zip(layer.get_weights(), before):
    np.testing.assert_array_equal(w, other)
""".replace("PARTITION", partition).replace("SHARE", str(share)),
        FASTGRU_ISA="base",
    )


def test_states_of_all_layers_stay():
    run("""
first = fastgru.GRU(5, stateful=True, return_sequences=True, activity_regularizer="l2")
second = fastgru.GRU(300, stateful=True, return_sequences=True, activity_regularizer="l2")
both = fastgru.Bidirectional(fastgru.GRU(300, stateful=True))
layer = fastgru.Sequential([first, second, both])
layer(numbers(2, 20, 3))

def photograph():
    parts = first, second, *both.halves
    return [p.states[0].numpy() for p in parts] + [np.array(p.losses) for p in parts]

before = photograph()
x = numbers(2, 40_000, 3)
assert interrupted(lambda: layer(x), after=0.3)
np.testing.assert_equal(photograph(), before)
assert interrupted(lambda: layer.forward(x, save="states"), after=0.3)
np.testing.assert_equal(photograph(), before)
layer(x[:, :20])
assert any((one != other).any() for one, other in zip(photograph(), before))
""")


def test_other_handlers_run_too():
    # One that returns lets the call go on; the result is right.
    run("""
ran = []
signal.signal(signal.SIGALRM, lambda *_: ran.append(time.monotonic()))
layer = fastgru.GRU(64)
x = numbers(3, 60_000, 8)
expected = [layer(x[:, :30_000])]
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
y = layer(np.broadcast_to(x[:, :1], (3, 400_000, 8)))
end = time.monotonic()
signal.setitimer(signal.ITIMER_REAL, 0)
assert ran and ran[0] < end
np.testing.assert_array_equal(y, layer(np.broadcast_to(x[:, :1], (3, 400_000, 8))))
""")


def test_a_call_of_another_thread_is_not_touched():
    # The main thread waits, and gets the interrupt; the other one's call goes on.
    run("""
layer = fastgru.GRU(64)
x = np.broadcast_to(numbers(3, 1, 8), (3, 400_000, 8))
expected = layer(x)
results = []
done = threading.Event()
thread = threading.Thread(target=lambda: (results.append(layer(x)), done.set()))
thread.start()
assert interrupted(done.wait, after=0.1)
done.wait()
np.testing.assert_array_equal(results[0], expected)
""")
