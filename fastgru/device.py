"""Host memory or a CUDA device: the one place that tells NumPy's arrays from CuPy's.

Nothing above the backends branches on it. NumPy's functions serve CuPy's arrays too, since they
dispatch on what they get (NEP 13, NEP 18), and an array made from nothing is made like another one
(NEP 35). CuPy is imported when the first array of a device comes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastgru.errors import BackendError

_CUDA_KINDS = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def on_device(array: Any) -> bool:
    """Say whether an array is CuPy's."""
    if type(array) is np.ndarray or array is None:
        return False
    cupy = sys.modules.get("cupy")  # there are none before it is imported
    return cupy is not None and isinstance(array, cupy.ndarray)


def place(value: Any) -> str | None:
    """Return "host" or "device"; None for what is no array, as lists, which go anywhere."""
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
    """Return an array of a device, of whatever library, as CuPy's array over the same memory.

    Raises
    ------
    BackendError
        CuPy is missing, or cannot use the device.
    ValueError
        The array is on a device that is not the current one.
    TypeError
        The array's owner does not share it.
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
    """Raise TypeError where ``value``, which is at ``got``, is not where ``like`` is."""
    expected = "device" if on_device(like) else "host"
    if got not in (None, expected):
        kinds = {"host": "an array in host memory", "device": "an array on a CUDA device"}
        move = "cupy.asarray" if expected == "device" else "cupy.asnumpy"
        raise TypeError(
            f"{what}: expected {kinds[expected]} like the sequences, got {kinds[got]} "
            f"({type(value).__module__}); nothing is copied silently: pass {move}({what})"
        )


def follow(array: Any, like: Any) -> Any:
    """Return an array that fastgru itself keeps where ``like`` is: itself, or a copy there."""
    if on_device(array) == on_device(like):
        return array
    return np.asarray(array, like=like) if on_device(like) else array.get()


def plain(values: Any) -> Any:
    """Return an array of either kind as it is, anything else as NumPy's array."""
    return values if on_device(values) else np.asarray(values)


def overlap(out: Any, value: Any) -> bool:
    """Say whether writing to an array may change ``value``, if that is an array in one place."""
    if on_device(out):
        return on_device(value) and bool(np.may_share_memory(out, value))
    return isinstance(value, np.ndarray) and np.may_share_memory(out, value)


def special_functions(array: Any) -> Any:
    """Return SciPy's special functions, or CuPy's of the same names; both are slow to import."""
    if on_device(array):
        from cupyx.scipy import special
    else:
        from scipy import special
    return special
