"""Where PyTorch's weights come from: files of torch.save, safetensors, dicts, live modules.

`opened` gives each source as a dict of `LazyTensor` by dotted names. Their shapes and dtypes are
known from the start. A tensor's bytes are read when the caller has checked its shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru.io.bounded import Archive
from fastgru.io.safetensors import read_tensors
from fastgru.io.torch_pickle import PickledTensor, load_pickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The last part of the names that torch gives recurrent weights; hr is an LSTM's projection.
RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l([0-9]{1,3})(_reverse)?)?")
FLOATS = ("float16", "bfloat16", "float32", "float64")
DEEPEST = 16  # nested dicts of a checkpoint

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the start of files of torch before 1.6


class LazyTensor(NamedTuple):
    """A tensor of a source that is not read yet.

    ``read()`` gives an array of ``shape`` with any strides and byte order, bfloat16 as float32.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def is_recurrent(name: str) -> bool:
    """Say whether torch gives recurrent weights such a name."""
    return RECURRENT.fullmatch(name.rpartition(".")[2]) is not None


@contextmanager
def opened(
    source: Any, wanted: Callable[[str], Any] = is_recurrent
) -> Iterator[tuple[str, dict[str, LazyTensor]]]:
    """Open a source; give its name for messages and its recurrent weights, readable while open.

    Parameters
    ----------
    source : path, mapping, or object with state_dict()
    wanted : callable
        Says of a tensor's name whether it is given.

    Raises
    ------
    ValueError
        The file is damaged, or in a format that this does not read.
    TypeError
        The source is of another type.
    """
    if callable(getattr(source, "state_dict", None)):
        yield type(source).__name__, _live(type(source).__name__, source.state_dict(), wanted)
    elif isinstance(source, Mapping):
        yield "state dict", _live("state dict", source, wanted)
    elif isinstance(source, str) or hasattr(source, "__fspath__"):
        path = Path(source)
        with open(path, "rb") as file:
            head = file.read(len(_LEGACY))
        if head[:2] == b"PK":
            with Archive(path) as archive:
                yield str(path), _archived(archive, wanted)
        elif head[8:9] == b"{":
            yield str(path), _safetensors(path, wanted)
        elif head == _LEGACY:
            raise ValueError(
                f"{path}: expected a zip file, as torch.save writes since version 1.6, got the "
                "format before it; read it with torch.load and torch.save its state_dict() again"
            )
        else:
            raise ValueError(
                f"{path}: expected a zip file of torch.save or a safetensors file, got one that "
                f"begins with {head!r}"
            )
    else:
        raise TypeError(
            "source: expected a path, a state dict or a module with state_dict(), got "
            f"{type(source).__name__}"
        )


def _tensors(
    tree: Any, where: str, wanted: Callable[[str], Any] = is_recurrent
) -> Iterator[tuple[str, Any]]:
    """Yield the wanted values of a mapping and of the mappings nested in it."""
    seen, names = set(), set()
    left: list[tuple[str, Any, int]] = [("", tree, 0)]
    while left:
        prefix, mapping, depth = left.pop()
        if id(mapping) in seen:  # a pickle may contain a dict twice, or inside itself
            continue
        seen.add(id(mapping))
        if depth > DEEPEST:
            raise ValueError(f"{where}: expected dicts at most {DEEPEST} deep, got {prefix!r}")
        for key, value in mapping.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, Mapping):
                left.append((name, value, depth + 1))
            elif wanted(name):
                if name in names:
                    raise ValueError(f"{where}: expected each tensor once, got {name!r} twice")
                names.add(name)
                yield name, value


def _live(
    where: str, mapping: Any, wanted: Callable[[str], Any] = is_recurrent
) -> dict[str, LazyTensor]:
    """Return the recurrent weights of a state dict of arrays or torch tensors."""
    tensors = {}
    for name, value in _tensors(mapping, where, wanted):
        for step in ("detach", "cpu"):  # methods of torch's tensors; NumPy's arrays have neither
            value = getattr(value, step, lambda same=value: same)()
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        if dtype == "bfloat16":  # not a dtype of NumPy
            widen = getattr(value, "float", None)
            value = np.asarray(value).astype(np.float32) if widen is None else widen()
        array = np.asarray(value)
        tensors[name] = LazyTensor(
            array.shape, dtype or array.dtype.name, partial(np.asarray, array)
        )
    return tensors


def _safetensors(path: Path, wanted: Callable[[str], Any] = is_recurrent) -> dict[str, LazyTensor]:
    _, stored = read_tensors(path, integers=wanted is not is_recurrent)
    return {
        name: LazyTensor(t.array.shape, t.dtype, partial(_widened, t.array, t.dtype))
        for name, t in stored.items()
        if wanted(name)
    }


def _archived(
    archive: Archive, wanted: Callable[[str], Any] = is_recurrent
) -> dict[str, LazyTensor]:
    """Return the recurrent weights of a zip file of torch.save."""
    names = archive.names
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{archive.path}: expected a file of torch.save(model.state_dict(), path), got "
            f"{', '.join(names[:5])}, ...; of a TorchScript or exported model save the "
            "state_dict() again"
        )
    root = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{root}byteorder" in names:
        order = _plain(archive, f"{root}byteorder").decode("latin-1")
    if order not in ("little", "big"):
        raise ValueError(f"{archive.path}: expected byteorder little or big, got {order!r}")
    tree = load_pickle(_plain(archive, pickles[0]), str(archive.path))
    if not isinstance(tree, dict):
        raise ValueError(
            f"{archive.path}: expected a state dict, got a {type(tree).__name__}; save state_dict()"
        )
    kept: dict[str, bytes] = {}  # the weights of a GRU on cuDNN share one storage
    return {
        name: LazyTensor(
            tensor.shape,
            tensor.storage.dtype,
            partial(_read, archive, root, order, name, tensor, kept),
        )
        for name, tensor in _tensors(tree, str(archive.path), wanted)
        if isinstance(tensor, PickledTensor)
    }


def _plain(archive: Archive, name: str) -> bytes:
    """Read a member; ValueError if it is compressed, so that it is not larger than the file."""
    if archive.compressed(name):
        raise ValueError(
            f"{archive.path}: expected members as torch.save writes them, got {name} compressed; "
            "read the file with torch.load and torch.save it again"
        )
    return archive.read(name)


def _read(
    archive: Archive,
    root: str,
    order: str,
    name: str,
    tensor: PickledTensor,
    kept: dict[str, bytes],
) -> np.ndarray:
    """Return a tensor's elements, a view of its storage."""
    (key, dtype, size), offset, shape, strides = tensor
    element = np.dtype("u2" if dtype == "bfloat16" else dtype)
    if key not in kept:
        kept[key] = _plain(archive, f"{root}data/{key}")
    data = kept[key]
    if len(data) != size * element.itemsize:
        raise ValueError(
            f"{archive.path}: expected {size} elements of {dtype} in data/{key}, got {len(data)} "
            "bytes"
        )
    # The stride of an axis of length 1 has no meaning.
    strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=False))
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    if (
        len(strides) != len(shape)
        or min((0, offset, *shape, *strides)) < 0
        or count > size
        or (count and last >= size)
    ):
        raise ValueError(
            f"{archive.path}: expected {name} inside its storage of {size} elements, got shape "
            f"{shape} at {offset} with strides {tensor.strides}"
        )
    flat = np.frombuffer(data, element.newbyteorder("<" if order == "little" else ">"))
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [s * element.itemsize for s in strides], writeable=False
    )
    return _widened(view, dtype)


def _widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array, bfloat16 from its bits as float32, which has all of its numbers."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array
