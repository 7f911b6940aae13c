"""fastgru's own files: the weights as safetensors, the layer's config in their metadata.

The names of the weights are their places in the layer (``kernel``, ``forward_layer.kernel``,
``layers.1.cell.cells.0.bias``, ...). The weights have Keras' layout and the layer's dtype. The
metadata have one key, ``fastgru``, so that a layer always gives the same bytes. Its value is JSON:

| key | value |
|---|---|
| ``format_version`` | `FORMAT_VERSION` |
| ``fastgru_version`` | of the writer; for error messages only |
| ``layer`` | class and constructor's arguments, as a Keras 3 object |
"""

from __future__ import annotations

import json
import mmap as memory_map
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import locks
from fastgru.io.bounded import parse_json
from fastgru.io.budget import LAYER_STEPS, Budget, BudgetError, listed, reading
from fastgru.io.foreign import reader_of
from fastgru.io.imported_layer import parts_of
from fastgru.io.replacing import expect_replaceable, replacing
from fastgru.layers import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells
from fastgru.layers.base import deserialize_layer, serialize_layer
from fastgru.layers.nested import Array, WithState
from fastgru.layers.sequence import SequenceLayer
from fastgru.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    SavedLayer = SequenceLayer[Any]

FORMAT_VERSION = 1
MOST_HEADER_BYTES = 8 << 20  # a tensor takes about 100 bytes
MOST_CONFIG_BYTES = 512 << 10  # a cell takes about 1200
# What a tensor and a number of the header take while the package reads them and after.
_TENSOR_BYTES, _NUMBER_BYTES = 1100, 40
_CLASSES = ("GRU", "GRUCell", "RNN", "StackedRNNCells", "Bidirectional", "Sequential")
DEEPEST = 16  # parts of the name of a cell's place

# The dtypes that a GRU may have, and how NumPy reads them: bfloat16 as its bits.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Those that other tensors may have.
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_INTEGERS |= {"U16": "<u2", "U32": "<u4", "U64": "<u8"}


def save(layer: SavedLayer, path: str | PathLike[str]) -> None:
    """Write a layer, weights and config, to a ``.safetensors`` file.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built. The states of a stateful layer are not saved.
    path : path
        The complete new file replaces an old one in one step. Programs that have the old file open
        or mapped keep the old one.

    Raises
    ------
    ValueError
        The layer has no weights yet, or a part of it is Python code (a cell, an activation, ... of
        your own), which a file cannot hold. Or there is a link, a folder, a device or a pipe at the
        path.
    """
    from_numpy = _package().numpy
    expect_replaceable(path)
    config = _config(layer)
    cells = list(_cells(layer))
    if not all(cell.built for _, cell in cells):
        raise ValueError(
            f"{layer.name}: it has no weights yet; call build(input_shape) or the layer first"
        )
    weights = locks.at_once(
        lambda: {place + v.name: v.value for place, c in cells for v in c.weights}
    )
    about = {"format_version": FORMAT_VERSION, "fastgru_version": __version__, "layer": config}
    data = from_numpy.save(weights, {"fastgru": json.dumps(about)})
    with replacing(path) as file:
        file.write(data)


def load(
    path: str | PathLike[str], *, mmap: bool = True, max_bytes: int | None = None
) -> SequenceLayer[Array | WithState]:
    """Read a layer that `save` wrote.

    Parameters
    ----------
    path : path
    mmap : bool
        True: the weights stay in the file, which is mapped into memory, and processes share them.
        Do not alter the file in place meanwhile; replacing it, as `save` does, is allowed.
        False: the weights are read into memory.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the file's bytes.

    Returns
    -------
    GRU, RNN, Bidirectional or Sequential
        The saved layer, with the same weights bit for bit.

    Raises
    ------
    ValueError
        The file is damaged, `save` did not write it, it is of a newer format, or its weights and
        config disagree.
    ImportError
        The package safetensors is not installed.
    """
    _package()
    if foreign := reader_of(path, safetensors=False):
        raise ValueError(f"{path}: expected a .safetensors file of fastgru.save, got {foreign}")
    with reading(path, max_bytes) as budget:
        metadata, stored = read_tensors(path, mmap=mmap, budget=budget)
        try:
            config = _about(metadata, budget)["layer"]
            budget.step(LAYER_STEPS * _count_layers(config), "its config")
            layer = _layer_of(config)
            layer.build((None, None, _adopt(layer, stored)))
        except BudgetError:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return layer


def _adopt(layer: SavedLayer, stored: dict[str, StoredTensor]) -> int:
    """Give a layer's cells their weights, ValueError unless all are there; return the first I."""
    left = dict(stored)
    for place, cell in _cells(layer):
        names = [place + n for n in ("kernel", "recurrent_kernel", "bias")[: 2 + cell.use_bias]]
        if missing := [name for name in names if name not in left]:
            raise ValueError(f"the config expects {missing}, got {sorted(stored)[:9]}")
        try:
            cell.adopt(*(left.pop(name).in_dtype(cell.dtype) for name in names))
        except ValueError as error:
            raise ValueError(f"weights {names}: {error}") from None
    if left:
        raise ValueError(f"the config expects no weights {sorted(left)[:9]}")
    return next(_cells(layer))[1].weights[0].shape[0]


# ---- the config ----------------------------------------------------------------------------------


def _cells(layer: Any, place: str = "") -> Iterator[tuple[str, GRUCell]]:
    """Yield each GRU cell of a layer with its place, which is part of its weights' names."""
    if place.count(".") > DEEPEST:
        raise ValueError(f"{place[:50]}...: the cells are nested too deeply")
    if type(layer) in (Sequential, Bidirectional, RNN, StackedRNNCells):
        for names, part in parts_of(layer):
            yield from _cells(part, f"{place}{'.'.join(names)}.")
    elif type(layer) is GRU:
        yield place, layer.cell
    elif type(layer) is GRUCell:
        yield place, layer
    else:
        raise ValueError(
            f"{place or 'layer'}: expected GRU, RNN, Bidirectional, Sequential, and in them "
            f"GRUCell and StackedRNNCells, got {type(layer).__name__}; a file holds no Python code"
        )


def _config(layer: Any) -> dict[str, Any]:
    """Return a layer's config; ValueError unless JSON holds it and gives the same layer again."""
    if not isinstance(layer, (RNN, Bidirectional, Sequential)):
        raise ValueError(
            f"layer: expected GRU, RNN, Bidirectional or Sequential, got {type(layer).__name__}"
        )
    list(_cells(layer))  # raises for cells and layers of other classes
    config = serialize_layer(layer)
    try:
        text = json.dumps(config)
        same = json.dumps(serialize_layer(_layer_of(parse_json(text, Budget(layer.name))))) == text
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{layer.name}: its config has something that a file cannot hold, such as a Python "
            f"function: {error}"
        ) from None
    if not same:
        raise ValueError(f"{layer.name}: its config does not come back as it is: {text}")
    if len(text) > MOST_CONFIG_BYTES - 1000:
        raise ValueError(
            f"{layer.name}: its config takes {len(text)} bytes and may take "
            f"{MOST_CONFIG_BYTES - 1000}; save its layers one by one"
        )
    return config


def _about(metadata: dict[str, str], budget: Budget) -> dict[str, Any]:
    """Return the metadata of the layer; ValueError unless this version reads their format."""
    text = metadata.get("fastgru")
    if text is None:
        raise ValueError(
            "expected a file of fastgru.save, got one with metadata "
            f"{listed(metadata, 9) or 'none'}; weights of PyTorch are read by "
            "fastgru.io.from_torch"
        )
    if len(text) > MOST_CONFIG_BYTES:
        raise ValueError(f"expected at most {MOST_CONFIG_BYTES} bytes of config, got {len(text)}")
    try:
        about = parse_json(text, budget)
        got, writer = about["format_version"], about["fastgru_version"]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"its metadata cannot be read: {error}") from None
    if got != FORMAT_VERSION or "layer" not in about:
        raise ValueError(
            f"expected a layer in format_version {FORMAT_VERSION}, got {got!r}, written by "
            f"fastgru {writer!r}; this is fastgru {__version__}: use a later one"
        )
    return about


def _count_layers(config: Any) -> int:
    """Return how many layers and cells a config has, before they are built."""
    count, left = 0, [config]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            count += part.get("class_name") in _CLASSES
            left += part.values()
        elif isinstance(part, list):
            left += part
    return count


def _layer_of(config: Any) -> SavedLayer:
    """Build the layer of a config, which may name fastgru's layers only."""
    try:
        layer = deserialize_layer(config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"the config cannot be read: {error}") from None
    except RecursionError:
        raise ValueError("the config is nested too deeply") from None
    if not isinstance(layer, (RNN, Bidirectional, Sequential)):
        raise ValueError(f"expected the config of a layer, got {type(layer).__name__}")
    return layer


# ---- the file ------------------------------------------------------------------------------------


class StoredTensor(NamedTuple):
    """A tensor of a file; ``array`` is a read-only view, of bfloat16 as unsigned integers."""

    dtype: str
    array: np.ndarray

    def in_dtype(self, dtype: str) -> np.ndarray:
        """Return the array in native byte order, aligned; ValueError unless of ``dtype``."""
        if self.dtype != dtype:
            raise ValueError(f"expected {dtype}, got {self.dtype}")
        array = np.require(self.array, self.array.dtype.newbyteorder("="), ["C", "A"])
        if dtype == "bfloat16":
            from ml_dtypes import bfloat16  # present, since the layer of this dtype needs it

            return array.view(bfloat16)
        return array


def read_tensors(
    path: str | PathLike[str], *, mmap: bool = True, budget: Budget | None = None
) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Return a safetensors file's metadata, and its tensors of float types, which are not read.

    Raises
    ------
    ValueError
        The file is damaged.
    ImportError
        The package safetensors is not installed.
    """
    return read_everything(path, mmap=mmap, budget=budget)[:2]


def read_everything(
    path: str | PathLike[str],
    *,
    mmap: bool = True,
    integers: bool = False,
    budget: Budget | None = None,
) -> tuple[dict[str, str], dict[str, StoredTensor], dict[str, tuple[str, tuple[int, ...]]]]:
    """Return what `read_tensors` does, and dtypes and shapes of the tensors of other types.

    With ``integers`` the tensors of integers and booleans are among the first.
    """
    package = _package()
    budget = budget or Budget(str(path))
    with budget.open(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise ValueError(
                f"{path}: expected a safetensors header of at most {MOST_HEADER_BYTES} bytes, got "
                f"{size}"
            )
        text = file.read(size)
        count = text.count(b'"data_offsets"')
        # The package's own objects, and ours; it gives its memory back, but not to the system.
        budget.step(count, "its header")
        budget.make(_TENSOR_BYTES * count + _NUMBER_BYTES * text.count(b","), "its header")
        try:
            # The package checks the file against the format. But its arrays are copies, and it
            # opens the path, where `save` may put another file at any time. So the offsets come
            # from the file that is open here.
            with package.safe_open(path, framework="numpy"):
                pass
            header = parse_json(text, budget, "its header")
            metadata = header.pop("__metadata__", {})
            if mmap:
                data: Any = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ)
            else:
                file.seek(0)
                whole = os.fstat(file.fileno()).st_size
                budget.make(whole, "its tensors")
                data = file.read(whole)
            stored = {
                name: _view(data, 8 + size, entry)
                for name, entry in header.items()
                if entry["dtype"] in _DTYPES or (integers and entry["dtype"] in _INTEGERS)
            }
            others = {
                name: (str(entry["dtype"]), tuple(entry["shape"]))
                for name, entry in header.items()
                if entry["dtype"] not in _DTYPES
            }
        except BudgetError:
            raise
        except (
            package.SafetensorError,
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
        ) as error:
            raise ValueError(f"{path}: expected a safetensors file, got {error}") from None
    return metadata, stored, others


def _view(data: Any, start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, _ = entry["data_offsets"]
    kind = entry["dtype"]
    array = np.ndarray(entry["shape"], (_DTYPES | _INTEGERS)[kind], data, start + begin)
    return StoredTensor(_NAMES.get(kind, array.dtype.name), array)


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            ".safetensors files need the package safetensors; pip install 'fastgru[safetensors]'"
        ) from None
    return safetensors
