"""Every tensor of a file of torch.save, for `fastgru.io.read_arrays`."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.bounded import Archive
from fastgru.io.torch_legacy import LegacyFile, is_legacy
from fastgru.io.torch_numpy import read_pickled_npy
from fastgru.io.torch_pickle import load_pickle
from fastgru.io.torch_pickle_numpy import PickledArray
from fastgru.io.torch_pickle_objects import PickledTensor, Skipped
from fastgru.io.torch_source import DEEPEST, no_storage, read_pickled, storages_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastgru.io.budget import Budget
    from fastgru.io.torch_source import Storages


def every_tensor(path: Path, budget: Budget) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """Yield name, bytes in memory and reader of each tensor; the file is open meanwhile."""
    where = str(path)
    storages: Storages
    with ExitStack() as stack:
        with budget.open(path) as file:
            head = file.read(32)
        if head.startswith(b"\x93NUMPY"):
            tree, order, storages = read_pickled_npy(path, budget), "little", no_storage
        elif is_legacy(head):
            legacy = stack.enter_context(LegacyFile(path, budget))
            tree, order = legacy.tree, legacy.order
            storages = legacy.read
        else:
            archive = stack.enter_context(Archive(path, budget))
            pickled, storages, order = storages_of(archive)
            tree = load_pickle(pickled, where, budget)
        found = list(_named(tree, where, budget))
        if not found:
            raise ValueError(
                f"{where}: expected arrays or tensors, got Python objects alone, which would have "
                "to be executed; load it where you trust it and save its arrays"
            )
        for name, tensor in found:
            if isinstance(tensor, PickledArray):
                if not tensor.problem:
                    yield name, tensor.storage[1], tensor.read
                continue
            dtype = tensor.storage.dtype
            try:
                form = np.dtype("float32" if dtype == "bfloat16" else dtype)
            except TypeError:  # quantized
                continue
            if form.kind in "fiubc":
                read = partial(read_pickled, where, storages, order, name, tensor)
                yield name, math.prod(tensor.shape) * form.itemsize, read


def _named(
    tree: Any, where: str, budget: Budget
) -> Iterator[tuple[str, PickledTensor | PickledArray]]:
    """Yield the tensors of dicts, lists and modules in each other, with joined names."""
    seen: set[int] = set()
    left: list[tuple[str, Any, int]] = [("", tree, 0)]
    while left:
        prefix, value, depth = left.pop()
        if isinstance(value, (PickledTensor, PickledArray)):
            yield prefix or "tensor", value
            continue
        if isinstance(value, dict):
            children: Any = value.items()
        elif isinstance(value, (list, tuple)):
            children = enumerate(value)
        elif isinstance(value, Skipped):
            children = value.children()
        else:
            continue
        if id(value) in seen:  # a pickle may contain a dict twice, or inside itself
            continue
        seen.add(id(value))
        if depth > DEEPEST:
            raise ValueError(
                f"{where}: expected objects at most {DEEPEST} deep, got {prefix[:80]!r}"
            )
        below = []
        for key, part in children:
            if isinstance(part, (PickledTensor, PickledArray, dict, list, tuple, Skipped)):
                name = str(key) if isinstance(key, (str, int, float, type(None))) else "?"
                if len(name) + len(prefix) > 4096:
                    raise ValueError(f"{where}: expected shorter names, got {name[:80]!r}...")
                budget.make_objects(2, len(prefix) + len(name))
                below.append((f"{prefix}.{name}" if prefix else name, part, depth + 1))
        left += reversed(below)
