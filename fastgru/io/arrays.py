"""Every array of a model file by its name there, for the layers around the GRU.

The files are opened by the readers of the formats, and their bounds hold here too. The budget
counts each array, since a small file can name one tensor many times.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io import hdf5, npy_header
from fastgru.io.bounded import Archive, file_beside
from fastgru.io.budget import reading, short
from fastgru.io.bundle import Bundle, prefix_of, read_file
from fastgru.io.foreign import reader_of
from fastgru.io.keras_shards import SHARDED, shards
from fastgru.io.npy_header import header_of
from fastgru.io.tfjs import Model
from fastgru.io.torch_legacy import is_legacy
from fastgru.io.torch_numpy import has_objects, is_npz

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from fastgru.io.budget import Budget

    # Name, bytes in memory, and a function that reads the array.
    Entry = tuple[str, int, Callable[[], np.ndarray]]

MOST_NESTED = 64  # groups of HDF5
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_CHECKPOINT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def read_arrays(
    path: str | PathLike[str], *, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Return every array of a model file.

    Parameters
    ----------
    path : path
        ``.keras``, ``.h5``, ``.weights.h5`` or the ``.weights.json`` of several of them; a
        SavedModel folder, a TensorFlow checkpoint (its name, ``.index``, ``.data`` or folder), the
        ``model.json`` of TensorFlow.js; ``.pt``, ``.pth``, ``.safetensors`` or the ``.index.json``
        of several of them; ``.onnx``, ``.npz`` or ``.npy``. The file's content decides, and of
        JSON its name.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the files' bytes.

    Returns
    -------
    dict of str to ndarray
        By the names in the file: the path in HDF5, as ``"layers/dense/vars/0"``; the key of a
        checkpoint; the key of a state dict, nested ones joined by dots; the name of an ONNX
        initializer or of a Constant's output; the name in an ``.npz`` file, and ``"array"`` for an
        ``.npy`` file. Arrays keep their dtype, bfloat16 as float32, and may be read-only. Strings
        and types that NumPy does not have are left out.

    Raises
    ------
    ValueError
        The file is of another kind, or damaged, or has Python objects in it that would have to be
        executed.
    ImportError
        The package that reads files of this kind is not installed.

    Examples
    --------
    >>> arrays = fastgru.io.read_arrays("model.keras")  # doctest: +SKIP
    >>> y = states @ arrays["layers/dense/vars/0"] + arrays["layers/dense/vars/1"]  # doctest: +SKIP
    """
    with reading(path, max_bytes) as budget:
        return arrays_in(Path(path), budget)


def arrays_in(path: Path, budget: Budget) -> dict[str, np.ndarray]:
    """Return every array of a model file, as `read_arrays` does."""
    if not path.exists() and not prefix_of(path, budget):
        raise ValueError(f"{path}: expected a model there, found nothing that can be read")
    return _read_all(_entries(path, budget), path, budget)


def arrays_of_npz(archive: Archive) -> dict[str, np.ndarray]:
    """Return every array of an open ``.npz`` file."""
    return _read_all(_npz(archive), archive.path, archive.budget)


def _read_all(entries: Iterator[Entry], path: Path, budget: Budget) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, nbytes, read in entries:
        budget.make_objects(4, nbytes, name)
        if name in arrays:
            raise ValueError(
                f"{path}: expected a name of its own for each array, got {short(name)} twice"
            )
        arrays[name] = read()
    return arrays


def _entries(path: Path, budget: Budget) -> Iterator[Entry]:
    if prefix := prefix_of(path, budget):
        return _checkpoint(prefix.parent, prefix.name, budget)
    if path.is_dir():
        budget.stay_beside(path)
        if (path / _CONFIG).exists():
            return _hdf5(file_beside(path / _CONFIG, _WEIGHTS, budget), budget)
        return _checkpoint(path / "variables", "variables", budget)
    with budget.open(path) as file:
        head = file.read(256)
    if head[:8] == hdf5.SIGNATURE:
        return _hdf5(path, budget)
    if head[:2] == b"PK":
        return _archived(path, budget)
    if head[:6] == npy_header.MAGIC:
        if has_objects(head):
            return _torch(path, budget)
        return iter([_npy("array", read_file(budget, path, budget.size), str(path))])
    if head[:2] == b"\x1f\x8b":
        raise ValueError(f"{path}: expected a model, got a compressed file; unpack it")
    if head[8:9] == b"{" and path.suffix != ".json":
        return _safetensors(path, budget)
    if path.name.endswith(".index.json"):
        return _sharded(path, budget)
    if path.name.endswith(SHARDED):
        return _keras_shards(path, budget)
    if head[:1] == b"{":
        return _tfjs(path, budget)
    if is_legacy(head):
        return _torch(path, budget)
    if path.suffix.lower() == ".onnx" or head[:1] == b"\x08":  # the number of an ONNX version
        return _onnx(path, budget)
    raise ValueError(
        f"{path}: expected a .keras, .h5, .pt, .pth, .safetensors, .onnx, .npz or .npy file, a "
        "SavedModel folder, a checkpoint or a model.json, got "
        f"{reader_of(path) or f'a file that begins with {head[:9]!r}'}"
    )


# ---- one format each -----------------------------------------------------------------------------


def _hdf5(path: Path, budget: Budget) -> Iterator[Entry]:
    with budget.open(path) as file:
        yield from _below(hdf5.File(file, str(path), budget).root, "", 0)


def _below(group: hdf5.Group, prefix: str, depth: int) -> Iterator[Entry]:
    if depth > MOST_NESTED:
        raise ValueError(f"{group.place}: expected at most {MOST_NESTED} groups in each other")
    for name in group.names:
        group.file.budget.make_objects(1, len(prefix) + len(name), group.path)
        node = group.get(name)
        if isinstance(node, hdf5.Group):
            yield from _below(node, f"{prefix}{name}/", depth + 1)
        elif node is not None and node.dtype.kind in "fiuV":  # V2 is bfloat16, read as float32
            nbytes = math.prod(node.shape) * max(node.dtype.itemsize, 4)
            yield f"{prefix}{name}", nbytes, node.read_any


def _checkpoint(folder: Path, name: str, budget: Budget) -> Iterator[Entry]:
    bundle = Bundle(folder, name, budget)
    for key in bundle.entries:
        if key != _CHECKPOINT_GRAPH and bundle.has_numbers(key):
            yield key, bundle.locate(key).size, partial(bundle.any_array, key)


def _archived(path: Path, budget: Budget) -> Iterator[Entry]:
    with Archive(path, budget) as archive:
        names = archive.names
        if _WEIGHTS in names:
            place = f"{path}: {_WEIGHTS}"
            root = hdf5.File(archive.read(_WEIGHTS), place, budget).root
            yield from _below(root, "", 0)
        elif is_npz(archive):
            yield from _npz(archive)
        elif any(name.endswith("data.pkl") for name in names):
            yield from _torch(path, budget)
        else:
            raise ValueError(f"{path}: {packed(names)}")


def _npz(archive: Archive) -> Iterator[Entry]:
    for name in archive.names:
        yield _npy(name.removesuffix(".npy"), archive.read(name), f"{archive.path}: {name}")


def packed(names: list[str]) -> str:
    """Return what to say of an archive that is not a model itself."""
    models = [name for name in names if name.lower().endswith((".onnx", ".h5", ".pb", ".pt"))]
    few = ", ".join((models or names)[:5])
    if models:
        return f"expected a model, got an archive with {few} in it; unpack it"
    return f"expected a model or an .npz file, got an archive of {few or 'nothing'}"


def _safetensors(path: Path, budget: Budget) -> Iterator[Entry]:
    from fastgru.io.safetensors import read_everything

    metadata, stored, _ = read_everything(path, integers=True, budget=budget)
    for name, tensor in stored.items():
        yield name, *_widened(tensor)
    for name, kept in metadata.items():  # tied tensors are in the file once
        if kept in stored and name not in stored:
            yield name, *_widened(stored[kept])


def _widened(tensor: Any) -> tuple[int, Callable[[], np.ndarray]]:
    """Return bytes and reader of a tensor, of bfloat16 as float32."""
    from fastgru.io.torch_source import widened

    array = tensor.array
    if tensor.dtype == "bfloat16":
        return 2 * array.nbytes, partial(widened, array, tensor.dtype)
    return array.nbytes, partial(np.asarray, array)


def _sharded(path: Path, budget: Budget) -> Iterator[Entry]:
    from fastgru.io.torch_shards import read_index

    index = read_index(path, budget)
    for file in index.files:
        yield from _entries(index.folder / file, budget)


def _keras_shards(path: Path, budget: Budget) -> Iterator[Entry]:
    with shards(path, budget) as root:
        for group in root.groups:
            yield from _below(group, "", 0)


def _tfjs(path: Path, budget: Budget) -> Iterator[Entry]:
    model = Model(path, budget)
    for name, weight in model.weights.items():
        nbytes = math.prod(weight.shape) * max(weight.stored.itemsize, 4)
        yield name, nbytes, partial(model.array, name)


def _torch(path: Path, budget: Budget) -> Iterator[Entry]:
    from fastgru.io.torch_arrays import every_tensor

    return every_tensor(path, budget)


def _onnx(path: Path, budget: Budget) -> Iterator[Entry]:
    from fastgru.io.onnx_graph import Model, Names

    model = Model(path, budget=budget)
    names = Names()
    for scope in model.scopes:
        for name, array in scope.stored():
            yield names.add(name), array.nbytes, partial(np.asarray, array)


def _npy(name: str, data: bytes, place: str) -> Entry:
    """Return the entry of an array in NumPy's format, which must not need pickle."""
    try:
        header = header_of(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    dtype, shape = header.dtype, header.shape
    if dtype is None:
        kind = f"elements of {header.descr[:50]!r}"
        what = "Python objects, which would have to be executed" if header.objects else kind
        raise ValueError(
            f"{place}: expected an array of numbers, got {what}; load it where you trust it and "
            "save its arrays with numpy.savez"
        )
    if math.prod(shape) * dtype.itemsize != len(data) - header.start:
        raise ValueError(
            f"{place}: expected the numbers of shape {shape[:8]} {dtype}, got "
            f"{len(data) - header.start} bytes"
        )
    flat = np.frombuffer(data, dtype, offset=header.start)
    return name, flat.nbytes, lambda: flat.reshape(shape, order="F" if header.fortran else "C")
