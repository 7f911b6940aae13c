"""cuDNN's recurrent networks through ctypes: the v8 interface, which cuDNN 8.9 and 9 share.

CuPy up to 13 wraps an older interface and CuPy 14 none, so this module does not use CuPy. A method
calls the C function of its name, without the prefix, as in ``cupy.cuda.cudnn``, and checks the
status. Handles, descriptors and device memory are ints, where 0 is NULL.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from ctypes import POINTER, byref, c_int, c_size_t, c_uint32, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DATA_FLOAT, DATA_DOUBLE, DATA_HALF, DATA_BFLOAT16 = 0, 1, 2, 9
DEFAULT_MATH, TENSOR_OP_MATH, FMA_MATH = 0, 1, 3
RNN_ALGO_STANDARD, RNN_ALGO_PERSIST_STATIC, RNN_ALGO_PERSIST_STATIC_SMALL_H = 0, 1, 3
GRU = 3
RNN_DOUBLE_BIAS = 2
UNIDIRECTIONAL, BIDIRECTIONAL = 0, 1
LINEAR_INPUT = 0
FWD_MODE_INFERENCE, FWD_MODE_TRAINING = 0, 1
RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED, RNN_DATA_LAYOUT_BATCH_MAJOR_UNPACKED = 0, 2
RNN_PADDED_IO_ENABLED = 1
WGRAD_MODE_ADD = 0

OLDEST = 8901  # 8.9.1, the first that needs no lengths in device memory
_SONAMES = ("libcudnn.so.9", "libcudnn.so.8")
_WHERE = (
    "install pip's nvidia-cudnn-cu12 or -cu13, as CuPy's CUDA, or name the file in FASTGRU_CUDNN"
)

_new, _ints, _size = POINTER(c_void_p), POINTER(c_int), POINTER(c_size_t)
_WORK = (c_size_t, c_void_p) * 2  # the work space and the reserve space, each after its size

# The arguments of each function; all of them return a status.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudnnCreate": (_new,),
    "cudnnDestroy": (c_void_p,),
    "cudnnSetStream": (c_void_p, c_void_p),
    "cudnnCreateTensorDescriptor": (_new,),
    "cudnnDestroyTensorDescriptor": (c_void_p,),
    "cudnnSetTensorNdDescriptor": (c_void_p, c_int, c_int, _ints, _ints),
    "cudnnCreateRNNDescriptor": (_new,),
    "cudnnDestroyRNNDescriptor": (c_void_p,),
    "cudnnSetRNNDescriptor_v8": (c_void_p, *(c_int,) * 12, c_void_p, c_uint32),
    "cudnnCreateRNNDataDescriptor": (_new,),
    "cudnnDestroyRNNDataDescriptor": (c_void_p,),
    "cudnnSetRNNDataDescriptor": (c_void_p, *(c_int,) * 5, _ints, c_void_p),
    "cudnnGetRNNWeightSpaceSize": (c_void_p, c_void_p, _size),
    "cudnnGetRNNTempSpaceSizes": (c_void_p, c_void_p, c_int, c_void_p, _size, _size),
    "cudnnGetRNNWeightParams": (
        *(c_void_p, c_void_p, c_int, c_size_t, c_void_p, c_int),
        *(c_void_p, _new, c_void_p, _new),
    ),
    "cudnnRNNForward": (
        *(c_void_p, c_void_p, c_int, *(c_void_p,) * 11),
        *(c_size_t, c_void_p, *_WORK),
    ),
    "cudnnRNNBackwardData_v8": (*(c_void_p,) * 16, c_size_t, c_void_p, *_WORK),
    "cudnnRNNBackwardWeights_v8": (
        *(c_void_p, c_void_p, c_int, *(c_void_p,) * 7),
        *(c_size_t, c_void_p, *_WORK),
    ),
}


class CudnnError(RuntimeError):
    """A call whose status is not success; or there is no usable library, without a status.

    Attributes
    ----------
    status : int or None
    not_supported : bool
        cuDNN refused the call before doing anything, and may accept it with other arguments.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        # In cuDNN 8 this is one number, in cuDNN 9 a thousand of them.
        self.not_supported = status is not None and (status == 9 or 3000 <= status < 4000)


def _call_of(name: str) -> Callable[..., None]:
    """Return a method that calls a function whose arguments are all numbers."""

    def method(self: Cudnn, *arguments: int) -> None:
        self._call(name, *arguments)

    method.__doc__ = f"Call {name} with the arguments of cuDNN's reference."
    return method


def _new_of(name: str) -> Callable[[Cudnn], int]:
    """Return a method that makes a handle or a descriptor."""

    def method(self: Cudnn) -> int:
        new = c_void_p()
        self._call(name, byref(new))
        return new.value or 0

    method.__doc__ = f"Return what {name} makes for the current device."
    return method


class Cudnn:
    """The calls of one library.

    Parameters
    ----------
    library : ctypes.CDLL
        libcudnn, of at least `OLDEST`.

    Raises
    ------
    CudnnError
        A library that is too old.
    """

    def __init__(self, library: Any) -> None:
        version = library.cudnnGetVersion
        version.restype, version.argtypes = c_size_t, ()
        self._version = int(version())
        if self._version < OLDEST:
            raise CudnnError(f"expected cuDNN 8.9.1 or later, got version {self._version}")
        self._functions = {}
        for name, arguments in SIGNATURES.items():
            function = self._functions[name] = getattr(library, name)
            function.restype, function.argtypes = c_int, arguments
        self._name_of = library.cudnnGetErrorString
        self._name_of.restype, self._name_of.argtypes = ctypes.c_char_p, (c_int,)
        self._last_error = getattr(library, "cudnnGetLastErrorString", None)  # since cuDNN 9
        if self._last_error is not None:
            self._last_error.restype, self._last_error.argtypes = None, (c_void_p, c_size_t)

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._functions[name](*arguments)
        if status:
            text = f"{name}: {self.getErrorString(status)} ({status})"
            detail = self.getLastErrorString()
            raise CudnnError(f"{text}: {detail}" if detail else text, status)

    def getVersion(self) -> int:
        """Return the library's version: 8907 is 8.9.7, 91002 is 9.10.2."""
        return self._version

    def getErrorString(self, status: int) -> str:
        """Return the name of a status."""
        name: bytes = self._name_of(status)
        return name.decode()

    def getLastErrorString(self) -> str:
        """Return the condition that failed last in this thread; "" before cuDNN 9."""
        if self._last_error is None:
            return ""
        text = ctypes.create_string_buffer(1024)
        self._last_error(text, len(text))
        return text.value.decode(errors="replace").strip()

    create = _new_of("cudnnCreate")
    destroy = _call_of("cudnnDestroy")
    setStream = _call_of("cudnnSetStream")
    createTensorDescriptor = _new_of("cudnnCreateTensorDescriptor")
    destroyTensorDescriptor = _call_of("cudnnDestroyTensorDescriptor")
    createRNNDescriptor = _new_of("cudnnCreateRNNDescriptor")
    destroyRNNDescriptor = _call_of("cudnnDestroyRNNDescriptor")
    setRNNDescriptor_v8 = _call_of("cudnnSetRNNDescriptor_v8")
    createRNNDataDescriptor = _new_of("cudnnCreateRNNDataDescriptor")
    destroyRNNDataDescriptor = _call_of("cudnnDestroyRNNDataDescriptor")
    rnnForward = _call_of("cudnnRNNForward")
    rnnBackwardData_v8 = _call_of("cudnnRNNBackwardData_v8")
    rnnBackwardWeights_v8 = _call_of("cudnnRNNBackwardWeights_v8")

    def setTensorNdDescriptor(self, tensor: int, dtype: int, shape: Sequence[int]) -> None:
        """Describe a tensor without gaps."""
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        sizes = (_int_array(shape), _int_array(strides))
        self._call("cudnnSetTensorNdDescriptor", tensor, dtype, len(shape), *sizes)

    def setRNNDataDescriptor(
        self, data: int, dtype: int, layout: int, steps: int, size: int, lengths: Sequence[int]
    ) -> None:
        """Describe sequences of these lengths, padded to ``steps`` with undefined outputs."""
        counts = (steps, len(lengths), size)
        self._call(
            "cudnnSetRNNDataDescriptor", data, dtype, layout, *counts, _int_array(lengths), None
        )

    def getRNNWeightSpaceSize(self, handle: int, rnn: int) -> int:
        """Return the bytes that the weights take."""
        size = c_size_t()
        self._call("cudnnGetRNNWeightSpaceSize", handle, rnn, byref(size))
        return size.value

    def getRNNTempSpaceSizes(self, handle: int, rnn: int, mode: int, x: int) -> tuple[int, int]:
        """Return the bytes of the work space, and of the reserve space that backward takes."""
        work, reserve = c_size_t(), c_size_t()
        sizes = (byref(work), byref(reserve))
        self._call("cudnnGetRNNTempSpaceSizes", handle, rnn, mode, x, *sizes)
        return work.value, reserve.value

    def getRNNWeightParams(
        self, *arguments: int, matrix_tensor: int, bias_tensor: int
    ) -> tuple[int, int]:
        """Return the addresses of matrix and bias; ``arguments`` are from handle to linLayerID."""
        matrix, bias = c_void_p(), c_void_p()
        where = (matrix_tensor, byref(matrix), bias_tensor, byref(bias))
        self._call("cudnnGetRNNWeightParams", *arguments, *where)
        return matrix.value or 0, bias.value or 0


def _int_array(values: Sequence[int]) -> Any:
    return (c_int * len(values))(*map(int, values))


# ---- finding it ----------------------------------------------------------------------------------


def load() -> Cudnn:
    """Return the library, the same one at each call.

    Raises
    ------
    CudnnError
        There is none, or it is too old: the text that `missing` returns.
    """
    found = _found()
    if isinstance(found, str):
        raise CudnnError(found)
    return found


def missing() -> str | None:
    """Return why there is no usable library, or None."""
    found = _found()
    return found if isinstance(found, str) else None


@functools.cache
def _found() -> Cudnn | str:
    for name, mode in _places():
        try:
            return Cudnn(ctypes.CDLL(name, mode=mode))
        except OSError as error:  # there is none, or something that it needs is missing
            if name == os.environ.get("FASTGRU_CUDNN"):
                return f"FASTGRU_CUDNN={name} cannot be loaded: {error}"
        except CudnnError as error:  # no search for another one: two copies may crash a process
            return f"{name}: {error}; {_WHERE}"
    return f"cuDNN was not found; {_WHERE}"


def _places() -> Iterator[tuple[str, int]]:
    """Yield names and modes for the dynamic loader, best first."""
    forced = os.environ.get("FASTGRU_CUDNN")
    if forced:
        yield forced, ctypes.DEFAULT_MODE
        return
    if hasattr(os, "RTLD_NOLOAD"):  # a copy that another package of this process has loaded
        yield from ((name, os.RTLD_NOLOAD | os.RTLD_NOW) for name in _SONAMES)
    path = _path_of_pathfinder()
    if path:
        yield path, ctypes.DEFAULT_MODE
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia else None
    for folder in folders or ():  # pip's wheels of cuDNN for CUDA 12 and 13 use the same folder
        yield from ((f"{folder}/cudnn/lib/{name}", ctypes.DEFAULT_MODE) for name in _SONAMES)
    yield from ((name, ctypes.DEFAULT_MODE) for name in _SONAMES)


def _path_of_pathfinder() -> str | None:
    """Return what NVIDIA's own search finds; CuPy 14 depends on its package."""
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return None
    try:
        path: str | None = load_nvidia_dynamic_lib("cudnn").abs_path
    except DynamicLibNotFoundError:  # cuDNN, or something that it needs
        return None
    return path
