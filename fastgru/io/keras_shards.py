"""Weights that Keras 3 saved with ``max_shard_size=``: a ``.weights.json`` beside HDF5 files."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io import hdf5
from fastgru.io.bounded import file_beside, parse_json
from fastgru.io.bundle import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

    from fastgru.io.budget import Budget

SHARDED = ".weights.json"  # the end of the index's name
_MOST_SHARDS = 1000
_MOST_INDEX = 16 << 20


class ShardedFile(NamedTuple):
    """What errors and bounds need of the files together.

    ``known`` has each group by the identities of its parts: one that has many names is one object.
    """

    place: str
    size: int
    budget: Budget
    known: dict[tuple[int, ...], ShardedGroup]


class ShardedGroup:
    """The groups of one name in several files, as one; see `fastgru.io.hdf5.Group`.

    Attributes
    ----------
    groups : list of Group
        Those of each file.
    """

    def __init__(self, file: ShardedFile, groups: list[hdf5.Group], path: str) -> None:
        self.file, self.groups, self.path = file, groups, path
        self.place = f"{file.place}: {path}"
        self._below: dict[str, ShardedGroup | None] = {}

    @cached_property
    def names(self) -> list[str]:
        """Names of the members, of all files."""
        if len(self.groups) == 1:
            return self.groups[0].names
        self.file.budget.step(sum(len(group.names) for group in self.groups), self.path)
        return sorted({name for group in self.groups for name in group.names})

    @property
    def attributes(self) -> set[str]:
        """Names of the attributes, of all files."""
        return {name for group in self.groups for name in group.attributes}

    def attribute(self, name: str) -> Any:
        """Return an attribute; None if no file has it."""
        values = (group.attribute(name) for group in self.groups)
        return next((value for value in values if value is not None), None)

    def group(self, path: str) -> ShardedGroup | None:
        """Return the group at a path below this one; None if there is none."""
        if path not in self._below:
            found = [g for g in (group.group(path) for group in self.groups) if g is not None]
            self._below[path] = self._known(found, path) if found else None
        return self._below[path]

    def _known(self, groups: list[hdf5.Group], path: str) -> ShardedGroup:
        key = tuple(map(id, groups))
        if key not in self.file.known:
            self.file.known[key] = ShardedGroup(self.file, groups, path)
        return self.file.known[key]

    def get(self, path: str) -> Any:
        """Return what is at a path below this group; None if there is nothing."""
        found = (group.get(path) for group in self.groups)
        return next((one for one in found if isinstance(one, hdf5.Array)), None)

    def array(self, path: str) -> np.ndarray:
        """Return the array at a path below this group; ValueError if there is none or several."""
        found = [one for one in (g.get(path) for g in self.groups) if isinstance(one, hdf5.Array)]
        if len(found) != 1:
            raise ValueError(f"{self.place}: expected one array {path}, got {len(found)}")
        return found[0].read()


@contextmanager
def shards(path: Path, budget: Budget) -> Iterator[ShardedGroup]:
    """Open the files that an index names, all in its folder, as one group.

    Raises
    ------
    ValueError
        The index is not JSON, names files elsewhere, or a file is missing.
    """
    try:
        index = parse_json(read_file(budget, path, _MOST_INDEX), budget)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: expected a weight_map, as Keras writes it, got none")
    names: dict[str, None] = {}
    for value in weights.values():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                raise ValueError(
                    f"{path}: expected names of files in its folder, got {name!r:.200}"
                )
            names[name] = None
    if len(names) > _MOST_SHARDS:
        raise ValueError(f"{path}: expected at most {_MOST_SHARDS} files, got {len(names)}")
    with ExitStack() as stack:
        files = []
        for name in names:
            shard = file_beside(path, name, budget)
            file = stack.enter_context(budget.open(shard))
            files.append(hdf5.File(file, str(shard), budget))
        whole = ShardedFile(str(path), sum(file.size for file in files), budget, {})
        yield ShardedGroup(whole, [file.root for file in files], "/")
