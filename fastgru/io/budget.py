"""What reading one model may cost: memory and steps, in proportion to the bytes of its files.

A small file can name one tensor a thousand times, or join one long name with all others. So a
reader counts what it makes, and not only what it reads. One `Budget` goes through all functions
that read one model. It opens the files, and each function tells it of memory before it makes it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastgru.io.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

GROWTH = 4  # bytes made for each byte of the files
# Made whatever the files' size. 64 MB are promised; what nobody counts takes a few of them.
FREE_BYTES = 60 << 20
# An object of Python with its place in a list or dict, without what it contains.
OBJECT_BYTES = 100
# Steps are pieces of work in Python that take a microsecond or two: an object visited, a name
# compared, an instruction of a pickle.
FREE_STEPS = 1 << 19
BYTES_PER_STEP = 128
LAYER_STEPS = 500  # to build a layer takes half a millisecond

LONGEST_NAME = 300  # characters of a name in a message
LONGEST_MESSAGE = 2000


class BudgetError(ValueError):
    """A file would take more memory or time than files of its size do."""


class Budget:
    """The memory and the steps that reading one model may still take, and the model's files.

    Parameters
    ----------
    where : str
        The model's name in messages.
    max_bytes : int, optional
        Bytes that may be made; by default `FREE_BYTES` and `GROWTH` times those of the files. More
        of them allow more steps too, as larger files do.

    Attributes
    ----------
    size : int
        Bytes of the files opened so far.
    members : list of Path
        The model's files: those opened so far, and others that it names.

    Raises
    ------
    ValueError
        ``max_bytes`` is negative.
    TypeError
        It is no integer.
    """

    def __init__(self, where: str, max_bytes: int | None = None) -> None:
        if max_bytes is not None:
            if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
                raise TypeError(f"max_bytes: expected an integer or None, got {max_bytes!r}")
            if max_bytes < 0:
                raise ValueError(f"max_bytes: expected bytes, 0 or more, got {max_bytes}")
        self.where = where
        self.size = 0
        self.members: list[Path] = []
        self._limit = max_bytes
        self._made = self._steps = 0
        self._files: set[tuple[int, int]] = set()
        self._folders: tuple[Path, ...] = ()

    def add(self, nbytes: int) -> None:
        """Count bytes that the model's files have."""
        self.size += nbytes

    def stay_in(self, *folders: Path) -> None:
        """Open from now on only files in these folders, also after links are followed.

        The first call counts: what a file says does not open more folders.
        """
        self._folders = self._folders or tuple(folder.resolve() for folder in folders)

    def stay_beside(self, path: Path) -> None:
        """Open from now on only files of a model's folder.

        Parameters
        ----------
        path : Path
            The folder, or the file by which the user named a model of several files. If that file
            is a link, the others may lie where it leads: a cache keeps all of them in one folder
            and has links to them in another.
        """
        if self._folders:
            return
        if path.is_dir():
            self.stay_in(path)
        else:
            self.stay_in(path.absolute().parent, path.resolve().parent)

    def open(self, path: str | PathLike[str]) -> BinaryIO:
        """Open a plain file for reading and count its size, once however often it is opened.

        Raises
        ------
        ValueError
            It is no plain file, or a link leads out of the model's folder.
        """
        file, status = open_plain(path, self._folders)
        if (key := (status.st_dev, status.st_ino)) not in self._files:
            self._files.add(key)
            self.members.append(Path(path))
            self.add(status.st_size)
        return file

    def make(self, nbytes: int, what: str = "") -> None:
        """Count bytes before they are made; ValueError if they are too many.

        ``what`` names the place in the file, for the message.
        """
        self._made += nbytes
        most = FREE_BYTES + GROWTH * self.size if self._limit is None else self._limit
        if self._made > most:
            raise BudgetError(
                f"{self._at(what)} would take more than {most} bytes of memory "
                f"from files of {self.size}, which a file of weights does not; where you trust the "
                "file, pass a larger max_bytes"
            )

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Forget at the end what was made inside the block: it is not kept."""
        before = self._made
        try:
            yield
        finally:
            self._made = before

    def make_objects(self, count: int, nbytes: int = 0, what: str = "") -> None:
        """Count small objects of Python, which contain ``nbytes`` in all, and a step for each."""
        self.step(count, what)
        self.make(count * OBJECT_BYTES + nbytes, what)

    def _at(self, what: str) -> str:
        what = short(what)
        return what if what.startswith(self.where) else f"{self.where}: {what or 'it'}"

    def step(self, count: int = 1, what: str = "") -> None:
        """Count work before it is done; ValueError if it is too much for files of this size."""
        self._steps += count
        if self._steps <= FREE_STEPS:  # as in nearly all files
            return
        trusted = 0 if self._limit is None else (self._limit - FREE_BYTES) // GROWTH
        if self._steps > FREE_STEPS + max(self.size, trusted) // BYTES_PER_STEP:
            raise BudgetError(
                f"{self._at(what)} has more parts to visit than files of "
                f"{self.size} bytes with weights in them have: the same ones over and over, or "
                "very many empty ones; where you trust the file, pass a larger max_bytes"
            )


@contextmanager
def reading(where: object, max_bytes: int | None = None) -> Iterator[Budget]:
    """Give a `Budget` for one model, and cut the errors of its readers to a length for people.

    The text of a ValueError may have names from the file, as long as the file likes.
    """
    try:
        yield Budget(str(where), max_bytes)
    except ValueError as error:
        text = str(error)
        cut = short_message(text)
        if cut == text:
            raise
        raise ValueError(cut) from None  # some of its subclasses take other arguments


def text_bytes(text: str) -> int:
    """Return at most how many bytes the characters of a text take."""
    return len(text) if text.isascii() else 4 * len(text)


def short(name: object) -> str:
    """Return a name from a file for a message, its middle left out if it is long."""
    text = str(name)
    if len(text) <= LONGEST_NAME:
        return text
    half = LONGEST_NAME // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return the first names, joined, for a message; each is short, and "..." says of more."""
    parts: list[str] = []
    for name in names:
        if len(parts) == most:
            parts.append("...")
            break
        parts.append(short(name))
    return ", ".join(parts)


def short_message(text: str) -> str:
    """Return a message of at most `LONGEST_MESSAGE` characters, in which each word is short."""
    if len(text) > LONGEST_NAME:
        head = text if len(text) <= 4 * LONGEST_MESSAGE else text[: 4 * LONGEST_MESSAGE]
        head = re.sub(rf"\S{{{LONGEST_NAME + 1},}}", lambda word: short(word[0]), head)
        if len(head) > LONGEST_MESSAGE or len(text) > 4 * LONGEST_MESSAGE:
            return f"{head[: LONGEST_MESSAGE - 4]} ..."
        return head
    return text
