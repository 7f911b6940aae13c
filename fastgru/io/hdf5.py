"""HDF5 as Keras writes it, read in Python: groups, attributes and whole arrays, nothing else.

HDF5's C library is not safe for hostile files: an altered one can crash the process, and a check
that could exclude this would have to read the whole file itself. pyfive, in Python, trusts sizes in
the file and checks by `assert`. So this module reads what h5py writes by default and all versions
of Keras use: superblock 0, groups as symbol tables, object headers of version 1, arrays in one
piece. Compressed, chunked, virtual and external arrays, soft and external links raise a ValueError
that names the place. This module opens no other file.

The size of the file bounds time and memory. All functions count in one `Budget` what they fetch and
what they make of it, which loops, names that share bytes, and many links to one object use up.

Source: the HDF5 File Format Specification, version 3.0, The HDF Group. Numbers are little endian;
addresses and lengths have 8 bytes here.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgru.io.budget import short, text_bytes
from fastgru.io.hdf5_links import dense_links
from fastgru.io.hdf5_values import (
    INTEGER,
    VARIABLE_LENGTH,
    Cursor,
    dtype_of,
    shape_of,
    text_and_bytes,
    values_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from fastgru.io.budget import Budget

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1  # HDF5's "undefined address"

# Messages of object headers.
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _ATTRIBUTE = 0x01, 0x03, 0x07, 0x08, 0x0C
_CONTINUATION, _SYMBOL_TABLE = 0x10, 0x11
_LINK_INFO, _LINK = 0x02, 0x06  # not a symbol table, in groups where a name is not plain ASCII
_GROUP = {_SYMBOL_TABLE, _LINK_INFO, _LINK}
# Objects of Python for a group or an array, and for a message of its header.
_NODE_OBJECTS, _MESSAGE_OBJECTS = 8, 3
_ATTRIBUTE_STEPS = 4
# Of entries in a symbol table.
_SOFT_LINK = 2


class HeaderMessage(NamedTuple):
    """One message of an object header."""

    kind: int
    flags: int
    body: bytes


class File:
    """An HDF5 file.

    Parameters
    ----------
    file : binary file or bytes
        Open for reading and seeking, or its content. The caller closes it.
    place : str
        The file's name in errors.
    budget : Budget
        Has counted the file's bytes already.

    Attributes
    ----------
    root : Group

    Raises
    ------
    ValueError
        The file is not HDF5, is of a format that Keras does not write, or is truncated.
    """

    def __init__(self, file: BinaryIO | bytes, place: str, budget: Budget) -> None:
        self._bytes = memoryview(file) if isinstance(file, bytes) else None
        self._file: BinaryIO = io.BytesIO(file) if isinstance(file, bytes) else file
        self.place, self.budget = place, budget
        self.size = self._file.seek(0, 2)
        self._opened: dict[int, Group | Array] = {}
        self._heaps: dict[int, dict[int, Cursor]] = {}
        start = self.fetch(0, 96, "superblock")
        start.expect(SIGNATURE, "the signature")
        if (version := start.number(1)) != 0:
            start.wrong("superblock version 0", str(version))
        start.take(4)
        if (sizes := (start.number(1), start.number(1))) != (8, 8):
            start.wrong("addresses and lengths of 8 bytes", str(sizes))
        start.take(9)
        if base := start.number(8):
            start.wrong("the file's own start as base address", hex(base))
        start.take(8)
        if (end := start.number(8)) > self.size:
            raise ValueError(f"{place}: expected {end} bytes, got {self.size}: it is cut short")
        start.take(16)
        root = self.open(start.number(8), "/")
        if isinstance(root, Array):
            start.wrong("a group as the root", "an array")
        self.root: Group = root

    def fetch(self, address: int, count: int, what: str, numbers: bool = False) -> Cursor:
        """Return ``count`` bytes at an address; ``what`` names them in errors.

        Of ``numbers`` in a file in memory it returns a view.
        """
        place = f"{self.place}: {what} at {address:#x}"
        if count > self.size or address > self.size - count:
            raise ValueError(f"{place}: it would end beyond the file's {self.size} bytes")
        self.budget.step()
        if numbers and self._bytes is not None:
            return Cursor(self._bytes[address : address + count], place)
        self.budget.make(count, what)
        self._file.seek(address)
        return Cursor(self._file.read(count), place)

    def open(self, address: int, parent: str, name: str = "") -> Group | Array:
        """Return the object whose header is at an address, always the same object.

        Its path is that of its name in the first parent that it was opened from.
        """
        if address not in self._opened:
            path = f"{parent}/{name}".lstrip("/") if name else parent
            self.budget.make_objects(_NODE_OBJECTS, 2 * text_bytes(path), path)
            messages = list(self._messages(address))
            cls = Group if any(m.kind in _GROUP for m in messages) else Array
            self._opened[address] = cls(self, messages, path)
        return self._opened[address]

    def _messages(self, address: int) -> Iterator[HeaderMessage]:
        """Yield the messages of an object header, which may continue at other addresses."""
        head = self.fetch(address, 16, "object header")
        if (version := head.number(1)) != 1:
            head.wrong("version 1", str(version))
        head.take(1)
        left = head.number(2)
        head.take(4)
        blocks = [(address + 16, head.number(4))]
        while blocks and left:
            block = self.fetch(*blocks.pop(), "object header")
            while left and len(block.data) - block.at >= 8:
                kind, size, flags = block.number(2), block.number(2), block.number(1)
                block.take(3)
                self.budget.make_objects(_MESSAGE_OBJECTS, 2 * size, block.place)
                body = block.take(size)
                left -= 1
                if kind == _CONTINUATION:
                    more = Cursor(body, block.place)
                    blocks.append((more.number(8), more.number(8)))
                else:
                    yield HeaderMessage(kind, flags, body)

    def string(self, length: int, address: int, index: int, what: str) -> bytes:
        """Return a string of variable length from a global heap."""
        if not length:
            return b""
        if address not in self._heaps:
            self._heaps[address] = dict(self._heap(address))
        held = self._heaps[address].get(index)
        if held is None:
            raise ValueError(f"{what}: expected object {index} in a heap that does not have it")
        held.at = 0
        data = held.take(length)
        self.budget.make_objects(1, text_and_bytes(data), what)
        return data

    def _heap(self, address: int) -> Iterator[tuple[int, Cursor]]:
        """Yield the objects of a global heap with their numbers."""
        head = self.fetch(address, 16, "global heap")
        head.expect(b"GCOL\1", "the signature")
        head.take(3)
        heap = self.fetch(address, head.number(8), "global heap")
        heap.take(min(16, len(heap.data)))
        while len(heap.data) - heap.at >= 16:
            number = heap.number(2)
            heap.take(6)
            size = heap.number(8)
            if number == 0:  # the free space, which is always last
                return
            self.budget.make_objects(_MESSAGE_OBJECTS, size, heap.place)
            yield number, Cursor(heap.take(size), heap.place)
            heap.take(min(-size % 8, len(heap.data) - heap.at))


class Node:
    """The base of `Group` and `Array`: a header with attributes."""

    def __init__(self, file: File, messages: list[HeaderMessage], path: str) -> None:
        self.file, self.path = file, path
        self.place = f"{file.place}: {short(path)}"
        self._messages = {m.kind: m for m in messages}
        self._decoded: dict[str, Any] = {}
        self._attributes = dict(
            self._split_attribute(m.body) for m in messages if m.kind == _ATTRIBUTE
        )

    def cursor(self, kind: int) -> Cursor:
        """Return the header's message of a kind; ValueError if there is none."""
        message = self._messages.get(kind)
        cursor = Cursor(message.body if message else b"", self.place)
        if message is None:
            cursor.wrong(f"a header with message {kind}", "one without")
        if message.flags & 2:
            cursor.wrong("its type and shape in its header", "one shared with other objects")
        return cursor

    def _split_attribute(self, body: bytes) -> tuple[str, list[bytes]]:
        """Return an attribute's name, and its type, shape and value."""
        self.file.budget.step(_ATTRIBUTE_STEPS, self.place)
        cursor = Cursor(body, f"{self.place}: attribute")
        version, flags = cursor.number(1), cursor.number(1)
        if version not in (1, 2, 3) or (version > 1 and flags):
            cursor.wrong("an attribute with its own type", f"version {version}, flags {flags}")
        sizes = [cursor.number(2) for _ in range(3)]
        cursor.take(1 if version == 3 else 0)
        # Version 1 pads each part to a multiple of 8.
        parts = [cursor.take(s + (-s % 8 if version == 1 else 0)) for s in sizes]
        name = parts[0].partition(b"\0")[0].decode("utf-8", "replace")
        parts.append(cursor.take(len(body) - cursor.at))
        return name, parts[1:]

    @property
    def attributes(self) -> set[str]:
        """Names of the attributes."""
        return set(self._attributes)

    def attribute(self, name: str) -> Any:
        """Return an attribute: str, list of str, or array; None if there is none.

        Strings are decoded from UTF-8; invalid bytes are replaced.
        """
        if name not in self._attributes:
            return None
        if name not in self._decoded:
            place = f"{self.place}: attribute {short(name)}"
            parts = [Cursor(part, place) for part in self._attributes[name]]
            self._decoded[name] = self._decode(*parts)
        value = self._decoded[name]
        if isinstance(value, list):  # who asks for names looks at each of them
            self.file.budget.step(len(value), self.place)
        return value

    def _decode(self, form: Cursor, space: Cursor, data: Cursor) -> Any:
        """Return the value of an attribute, whose parts are each at their start."""
        shape = shape_of(space)
        if form.data[:1] and form.data[0] & 15 == VARIABLE_LENGTH:
            count = whole(shape, 16, data) // 16
            values = [
                self.file.string(data.number(4), data.number(8), data.number(4), data.place)
                for _ in range(count)
            ]
        else:
            array = values_of(dtype_of(form), shape, data)
            if array.dtype.kind != "S":
                return array
            nbytes = text_and_bytes(data.data) + array.nbytes
            self.file.budget.make_objects(array.size, nbytes, data.place)
            values = array.ravel().tolist()
        text = [value.decode("utf-8", "replace") for value in values]
        return text if shape else text[0]


class Array(Node):
    """An array of floats in a file, of bfloat16 too. Its shape is known before `read`."""

    def __init__(self, file: File, messages: list[HeaderMessage], path: str) -> None:
        super().__init__(file, messages, path)
        form = self.cursor(_DATATYPE)
        self.shape, self.dtype = shape_of(self.cursor(_DATASPACE)), dtype_of(form)

    def read(self) -> np.ndarray:
        """Return the array, native, bfloat16 as float32; it may be read-only."""
        if self.dtype.kind in "iu":
            self.cursor(_DATATYPE).wrong(
                "IEEE floats or strings", f"type {INTEGER} of {self.dtype.itemsize} bytes"
            )
        if self.dtype.kind not in "fV":
            self.cursor(_DATATYPE).wrong("floats of 16, 32 or 64 bits", str(self.dtype))
        return self.read_any()

    def read_any(self) -> np.ndarray:
        """Return the array, of floats, integers or strings."""
        layout = self.cursor(_LAYOUT)
        version, kind = layout.number(1), layout.number(1)
        if version != 3 or kind > 1 or _EXTERNAL in self._messages:
            layout.wrong(
                "an array in one piece in the file",
                f"layout {kind} of version {version}: compressed, virtual or in another file",
            )
        if kind == 0:
            data = Cursor(layout.take(layout.number(2)), self.place)
        elif not math.prod(self.shape):
            data = Cursor(b"", self.place)
        else:
            data = self.file.fetch(layout.number(8), layout.number(8), self.path, numbers=True)
        if self.dtype.kind == "V":
            # Keras writes bfloat16 so: the upper half of a float32, in this byte order.
            self.file.budget.make(2 * len(data.data), self.path)
            halves = values_of(np.dtype("<u2"), self.shape, data)
            return (halves.astype("u4") << 16).view("f4").reshape(self.shape)
        native = self.dtype.newbyteorder("=")
        if native != self.dtype:
            self.file.budget.make(len(data.data), self.path)
        return values_of(self.dtype, self.shape, data).astype(native, copy=False)


class Group(Node):
    """A group: its groups and arrays by name.

    Attributes
    ----------
    names : list of str
        Of the group's members, in alphabetical order.
    """

    def __init__(self, file: File, messages: list[HeaderMessage], path: str) -> None:
        super().__init__(file, messages, path)
        self._links: dict[str, int] = {}
        if _SYMBOL_TABLE in self._messages:
            self._read_symbol_table(self.cursor(_SYMBOL_TABLE))
        else:
            self._read_links(self.cursor(_LINK_INFO), [m for m in messages if m.kind == _LINK])
        self.names = list(self._links)

    def _add(self, name: bytes, address: int, direct: bool, at: Cursor) -> None:
        self.file.budget.make_objects(2, 4 * len(name), self.path)
        text = name.decode("utf-8", "replace")
        if not text or text in self._links:
            at.wrong("a name of its own for each entry", repr(short(text)))
        if not direct:
            at.wrong(f"{short(text)} itself", "a link to another place")
        self._links[text] = address

    def _read_links(self, info: Cursor, links: list[HeaderMessage]) -> None:
        """Collect the links of a group that has them in its header or, if many, in a heap."""
        info.take(1)
        if info.number(1) & 1:
            info.take(8)
        heap, tree = info.number(8), info.number(8)
        found = [Cursor(message.body, self.place) for message in links]
        for link in dense_links(self.file, heap, tree) if heap != _NOWHERE else found:
            link.take(1)
            flags = link.number(1)
            direct = not flags & 8 or link.number(1) == 0
            link.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
            name = link.take(link.number(1 << (flags & 3)))
            self._add(name, link.number(8) if direct else 0, direct, link)
        self._links = dict(sorted(self._links.items()))

    def _read_symbol_table(self, table: Cursor) -> None:
        """Collect the links of a group that has a heap of names and a B-tree of symbol tables."""
        tree, heap = table.number(8), self.file.fetch(table.number(8), 32, "local heap")
        heap.expect(b"HEAP\0", "the signature")
        heap.take(3)
        size, _, address = heap.number(8), heap.number(8), heap.number(8)
        self._read_tree(tree, self.file.fetch(address, size, "local heap").data, None)

    def _read_tree(self, address: int, names: bytes, level: int | None) -> None:
        """Collect the links below a node of the B-tree; its leaves are symbol tables."""
        node = self.file.fetch(address, 24, "B-tree")
        node.expect(b"TREE\0", "a node of a group's tree")
        here, count = node.number(1), node.number(2)
        if level is not None and here != level:
            node.wrong(f"level {level}", str(here))
        entries = self.file.fetch(address + 24, 16 * count, "B-tree")
        for _ in range(count):
            entries.take(8)
            child = entries.number(8)
            if here:
                self._read_tree(child, names, here - 1)
            else:
                self._read_symbols(child, names)

    def _read_symbols(self, address: int, names: bytes) -> None:
        head = self.file.fetch(address, 8, "symbol table")
        head.expect(b"SNOD\1\0", "the signature")
        count = head.number(2)
        entries = self.file.fetch(address + 8, 40 * count, "symbol table")
        for _ in range(count):
            name_at, target, cache = entries.number(8), entries.number(8), entries.number(4)
            entries.take(20)
            end = names.find(b"\0", name_at)
            # A name that begins in the middle of another one is as long as the file likes.
            self.file.budget.make(max(end - name_at, 0), self.path)
            name = names[name_at:end] if end > name_at else b""
            self._add(name, target, cache != _SOFT_LINK, entries)

    def get(self, path: str) -> Group | Array | None:
        """Return the group or array at a path below this group; None if there is none."""
        node: Group | Array = self
        for name in path.split("/"):
            self.file.budget.step()
            if not isinstance(node, Group) or name not in node._links:
                return None
            node = self.file.open(node._links[name], node.path, name)
        return node

    def group(self, path: str) -> Group | None:
        """Return the group at a path below this one; None if there is none."""
        found = self.get(path)
        return found if isinstance(found, Group) else None

    def array(self, path: str) -> np.ndarray:
        """Return the array at a path below this group; ValueError if there is none."""
        found = self.get(path)
        if not isinstance(found, Array):
            raise ValueError(
                f"{self.place}: expected an array {short(path)}, got "
                f"{'a group' if found else 'nothing'}"
            )
        return found.read()
