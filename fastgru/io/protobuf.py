"""Protocol Buffers' wire format, read without copies: a message is a row of numbered fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Wire types: a varint, 8 bytes, a varint and as many bytes, 4 bytes. Groups (3, 4) are not used.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Message:
    """The fields of one message. Each method reads the bytes anew and copies nothing.

    Parameters
    ----------
    data : bytes-like
    place : str
        What errors call the message.
    """

    __slots__ = ("data", "place")

    def __init__(self, data: bytes | memoryview, place: str) -> None:
        self.data = memoryview(data)
        self.place = place

    def number(self, field: int) -> int:
        """Return an integer field as an unsigned number; 0 if it is absent."""
        return next(reversed([0, *self.numbers(field)]))

    def numbers(self, field: int) -> Iterator[int]:
        """Yield each occurrence of an integer field."""
        for number, value in self.fields():
            if number == field:
                if not isinstance(value, int):
                    raise ValueError(f"{self.place}: expected a number as field {field}, got bytes")
                yield value

    def bytes(self, field: int) -> Iterator[memoryview]:
        """Yield each occurrence of a field of bytes or fixed size."""
        for number, value in self.fields():
            if number == field:
                if isinstance(value, int):
                    raise ValueError(f"{self.place}: expected bytes as field {field}, got {value}")
                yield value

    def messages(self, field: int, what: str) -> Iterator[Message]:
        """Yield each occurrence of a field that is a message."""
        for value in self.bytes(field):
            yield Message(value, f"{self.place}: {what}")

    def text(self, field: int) -> str:
        """Return a field of UTF-8; "" if it is absent."""
        data = b""
        for value in self.bytes(field):
            data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.place}: field {field} is not UTF-8: {error}") from None

    def fields(self) -> Iterator[tuple[int, int | memoryview]]:
        """Yield the number and the value of each field, in the order of the bytes."""
        at, data = 0, self.data
        while at < len(data):
            key, at = varint(data, at, self.place)
            kind = key & 7
            if kind == VARINT:
                value, at = varint(data, at, self.place)
                yield key >> 3, value
                continue
            if kind == BYTES:
                size, at = varint(data, at, self.place)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                raise ValueError(f"{self.place}: expected a field at byte {at}, got type {kind}")
            if size > len(data) - at:
                raise ValueError(
                    f"{self.place}: expected {size} bytes at byte {at}, got {len(data) - at}; "
                    "the file is truncated or damaged"
                )
            yield key >> 3, data[at : at + size]
            at += size


def varint(data: memoryview, at: int, place: str) -> tuple[int, int]:
    """Return the varint that starts at byte ``at``, and the byte after it."""
    if at < len(data) and data[at] < 0x80:  # as most are
        return data[at], at + 1
    value = shift = 0
    for byte in data[at : at + 10]:  # seven bits each, together at most 64
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at + shift // 7
    raise ValueError(f"{place}: expected a number at byte {at}, got none that ends")
