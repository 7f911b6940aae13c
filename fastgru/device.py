"""Arrays of others: host memory or a CUDA device, and views that are fastgru's own.

NumPy's functions also take CuPy's arrays (NEP 13, NEP 18), and make new arrays like a given one
(NEP 35). So the code above the backends rarely asks which of the two an array is. CuPy is imported
when a call gets its first array on a device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgru.errors import BackendError

_CUDA_KINDS = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged
_native_held: Callable[[np.ndarray], np.ndarray] | None = None  # not asked for yet


def on_device(array: Any) -> bool:
    """Say whether an array is CuPy's."""
    if type(array) is np.ndarray or array is None:
        return False
    cupy = sys.modules.get("cupy")  # without an import of CuPy there are no arrays of CuPy
    return cupy is not None and isinstance(array, cupy.ndarray)


def place(value: Any) -> str | None:
    """Return "host" or "device"; None for lists and numbers, which may be used on both."""
    if isinstance(value, (np.ndarray, np.generic)):
        return "host"
    if value is None or isinstance(value, (bool, int, float, complex, list, tuple)):
        return None
    if on_device(value):
        return "device"
    if hasattr(value, "__dlpack_device__"):
        return "device" if int(value.__dlpack_device__()[0]) in _CUDA_KINDS else "host"
    if hasattr(value, "__cuda_array_interface__"):
        return "device"
    return "host" if hasattr(value, "__array__") or isinstance(value, memoryview) else None


def device_array(value: Any, what: str) -> Any:
    """Return an array on a device, of any library, as an array of CuPy over the same memory.

    Raises
    ------
    BackendError
        CuPy is missing, or cannot use the device.
    ValueError
        The array is not on the current device.
    TypeError
        The array's library does not share it.
    """
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            f"{what}: got an array on a CUDA device ({type(value).__module__}), and CuPy is "
            f"missing ({error}); install it with pip install 'fastgru[cuda12]' or [cuda13], or "
            "move the data to host memory"
        ) from None
    try:
        current = cupy.cuda.runtime.getDevice()
        if not isinstance(value, cupy.ndarray):
            shared = hasattr(value, "__dlpack__")
            value = cupy.from_dlpack(value) if shared else cupy.asarray(value)
    except BufferError as error:
        raise TypeError(f"{what}: expected an array that can be shared, got {error}") from None
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"{what}: got an array on a CUDA device, and CuPy cannot use the device: {error}"
        ) from error
    if value.device.id != current:
        raise ValueError(
            f"{what}: expected an array on the current device {current}, got one on device "
            f"{value.device.id}; call inside `with cupy.cuda.Device({value.device.id}):`"
        )
    return value


def check_place(got: str | None, value: Any, like: Any, what: str) -> None:
    """Raise TypeError unless ``got``, the place of ``value``, is that of ``like``."""
    expected = "device" if on_device(like) else "host"
    if got not in (None, expected):
        kinds = {"host": "an array in host memory", "device": "an array on a CUDA device"}
        move = "cupy.asarray" if expected == "device" else "cupy.asnumpy"
        raise TypeError(
            f"{what}: expected {kinds[expected]} like the sequences, got {kinds[got]} "
            f"({type(value).__module__}); nothing is copied silently: pass {move}({what})"
        )


def follow(array: Any, like: Any) -> Any:
    """Return one of fastgru's own arrays on the host or device of ``like``; a copy if need be."""
    if on_device(array) == on_device(like):
        return array
    return np.asarray(array, like=like) if on_device(like) else array.get()


def plain(values: Any) -> Any:
    """Return arrays of NumPy and CuPy unchanged, other values as an array of NumPy."""
    return values if on_device(values) else np.asarray(values)


def held(array: np.ndarray) -> np.ndarray:
    """Return a view of an array that no other thread has.

    What is checked of it stays true: its shape, strides and dtype cannot change, and its memory
    stays where it is as long as the view lives, because `ndarray.resize` refuses. Values may
    change: what decides an address must be copied, and the copy checked.

    Parameters
    ----------
    array : ndarray, or an instance of a subclass

    Returns
    -------
    ndarray
    """
    global _native_held
    if _native_held is None:
        try:
            from fastgru._native._held import held as native
        except ImportError:  # without the extensions no native code reads it; `resize` works
            native = _view
        _native_held = native
    return _native_held(array)


def _view(array: np.ndarray) -> np.ndarray:
    return array.view(np.ndarray)


def overlap(out: Any, value: Any) -> bool:
    """Say whether writing to ``out`` may change ``value``; False unless that is an array."""
    if on_device(out):
        return on_device(value) and bool(np.may_share_memory(out, value))
    return isinstance(value, np.ndarray) and np.may_share_memory(out, value)


def special_functions(array: Any) -> Any:
    """Return SciPy's or CuPy's module of special functions, which are slow to import."""
    if on_device(array):
        from cupyx.scipy import special
    else:
        from scipy import special
    return special
