"""State dicts in ``.npz`` and ``.npy`` files of NumPy.

Headers are read without evaluating them. A dict in an ``.npy`` file is pickled, and
`fastgru.io.torch_pickle` reads the pickle.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.bundle import read_file
from fastgru.io.npy_header import MAGIC, header_of
from fastgru.io.torch_pickle import load_pickle
from fastgru.io.torch_pickle_numpy import PickledArray
from fastgru.io.torch_weights import LazyTensor, split, unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from fastgru.io.bounded import Archive
    from fastgru.io.budget import Budget


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
    try:
        header = header_of(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    dtype, shape, start = header.dtype, header.shape, header.start
    if dtype is None or dtype.kind == "c":
        descr = "objects" if header.objects else repr(header.descr[:50])
        return unreadable(f"an array of {descr}")
    if len(shape) > 2 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(
            f"{where}: expected the elements of {dtype} of shape {shape[:8]}, got "
            f"{len(data) - start} bytes"
        )
    flat = np.frombuffer(data, dtype, offset=start)
    array = flat.reshape(shape, order="F" if header.fortran else "C")
    return LazyTensor(shape, dtype.name, partial(np.asarray, array))


def has_objects(data: bytes) -> bool:
    """Say whether a ``.npy`` file, of which this is the start, has Python objects."""
    return data.startswith(MAGIC) and b"'descr': '|O'" in data[:200]


def read_pickled_npy(path: Path, budget: Budget) -> Any:
    """Return the one object in a ``.npy`` file, such as a dict of arrays, as `load_pickle` does.

    Raises
    ------
    ValueError
        The file has an array of numbers, or of several objects, or is damaged.
    """
    data = read_file(budget, path, budget.size)
    try:
        header = header_of(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}{', of Python objects' * has_objects(data)}") from None
    if not header.objects or header.shape:
        raise ValueError(
            f"{path}: expected weights with names, got one array of NumPy; save the arrays by "
            "torch's names with numpy.savez"
        )
    where = f"{path}, an array of Python objects"
    tree = load_pickle(data[header.start :], where, budget, len(data))
    if not isinstance(tree, PickledArray) or len(tree.objects) != 1:
        raise ValueError(f"{path}: expected one pickled object, got {type(tree).__name__}")
    return tree.objects[0]
