"""Small calls of more threads than processors wait in line and run together.

Each test takes the only place that there is, lets threads call until all are in line, and gives it
back: what happens then does not depend on the time. Each has a process of its own, which is killed
when it hangs.
"""

import os

import pytest
import subprocesses

from fastgru import threads
from fastgru.backends import cpu as cpu_backend

SETUP = """
import os, threading, time
import numpy as np
import fastgru
from fastgru._native import _coalescing

rng = np.random.default_rng(0)

def make(units=64, dtype="float32", **options):
    layer = fastgru.GRU(units, bias_initializer="random_normal", seed=1, dtype=dtype, **options)
    layer(numbers(1, dtype=dtype))
    return layer

def numbers(rows=1, steps=100, dtype="float32"):
    return rng.standard_normal((rows, steps, 40)).astype(dtype)

def in_line(count):
    while _coalescing.counts()[1] != count:
        time.sleep(1e-3)

class Callers:
    # Threads that call once each, in this order in the line.
    def __init__(self, calls, daemon=False):
        self.results = [None] * len(calls)
        self.threads = []
        for i, (layer, x) in enumerate(calls):
            before = _coalescing.counts()[1]
            thread = threading.Thread(target=self.call, args=(i, layer, x), daemon=daemon)
            thread.start()
            self.threads.append(thread)
            in_line(before + 1)

    def call(self, i, layer, x):
        try:
            self.results[i] = layer(x)
        except BaseException as error:
            self.results[i] = error

    def join(self):
        for thread in self.threads:
            thread.join()
        return self.results

    def finish(self):
        self.join()
        assert _coalescing.counts()[:2] == (0, 0)
        return self.results

def same(one, other):
    for a, b in zip(one, other, strict=True):
        if isinstance(a, tuple):
            same(a, b)
        else:
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)

def run_together(calls):
    # Results of calls that are in line when the only place is given back; how many others ran.
    alone = [layer(x) for layer, x in calls]
    _coalescing.set_processors(1)
    _coalescing.take_place()
    callers = Callers(calls)
    before = _coalescing.counts()[2]
    _coalescing.leave_place()
    same(callers.finish(), alone)
    return _coalescing.counts()[2] - before

"""


def run(code):
    return subprocesses.run_python(SETUP + code).strip()


pytestmark = pytest.mark.skipif(
    cpu_backend._load() is None
    or cpu_backend._forced_kernel == "blas"
    or not cpu_backend._native._kernels.lanes(4),
    reason="no fused kernel here",
)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "return_sequences=True, return_state=True",
        "return_state=True, go_backwards=True",
        "reset_after=False, return_sequences=True",
        "activation='relu', units=67",
        "dtype='float64'",
    ],
)
def test_calls_in_line_run_as_one_and_give_what_they_give_alone(options):
    code = f"""
layer = make({options})
dtype = layer.dtype
arrays = [numbers(rows, dtype=dtype) for rows in (1, 2, 1)]
arrays.append(np.repeat(arrays[0], 2, axis=1)[:, ::2])
print(run_together([(layer, x) for x in arrays]))
"""
    assert run(code) == "3"


def test_a_batch_has_a_limit_and_the_rest_runs_after_it():
    code = """
layer = make()
print(run_together([(layer, numbers(rows)) for rows in [1] * 10 + [3, 4, 4]]))
"""
    # 8 of one row; [1, 1, 3, 4 does not fit]; [4, 4]
    assert run(code) == "10"


def test_what_differs_runs_by_itself():
    code = """
one, other = make(), make()
backwards = make(go_backwards=True)
backwards.set_weights(one.get_weights())
double = make(dtype="float64")
print(run_together([
    (one, numbers()), (other, numbers()), (one, numbers(steps=101)), (backwards, numbers()),
    (double, numbers(dtype="float64")), (one, numbers()), (other, numbers()),
]))
"""
    assert run(code) == "2"


def test_large_and_tiny_calls_do_not_wait():
    code = """
layer = make()
arrays = numbers(5), numbers(1, 1)
_coalescing.set_processors(1)
_coalescing.take_place()
for x in arrays:
    layer(x)
_coalescing.leave_place()
print(_coalescing.counts())
"""
    assert run(code) == "(0, 0, 0)"


def test_every_call_sees_all_old_or_all_new_weights():
    code = """
layer = make()
arrays = [numbers() for _ in range(6)]
old = [layer(x) for x in arrays]
_coalescing.set_processors(1)
_coalescing.take_place()
first = Callers([(layer, x) for x in arrays[:3]])
layer.set_weights([w / 2 for w in layer.get_weights()])
new = [layer(x, lengths=[100]) for x in arrays]
second = Callers([(layer, x) for x in arrays[3:]])
_coalescing.leave_place()
same(first.join() + second.finish(), old[:3] + new[3:])
assert (old[0] != new[0]).any()
print(_coalescing.counts()[2])
"""
    assert run(code) == "4"


@pytest.mark.parametrize("processors", [1, 2, 3])
def test_many_threads_that_call_and_call(processors):
    code = f"""
from concurrent.futures import ThreadPoolExecutor
layers = make(), make(return_sequences=True)
arrays = [numbers(rows) for rows in (1, 1, 2, 3, 6)]
alone = [[layer(x) for x in arrays] for layer in layers]
_coalescing.set_processors({processors})

def work(k):
    for i in range(150):
        a, b = (i + k) % 2, (i * k) % 5
        np.testing.assert_array_equal(layers[a](arrays[b]), alone[a][b])

with ThreadPoolExecutor(12) as pool:
    list(pool.map(work, range(12)))
assert _coalescing.counts()[:2] == (0, 0)
print(_coalescing.counts()[2] > 0)
"""
    assert run(code) == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_of_fork_inherits_nobody_in_line():
    code = """
layer = make()
x = numbers()
alone = layer(x)
_coalescing.set_processors(1)
_coalescing.take_place()
callers = Callers([(layer, x)] * 3)
child = os.fork()
if child == 0:
    good = _coalescing.counts()[:2] == (0, 0) and (layer(x) == alone).all()
    _coalescing.take_place()
    again = Callers([(layer, x)] * 2)
    _coalescing.leave_place()
    same(again.finish(), [alone] * 2)
    os._exit(0 if good else 1)
print(os.waitpid(child, 0)[1])
_coalescing.leave_place()
same(callers.finish(), [alone] * 3)
"""
    assert run(code) == "0"


def test_an_interrupt_while_waiting_comes_after_the_call():
    code = """
import signal
layer = make()
x = numbers()
alone = layer(x)
_coalescing.set_processors(1)
_coalescing.take_place()

def interrupt():
    in_line(1)
    signal.raise_signal(signal.SIGINT)
    _coalescing.leave_place()

thread = threading.Thread(target=interrupt)
try:
    thread.start()
    layer(x)
    while True:
        time.sleep(1e-3)
except KeyboardInterrupt:
    thread.join()
print(_coalescing.counts()[:2])
np.testing.assert_array_equal(layer(x), alone)
"""
    assert run(code) == "(0, 0)"


def test_threads_in_line_do_not_keep_the_interpreter_from_ending():
    code = """
layer = make()
x = numbers()
_coalescing.set_processors(1)
_coalescing.take_place()
Callers([(layer, x)] * 2, daemon=True)
print("end")
"""
    assert run(code) == "end"


def test_a_call_at_the_interpreters_end_does_not_wait_for_threads_that_are_stopped():
    code = """
layer = make()
_coalescing.set_processors(1)
_coalescing.take_place()

class AtTheEnd:
    def __del__(self, layer=layer, x=numbers(), write=os.write):
        write(1, str(layer(x).shape).encode())

at_the_end = AtTheEnd()
"""
    assert run(code) == "(1, 64)"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no limits as on Linux")
def test_without_memory_for_a_batch_each_runs_alone():
    code = """
import resource
layer = make(16)
x = np.repeat(numbers(1, 1), 100000, axis=1)
alone = layer(x)
_coalescing.set_processors(1)
_coalescing.take_place()
callers = Callers([(layer, x)] * 6)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 50000000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
_coalescing.leave_place()
same(callers.finish(), [alone] * 6)
"""
    run(code)


def test_the_processors_are_the_machines_not_the_threads_of_a_call():
    """OMP_NUM_THREADS=1 is what servers set; their callers still have all processors."""
    code = "from fastgru import threads\nprint(threads.processors(), threads.get_num_threads())"
    words = subprocesses.run_python(code, OMP_NUM_THREADS="1").split()
    assert words == [str(threads.processors()), "1"]
