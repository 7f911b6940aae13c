"""Zip archives and JSON from files that may be hostile: sizes and depths have limits."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

# All members together may unpack to so many times the file's size. Weights hardly compress, configs
# by a factor of twenty.
MOST_GROWTH = 100
FREE_BYTES = 16 << 20  # members that unpack to less than this may grow by any factor
_LOCAL_HEADER_BYTES = 30  # without the name
# Nested brackets of JSON: a cell in a cell adds three, a model in a model four.
MOST_NESTED = 250
LONGEST_FILE_NAME = 255  # bytes, in most file systems


def parse_json(text: str | bytes) -> Any:
    """Return the objects of a JSON text that describes layers.

    Python's limit on nesting depends on its version, and nested layers take more of its stack than
    nested brackets do. So this function has a limit of its own.

    Raises
    ------
    ValueError
        The text is not JSON, or is nested deeper than the config of any layer.
    """
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


def file_beside(path: Path, name: Any) -> Path:
    """Return a plain file that a model's index names, in the folder of the index.

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
    file = path.parent / name
    if not file.is_file():
        raise ValueError(f"{path}: expected the file {name[:200]} beside it, found none")
    # A cache keeps the index and its files as links into one other folder.
    if file.resolve().parent not in {path.absolute().parent.resolve(), path.resolve().parent}:
        raise ValueError(
            f"{path}: expected files in its folder, got a link to {name[:200]} elsewhere"
        )
    return file


class Archive:
    """A zip file whose members are read whole, each of the size that its directory gives.

    Parameters
    ----------
    path : path

    Raises
    ------
    ValueError
        The file is not a zip file, its directory is damaged, two members have one name, a name
        leads out of the archive, members overlap, or they unpack to much more than the file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path}: expected a zip file, got {error}") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            self._check(size)
        except ValueError:
            self._zip.close()
            raise

    def _check(self, size: int) -> None:
        total = 0
        end = 0
        for member in self._zip.infolist():
            name = member.filename
            parts = PurePosixPath(name).parts
            if name in self._members or name.startswith("/") or ".." in parts or "\\" in name:
                raise ValueError(f"{self.path}: expected plain unique member names, got {name!r}")
            total += member.file_size
            self._members[name] = member
        if total > FREE_BYTES and total > MOST_GROWTH * size:
            raise ValueError(
                f"{self.path}: its members would unpack from {size} to {total} bytes; a file that "
                "holds weights does not"
            )
        # Members that share bytes would unpack to many times the file.
        for member in sorted(self._members.values(), key=lambda member: member.header_offset):
            if member.header_offset < end:
                raise ValueError(f"{self.path}: {member.filename!r} overlaps another member")
            end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size

    @property
    def names(self) -> list[str]:
        """Names of the members, in the file's order."""
        return list(self._members)

    def compressed(self, name: str) -> bool:
        """Say whether a member is compressed."""
        return self._member(name).compress_type != zipfile.ZIP_STORED

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            few = ", ".join(self.names[:20])
            raise ValueError(f"{self.path}: expected a member {name}, got {few}")
        return self._members[name]

    def read(self, name: str) -> bytes:
        """Return a member's bytes; ValueError unless they are as many as the directory says."""
        member = self._member(name)
        try:
            with self._zip.open(member) as file:
                data = file.read(member.file_size)
                if len(data) != member.file_size or file.read(1):
                    raise ValueError(
                        f"{self.path}: {name} is not the {member.file_size} bytes it should be"
                    )
                return data
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            RuntimeError,
            OSError,
            OverflowError,
        ) as error:
            raise ValueError(f"{self.path}: {name} cannot be unpacked: {error}") from None
        except Exception as error:
            if type(error).__module__ in ("zlib", "lzma", "bz2", "_bz2", "_lzma"):
                raise ValueError(f"{self.path}: {name} cannot be unpacked: {error}") from None
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
