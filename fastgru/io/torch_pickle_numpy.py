"""NumPy's arrays in pickles: described by the pickle's instructions, made by nobody but the reader.

An array is pickled as a call of ``_reconstruct`` and a state of version, shape, dtype, order and
bytes, or as a call of ``_frombuffer``; a dtype as a call of ``numpy.dtype`` and a state with its
byte order; bytes in old protocols as text that ``_codecs.encode`` takes. `made` and `built` stand
for these and for nothing else.

Source: ``numpy/_core/src/multiarray/methods.c`` (array_reduce, array_setstate) and
``descriptor.c`` (arraydescr_reduce).
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np

MOST_AXES = 64
_NUMBER = re.compile(r"[fiubc]\d{1,2}")
_CORES = ("numpy.core", "numpy._core")
_RECONSTRUCT = {f"{core}.multiarray._reconstruct" for core in _CORES}
_FROM_BUFFER = {f"{core}.numeric._frombuffer" for core in _CORES}
# What an array is when its arguments are not those that NumPy writes.
ARRAYS = {*_RECONSTRUCT, *_FROM_BUFFER}
FUNCTIONS = {*_RECONSTRUCT, *_FROM_BUFFER, "numpy.dtype", "_codecs.encode"}


class PickledDtype:
    """A dtype: its kind and size, as ``f4``, and its byte order."""

    __slots__ = ("order", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.order: Literal["<", ">", "=", "|"] = "="


class PickledArray:
    """An array that a pickle describes.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        NumPy's name of it, or what it is instead of numbers.
    problem : str
        Why there are no numbers to read, or empty.
    objects : list
        What an array of objects holds.
    """

    __slots__ = ("_data", "_form", "_fortran", "dtype", "objects", "problem", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype, self.problem = "nothing", "an array of NumPy without its numbers"
        self.objects: list[Any] = []
        self._form, self._data, self._fortran = np.dtype("u1"), b"", False

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        """Set what the array is; wrong values become its `problem`."""
        if (
            not isinstance(shape, tuple)
            or len(shape) > MOST_AXES
            or any(type(n) is not int or n < 0 for n in shape)
            or not isinstance(dtype, PickledDtype)
        ):
            return
        self.shape, self.dtype = shape, dtype.text
        if isinstance(data, list):
            self.objects, self.problem = data, "an array of objects"
            return
        if not _NUMBER.fullmatch(dtype.text) or not isinstance(data, bytes):
            self.problem = f"an array of {dtype.text[:50]!r}"
            return
        try:
            self._form = np.dtype(dtype.text).newbyteorder(dtype.order)
        except TypeError:
            self.problem = f"an array of {dtype.text[:50]!r}"
            return
        self.dtype = self._form.name
        self._data, self._fortran = data, fortran is True
        wanted = math.prod(shape) * self._form.itemsize
        self.problem = "" if wanted == len(data) else f"an array of {len(data)} of {wanted} bytes"

    @property
    def storage(self) -> tuple[object, int]:
        """What its numbers lie in, and how many bytes that has."""
        return id(self._data), len(self._data)

    def read(self) -> np.ndarray:
        """Return the array, a view of the pickle's bytes."""
        flat = np.frombuffer(self._data, self._form)
        return flat.reshape(self.shape, order="F" if self._fortran else "C")


def made(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what one of `FUNCTIONS` makes of its arguments; None for arguments of other kinds."""
    match arguments:
        case (str(text), "latin1") if name == "_codecs.encode":
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                return None
        case (str(text), *_) if name == "numpy.dtype" and len(text) < 50:
            dtype = PickledDtype(text.lstrip("<>=|"))
            built(dtype, (3, text[:1]))
            return dtype
        case (_, tuple(), _) if name in _RECONSTRUCT:
            return PickledArray()
        case (bytes(data), PickledDtype() as dtype, tuple(shape), str(order)):
            if name in _FROM_BUFFER:
                array = PickledArray()
                array.fill(shape, dtype, order == "F", data)
                return array
    return None


def built(target: PickledArray | PickledDtype, state: Any) -> None:
    """Set the state of a dtype or an array, as BUILD does."""
    if isinstance(target, PickledDtype):
        match state:
            case (int(), "<" | ">" | "=" | "|" as order, *_):
                target.order = order
    else:
        match state:
            case (int(), shape, dtype, fortran, data):
                target.fill(shape, dtype, fortran, data)
