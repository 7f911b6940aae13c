"""The engine itself, over as much of CuPy's interface as it uses, on the host.

The names and what they take are those of CuPy 14; the kernels are emulated as in test_cuda_shim.
"""

import ctypes
import sys
from types import SimpleNamespace

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from device_support import DROPOUTS, assert_agrees, draw
from fake_cudnn import STREAM, FakeCudnn
from random_problems import make_spec, make_weights

from fastgru._cuda import engine as engines
from fastgru._cuda import libcudnn, source
from fastgru.backends import cuda, cuda_persistent, cudnn
from fastgru.errors import BackendError

pytestmark = cuda_emulator.needs_compiler
MULTIPROCESSORS, SHARED_BYTES, WITHOUT_ASKING = 4, 227 << 10, 48 << 10
HANDLE = 9
made = []


class RawModule:
    def __init__(self, *, code, options, backend):
        assert (backend, options[0]) == ("nvrtc", "-std=c++17")
        self.program = cuda_emulator.compiled(code, options[1:])

    def get_function(self, name):
        return RawKernel(self, name)


class RawKernel:
    def __init__(self, module, name):
        limits = {"blocks_at_once": MULTIPROCESSORS, "shared_bytes": WITHOUT_ASKING}
        self.function = cuda_emulator.function(module.program, name, **limits)
        self.kernel = SimpleNamespace(ptr=ctypes.addressof(self.function))
        made.append((name, self.function))

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.function.shared_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        assert size <= SHARED_BYTES
        self.function.shared_bytes = size


class Event:
    """Records when: every one is half a second after the one before."""

    count = 0

    def record(self):
        Event.count += 1
        self.at = 500 * Event.count

    def synchronize(self):
        assert self.at


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    limits = {
        "CooperativeLaunch": 1,
        "MultiProcessorCount": MULTIPROCESSORS,
        "MaxSharedMemoryPerBlockOptin": SHARED_BYTES,
    }
    module = fake_cupy.module()
    module.streams, module.bound = {}, []
    module.RawModule = RawModule
    module.cuda.device = SimpleNamespace(get_cublas_handle=lambda: HANDLE)
    module.cuda.Device = lambda: SimpleNamespace(attributes=limits)
    module.cuda.runtime.setDevice = module.bound.append
    module.cuda.Event = Event
    module.cuda.get_elapsed_time = lambda start, end: end.at - start.at  # milliseconds
    driver = SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda *_: 1)
    blas = SimpleNamespace(
        __file__=cuda_emulator.library_path(), setStream=module.streams.__setitem__
    )
    for name, value in {
        "cupy": module,
        "cupy.cuda": module.cuda,
        "cupy_backends.cuda.api": SimpleNamespace(driver=driver),
        "cupy_backends.cuda.libs": SimpleNamespace(cublas=blas),
    }.items():
        monkeypatch.setitem(sys.modules, name, value)
    for cached in (engines._engine, engines._module, engines._kernel):
        cached.cache_clear()
    made.clear()
    monkeypatch.setattr(engines, "_DRIVER", cuda_emulator.library_path())
    monkeypatch.setattr(engines, "Engine", cuda_emulator.LateEngine)
    yield module
    for cached in (engines._engine, engines._module, engines._kernel):
        cached.cache_clear()


@pytest.mark.parametrize("rows", [0, 32], ids=["steps", "resident"])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_forward_and_backward(cupy, monkeypatch, dtype, reset_after, rows):
    monkeypatch.setattr(cuda_persistent, "MAX_ROWS", rows)
    spec = make_spec(3, 11, dtype, reset_after=reset_after)
    rng = np.random.default_rng(1)
    weights = make_weights(rng, spec)
    backend = cuda.CudaBackend()
    for dropout, kind in zip(DROPOUTS, ["none", "steps", "lengths", "none", "steps"], strict=True):
        problem = draw(rng, spec, kind, kind == "steps", dropout, (False, True, False))
        assert_agrees(backend, problem, weights, move=cupy.asarray)
    cooperative = {name for name, function in made if function.cooperative}
    when = "after" if reset_after else "before"
    assert cooperative == (set(f"steps_{when} back_{when}".split()) if rows else set())
    # Everything is on the caller's stream, cuBLAS' handle too, and in the caller's context.
    assert cuda_emulator.shim("stream", ctypes.c_void_p).value == STREAM
    assert cuda_emulator.shim("handle", ctypes.c_void_p).value == HANDLE
    assert cupy.streams == {HANDLE: STREAM}
    assert len(cupy.bound) == 2 * len(DROPOUTS)


def test_cudnn(cupy):
    spec = make_spec(3, 11)
    rng = np.random.default_rng(2)
    weights = make_weights(rng, spec)
    backend = cudnn.CudnnBackend(engines.current(), libcudnn.Cudnn(FakeCudnn()))
    for reverse, kind, dropout in (
        *((False, "none", "none"), (True, "none", "none")),
        *((False, "lengths", "one"), (True, "lengths", "none")),
    ):
        problem = draw(rng, spec, kind, False, dropout, (reverse, True, False))
        assert_agrees(backend, problem, weights, move=cupy.asarray)
    kernels = {"pack_weights", "gather_x", "spread", "fold_dy", "keep_ended", "scatter_dx"}
    assert {name for name, _ in made} == kernels | {"unpack_weights"}


def test_seconds(cupy):
    engine, done = engines.current(), []
    assert engine.seconds(lambda: done.append(1)) == 0.5
    assert done == [1]
    assert engine.stream() == STREAM


def test_gaps_are_refused(cupy):
    engine, spec = engines.current(), make_spec(1, 1)
    options = source.options(spec.dtype, spec.activation, spec.recurrent_activation)
    column = cupy.zeros((2, 2), "float32")[:, 1]
    with pytest.raises(AssertionError, match="start: expected C-contiguous"):
        engine.repeat(1, [engines.Launch("start", options, 1, (column,))])


def test_cublas_may_be_missing(cupy, monkeypatch):
    """As CuPy 13 is without a CUDA toolkit: the package imports, and this module does not."""
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", SimpleNamespace())
    with pytest.raises(
        BackendError, match=r"CuPy cannot load cuBLAS \(.*\); install a CUDA toolkit"
    ):
        engines.current()
