"""What the command line prints: lines, in which nothing of a file can steer the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_WIDEST = 200  # characters of a column


def printable(text: object) -> str:
    """Return a text with escapes, as in Python's strings, for all characters that are no signs.

    These are control characters (escape, carriage return, newline, ...), marks that turn the
    direction of writing, invisible ones and those that cannot be encoded.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def say(lines: Iterable[object], file: TextIO | None = None) -> None:
    """Print lines to stdout, or to a file; a newline in one of them is escaped."""
    file = sys.stdout if file is None else file
    text = "\n".join(map(printable, lines))
    known = file.encoding or "utf-8"  # a terminal may have no sign for a letter
    print(text.encode(known, "backslashreplace").decode(known), file=file)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text as lines with aligned columns; the first row is the heading.

    Texts that are longer than a line do not widen their column.
    """
    shown = [[printable(text) for text in row] for row in rows]  # before their widths are taken
    widths = [
        max((n for n in map(len, column) if n <= _WIDEST), default=0)
        for column in zip(*shown, strict=True)
    ]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are printed as all other lines are: file names may be in them."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 2."""
        super().error(printable(message))
