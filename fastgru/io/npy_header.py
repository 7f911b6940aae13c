"""The header of NumPy's ``.npy`` files, read without evaluating it.

Source: the documentation of ``numpy.lib.format``. A header is the text of a Python dict with three
keys. NumPy's own reader gives the text to Python's parser.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import numpy as np

MAGIC = b"\x93NUMPY"
MOST_BYTES = 10_000  # of the text, as for NumPy's own reader; an array takes about 120
_LENGTHS = {1: 2, 2: 4, 3: 4}  # format's version -> bytes of the header's length
# Each character can be matched in one way only, so that the time is in proportion to the text.
_ENTRY = re.compile(
    r"\s*(?P<quote>['\"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*"
    r"(?:(?P<text>'[^']*'|\"[^\"]*\")|(?P<flag>True|False)|\((?P<shape>[\dL,\s]*)\)"
    r"|(?P<fields>\[.*\]))\s*",
    re.DOTALL,
)
_LENGTH = re.compile(r"\s*(\d{1,19})L?\s*")  # Python 2 wrote 3L
_SIMPLE = re.compile(r"[<>=|]?[A-Za-z?]+\d{0,2}")


class Header(NamedTuple):
    """What the header of an array says.

    ``descr`` is the text of the dtype, of one with fields as it stands there. The numbers begin at
    byte ``start``, and are in Fortran's order if ``fortran``.
    """

    descr: str
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype if it is one of numbers, else None."""
        if not _SIMPLE.fullmatch(self.descr):
            return None
        try:
            dtype = np.dtype(self.descr)
        except (TypeError, ValueError):
            return None
        return dtype if dtype.kind in "fiubc" else None

    @property
    def objects(self) -> bool:
        """Whether the elements are Python objects, which are pickled."""
        return self.descr.lstrip("|<>=") in ("O", "O4", "O8", "object")


def header_of(data: bytes) -> Header:
    """Return the header with which a file or a member of an archive begins.

    Parameters
    ----------
    data : bytes
        At least the header, if the file has that many.

    Raises
    ------
    ValueError
        It is not the header of an array. The message does not name the file.
    """
    width = _LENGTHS.get(data[6] if len(data) > 6 else 0)
    if data[:6] != MAGIC or width is None:
        raise ValueError(f"expected an array in NumPy's format, got a start of {data[:8]!r}")
    start = 8 + width
    size = int.from_bytes(data[8:start], "little")
    if size > MOST_BYTES or start + size > len(data):
        raise ValueError(
            f"expected an array in NumPy's format, got a header of {size} bytes in "
            f"{len(data)} bytes; at most {MOST_BYTES} are read"
        )
    values = _entries(data[start : start + size].decode("latin-1"))
    if values is None or values.keys() != {"descr", "fortran_order", "shape"}:
        got = data[start : start + min(size, 100)]
        raise ValueError(
            "expected an array in NumPy's format, whose header has descr, fortran_order and "
            f"shape, got {got!r}"
        )
    return Header(values["descr"], values["shape"], values["fortran_order"], start + size)


def _entries(text: str) -> dict | None:
    """Return the values of a header's text; None for any other text."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    values: dict = {}
    at, end = 1, len(text) - 1
    while text[at:end].strip():
        match = _ENTRY.match(text, at, end)
        if match is None or match["key"] in values:
            return None
        key, at = match["key"], match.end()
        if key == "shape" and match["shape"] is not None:
            values[key] = _shape(match["shape"])
        elif key == "fortran_order" and match["flag"]:
            values[key] = match["flag"] == "True"
        elif key == "descr" and (match["text"] or match["fields"]):
            values[key] = match["fields"] or match["text"][1:-1]
        else:
            return None
        if text[at] == ",":
            at += 1
        elif at < end:
            return None
    return values


def _shape(text: str) -> tuple[int, ...]:
    """Return the lengths of a tuple's text; ValueError unless it is one of integers."""
    parts = text.split(",")
    comma = len(parts) > 1
    if not parts[-1].strip():
        parts.pop()
    matches = [_LENGTH.fullmatch(part) for part in parts]
    lengths = tuple(int(match[1]) for match in matches if match)
    if len(lengths) < len(parts) or (parts and not comma) or max(lengths, default=0) > sys.maxsize:
        raise ValueError(f"expected an array in NumPy's format, got the shape ({text[:100]})")
    return lengths
