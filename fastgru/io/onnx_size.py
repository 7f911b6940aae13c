"""What the objects of an ONNX model take in memory, counted in the file before they are made.

Protobuf makes an object of each message, also of one without a field. It takes two bytes in a file
and two hundred in memory. A number takes a byte or more in a file and 8 bytes in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.protobuf import Message

if TYPE_CHECKING:
    from fastgru.io.budget import Budget

MOST_NESTED = 100  # messages in each other, as in protobuf
# Measured with protobuf 7: an attribute of 15 fields takes 203 bytes, a node of 10 takes 155, a
# text in a list 37 and a number in a list 16. A list that grows leaves its old place unused.
_MESSAGE_BYTES, _FIELD_BYTES, _TEXT_BYTES, _NUMBER_BYTES = 48, 12, 40, 16
_COUNTED = 256  # fields that are counted together


class _Kind:
    """The fields of one class of messages, by their numbers."""

    def __init__(self, descriptor: Any) -> None:
        fields = descriptor.fields
        self.nbytes = _MESSAGE_BYTES + _FIELD_BYTES * len(fields)
        self.messages = {f.number: f.message_type for f in fields if f.message_type is not None}
        lists = [f for f in fields if f.message_type is None and _is_list(f)]
        self.texts = {f.number for f in lists if f.type in (f.TYPE_STRING, f.TYPE_BYTES)}
        self.numbers = {f.number for f in lists} - self.texts
        # As many bytes in the file as in memory, which are counted with the file.
        self.fixed = {f.number for f in lists if f.type in (f.TYPE_FLOAT, f.TYPE_DOUBLE)}

    def value_bytes(self, number: int, value: int | memoryview) -> int:
        """Return what a value takes beside the message that it is in."""
        if number in self.texts:
            return _TEXT_BYTES
        if number not in self.numbers:
            return 0
        if isinstance(value, int):
            return _NUMBER_BYTES
        if number in self.fixed:
            return _NUMBER_BYTES if len(value) <= 8 else 0
        # The last byte of each number is less than 128.
        count = np.count_nonzero(np.frombuffer(value, np.int8) >= 0)
        return int(count) * _NUMBER_BYTES


def _is_list(field: Any) -> bool:
    known = getattr(field, "is_repeated", None)  # before protobuf 6 it has a label
    return bool(field.label == field.LABEL_REPEATED if known is None else known)


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
    kinds: dict[str, _Kind] = {}

    def kind_of(descriptor: Any) -> _Kind:
        name = descriptor.full_name
        if name not in kinds:
            kinds[name] = _Kind(descriptor)
        return kinds[name]

    # A message's fields that are not counted yet, and those of the messages around it.
    open_messages = [(Message(data, where).fields(), kind_of(descriptor))]
    made = steps = 0
    while open_messages:
        fields, kind = open_messages[-1]
        for number, value in fields:
            steps += 1
            if steps == _COUNTED:
                budget.step(steps, "its graph")
                budget.make(made, "its graph")
                made = steps = 0
            inner = kind.messages.get(number)
            if inner is None:
                made += kind.value_bytes(number, value)
            elif not isinstance(value, int):
                if len(open_messages) == MOST_NESTED:
                    raise ValueError(f"messages nested more than {MOST_NESTED} times")
                made += kind_of(inner).nbytes
                open_messages.append((Message(value, where).fields(), kind_of(inner)))
                break
        else:
            open_messages.pop()
    budget.step(steps, "its graph")
    budget.make(made, "its graph")
