"""Opens the files that users name: plain files only, inside their folder where one is given."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from os import PathLike

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_plain(
    path: str | PathLike[str], within: Path | None = None
) -> tuple[BinaryIO, os.stat_result]:
    """Open a plain file for reading; the caller closes it.

    The open file is checked, not its name, so that nobody can put something else there in between.

    Parameters
    ----------
    path : path
    within : Path, optional
        The folder that the file must lie in, also after links are followed.

    Returns
    -------
    file : binary file
    status : os.stat_result
        Of the open file.

    Raises
    ------
    ValueError
        It is a pipe, device, socket or folder, or lies outside the folder.
    OSError
        It is not there, or may not be read.
    """
    if "\0" in os.fspath(path):
        raise ValueError(f"expected the name of a file, got {os.fspath(path)!r}")
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(
                f"{path}: expected a plain file, got {_KINDS.get(kind, 'something else')}"
            )
        if within is not None and not _inside(Path(path), within, status):
            raise ValueError(
                f"{path}: expected a file in the folder {within}, got a link that leads out of it"
            )
        return os.fdopen(handle, "rb"), status
    except BaseException:
        os.close(handle)
        raise


def _inside(path: Path, folder: Path, status: os.stat_result) -> bool:
    """Say whether an open file is, by its real path, in a folder."""
    real = path.resolve()
    try:
        there = real.stat()
    except OSError:
        return False
    same = (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
    return same and real.is_relative_to(folder.resolve())
