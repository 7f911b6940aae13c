"""Where PyTorch's weights come from: files of torch.save, safetensors, dicts, live modules.

`opened` gives each source as a `Source`: its recurrent weights as `LazyTensor` by dotted names.
Their shapes and dtypes are known from the start. A tensor's bytes are read when the caller has
checked its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru.io import torch_shards
from fastgru.io.bounded import Archive
from fastgru.io.foreign import reader_of
from fastgru.io.safetensors import read_everything
from fastgru.io.torch_legacy import LegacyFile, is_legacy
from fastgru.io.torch_numpy import is_npz, read_npz, read_pickled_npy
from fastgru.io.torch_pickle import element_bytes, load_pickle
from fastgru.io.torch_pickle_numpy import PickledArray
from fastgru.io.torch_pickle_objects import PickledTensor, Skipped
from fastgru.io.torch_weights import FLOATS, LazyTensor, resolved, split, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastgru.io.budget import Budget

    Storages = Callable[[str], bytes | memoryview]

DEEPEST = 64  # nested dicts and modules
LONGEST_NAME = 1024
MOST_WEIGHTS = 20_000  # recurrent weights in all, so that searching them takes no second
_ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Source(NamedTuple):
    """An open source.

    ``weights`` are by torch's plain names; ``problems`` say of modules, by prefix, why their
    weights cannot be told with certainty. ``where`` names the source in messages.
    """

    where: str
    weights: dict[str, LazyTensor]
    problems: dict[str, str]


@contextmanager
def opened(source: Any, budget: Budget) -> Iterator[Source]:
    """Open a source; its weights can be read while it is open.

    Parameters
    ----------
    source : path, mapping, or object with state_dict()
    budget : Budget

    Raises
    ------
    ValueError
        The file is damaged, a part of a model only, or in a format that this does not read.
    TypeError
        The source is of another type.
    """
    with ExitStack() as stack:
        if callable(getattr(source, "state_dict", None)):
            where = type(source).__name__
            tensors = _live(where, _state_of(source), budget)
        elif isinstance(source, Mapping):
            where = "state dict"
            tensors = _live(where, source, budget)
        elif isinstance(source, str) or hasattr(source, "__fspath__"):
            where = str(source)
            tensors = _file(Path(source), stack, budget)
        else:
            raise TypeError(
                "source: expected a path, a state dict or a module with state_dict(), got "
                f"{type(source).__name__}"
            )
        _expect_few(where, len(tensors))
        yield Source(where, *resolved(tensors))


def _expect_few(where: str, count: int) -> None:
    if count > MOST_WEIGHTS:
        raise ValueError(
            f"{where}: expected at most {MOST_WEIGHTS} recurrent weights, got more; "
            "save only the GRU's state_dict()"
        )


def _file(path: Path, stack: ExitStack, budget: Budget) -> dict[str, LazyTensor]:
    """Return the tensors of a file, or of the files that an index names."""
    if path.name.endswith(".json"):
        index = torch_shards.read_index(path, budget)
        merged: dict[str, LazyTensor] = {}
        metadata = dict(index.metadata)
        for file, names in index.files.items():
            found, more = _one_file(index.folder / file, stack, budget)
            metadata |= more
            for name, tensor in found.items():
                if name not in names:
                    raise ValueError(
                        f"{path}: expected the index to name {file} for {name}, which is in it"
                    )
                merged[name] = tensor
            if absent := [name for name in names if split(name) and name not in found]:
                raise ValueError(f"{path}: expected {absent[0]} in {file}, where it is not")
        return _tied(str(path), merged, metadata)
    torch_shards.refuse_shard(path)
    tensors, metadata = _one_file(path, stack, budget)
    return _tied(str(path), tensors, metadata)


def _one_file(
    path: Path, stack: ExitStack, budget: Budget
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors of one file and, of safetensors, its metadata."""
    with budget.open(path) as file:
        head = file.read(32)
    if head[:2] == b"PK":
        archive = stack.enter_context(Archive(path, budget))
        return (read_npz if is_npz(archive) else _archived)(archive), {}
    if head[8:9] == b"{":
        return _safetensors(path, budget)
    if is_legacy(head):
        legacy = stack.enter_context(LegacyFile(path, budget))
        return _pickled(str(path), legacy.tree, legacy.read, legacy.order, budget), {}
    if head.startswith(b"\x93NUMPY"):
        tree = read_pickled_npy(path, budget)
        return _pickled(str(path), tree, no_storage, "little", budget), {}
    raise ValueError(
        f"{path}: expected a file of torch.save or a safetensors file, got "
        f"{reader_of(path) or f'one that begins with {head[:20]!r}'}"
    )


def _tied(
    where: str, tensors: dict[str, LazyTensor], metadata: dict[str, str]
) -> dict[str, LazyTensor]:
    """Restore the tensors that are another's copy and only named in the metadata.

    safetensors' ``save_model`` writes {name that is left out: name that is kept}.
    """
    for name, kept in metadata.items():
        if name not in tensors and split(name) is not None:
            if kept not in tensors:
                raise ValueError(
                    f"{where}: expected {name} to be the same tensor as {kept}, as the metadata "
                    "say, got no such tensor"
                )
            tensors[name] = tensors[kept]
    return {name: tensor for name, tensor in tensors.items() if split(name) is not None}


def _tensors(tree: Any, where: str, budget: Budget) -> Iterator[tuple[str, Any]]:
    """Yield what has names of recurrent weights, in a mapping and those nested in it."""
    seen = set()
    count = 0
    left: list[tuple[str, Any, int]] = [("", tree, 0)]
    while left:
        prefix, mapping, depth = left.pop()
        if id(mapping) in seen:  # a pickle may contain a dict twice, or inside itself
            continue
        seen.add(id(mapping))
        if depth > DEEPEST:
            raise ValueError(f"{where}: expected dicts at most {DEEPEST} deep, got {prefix!r}")
        plain, odd = "", False
        for key, value in _children(mapping):
            budget.step()
            inner = isinstance(value, (Mapping, Skipped)) or _has_dicts(value, budget)
            if not inner and not isinstance(key, (str, Skipped)):
                continue
            text = "?" if isinstance(key, Skipped) else str(key)
            if len(text) + len(prefix) > LONGEST_NAME:
                if inner or isinstance(value, PickledTensor) or hasattr(value, "shape"):
                    raise ValueError(
                        f"{where}: expected names of at most {LONGEST_NAME} characters, got "
                        f"{prefix[:50]}.{text[:50]}..."
                    )
                continue
            budget.make(len(prefix) + len(text), "its names")
            name = f"{prefix}.{text}" if prefix else text
            if split(name) is not None:
                plain = name
                count += 1
                _expect_few(where, count)
                yield name, value
            elif inner:
                left.append((name, value, depth + 1))
            odd = odd or (isinstance(key, Skipped) and isinstance(value, PickledTensor))
        if plain and odd:
            raise ValueError(
                f"{where}: expected strings as names, got an object of another class beside {plain}"
            )


def _has_dicts(value: Any, budget: Budget) -> bool:
    """Say whether a value is a list with dicts or modules in it, as of several models."""
    if not isinstance(value, (list, tuple)) or isinstance(value, PickledTensor):
        return False
    budget.step(len(value) // 16)
    return any(isinstance(part, (Mapping, Skipped)) for part in value)


def _children(value: Any) -> Any:
    if isinstance(value, Skipped):
        return value.children()
    if isinstance(value, (list, tuple)):
        return [pair for pair in enumerate(value) if isinstance(pair[1], (Mapping, Skipped))]
    return value.items()


def _by_name(where: str, found: Iterator[tuple[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """Return tensors by names; ValueError if two have one name."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in found:
        if name in tensors:
            raise ValueError(f"{where}: expected one tensor called {name}, got two")
        tensors[name] = tensor
    return tensors


# ---- what is in memory ---------------------------------------------------------------------------


def _state_of(module: Any) -> dict[str, Any]:
    """Return a live module's state dict, with weights that the module itself computes."""
    state = dict(module.state_dict())
    modules = dict(getattr(module, "named_modules", dict)())
    parametrized: dict[tuple[str, str], list[str]] = {}
    for name in state:
        prefix, base, rest = split(name) or ("", "", "")
        if rest.startswith("parametrizations.") and prefix in modules:
            parametrized.setdefault((prefix, base), []).append(name)
    for (prefix, base), names in parametrized.items():
        parts = [name.rpartition(".")[2] for name in names]
        stateful = not all(part.startswith("original") for part in parts)
        if stateful and modules[prefix].training:  # asking would change its state
            continue
        for name in names:
            del state[name]
        state[f"{prefix}.{base}".removeprefix(".")] = getattr(modules[prefix], base)
    # Weights that are plain tensors: a GRU computes with them, but its state dict has them not.
    longer = {(found[0], found[1]) for found in map(split, state) if found and found[2]}
    for prefix, inner in modules.items():
        own = vars(inner)  # not getattr: torch.compile's wrapper has its module's attributes
        roles = _ROLES if "hidden_size" in own else ()
        for base in own.get("_flat_weights_names", roles):
            name = f"{prefix}.{base}".removeprefix(".")
            if name not in state and (prefix, base) not in longer:
                value = getattr(inner, base, None)
                if value is not None:
                    state[name] = value
    return state


def _live(where: str, mapping: Any, budget: Budget) -> dict[str, LazyTensor]:
    """Return the tensors of a state dict of arrays or torch tensors."""
    return _by_name(
        where, ((name, _in_memory(value)) for name, value in _tensors(mapping, where, budget))
    )


def _in_memory(value: Any) -> LazyTensor:
    """Return an array, a tensor of torch, or numbers, as what it is if it has no elements here."""
    layout = str(getattr(value, "layout", "torch.strided")).removeprefix("torch.")
    if getattr(value, "is_meta", False):
        return unreadable("a meta tensor, without numbers")
    if layout != "strided":
        return unreadable(f"a {layout} tensor")
    try:
        if not hasattr(value, "dtype"):
            value = np.asarray(value)
        shape = tuple(value.shape)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        return unreadable(f"a {type(value).__name__}")
    dtype = str(value.dtype).removeprefix("torch.")
    dtype = value.dtype.name if isinstance(value, np.ndarray) else dtype
    return LazyTensor(shape, dtype, partial(_to_numpy, value, dtype))


def _to_numpy(value: Any, dtype: str) -> np.ndarray:
    for step in ("detach", "cpu"):  # methods of torch's tensors; NumPy's arrays have neither
        value = getattr(value, step, lambda same=value: same)()
    if dtype == "bfloat16":  # not a dtype of NumPy
        widen = getattr(value, "float", None)
        value = np.asarray(value).astype(np.float32) if widen is None else widen()
    if getattr(value, "is_neg", bool)():
        value = value.resolve_neg()
    return np.asarray(value)


# ---- files ---------------------------------------------------------------------------------------


def _safetensors(path: Path, budget: Budget) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    metadata, stored, others = read_everything(path, budget=budget)
    tensors = {
        name: LazyTensor(
            t.array.shape,
            t.dtype,
            partial(widened, t.array, t.dtype),
            (str(path), name),
            ((str(path), name), t.array.nbytes),
        )
        for name, t in stored.items()
    }
    for name, (dtype, shape) in others.items():
        tensors[name] = LazyTensor(shape, dtype, partial(np.zeros, ()))
    names = {*tensors, *metadata}
    wanted = {name for name in names if split(name) is not None}
    wanted |= {kept for name, kept in metadata.items() if name in wanted}
    return (
        {name: tensor for name, tensor in tensors.items() if name in wanted},
        {name: kept for name, kept in metadata.items() if name in wanted},
    )


def no_storage(key: str) -> bytes:
    """Refuse to read a storage, of a file that has none."""
    raise ValueError(f"expected arrays of NumPy, got a tensor of PyTorch in storage {key[:99]!r}")


def _archived(archive: Archive) -> dict[str, LazyTensor]:
    """Return the recurrent weights of a zip file of torch.save."""
    pickled, storages, order = storages_of(archive)
    tree = load_pickle(pickled, str(archive.path), archive.budget)
    return _pickled(str(archive.path), tree, storages, order, archive.budget)


def storages_of(archive: Archive) -> tuple[bytes, Storages, str]:
    """Return the pickle of a zip file of torch.save, the reader of its storages, its byte order."""
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
    kept: dict[str, bytes] = {}  # the weights of a GRU on cuDNN share one storage

    def storage(key: str) -> bytes:
        if key not in kept:
            kept[key] = _plain(archive, f"{root}data/{key}")
        return kept[key]

    return _plain(archive, pickles[0]), storage, order


def _plain(archive: Archive, name: str) -> bytes:
    """Read a member; ValueError if it is compressed, so that it is not larger than the file."""
    if archive.compressed(name):
        raise ValueError(
            f"{archive.path}: expected members as torch.save writes them, got {name} compressed; "
            "read the file with torch.load and torch.save it again"
        )
    return archive.read(name)


def _pickled(
    where: str, tree: Any, storages: Storages, order: str, budget: Budget
) -> dict[str, LazyTensor]:
    """Return the tensors of a pickled dict or module."""
    if isinstance(tree, PickledTensor) or not isinstance(tree, (dict, Skipped)):
        kind = "tensor" if isinstance(tree, PickledTensor) else type(tree).__name__
        raise ValueError(f"{where}: expected a state dict, got a {kind}; save state_dict()")
    if isinstance(tree, Skipped) and not any(True for _ in tree.children()):
        raise ValueError(
            f"{where}: expected a state dict or a module, got an object of class {tree.name}, "
            "which is not made here: nothing in a file is executed; save model.state_dict()"
        )

    def lazy(name: str, value: Any) -> LazyTensor:
        if isinstance(value, Skipped):
            return unreadable(value.name)
        if isinstance(value, PickledArray):
            known = (id(value), value.storage, value.problem)
            return LazyTensor(value.shape, value.dtype, value.read, *known)
        if not isinstance(value, PickledTensor):
            return unreadable(f"a {type(value).__name__}")
        storage = value.storage
        small = storage.size * element_bytes(storage.dtype) if storage.dtype in FLOATS else 0
        return LazyTensor(
            value.shape,
            storage.dtype,
            partial(read_pickled, where, storages, order, name, value),
            value,
            (storage.key, small),
        )

    # A module has None for a bias that it does not have.
    found = ((name, value) for name, value in _tensors(tree, where, budget) if value is not None)
    return _by_name(where, ((name, lazy(name, value)) for name, value in found))


def read_pickled(
    where: str, storages: Storages, order: str, name: str, tensor: PickledTensor
) -> np.ndarray:
    """Return a tensor's elements, a view of its storage."""
    (key, dtype, size), offset, shape, strides = tensor
    element = np.dtype("u2" if dtype == "bfloat16" else dtype)
    data = storages(key)
    if len(data) != size * element.itemsize:
        raise ValueError(
            f"{where}: expected {size} elements of {dtype} in data/{key}, got {len(data)} bytes"
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
            f"{where}: expected {name} inside its storage of {size} elements, got shape "
            f"{shape} at {offset} with strides {tensor.strides}"
        )
    flat = np.frombuffer(data, element.newbyteorder("<" if order == "little" else ">"))
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [s * element.itemsize for s in strides], writeable=False
    )
    return widened(view, dtype)


def widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array, bfloat16 from its bits as float32, which has all of its numbers."""
    if dtype != "bfloat16":
        return array
    wide = array.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
