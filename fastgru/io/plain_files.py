"""Opens the files that users name: plain files only, inside their folders where some are given."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Collection
    from os import PathLike

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_plain(
    path: str | PathLike[str], within: Collection[Path] = ()
) -> tuple[BinaryIO, os.stat_result]:
    """Open a plain file for reading; the caller closes it.

    What has the name is looked at first, since a device may do something when it is opened. Then
    the open file is checked, because somebody may have put something else there in between.

    Parameters
    ----------
    path : path
    within : collection of Path
        Real paths of folders. The file must lie in one of them, also after links are followed. By
        default it may lie anywhere.

    Returns
    -------
    file : binary file
    status : os.stat_result
        Of the open file.

    Raises
    ------
    ValueError
        It is a pipe, device, socket or folder, has no size, or lies outside the folders.
    OSError
        It is not there, or may not be read.
    """
    if "\0" in os.fspath(path):
        raise ValueError(f"expected the name of a file, got {os.fspath(path)!r}")
    _expect_plain(path, os.stat(path))
    flags = os.O_RDONLY
    # Without O_NONBLOCK, opening a pipe waits for a writer; O_NOCTTY is for terminals.
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # which a system has
        flags |= getattr(os, flag, 0)
    handle = os.open(path, flags)
    try:
        status = os.fstat(handle)
        _expect_plain(path, status)
        try:
            os.lseek(handle, 0, os.SEEK_END)
            os.lseek(handle, 0, os.SEEK_SET)
        except OSError:  # as in Linux' /proc, where files say 0 bytes and have more
            raise ValueError(
                f"{path}: expected a plain file, got one of the system, whose size is not known"
            ) from None
        if within and not _inside(Path(path), within, status):
            raise ValueError(
                f"{path}: expected a file in the model's folder, got a link that leads out of it; "
                "put a copy of the file in its place"
            )
        return os.fdopen(handle, "rb"), status
    except BaseException:
        os.close(handle)
        raise


def _expect_plain(path: str | PathLike[str], status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"{path}: expected a plain file, got {_KINDS.get(kind, 'something else')}")


def _inside(path: Path, folders: Collection[Path], status: os.stat_result) -> bool:
    """Say whether an open file is, by its real path, in one of some folders."""
    real = path.resolve()
    try:
        there = real.stat()
    except OSError:
        return False
    same = (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
    return same and any(real.is_relative_to(folder) for folder in folders)
