"""Values in HDF5: numbers from front to back, types, shapes and arrays. See `fastgru.io.hdf5`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastgru.io.bounded import check_shape

if TYPE_CHECKING:
    from typing import Any, NoReturn

# Classes of datatypes.
INTEGER, _FLOAT, _STRING, _OPAQUE, VARIABLE_LENGTH = 0, 1, 3, 5, 9

# Descriptions of the IEEE 754 floats without their byte order: the sign's bit and a zero; size in
# bytes; bit offset and precision; first bit and number of bits of exponent and of mantissa; the
# exponent's bias.
_FLOATS = {
    bytes((15, 0, 2, 0, 0, 16, 0, 10, 5, 0, 10, 15, 0, 0, 0)): "f2",
    bytes((31, 0, 4, 0, 0, 32, 0, 23, 8, 0, 23, 127, 0, 0, 0)): "f4",
    bytes((63, 0, 8, 0, 0, 64, 0, 52, 11, 0, 52, 255, 3, 0, 0)): "f8",
}


class Cursor:
    """Bytes that are read from front to back; reading past the end raises ValueError."""

    def __init__(self, data: Any, place: str) -> None:
        self.data, self.place, self.at = data, place, 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > len(self.data) - self.at:
            self.wrong(f"{count} more bytes", f"the end after {len(self.data) - self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        """Return the next ``size`` bytes as an unsigned number."""
        return int.from_bytes(self.take(size), "little")

    def expect(self, value: bytes, what: str) -> None:
        """Read ``value``; ValueError if other bytes come next."""
        got = self.take(len(value))
        if got != value:
            self.wrong(f"{what} {value!r}", repr(got))

    def wrong(self, expected: str, got: str) -> NoReturn:
        """Raise a ValueError with the place, what was expected and what is there."""
        raise ValueError(
            f"{self.place}: expected {expected}, got {got}; the file is damaged, or is not as "
            "Keras writes it: let Keras load it and save it again"
        )


def text_and_bytes(data: bytes) -> int:
    """Return how many bytes a text takes with the bytes that it is decoded from."""
    return 2 * len(data) if data.isascii() else 5 * len(data)


def shape_of(space: Cursor) -> tuple[int, ...]:
    """Return the shape in a dataspace message; () for one value."""
    version, rank, _ = space.number(1), space.number(1), space.number(1)
    if version == 1:
        space.take(5)
    elif version != 2 or (kind := space.number(1)) > 1 or (kind == 0 and rank):
        space.wrong("a shape, version 1 or 2", f"version {version}, rank {rank}")
    return tuple(space.number(8) for _ in range(rank))


def dtype_of(form: Cursor) -> np.dtype:
    """Return the NumPy dtype of a datatype message: IEEE floats, integers, strings."""
    kind, order = form.number(1) & 15, form.number(1)
    rest = form.take(2)
    size = form.number(4)
    if kind == _STRING and size:
        return np.dtype(f"S{size}")
    if kind == INTEGER and size in (1, 2, 4, 8) and form.take(4) == bytes((0, 0, 8 * size, 0)):
        return np.dtype(f"{'i' if order & 8 else 'u'}{size}").newbyteorder(
            ">" if order & 1 else "<"
        )
    if kind == _OPAQUE and size == 2:
        return np.dtype("V2")
    if kind == _FLOAT and order & ~1 == 0x20:  # mantissas with a hidden 1; bit 0 is the byte order
        name = (
            _FLOATS.get(rest + size.to_bytes(1, "little") + form.take(12)) if size < 256 else None
        )
        if name is not None:
            return np.dtype(name).newbyteorder(">" if order & 1 else "<")
    return form.wrong("IEEE floats or strings", f"type {kind} of {size} bytes")


def whole(shape: tuple[int, ...], itemsize: int, data: Cursor) -> int:
    """Return the size of an array in bytes; ValueError unless ``data`` has so many."""
    count = math.prod(shape) * itemsize
    if count > len(data.data) or any(n >= 2**31 for n in shape):
        data.wrong(f"the {count} bytes of shape {shape}", str(len(data.data)))
    check_shape(shape, data.place)
    return count


def values_of(dtype: np.dtype, shape: tuple[int, ...], data: Cursor) -> np.ndarray:
    """Return an array of the next bytes."""
    return np.frombuffer(data.take(whole(shape, dtype.itemsize, data)), dtype).reshape(shape)
