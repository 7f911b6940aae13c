"""A stand-in for CuPy on machines without a GPU, as strict as CuPy is.

Its arrays are no NumPy arrays, never become one by themselves and mix with none; NumPy's functions
dispatch on them; results of reductions stay on the "device". Kernels are emulated (cuda_emulator).
"""

import sys
from types import SimpleNamespace

import numpy as np
import scipy.special
from cuda_emulator import HOST, Emulator
from fake_cudnn import STREAM
from numpy.lib.mixins import NDArrayOperatorsMixin

from fastgru._cuda import engine as engines
from fastgru._cuda import libcudnn

_TAKE_HOST = (np.asarray, np.array, np.arange)  # with like=, as CuPy's own take them


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for a status of the runtime."""

    __module__ = "cupy_backends.cuda.api.runtime"


class ndarray(NDArrayOperatorsMixin):
    """A device array: ``host`` is its memory."""

    __module__ = "cupy"

    def __init__(self, host, device=0):
        self.host = np.asarray(host)
        self.device = SimpleNamespace(id=device)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if any(isinstance(value, np.ndarray) for value in (*inputs, *out)):
            return NotImplemented
        if out:
            kwargs["out"] = tuple(map(unwrapped, out))
        result = getattr(ufunc, method)(*map(unwrapped, inputs), **kwargs)
        return out[0] if out else wrapped(result)

    def __array_function__(self, function, types, args, kwargs):
        if any(kind is not ndarray for kind in types):
            return NotImplemented
        if function not in _TAKE_HOST:
            assert not any(isinstance(a, np.ndarray) for a in (*args, *kwargs.values())), function
        result = function(*unwrapped(args), **unwrapped(kwargs))
        return wrapped(result) if kwargs.get("out") is None else kwargs["out"]

    def __getattr__(self, name):
        if name in ("shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes", "flags"):
            return getattr(self.host, name)
        if name in ("reshape", "transpose", "astype", "copy", "ravel", "all", "any", "sum", "fill"):
            return lambda *a, **k: wrapped(getattr(self.host, name)(*a, **k))
        raise AttributeError(f"the stand-in for cupy.ndarray has no {name!r}")

    @property
    def T(self):
        return ndarray(self.host.T)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.host.ctypes.data)

    def get(self):
        return self.host.copy()

    def __getitem__(self, key):
        return wrapped(self.host[_index(key)])

    def __setitem__(self, key, value):
        assert not isinstance(value, np.ndarray)
        self.host[_index(key)] = unwrapped(value)

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (wrapped(part) for part in self.host)

    def __bool__(self):
        return bool(self.host)

    def __float__(self):
        return float(self.host)

    def __repr__(self):
        return f"device {self.host!r}"

    def __reduce__(self):
        return ndarray, (self.host,)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False)}

    def __dlpack_device__(self):
        return (2, self.device.id)

    def __dlpack__(self, **how):
        return self

    __hash__ = None


def _index(key):
    parts = key if isinstance(key, tuple) else (key,)
    assert not any(isinstance(part, np.ndarray) for part in parts), "an index on the host"
    return unwrapped(key)


def unwrapped(value):
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {key: unwrapped(part) for key, part in value.items()}
    return value


def wrapped(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(wrapped, value))
    return value


def asarray(values, order="K"):
    if isinstance(values, ndarray) and (order == "K" or values.flags.c_contiguous):
        return values
    return ndarray(np.array(unwrapped(values), order=order))


class Engine(Emulator):
    """The emulator on the stand-in's arrays."""

    address = engines.Engine.address

    def describe(self):
        return "an emulated device"


def module():
    """Return the stand-in for the package ``cupy``."""
    runtime = SimpleNamespace(getDevice=lambda: 0, CUDARuntimeError=CUDARuntimeError)
    stream = SimpleNamespace(ptr=STREAM, synchronize=lambda: None)
    return SimpleNamespace(
        ndarray=ndarray,
        asarray=asarray,
        asnumpy=unwrapped,
        empty=lambda shape, dtype: ndarray(HOST.empty(shape, dtype)),
        zeros=lambda shape, dtype: ndarray(HOST.zeros(shape, dtype)),
        from_dlpack=lambda value: value.__dlpack__(),
        cuda=SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream),
    )


def install(set_attribute=setattr, set_item=dict.__setitem__, cudnn=None, **how):
    """Put the stand-in where ``import cupy`` and the backends look; return its engine.

    ``cudnn`` is a `FakeCudnn` where the machine is to have one.
    """
    cupy = module()
    engine = Engine(cupy=cupy, **how)
    set_item(sys.modules, "cupy", cupy)
    special = SimpleNamespace(erf=lambda x: wrapped(scipy.special.erf(unwrapped(x))))
    set_item(sys.modules, "cupyx.scipy", SimpleNamespace(special=special))
    set_attribute(engines, "current", lambda: engine)
    set_attribute(engines, "missing", lambda: None)
    set_attribute(libcudnn, "missing", lambda: None if cudnn else "cuDNN was not found")
    set_attribute(libcudnn, "load", lambda: libcudnn.Cudnn(cudnn))
    return engine
