"""Models in several files: the index that names them, and a file of them that stands alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fastgru.io.bounded import file_beside, parse_json
from fastgru.io.budget import Budget
from fastgru.io.bundle import read_file

MOST_INDEX_BYTES = 8 << 20
MOST_FILES = 500  # all are open at once, and many systems allow 1024
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.[A-Za-z]+)")


class Index(NamedTuple):
    """An index: its folder, the names of the tensors in each file, and its metadata."""

    folder: Path
    files: dict[str, set[str]]
    metadata: dict[str, str]


def read_index(path: Path, budget: Budget) -> Index:
    """Return the index of a model in several files, ``model.safetensors.index.json``.

    Raises
    ------
    ValueError
        The file is no such index, or names files outside its folder, or files that are not there.
    """
    text = read_file(budget, path, MOST_INDEX_BYTES)
    try:
        index = parse_json(text, budget)
    except ValueError as error:
        raise ValueError(f"{path}: expected an index of a model's files, got {error}") from None
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(
            f"{path}: expected an index of a model's files, with a weight_map of names and files, "
            "got other JSON"
        )
    files: dict[str, set[str]] = {}
    for name, file in names.items():
        files.setdefault(file, set()).add(name)
        if len(files) > MOST_FILES:
            raise ValueError(f"{path}: expected at most {MOST_FILES} files, got more")
    for file in files:
        if file_beside(path, file, budget).name.endswith(".json"):  # it could name itself
            raise ValueError(
                f"{path}: expected names of files with weights, got another index, {file}"
            )
    metadata = index.get("metadata")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return Index(path.parent, files, {k: v for k, v in pairs if isinstance(v, str)})


def refuse_shard(path: Path) -> None:
    """Raise ValueError if a file is one of several that a model was divided into."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match[3]) > 1:
        index = f"{match[1]}{match[4]}.index.json"
        raise ValueError(
            f"{path}: expected a whole model, got file {int(match[2])} of {int(match[3])}; pass "
            f"the index that names them all, {path.with_name(index)}"
        )
    if not path.is_file():
        return
    for beside in sorted(path.parent.glob("*.index.json"))[:20]:
        budget = Budget(str(beside))
        budget.stay_beside(path)  # the file that the user named
        try:
            index_of = read_index(beside, budget)
        except (ValueError, OSError):
            continue  # it is not what the caller asked for
        if len(index_of.files) > 1 and path.name in index_of.files:
            raise ValueError(
                f"{path}: expected a whole model, got one of {len(index_of.files)} files; pass the "
                f"index that names them all, {beside}"
            )
