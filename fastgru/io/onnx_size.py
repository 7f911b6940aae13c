"""What the objects of an ONNX model take in memory, counted in the file before they are made.

Protobuf makes an object of each message, also of one without a field. It takes two bytes in a file
and two hundred in memory. A number takes a byte or more in a file and 8 bytes in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.protobuf import BYTES, FIXED32, FIXED64, VARINT, varint

if TYPE_CHECKING:
    from fastgru.io.budget import Budget

MOST_NESTED = 100  # messages in each other, as in protobuf
# Measured with protobuf 7: an attribute of 15 fields takes 203 bytes, a node of 10 takes 155, a
# text in a list 37 and a number in a list 16. A list that grows leaves its old place unused.
_MESSAGE_BYTES, _FIELD_BYTES, _TEXT_BYTES, _NUMBER_BYTES = 48, 12, 40, 16
_SIZES = {FIXED32: 4, FIXED64: 8}
_ATTRIBUTE_NUMBER_BYTES, _ATTRIBUTE_TEXT_BYTES = 48, 200
_COUNTED = 256  # fields that are counted together


class _Kind:
    """The fields of one class of messages, by their numbers."""

    def __init__(self, descriptor: Any) -> None:
        fields = descriptor.fields
        self.nbytes = _MESSAGE_BYTES + _FIELD_BYTES * len(fields)
        self.messages = {f.number: f.message_type for f in fields if f.message_type is not None}
        lists = [f for f in fields if f.message_type is None and _is_list(f)]
        self.texts = {f.number for f in lists if f.type in (f.TYPE_STRING, f.TYPE_BYTES)}
        self.lists = {f.number for f in lists}
        self.numbers = self.lists - self.texts
        # Lists of attributes also become lists of Python's objects.
        attribute = descriptor.name == "AttributeProto"
        self.number_bytes = _ATTRIBUTE_NUMBER_BYTES if attribute else _NUMBER_BYTES
        self.text_bytes = _ATTRIBUTE_TEXT_BYTES if attribute else _TEXT_BYTES
        # As many bytes in the file as in memory, which are counted with the file.
        self.fixed = {f.number for f in lists if f.type in (f.TYPE_FLOAT, f.TYPE_DOUBLE)}

    def value_bytes(self, number: int, value: memoryview) -> int:
        """Return what a value of a list takes beside the message that it is in."""
        if number in self.texts:
            return self.text_bytes
        if number in self.fixed:
            whole = self.number_bytes == _NUMBER_BYTES and len(value) > 8
            return 0 if whole else self.number_bytes * max(1, len(value) // 4)
        # The last byte of each number is less than 128.
        count = np.count_nonzero(np.frombuffer(value, np.int8) >= 0)
        return int(count) * self.number_bytes


def _is_list(field: Any) -> bool:
    known = getattr(field, "is_repeated", None)  # before protobuf 6 it has a label
    return bool(field.label == field.LABEL_REPEATED if known is None else known)


def _kind_of(descriptor: Any, kinds: dict[str, _Kind]) -> _Kind:
    if descriptor.full_name not in kinds:
        kinds[descriptor.full_name] = _Kind(descriptor)
    return kinds[descriptor.full_name]


def count_objects(data: bytes, descriptor: Any, where: str, budget: Budget) -> None:
    """Count the objects of a message that is not parsed yet.

    Parameters
    ----------
    data : bytes
    descriptor : google.protobuf.descriptor.Descriptor
        Of the message.
    where : str
        The file's name in messages.
    budget : Budget

    Raises
    ------
    ValueError
        There are too many for a file of this size, or the message is damaged.
    """
    view, end = memoryview(data), len(data)
    kinds: dict[str, _Kind] = {}
    kind = _kind_of(descriptor, kinds)
    around: list[tuple[int, _Kind]] = []  # the ends and kinds of the messages around this one
    at = made = steps = 0
    # Not by `Message.fields`: the fields may be a million, and this takes a third of the time.
    while around or at < end:
        if at >= end:
            if at > end:
                raise ValueError(f"a number that goes on after byte {end}, where its message ends")
            end, kind = around.pop()
            continue
        steps += 1
        if steps == _COUNTED:
            budget.step(steps, "its graph")
            budget.make(made, "its graph")
            made = steps = 0
        key, at = (data[at], at + 1) if data[at] < 0x80 else varint(view, at, where)
        number, form = key >> 3, key & 7
        if form == VARINT:
            _, at = varint(view, at, where)
            made += kind.number_bytes if number in kind.numbers else 0
            continue
        size = _SIZES.get(form)
        if size is None:
            if form != BYTES:
                raise ValueError(f"a field of type {form} at byte {at}")
            if at < end and data[at] < 0x80:
                size, at = data[at], at + 1
            else:
                size, at = varint(view, at, where)
        if size > end - at:
            raise ValueError(f"{end - at} of {size} bytes at byte {at}; it is cut short")
        inner = kind.messages.get(number)
        if inner is None or form != BYTES:
            made += kind.value_bytes(number, view[at : at + size]) if number in kind.lists else 0
            at += size
            continue
        below = kinds.get(inner.full_name) or _kind_of(inner, kinds)
        made += below.nbytes
        if size:
            if len(around) == MOST_NESTED:
                raise ValueError(f"messages nested more than {MOST_NESTED} times")
            around.append((end, kind))
            end, kind = at + size, below
    if at > end:
        raise ValueError(f"a number that does not end before byte {end}")
    budget.step(steps, "its graph")
    budget.make(made, "its graph")
