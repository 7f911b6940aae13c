"""Memory that runs out: MemoryError, with weights, states and ``out`` as they were, and no crash.

Each operation is run again and again, the first, second, ... allocation in it failing, alone or
with all that follow. Allocations of less than LEAST bytes are let through: of those Python and
NumPy make hundreds, and do not survive the failing of each (NumPy 2.4: SystemError from its
reductions; its ufuncs crash where they get no buffer, so the reference's backward and merges other
than "concat" are not here); libgomp takes 2,240 bytes for a team of threads, and ends the process
where it does not get them.
"""

import shutil
import subprocess
import sys

import pytest
from subprocesses import SUPPORT, environment, run_python

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a malloc for glibc"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed"),
]
LEAST = 4096

SETUP = """
import ctypes, os, threading, time
import numpy as np
import fastgru
from fastgru._native import _coalescing, _partition
from fastgru.layers.nested import flatten

shim = ctypes.CDLL(None)
fail = shim.fail_allocations
fail.argtypes = ctypes.c_long, ctypes.c_size_t, ctypes.c_int
rng = np.random.default_rng(0)
B, T, I, H = 37, 9, 30, 40

def numbers(*shape):
    return rng.standard_normal(shape).astype("float32")

x, h, mask = numbers(B, T, I), numbers(B, H), rng.random((B, T)) < 0.7
lengths = rng.integers(0, T + 1, B)

def filled(layer):
    # With weights that depend on nothing but their shapes.
    layer.build((B, None, I))
    layer.set_weights([np.random.default_rng(5).standard_normal(w.shape).astype("float32") / 6
                       for w in layer.get_weights()])
    return layer

def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)

def every_failure(name, operation, keeps=lambda: [], again=True, fresh=lambda: None):
    # The operation, with each allocation failing; `fresh` makes what it uses up.
    fresh(), operation()
    fresh()
    fail(0, LEAST, 0)
    expected = operation()
    count = shim.allocations_seen()
    assert count > 0, name
    errors = 0
    for together in (0, 1):
        n = 1
        while True:  # an operation may allocate more than when all went well
            fresh()
            before = [np.array(a) for a in keeps()]
            fail(n, LEAST, together)
            try:
                got = operation()
            except MemoryError:
                fail(0, LEAST, 0)
                errors += 1
                same(keeps(), before)
            else:
                reached = shim.allocations_seen() >= n
                fail(0, LEAST, 0)
                same(got, expected)
                if not reached:
                    break
            n += 1
            assert n < 5000
    assert errors, name
    fresh()
    same(operation(), expected)
    print(name, count, errors)
"""

CODE = {
    "packing": """
state = {}
def fresh():
    state["layer"] = filled(fastgru.GRU(H, return_state=True))
for partition in ((1, False), (2, True)):
    _partition.force(*partition)
    every_failure("packing", lambda: state["layer"](x, h), fresh=fresh)
""",
    "forward": """
for options in ({}, {"reset_after": False}, {"time_major": True}, {"go_backwards": True}):
    layer = fastgru.GRU(H, seed=1, return_sequences=True, stateful=True, activity_regularizer="l1",
                        **options)
    major = options.get("time_major")
    data, steps = (x.swapaxes(0, 1), mask.T) if major else (x, mask)
    out = np.full((T, B, H) if major else (B, T, H), 7, "float32")
    spread = np.full((*out.shape, 2), 7, "float32")[..., 0]
    zeros = numbers(B, H)
    layer(data)
    def fresh():
        layer.reset_states(zeros)
        out[...] = spread[...] = 7
        layer._activity_losses = []
    keeps = lambda: [out, spread, layer.states[0].value, np.array(layer.losses),
                     *layer.get_weights()]
    for arguments in ({}, {"mask": steps}, {"lengths": lengths}, {"initial_state": h},
                      {"out": out}, {"out": spread}, {"reset_mask": steps, "mask": ~steps}):
        every_failure("forward", lambda: [layer(data, **arguments)], keeps, fresh=fresh)
plain = fastgru.GRU(H, seed=1)
every_failure("fast path", lambda: [plain(x)])
cell = fastgru.GRUCell(H, seed=1)
every_failure("cell", lambda: [cell(x[:, 0], h)[0]])
""",
    "composed": """
inner = fastgru.GRU(H, seed=1, stateful=True, return_sequences=True)
first = fastgru.GRU(33, seed=1, stateful=True, return_sequences=True)
stack = fastgru.RNN([fastgru.GRUCell(8, seed=1), fastgru.GRUCell(H, seed=2)], stateful=True)
for layer in (fastgru.Bidirectional(inner), fastgru.Sequential([first, inner]), stack):
    layer(x)
    start = [w.copy() for w in layer.get_weights()]
    flat = lambda: [np.array(v) for v in flatten(list(layer.states))]
    every_failure("composed", lambda: [layer(x)], lambda: [*layer.get_weights(), *flat()],
                  fresh=layer.reset_states)
    if os.environ["FASTGRU_KERNEL"] == "fused":
        def gradients():
            y, tape = layer.forward(x)
            return layer.backward(tape, y).weights
        every_failure("gradients", gradients, layer.get_weights, fresh=layer.reset_states)
    doubled = [w * 2 for w in start]
    def write():
        layer.set_weights(doubled)
        return [w.value for w in layer.weights]
    every_failure("set_weights", write, layer.get_weights, fresh=lambda: layer.set_weights(start))
""",
    "backward": """
for options in ({}, {"reset_after": False}, {"dropout": 0.3}, {"recurrent_dropout": 0.3}):
    layer = fastgru.GRU(H, seed=1, return_sequences=True, **options)
    dy = numbers(B, T, H)
    layer(x)
    state = {}
    for save in ("gates", "states"):
        def fresh():
            layer.cell.seed_generator._counts = [0, 0]
            state["tape"] = layer.forward(x, h, mask=mask, save=save)[1]
        def operation():
            grads = layer.backward(state["tape"], dy)
            return [grads.inputs, grads.initial_state, *grads.weights]
        every_failure("backward", operation, layer.get_weights, fresh=fresh)
""",
    "stream": """
for options in ({}, {"reset_after": False}):
    layer = fastgru.GRU(H, seed=1, **options)
    layer(x)
    state = {}
    def fresh():
        state["stream"] = layer.stream(B)
    every_failure("stream", lambda: [layer.stream(B).step(x[:, 0])])
    rows = np.arange(B)[::-2]
    some = x[: len(rows), 0]
    for arguments in ([x[:, 0]], [some, rows], [np.asfortranarray(x[:, 0])], [some, rows.tolist()]):
        every_failure("step", lambda: [state["stream"].step(*arguments)],
                      lambda: [state["stream"].state], fresh=fresh)
""",
    "coalescing": """
layer = fastgru.GRU(128, seed=1, return_state=True)
data = [numbers(1, 60, I) for _ in range(4)]
expected = [layer(d) for d in data]
_coalescing.set_processors(1)

def together(n, all):
    # All are in line, and then run as one batch, or what of them memory allows.
    results = [None] * len(data)
    def call(i):
        try:
            results[i] = layer(data[i])
        except MemoryError as error:
            results[i] = error
    _coalescing.take_place()
    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(data))]
    for i, thread in enumerate(threads):
        thread.start()
        while _coalescing.counts()[1] != i + 1:
            time.sleep(1e-3)
    fail(n, LEAST, all)
    _coalescing.leave_place()
    for thread in threads:
        thread.join()
    seen = shim.allocations_seen()
    fail(0, LEAST, 0)
    return results, seen

failed = 0
for all in (0, 1):
    for n in range(12):
        results, seen = together(n, all)
        for got, right in zip(results, expected):
            if isinstance(got, MemoryError):
                failed += 1
            else:
                same(got, right)
        assert _coalescing.counts()[:2] == (0, 0)
assert failed
print("coalescing", failed)
""",
    "functions": """
kernel, recurrent, bias = numbers(I, 3 * H), numbers(H, 3 * H), numbers(2, 3 * H)
out = np.full((B, T, H), 7, "float32")
def fresh():
    out[...] = 7
every_failure("gru", lambda: [*fastgru.gru(x, kernel, recurrent, bias, h, mask=mask, out=out)],
              lambda: [out], fresh=fresh)
every_failure("gru_cell", lambda: [fastgru.gru_cell(x[:, 0], h, kernel, recurrent, bias)])
""",
}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    """Return an environment in which malloc can be told to fail."""
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    source = SUPPORT / "failing_malloc.c"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return environment(LD_PRELOAD=str(library), OMP_NUM_THREADS="2")


@pytest.mark.parametrize("kernel", ["fused", "blas"])
@pytest.mark.parametrize("name", CODE)
def test_every_allocation_that_fails(name, kernel, preloaded):
    if kernel == "fused" and not kernels.lanes(4):
        pytest.skip("this compiler has no vector types, which the fused kernel needs")
    if kernel == "blas" and name in ("coalescing", "backward"):
        pytest.skip("the BLAS kernel has no coalescing and no backward")
    code = (SETUP + CODE[name]).replace("LEAST", str(LEAST))
    assert run_python(code, {**preloaded, "FASTGRU_KERNEL": kernel})
