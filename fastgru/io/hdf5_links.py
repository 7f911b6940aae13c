"""Links of an HDF5 group in "dense storage": more than eight names, of which one is not ASCII.

A tree sorted by the names' hashes (a version 2 B-tree) gives identifiers, and these say where in a
heap of blocks (a fractal heap) each link lies. See `fastgru.io.hdf5` for bounds and the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgru.io.hdf5_values import Cursor

File = Any  # `fastgru.io.hdf5.File`: that module imports this one

_BY_NAME = 5  # type of records: hash, identifier
_HASH_BYTES = 4
_MOST_DEEP = 8
_NOWHERE = 2**64 - 1
_MOST_BLOCK = 1 << 32


def dense_links(file: File, heap: int, tree: int) -> Iterator[Cursor]:
    """Yield the link messages of a group.

    Parameters
    ----------
    file : File
    heap, tree : int
        Addresses of the fractal heap and of the B-tree that is sorted by name.
    """
    links = _Heap(file, heap)
    head = file.fetch(tree, 38, "B-tree")
    head.expect(b"BTHD\0", "version 2")
    if (kind := head.number(1)) != _BY_NAME:
        head.wrong(f"records of type {_BY_NAME}", str(kind))
    node_size, record_size, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root, count = head.number(8), head.number(2)
    if depth > _MOST_DEEP or record_size <= _HASH_BYTES or node_size <= 10 + record_size:
        head.wrong("a tree of names", f"depth {depth}, nodes of {node_size} bytes")
    shape = _TreeShape.of(node_size, record_size, depth)
    if count:
        for identifier in _records(file, root, count, depth, shape):
            yield links.object(identifier)


class _TreeShape(NamedTuple):
    """Sizes in a B-tree.

    Attributes
    ----------
    record : int
        Bytes of a record.
    counts, totals : list of int
        For each depth, the bytes of the numbers of records: in a node, and in all below it.
    """

    record: int
    counts: list[int]
    totals: list[int]

    @classmethod
    def of(cls, node_size: int, record: int, depth: int) -> _TreeShape:
        most = (node_size - 10) // record
        counts, totals, below = [_bytes_for(most)], [0], most
        for level in range(1, depth + 1):
            pointer = 8 + counts[0] + (totals[-1] if level > 1 else 0)
            most = max((node_size - 10 - pointer) // (record + pointer), 1)
            below = (most + 1) * below + most
            counts.append(_bytes_for(most))
            totals.append(_bytes_for(below))
        return cls(record, counts, totals)


def _bytes_for(number: int) -> int:
    return max((number.bit_length() + 7) // 8, 1)


def _records(
    file: File, address: int, count: int, depth: int, shape: _TreeShape
) -> Iterator[bytes]:
    """Yield the identifiers below a node."""
    pointer = 0
    if depth:
        # All nodes say how many records a child has in as many bytes as a leaf needs.
        pointer = 8 + shape.counts[0] + (shape.totals[depth - 1] if depth > 1 else 0)
    size = 6 + count * shape.record + (count + 1) * pointer
    node = file.fetch(address, size, "B-tree")
    node.expect(b"BTIN\0" if depth else b"BTLF\0", "a node of a tree of names")
    node.take(1)
    for _ in range(count):
        yield node.take(shape.record)[_HASH_BYTES:]
    for _ in range(count + 1 if depth else 0):
        child, number = node.number(8), node.number(shape.counts[0])
        if depth > 1:
            node.take(shape.totals[depth - 1])
        yield from _records(file, child, number, depth - 1, shape)


class _Heap:
    """A fractal heap: blocks, each of width rows doubled in size, found by an offset."""

    def __init__(self, file: File, address: int) -> None:
        self._file = file
        head = file.fetch(address, 142, "heap of names")
        head.expect(b"FRHP\0", "a fractal heap")
        self._id_bytes = head.number(2)
        if head.number(2):
            head.wrong("a heap without filters", "one with filters")
        head.take(1 + 4 + 12 * 8)
        self._width, self._first, self._largest = head.number(2), head.number(8), head.number(8)
        self._offset_bytes = (head.number(2) + 7) // 8
        head.take(2)
        self._root, self._rows = head.number(8), head.number(2)
        fits = 0 < self._first <= self._largest <= _MOST_BLOCK and self._width
        if not fits or self._first & (self._first - 1) or self._largest & (self._largest - 1):
            head.wrong("blocks whose sizes are powers of 2", f"{self._first} to {self._largest}")
        self._blocks: dict[tuple[int, int], Cursor] = {}

    def object(self, identifier: bytes) -> Cursor:
        """Return the object of an identifier."""
        if len(identifier) < self._id_bytes or not self._offset_bytes < self._id_bytes - 1:
            raise ValueError(f"{self._file.place}: expected longer identifiers of names")
        if identifier[0] & 0x30:
            raise ValueError(
                f"{self._file.place}: expected short names, got one that has a place of its own"
            )
        end = 1 + self._offset_bytes
        offset = int.from_bytes(identifier[1:end], "little")
        length = int.from_bytes(identifier[end : self._id_bytes], "little")
        return self._file.fetch(self._address(offset), length, "name")

    def _address(self, offset: int) -> int:
        """Return where in the file an offset of the heap is."""
        block, start, rows = self._root, 0, self._rows
        for _ in range(_MOST_DEEP):
            if block == _NOWHERE:
                break
            if not rows:
                return block + offset - start
            row, inside = 0, offset - start
            while row < rows and inside >= self._width * self._size(row):
                inside -= self._width * self._size(row)
                row += 1
            if row == rows:
                break
            column, size = inside // self._size(row), self._size(row)
            table = self._table(block, rows)
            table.at = 13 + self._offset_bytes + 8 * (row * self._width + column)
            start = offset - inside % size
            block = table.number(8)
            rows = 0 if size <= self._largest else self._rows_of(size)
        raise ValueError(f"{self._file.place}: expected a name at {offset} of a heap, got none")

    def _table(self, block: int, rows: int) -> Cursor:
        key = (block, rows)
        if key not in self._blocks:
            size = 13 + self._offset_bytes + 8 * rows * self._width
            self._blocks[key] = self._file.fetch(block, size, "heap of names")
            self._blocks[key].expect(b"FHIB\0", "a block of a heap")
        return self._blocks[key]

    def _size(self, row: int) -> int:
        """Return the size of each block of a row: the first two rows are alike."""
        return self._first << max(row - 1, 0)

    def _rows_of(self, size: int) -> int:
        """Return how many rows a block of blocks has that covers so many bytes."""
        return max((size // (self._first * self._width)).bit_length(), 1)
