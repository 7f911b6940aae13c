"""The tensors of ONNX models: dense, sparse, and in files beside the model.

All of them are counted (`onnx_graph.Model.add_source`, `spend`), so that a small altered file
cannot make its reader take much memory. A tensor is read only if its numbers fill its shape.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastgru.io.budget import Budget

MOST_AXES = 8
_FILE_STEPS, _PART_STEPS = 20, 5  # what opening a file takes, and each folder on the way

# TensorProto.DataType -> the dtype of its raw bytes, and the field of its numbers if they are not
# raw. float16 and bfloat16 are read as their bits; integers of 4 bits lie two in a byte.
FLOAT16, BFLOAT16, UINT4, INT4 = 10, 16, 21, 22
_TENSORS = {
    1: ("<f4", "float_data"),
    11: ("<f8", "double_data"),
    FLOAT16: ("<u2", "int32_data"),
    BFLOAT16: ("<u2", "int32_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
    UINT4: ("u1", "int32_data"),
    INT4: ("u1", "int32_data"),
}
# The types to which a Cast is folded, and their dtypes here; bfloat16 is kept as float32.
NUMBERS = {kind: form for kind, (form, _) in _TENSORS.items() if kind not in (UINT4, INT4)}
NUMBERS |= {FLOAT16: "<f2", BFLOAT16: "<f4"}


class Model(Protocol):
    """What a tensor needs to know of its model; see `onnx_graph.Model`."""

    folder: Path | None
    follow_links: bool
    beside: dict[str, Path]  # the files of tensors, by the names in the model
    budget: Budget

    def add_source(self, nbytes: int) -> None:
        """Count bytes that the model has."""

    def spend(self, nbytes: int, place: str) -> None:
        """Count bytes before they are made; ValueError if too many."""


def check_text(text: Any, place: str) -> str:
    """Return text; ValueError for bytes, which protobuf gives if they are not UTF-8."""
    if not isinstance(text, str):
        raise ValueError(f"{place}: expected names in UTF-8, got {text!r}")
    return text


def is_numeric(maker: Any) -> bool:
    """Say whether a tensor, dense or sparse, has numbers of a type that is read; True for nodes."""
    tensor = maker.values if hasattr(maker, "indices") else maker
    return getattr(tensor, "data_type", 1) in _TENSORS


def tensors_of(graph: Any) -> Iterator[Any]:
    """Yield the dense tensors of a graph or a function, and those inside of sparse ones."""
    sparse = list(getattr(graph, "sparse_initializer", ()))  # functions have attributes only
    yield from getattr(graph, "initializer", ())
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for one in sparse:
        yield from (one.values, one.indices)


def read_tensor(model: Model, proto: Any, place: str) -> NDArray[Any]:
    """Return a tensor's numbers; ValueError if they do not fill its shape."""
    from onnx import TensorProto

    if not isinstance(proto, TensorProto) or proto.data_type not in _TENSORS:
        raise ValueError(
            f"{place}: expected a tensor of float32, float64, float16, bfloat16 or integers, got "
            f"{getattr(proto, 'data_type', proto)!r}"
        )
    if proto.HasField("segment"):
        raise ValueError(f"{place}: expected a whole tensor, got a segment of one")
    form, field = _TENSORS[proto.data_type]
    shape, dtype = tuple(proto.dims), np.dtype(form)
    if len(shape) > MOST_AXES or any(n < 0 for n in shape):
        raise ValueError(f"{place}: expected at most {MOST_AXES} axes of length >= 0, got {shape}")
    size = math.prod(shape)
    count = -(-size // 2) if proto.data_type in (UINT4, INT4) else size
    if proto.data_location == TensorProto.EXTERNAL:
        array = _external(model, proto, count, dtype, place)
    else:
        raw = proto.HasField("raw_data")
        numbers = proto.raw_data if raw else getattr(proto, field)
        wanted = count * dtype.itemsize if raw else count
        if len(numbers) != wanted:
            raise ValueError(
                f"{place}: shape {shape} takes {wanted} {'bytes' if raw else 'numbers'}, got "
                f"{len(numbers)}; the file is damaged"
            )
        try:
            array = np.frombuffer(numbers, dtype) if raw else np.fromiter(numbers, dtype, count)
        except OverflowError as error:
            raise ValueError(f"{place}: {error}") from None
        model.add_source(array.nbytes)
    if proto.data_type in (BFLOAT16, UINT4, INT4):
        model.spend(2 * array.nbytes, place)
    return _numbers(proto.data_type, array, size).reshape(shape)


def _numbers(kind: int, array: NDArray[Any], size: int) -> NDArray[Any]:
    """Return ``size`` numbers of a TensorProto.DataType from what the file has."""
    if kind == FLOAT16:
        return array.view("<f2")
    if kind == BFLOAT16:  # the upper 16 bits of a float32
        wide = array.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if kind in (UINT4, INT4):  # the first number is in the lower half of the byte
        halves = np.stack([array & 15, array >> 4], axis=-1).reshape(-1)[:size]
        return halves if kind == UINT4 else (halves << 4).view(np.int8) >> 4
    return array


def read_sparse_tensor(model: Model, proto: Any, place: str) -> NDArray[Any]:
    """Return a sparse tensor with its zeros.

    ValueError unless its indices are in order, each once and inside the shape, as the format wants.
    """
    values = read_tensor(model, proto.values, f"{place}: values")
    indices = read_tensor(model, proto.indices, f"{place}: indices")
    shape = tuple(proto.dims)
    if len(shape) > MOST_AXES or any(n < 0 for n in shape):
        raise ValueError(f"{place}: expected at most {MOST_AXES} axes of length >= 0, got {shape}")
    forms = [(values.size,), (values.size, len(shape))]
    if indices.dtype != np.int64 or values.ndim != 1 or indices.shape not in forms:
        raise ValueError(
            f"{place}: expected values (N,) and indices int64 (N,) or (N, {len(shape)}), got "
            f"{values.shape} and {indices.dtype} {indices.shape}"
        )
    size = math.prod(shape)
    model.spend(size * values.dtype.itemsize, place)
    if indices.ndim == 2 and indices.size:
        if ((indices < 0) | (indices >= np.array(shape, np.int64))).any():
            raise ValueError(f"{place}: expected indices inside shape {shape}")
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        indices = indices @ np.array(strides, np.int64)
    indices = indices.reshape(-1)
    if indices.size and (indices[0] < 0 or indices[-1] >= size or (np.diff(indices) <= 0).any()):
        raise ValueError(
            f"{place}: expected indices in order and each once, between 0 and {size - 1}"
        )
    array = np.zeros(size, values.dtype)
    array[indices] = values
    return array.reshape(shape)


def _external(
    model: Model, proto: Any, count: int, dtype: np.dtype[Any], place: str
) -> NDArray[Any]:
    """Read a tensor from a file in the model's folder."""
    entries = {
        check_text(entry.key, place): check_text(entry.value, place)
        for entry in proto.external_data
    }
    location = entries.get("location", "")
    if model.folder is None:
        raise ValueError(
            f"{place}: its numbers are in another file, {location!r}; give the model's path, or "
            "what onnx.load(path) returns"
        )
    model.budget.step(_FILE_STEPS, place)
    if location not in model.beside:
        parts = location.count("/")
        model.budget.step(_PART_STEPS * parts, place)
        model.beside[location] = _beside(model, location, place)
    path = model.beside[location]
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else str(count * dtype.itemsize))
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ValueError(f"{place}: expected {key} to be a number of bytes, got {text[:40]!r}")
        numbers[key] = int(text)
    offset, length = numbers["offset"], numbers["length"]
    with model.budget.open(path) as file:
        size = file.seek(0, 2)
        if length != count * dtype.itemsize or offset + length > size:
            raise ValueError(
                f"{place}: shape {tuple(proto.dims)} takes {count * dtype.itemsize} bytes, got "
                f"{length} from byte {offset} of {path}, which has {size}; a file is damaged"
            )
        model.spend(length, place)
        file.seek(offset)
        array = np.fromfile(file, dtype, count)
    if array.size != count:
        raise ValueError(f"{place}: {path} ends before byte {offset + length}")
    return array


def _beside(model: Model, location: str, place: str) -> Path:
    """Follow links and return the path of a file in the model's folder.

    ValueError for a name that leads out of the folder, and unless the model's ``follow_links`` is
    true, for a link that does.
    """
    folder = model.folder or Path()
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if (
        not location
        or "\0" in location
        or windows.drive
        or windows.root  # also a POSIX root "/"
        or ".." in (*posix.parts, *windows.parts)
    ):
        raise ValueError(
            f"{place}: expected the name of a file in the model's folder, got {location[:200]!r}"
        )
    try:
        path = (folder / location).resolve()
        inside, there = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{place}: {location[:200]!r} cannot be read: {error}") from None
    if not inside and not model.follow_links:
        raise ValueError(
            f"{place}: expected a file in the model's folder, got {location!r}, a link that leads "
            f"out of the model's folder, to {path}; "
            "where you trust the model and its links, pass follow_links=True to from_onnx, or "
            "--follow-links on the command line; else copy that file beside the model"
        )
    if not there:
        raise ValueError(f"{place}: expected a file {location!r} beside the model, found none")
    return path
