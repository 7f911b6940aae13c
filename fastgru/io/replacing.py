"""How fastgru writes every file: complete under another name, then put in its place."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Give a new file, open for reading and writing, that gets the name ``path`` at the end.

    Until then it has a random name in the same folder. It is made new, so nothing is written
    through a link that somebody has put there. At the end it is on the disk, and takes the place of
    an older file in one step. After an error it is removed, and an older file is as it was.

    The new file has the older one's permissions, and its owner and group where the system allows
    that; a file without a predecessor has those of the umask. A link at ``path`` is refused,
    because what the user has there is a name of another file. If somebody makes one during the
    work, the link is replaced and not the file that it leads to.

    Parameters
    ----------
    path : path

    Yields
    ------
    binary file
        Write through it, and not by its name. It is closed here.

    Raises
    ------
    ValueError
        There is a link, a folder, a device or a pipe, or no folder for it. Nothing is done.
    OSError
        The folder cannot be written, the disk is full, ...
    """
    path = Path(path)
    before = expect_replaceable(path)
    beside = path.with_name(f".fastgru-{secrets.token_hex(8)}.part")
    new = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # which a system has
        new |= getattr(os, flag, 0)
    # What will be as private as its predecessor is not readable before.
    handle = os.open(beside, new, 0o666 if before is None else 0o600)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if before is not None:
                _keep_access(file.fileno(), before)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def expect_other_file(path: str | PathLike[str], sources: Iterable[str | PathLike[str]]) -> None:
    """Raise ValueError if writing ``path`` would replace one of the files that are read.

    Hard links, symbolic links and other spellings of a name are the same file. If a source is a
    folder, all files in it are read.
    """
    try:
        status = os.stat(path)
    except OSError:  # nothing is replaced
        return
    for source in sources:
        try:
            same = os.path.samestat(status, os.stat(source))
        except (OSError, ValueError):  # what is not there, or can have no such name
            continue
        folder = Path(source).is_dir()
        if same or (folder and _in_folder(Path(path), status, Path(source))):
            raise ValueError(
                f"{path}: expected the name of another file, got that of "
                f"{'a file in ' if folder else ''}the input {source}"
            )


def expect_nothing_there(path: str | PathLike[str]) -> None:
    """Raise ValueError if a file is there, for commands that were not told to replace it."""
    if os.path.lexists(path):
        raise ValueError(f"{path}: expected no such file, got one; pass --force to replace it")


def _in_folder(path: Path, status: os.stat_result, folder: Path) -> bool:
    """Say whether a file lies in a folder, under any of its names."""
    if path.resolve().is_relative_to(folder.resolve()):
        return True
    return status.st_nlink > 1 and any(
        os.path.samestat(status, os.lstat(os.path.join(below, name)))
        for below, _, names in os.walk(folder)
        for name in names
    )


def expect_replaceable(path: str | PathLike[str]) -> os.stat_result | None:
    """Return the status of the file that `replacing` would replace, None if there is none.

    What makes a file calls this before it begins, so that no work is lost.

    Raises
    ------
    ValueError
        There is something else, or no folder for it.
    """
    path = Path(path)
    if not path.name or "\0" in str(path):
        raise ValueError(f"{str(path)!r}: expected the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected its folder to exist")
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise ValueError(
            f"{path}: expected a file or nothing there, got a link to {os.readlink(path)}; give "
            "the file's own name, or remove the link"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: expected a file or nothing there, found something else")
    return status


def _keep_access(handle: int, before: os.stat_result) -> None:
    """Give a file its predecessor's permissions, and where possible its owner and group."""
    if not hasattr(os, "fchmod"):  # Windows: permissions are the folder's
        return
    mode = stat.S_IMODE(before.st_mode) & 0o777
    mine = os.fstat(handle)
    if mine.st_gid != before.st_gid:
        try:
            os.fchown(handle, -1, before.st_gid)
        except OSError:  # then another group must not get what the old group was allowed
            mode = mode & 0o707 | (mode & 0o007) << 3
    if mine.st_uid != before.st_uid:
        with suppress(OSError):  # only an administrator may give a file away
            os.fchown(handle, before.st_uid, -1)
    os.fchmod(handle, mode)


def _sync_folder(folder: Path) -> None:
    """Write the folder's new entry to the disk."""
    # Not all systems and file systems can; the file is complete in any case.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
