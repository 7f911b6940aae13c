"""Zip archives and JSON from files that may be hostile: sizes and depths have limits."""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from fastgru.io.budget import BudgetError, listed, short

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from fastgru.io.budget import Budget

# What Keras, PyTorch and NumPy write. Other methods unpack in leaps that nobody can foresee.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER_BYTES = 30  # without the name
_ENTRY_BYTES = 46  # of an entry in the directory, without the name
_ENTRY_OBJECTS, _ENTRY_STEPS = 6, 4  # that Python makes of an entry, and the time it takes
_MOST_AXES = 32
_READ_STEPS = 30  # to open a member
# Nested brackets of JSON: a cell in a cell adds three, a model in a model four.
MOST_NESTED = 250
_LONG_JSON = 1 << 20
_TEXT_STEPS, _PARSED_IN_A_STEP = 20, 256  # for any text, and bytes
_PIECE = 1 << 18  # bytes of a zip file's member that are unpacked at once
# Possessive, so that each byte is looked at once.
_VOCABULARY = re.compile(
    r'\[(?:\s*+(?:"(?:[^"\\]++|\\.)*+"|[-\d][-+.\deE]*+)\s*+,?+){4096,}+\s*+\]', re.DOTALL
)
_VOCABULARY_BYTES = re.compile(_VOCABULARY.pattern.encode(), re.DOTALL)
LONGEST_FILE_NAME = 255  # bytes, in most file systems


def check_shape(shape: Sequence[int], place: str) -> None:
    """Raise ValueError for a shape that no array can have, even if it has no elements.

    Parameters
    ----------
    shape : sequence of int
    place : str
        Where it stands, for the message.
    """
    if len(shape) > _MOST_AXES or math.prod(n for n in shape if n) >= 1 << 57:
        raise ValueError(
            f"{place}: expected at most {_MOST_AXES} axes, together below 2**57, got shape "
            f"{short(tuple(shape))}"
        )


def parse_json(text: str | bytes, budget: Budget, what: str = "JSON") -> Any:
    """Return the objects of a JSON text that describes layers.

    Python's limit on nesting depends on its version, and nested layers take more of its stack than
    nested brackets do. So this function has a limit of its own. The memory of the objects is
    estimated from the text before they are made. In a text of more than a megabyte lists of
    thousands of words or numbers become empty: they are vocabularies and the like, of other layers.

    Parameters
    ----------
    text : str or bytes
    budget : Budget
    what : str
        What the text is, for messages about the budget.

    Raises
    ------
    ValueError
        The text is not JSON, has more objects than the budget, or is nested deeper than the config
        of any layer.
    """
    budget.step(_TEXT_STEPS + len(text) // _PARSED_IN_A_STEP, what)
    if len(text) > _LONG_JSON:
        text = _without_vocabularies(text)
    budget.make(_json_bytes(text), what)
    deep = f"nested deeper than any layer's config: expected at most {MOST_NESTED} brackets"
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError(deep) from None
    level, depth = [parsed], 0
    while level:
        containers = [part for part in level if isinstance(part, (dict, list))]
        depth += bool(containers)
        if depth > MOST_NESTED:
            raise ValueError(deep)
        level = [part for c in containers for part in (c.values() if isinstance(c, dict) else c)]
    return parsed


def _without_vocabularies(text: Any) -> Any:
    if isinstance(text, str):
        return _VOCABULARY.sub("[]", text)
    return _VOCABULARY_BYTES.sub(b"[]", text)


def _json_bytes(text: str | bytes) -> int:
    """Return how much memory the objects of a JSON text may take, by the signs in it."""
    braces, brackets, commas, colons, quotes = (
        text.count(sign if isinstance(text, str) else sign.encode())  # type: ignore[arg-type]
        for sign in '{[,:"'
    )
    # Strings and numbers stand between commas. Signs inside of strings only add to the estimate.
    numbers = max(commas + braces + brackets - quotes // 2 + colons, 0)
    # A character beyond Latin-1, also one that is escaped, makes all others of its text as wide.
    escape: Any = "\\u" if isinstance(text, str) else b"\\u"
    width = 8 if not text.isascii() else 6 if escape in text else 2
    objects = 64 * (braces + brackets) + 120 * colons + 26 * quotes + 16 * commas + 32 * numbers
    return width * len(text) + objects


class _CountedFile:
    """A file of which Python reads a zip file's directory, at once and however long it is."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self.file = file
        self.budget: Budget | None = budget  # None when the directory is read
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, as many as there are; they are entries of the directory."""
        if self.budget is not None and count >= _ENTRY_BYTES:
            entries = count // _ENTRY_BYTES
            self.budget.step(_ENTRY_STEPS * entries, "its directory")
            self.budget.make_objects(_ENTRY_OBJECTS * entries, count, "its directory")
        return self.file.read(count)


def file_beside(path: Path, name: Any, budget: Budget) -> Path:
    """Return a plain file that a model's index names, in the folder of the index.

    From then on the budget opens files of that folder only.

    Raises
    ------
    ValueError
        The name leads elsewhere, by itself or by a link, or no plain file has it.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(sign in name for sign in "/\\:\0")
        or len(os.fsencode(name)) > LONGEST_FILE_NAME
    ):
        raise ValueError(f"{path}: expected names of files in its folder, got {str(name)[:200]!r}")
    budget.stay_beside(path)
    file = path.parent / name
    if not file.is_file():
        raise ValueError(f"{path}: expected the file {name[:200]} beside it, found none")
    # A cache keeps the index and its files as links into one other folder.
    if file.resolve().parent not in {path.absolute().parent.resolve(), path.resolve().parent}:
        raise ValueError(
            f"{path}: expected files in its folder, got a link to {name[:200]} elsewhere"
        )
    budget.members.append(file)
    return file


class Archive:
    """A zip file whose members are read whole, each of the size that its directory gives.

    Parameters
    ----------
    path : path
    budget : Budget

    Raises
    ------
    ValueError
        The file is not a zip file, its directory is damaged, two members have one name, a name
        leads out of the archive, members overlap, or are compressed in another way than deflate.
    """

    def __init__(self, path: str | PathLike[str], budget: Budget) -> None:
        self.path, self.budget = Path(path), budget
        self._file = budget.open(self.path)
        try:
            self._members = self._directory()
        except BaseException:
            self._file.close()
            raise

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        counted = _CountedFile(self._file, self.budget)
        try:
            self._zip = zipfile.ZipFile(counted)
        except BudgetError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            # What Python raises for a damaged directory, or one of another kind of zip file.
            raise ValueError(
                f"{self.path}: expected a zip file, got a part of one or a damaged one: {error}"
            ) from None
        counted.budget = None
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            name = member.filename
            parts = PurePosixPath(name).parts
            if name in members or name.startswith("/") or ".." in parts or "\\" in name:
                raise ValueError(
                    f"{self.path}: expected plain unique member names, got {short(name)!r}"
                )
            members[name] = member
        # Members that share bytes would unpack to many times the file.
        end = 0
        for member in sorted(members.values(), key=lambda member: member.header_offset):
            if member.header_offset < end:
                raise ValueError(f"{self.path}: {short(member.filename)!r} overlaps another member")
            end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
        return members

    @property
    def names(self) -> list[str]:
        """Names of the members, in the file's order."""
        return list(self._members)

    def compressed(self, name: str) -> bool:
        """Say whether a member is compressed."""
        return self._member(name).compress_type != zipfile.ZIP_STORED

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise ValueError(
                f"{self.path}: expected a member {short(name)}, got {listed(self._members)}"
            )
        return self._members[name]

    def read(self, name: str) -> bytes:
        """Return a member's bytes; ValueError unless they are as many as the directory says."""
        member = self._member(name)
        place = f"{self.path}: {short(name)}"
        if member.compress_type not in _METHODS:
            raise ValueError(
                f"{place}: expected it stored or deflated, got method {member.compress_type} "
                "of zip; unpack the file and pack it so"
            )
        self.budget.step(_READ_STEPS, name)
        self.budget.make(member.file_size, name)
        # In pieces, into room that is made once, and without a copy at the end: unpacked at once it
        # would take twice as much.
        whole = io.BytesIO()
        try:
            with self._zip.open(member) as file:
                whole.seek(max(member.file_size - 1, 0))
                whole.write(b"\0" * min(member.file_size, 1))
                whole.seek(0)
                while piece := file.read(_PIECE):
                    whole.write(piece)
                    if whole.tell() > member.file_size:
                        break
            if whole.tell() != member.file_size:
                raise ValueError(f"{place} is not the {member.file_size} bytes it should be")
            return whole.getvalue()
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            EOFError,
            RuntimeError,
            OSError,
            OverflowError,
        ) as error:
            raise ValueError(f"{place} cannot be unpacked: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
