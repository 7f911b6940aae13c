"""TensorFlow's checkpoint format, a tensor bundle: an index of named tensors, and shards of data.

The index is a table in LevelDB's format: blocks of sorted keys, where each key is stored as its
difference from the one before. This reader compares every block and tensor with its checksum.

Sources: ``tensorflow/core/protobuf/tensor_bundle.proto``, ``tensorflow/core/util/tensor_bundle``,
LevelDB's ``doc/table_format.md``.
"""

from __future__ import annotations

import functools
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgru.io.bounded import LONGEST_FILE_NAME, check_shape
from fastgru.io.budget import Budget, short
from fastgru.io.protobuf import Message, varint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

# tensorflow/core/framework/types.proto
_DTYPES: dict[int, np.dtype] = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 19: np.dtype("<f2")}
_INTEGERS = {
    3: "<i4",
    9: "<i8",
    4: "u1",
    6: "i1",
    5: "<i2",
    17: "<u2",
    22: "<u4",
    23: "<u8",
    10: "?",
}
_STRING = 7
_LATEST = re.compile(rb'^model_checkpoint_path: "((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
# Quotes and bytes beyond ASCII in protobuf's text format.
_ESCAPED = re.compile(rb"\\([0-7]{1,3}|.)")
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}", re.DOTALL)

_FOOTER, _MAGIC = 48, 0xDB4775248B80FB57
_TRAILER = 5  # bytes after a block: its compression, and a checksum
MOST_INDEX = 16 << 20  # bytes; a tensor takes about 80
MOST_STATE = 1 << 16  # bytes of the file "checkpoint"
MOST_KEY = 4096
MOST_ENTRY = 1024  # bytes that say where a whole tensor is; about 80
MOST_DIMENSIONS = 8
_MOST_MEMBERS = 1000  # data files that are known as the model's before they are read
_ENTRY_OBJECTS = 4  # of Python, for an entry of the index
# What takes longer than a step: to decode an entry, to check a block, to read and check a tensor.
_LOCATE_STEPS, _BLOCK_STEPS, _TENSOR_STEPS = 20, 10, 30
_CHECKED_IN_A_STEP, _INDEXED_IN_A_STEP = 128, 32  # bytes of tensors, and of blocks: these are short
MOST_TEXT = 256 << 20  # bytes of the object graph, the only tensor of strings that is read


class TensorLocation(NamedTuple):
    """Where the bytes of a tensor are. The ``shape`` is the file's, and not checked."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class Bundle:
    """The tensors of a checkpoint.

    Parameters
    ----------
    folder : Path
    name : str
        The files are ``{name}.index`` and ``{name}.data-00000-of-00001`` and so on.

    Raises
    ------
    ValueError
        There is no index, or it is truncated or damaged.
    """

    def __init__(self, folder: Path, name: str, budget: Budget) -> None:
        self.folder, self.name, self.budget = folder, name, budget
        self.path = folder / f"{name}.index"
        budget.stay_beside(self.path)
        self._index = memoryview(read_file(budget, self.path, MOST_INDEX))
        self._end = 0  # of the blocks read so far
        self.entries: dict[str, memoryview] = {}
        self._located: dict[str, TensorLocation] = {}
        for key, value in self._table():
            self.entries[key.decode("utf-8", "backslashreplace")] = value
        if "" not in self.entries:
            raise ValueError(f"{self.path}: expected a header, got {len(self.entries)} tensors")
        header = Message(self.entries.pop(""), f"{self.path}: header")
        self._shards = header.number(1)
        budget.members += map(self._shard, range(min(self._shards, _MOST_MEMBERS)))
        if header.number(2) != 0:
            raise ValueError(
                f"{self.path}: expected a little-endian checkpoint, got a big-endian one"
            )

    # -- tensors ---------------------------------------------------------------------------

    def locate(self, key: str) -> TensorLocation:
        """Return where a tensor is; ValueError if the index has none of this name."""
        if key not in self._located:
            self._located[key] = self._locate(key)
        return self._located[key]

    def _locate(self, key: str) -> TensorLocation:
        if key not in self.entries:
            raise ValueError(f"{self.path}: expected a tensor {short(key)!r} in it, found none")
        if (size := len(self.entries[key])) > MOST_ENTRY:
            raise ValueError(
                f"{self.path}: {key}: expected a whole tensor, described in at most {MOST_ENTRY} "
                f"bytes, got {size}; one kept in many slices has more"
            )
        # A walk over the entry for each of its numbers.
        self.budget.step(_LOCATE_STEPS + size, "its index")
        self.budget.make_objects(_ENTRY_OBJECTS, what="its index")
        message = Message(self.entries[key], f"{self.path}: {short(key)}")
        if any(True for _ in message.bytes(7)):
            raise ValueError(f"{message.place}: expected a whole tensor, got one kept in slices")
        shape = tuple(
            dim.number(1)
            for dims in message.messages(2, "shape")
            for dim in dims.messages(2, "dimension")
        )
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(
                f"{message.place}: expected at most {MOST_DIMENSIONS} dimensions, got {len(shape)}"
            )
        check_shape(shape, message.place)
        checksums = [int.from_bytes(value, "little") for value in message.bytes(6)]
        checksum = checksums[-1] if checksums else 0
        shard, offset, size = (message.number(field) for field in (3, 4, 5))
        return TensorLocation(message.number(1), shape, shard, offset, size, checksum)

    def floats(self, key: str) -> np.ndarray:
        """Return a tensor of float16, float32 or float64.

        The caller must have compared the location's shape with the expected one.
        """
        return self._array(key, self.locate(key), _DTYPES.get(self.locate(key).dtype))

    def has_numbers(self, key: str) -> bool:
        """Say whether a tensor is of floats, integers or booleans."""
        kind = self.locate(key).dtype
        return kind in _DTYPES or kind in _INTEGERS

    def any_array(self, key: str) -> np.ndarray:
        """Return a tensor of floats, integers or booleans."""
        location = self.locate(key)
        dtype = _DTYPES.get(location.dtype) or _INTEGERS.get(location.dtype)
        return self._array(key, location, None if dtype is None else np.dtype(dtype))

    def _array(self, key: str, location: TensorLocation, dtype: np.dtype | None) -> np.ndarray:
        if dtype is None:
            raise ValueError(
                f"{self.path}: {key}: expected float16, float32 or float64, got TensorFlow's "
                f"dtype number {location.dtype}"
            )
        expected = math.prod(location.shape) * dtype.itemsize
        if location.size != expected:
            raise ValueError(
                f"{self.path}: {key}: expected {expected} bytes for shape {location.shape} of "
                f"{dtype}, got {location.size}"
            )
        data = self._data(key, location)
        self._check(key, data, location)
        return np.frombuffer(data, dtype).reshape(location.shape)

    def text(self, key: str) -> memoryview:
        """Return a tensor of one string; the file holds its length, a checksum of it, the bytes."""
        location = self.locate(key)
        if location.dtype != _STRING or location.shape or location.size > MOST_TEXT:
            raise ValueError(
                f"{self.path}: {key}: expected one string of at most {MOST_TEXT} bytes, got "
                f"dtype {location.dtype}, shape {location.shape}, {location.size} bytes"
            )
        data = memoryview(self._data(key, location))
        size, at = varint(data, 0, f"{self.path}: {key}")
        if size != len(data) - at - 4:
            raise ValueError(f"{self.path}: {key}: expected {size} characters, got {len(data)}")
        # The checksum covers the length as 4 or 8 bytes; the file stores the length as a varint.
        length = size.to_bytes(4 if size < 1 << 32 else 8, "little")
        self._check(key, b"".join([length, data[at:]]), location)
        return data[at + 4 :]

    def _data(self, key: str, location: TensorLocation) -> bytes:
        if location.shard >= self._shards:
            raise ValueError(
                f"{self.path}: {key}: expected a shard below {self._shards}, got {location.shard}"
            )
        self.budget.step(_TENSOR_STEPS, "its tensors")
        # The index gives two numbers and no name, so that it cannot lead to another file.
        path = self._shard(location.shard)
        return read_file(self.budget, path, location.size, location.offset, exactly=True)

    def _shard(self, number: int) -> Path:
        return self.folder / f"{self.name}.data-{number:05d}-of-{self._shards:05d}"

    def _check(self, key: str, data: bytes, location: TensorLocation) -> None:
        self.budget.step(len(data) // _CHECKED_IN_A_STEP, "its tensors")
        if masked(crc32c(data)) != location.checksum:
            raise ValueError(
                f"{self.folder}: {key}: its checksum is not the one in {self.path.name}; the "
                "files are damaged, or not of one checkpoint"
            )

    # -- the table -------------------------------------------------------------------------

    def _table(self) -> Iterator[tuple[bytes, memoryview]]:
        size = len(self._index)
        if size < _FOOTER or int.from_bytes(self._index[-8:], "little") != _MAGIC:
            raise ValueError(
                f"{self.path}: expected the index of a checkpoint, which ends in a magic number; "
                "it is truncated or something else"
            )
        place = f"{self.path}: footer"
        footer = self._index[size - _FOOTER :]
        at = 0
        for _ in range(2):  # offset and size of the metadata's index, which is empty
            _, at = varint(footer, at, place)
        index_block = self._block(footer[at:], place)
        self._end, last = 0, None
        for _, handle in self._pairs(index_block, None):
            for key, value in self._pairs(self._block(handle, f"{self.path}: index"), last):
                self.budget.make_objects(_ENTRY_OBJECTS, 2 * len(key), "its index")
                yield key, value
                last = key

    def _block(self, handle: memoryview, place: str) -> memoryview:
        """Return the block that a handle (offset, size) points to; ValueError unless in order."""
        offset, at = varint(handle, 0, place)
        size, _ = varint(handle, at, place)
        end = offset + size + _TRAILER
        if offset < self._end or size < 4 or end > len(self._index) - _FOOTER:
            raise ValueError(
                f"{place}: expected a block between bytes {self._end} and "
                f"{len(self._index) - _FOOTER}, got one of {size} bytes at {offset}"
            )
        self.budget.step(_BLOCK_STEPS + size // _INDEXED_IN_A_STEP, "its index")
        self._end = end
        block, kind = self._index[offset : offset + size], self._index[offset + size]
        checksum = int.from_bytes(self._index[end - 4 : end], "little")
        if masked(crc32c(self._index[offset : end - 4])) != checksum:
            raise ValueError(f"{self.path}: the block at byte {offset} is damaged")
        if kind != 0:
            raise ValueError(
                f"{self.path}: expected blocks as they are, which is what TensorFlow writes, got "
                f"compression {kind}"
            )
        return block

    def _pairs(self, block: memoryview, last: bytes | None) -> Iterator[tuple[bytes, memoryview]]:
        """Yield a block's keys and values; ValueError unless they are sorted and after ``last``."""
        restarts = int.from_bytes(block[-4:], "little")
        end = len(block) - 4 - 4 * restarts
        if end < 0:
            raise ValueError(f"{self.path}: expected at most {len(block)} bytes of restarts")
        at, key, pairs = 0, b"", block[:end]
        while at < end:
            shared, at = varint(pairs, at, str(self.path))
            rest, at = varint(pairs, at, str(self.path))
            size, at = varint(pairs, at, str(self.path))
            if shared > len(key) or shared + rest > MOST_KEY or rest + size > end - at:
                raise ValueError(
                    f"{self.path}: expected an entry within {end} bytes, got one of "
                    f"{shared} + {rest} characters and {size} bytes at byte {at}"
                )
            key = key[:shared] + bytes(pairs[at : at + rest])
            if last is not None and key <= last:
                raise ValueError(
                    f"{self.path}: expected sorted names, got {short(key)} after {short(last)}"
                )
            at += rest + size
            yield key, pairs[at - size : at]
            last = key


def prefix_of(path: str | PathLike[str], budget: Budget | None = None) -> Path | None:
    """Return the checkpoint that a path means, without its endings; None for other files.

    A path may be the checkpoint's name as TensorFlow takes it, its ``.index``, one of its
    ``.data-00000-of-00001``, or a folder, whose file ``checkpoint`` names the latest. A folder that
    is a SavedModel is read as one.

    Raises
    ------
    ValueError
        The folder's latest checkpoint is elsewhere.
    """
    path = Path(path)
    state = path / "checkpoint"
    if path.is_dir() and state.is_file() and not (path / "saved_model.pb").exists():
        budget = budget or Budget(str(path))
        budget.stay_beside(path)
        latest = _LATEST.search(read_file(budget, state, MOST_STATE))
        name = re.split(r"[/\\]", _unescaped(latest[1]))[-1] if latest else ""
        file = f"{name}.index"
        fits = len(os.fsencode(file)) <= LONGEST_FILE_NAME
        if not name or not fits or not (path / file).is_file():
            raise ValueError(
                f"{state}: expected the name of a checkpoint in its folder, got "
                f"{latest[1][:200] if latest else 'none'!r}"
            )
        return path / name
    if path.suffix == ".index":
        return path.with_suffix("")
    if data := _DATA.fullmatch(path.name):
        return path.with_name(data[1])
    if not path.exists() and path.with_name(f"{path.name}.index").is_file():
        return path
    return None


def _unescaped(text: bytes) -> str:
    """Return a string of protobuf's text format."""

    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8) & 255]) if code.isdigit() and code < b"8" else code

    return _ESCAPED.sub(plain, text).decode("utf-8", "replace").replace("\0", "")


def read_file(
    budget: Budget, path: Path, most: int, offset: int = 0, exactly: bool = False
) -> bytes:
    """Return a file's bytes from an offset on: all of at most ``most``, or exactly ``most``.

    Raises
    ------
    ValueError
        There is no plain file (reading a pipe could wait forever), or it has another size.
    """
    try:
        file = budget.open(path)
    except OSError:
        raise ValueError(f"{path}: expected a file there, found none") from None
    with file:
        size = file.seek(0, 2) - offset
        if size < most if exactly else size > most:
            raise ValueError(
                f"{path}: expected {'' if exactly else 'at most '}{most} bytes at byte {offset}, "
                f"got {max(size, 0)}{'; the file is truncated' if exactly else ''}"
            )
        wanted = min(most, max(size, 0))  # a file of the system may have more than it says
        budget.make(wanted, path.name)
        file.seek(offset)
        data = file.read(wanted)
    if exactly and len(data) != most:
        raise ValueError(f"{path}: it changed while it was read")
    return data


# ---- checksums -----------------------------------------------------------------------------------


@functools.cache
def _crc_tables() -> tuple[list[int], np.ndarray, np.ndarray]:
    """CRC-32C (the Castagnoli polynomial, reflected) of each byte, and of words of two bytes.

    The last table is of words that two further bytes follow.
    """
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(0x82F63B78)
    words = [np.arange(1 << 16, dtype=np.uint32)]
    for _ in range(4):
        words.append((words[-1] >> np.uint32(8)) ^ table[words[-1] & np.uint32(0xFF)])
    return table.tolist(), words[4], words[2]


_SHORT = 2048  # bytes of which a loop takes less time than arrays
# A checksum starts from a register of ones; these four bytes turn one of zeros into that.
_ONES = bytes.fromhex("54641f64")


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of bytes.

    A loop over bytes in Python takes a second for 10 MB. So this arranges longer data as a matrix
    that is nearly square, and advances the registers of all rows together, each from zeros and four
    bytes at a time. The effect of a row on the register before it is linear in the register's bits.
    32 further registers, each of one bit and without data, show that effect for every bit, and the
    last loop joins the rows with it.
    """
    table, far, near = _crc_tables()
    if len(data) <= _SHORT:
        register = 0xFFFFFFFF
        for byte in bytes(data):
            register = table[(register ^ byte) & 0xFF] ^ register >> 8
        return register ^ 0xFFFFFFFF
    size = len(_ONES) + len(data)
    width = math.isqrt(size) & ~3
    count = -(-size // width)
    rows = np.zeros(count * width, np.uint8)  # zeros in front do not change a register of zeros
    rows[-size:] = np.frombuffer(b"".join([_ONES, data]), np.uint8)
    registers = np.zeros(count + 32, np.uint32)
    registers[count:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for column in np.ascontiguousarray(rows.view("<u4").reshape(count, width // 4).T):
        registers[:count] ^= column
        registers = far[registers & np.uint32(0xFFFF)] ^ near[registers >> np.uint32(16)]
    values = registers.tolist()
    register = 0
    for value in values[:count]:
        for bit, becomes in enumerate(values[count:]):
            if register >> bit & 1:
                value ^= becomes
        register = value
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """Return a checksum as it is stored, rotated and shifted by a constant (LevelDB's mask)."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
