"""State dicts in ``.npz`` and ``.npy`` files of NumPy.

Headers are read without evaluating them. A dict in an ``.npy`` file is pickled, and
`fastgru.io.torch_pickle` reads the pickle.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.bundle import read_file
from fastgru.io.torch_pickle import load_pickle
from fastgru.io.torch_pickle_numpy import PickledArray
from fastgru.io.torch_weights import LazyTensor, split, unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from fastgru.io.bounded import Archive
    from fastgru.io.budget import Budget

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: 2, 2: 4, 3: 4}  # format's version -> bytes of the header's length
_MOST_HEADER_BYTES = 10_000
_HEADER = re.compile(
    r"\{'descr': (?P<dtype>'[^']*'|\[.*\]), 'fortran_order': (?P<order>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,19}(?:, ?)?)*)\), \}\s*"
)


def is_npz(archive: Archive) -> bool:
    """Say whether a zip file has nothing but arrays of NumPy."""
    return bool(archive.names) and all(name.endswith(".npy") for name in archive.names)


def read_npz(archive: Archive) -> dict[str, LazyTensor]:
    """Return the arrays that have names of recurrent weights.

    Raises
    ------
    ValueError
        A member is damaged.
    """
    names = ((name, name.removesuffix(".npy")) for name in archive.names)
    return {
        name: _array(f"{archive.path}: {member}", archive.read(member))
        for member, name in names
        if split(name) is not None
    }


def _array(where: str, data: bytes) -> LazyTensor:
    """Return the array of a ``.npy`` file; its elements are a view of ``data``."""
    match, start = _header(where, data)
    descr = match["dtype"].strip("'")
    if not re.fullmatch(r"[<>=|]?[fiub][1248]", descr):
        return unreadable("an array of objects" if "O" in descr else f"an array of {descr[:50]!r}")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"{where}: expected a dtype of NumPy, got {descr!r}") from None
    shape = tuple(int(n) for n in match["shape"].replace(",", " ").split())
    if len(shape) > 2 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(
            f"{where}: expected the elements of {dtype} of shape {shape[:8]}, got "
            f"{len(data) - start} bytes"
        )
    flat = np.frombuffer(data, dtype, offset=start)
    array = flat.reshape(shape, order="F" if match["order"] == "True" else "C")
    return LazyTensor(shape, dtype.name, partial(np.asarray, array))


def _header(where: str, data: bytes) -> tuple[re.Match[str], int]:
    """Return the header of a ``.npy`` file, and where the elements begin."""
    width = _LENGTHS.get(data[6] if len(data) > 6 else 0)
    if data[:6] != _MAGIC or width is None:
        raise ValueError(f"{where}: expected an array of NumPy, got {data[:8]!r}")
    size = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + size
    if size > _MOST_HEADER_BYTES or start > len(data):
        raise ValueError(f"{where}: expected a header of {size} bytes, got {len(data)} in all")
    match = _HEADER.fullmatch(data[8 + width : start].decode("latin-1"))
    if match is None:
        raise ValueError(f"{where}: expected a header that numpy.save writes, got another one")
    return match, start


def has_objects(data: bytes) -> bool:
    """Say whether a ``.npy`` file, of which this is the start, has Python objects."""
    return data.startswith(_MAGIC) and b"'descr': '|O'" in data[:200]


def read_pickled_npy(path: Path, budget: Budget) -> Any:
    """Return the one object in a ``.npy`` file, such as a dict of arrays, as `load_pickle` does.

    Raises
    ------
    ValueError
        The file has an array of numbers, or of several objects, or is damaged.
    """
    data = read_file(budget, path, budget.size)
    try:
        match, start = _header(str(path), data)
    except ValueError as error:
        if not has_objects(data):
            raise
        raise ValueError(f"{error}, of Python objects") from None
    if "O" not in match["dtype"] or match["shape"]:
        raise ValueError(
            f"{path}: expected weights with names, got one array of NumPy; save the arrays by "
            "torch's names with numpy.savez"
        )
    tree = load_pickle(data[start:], str(path), budget, len(data))
    if not isinstance(tree, PickledArray) or len(tree.objects) != 1:
        raise ValueError(f"{path}: expected one pickled object, got {type(tree).__name__}")
    return tree.objects[0]
