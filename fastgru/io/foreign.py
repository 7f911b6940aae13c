"""Which function reads a file, told by its first bytes: for messages about the wrong file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastgru.io.plain_files import open_plain

if TYPE_CHECKING:
    from os import PathLike

# The first bytes of a file -> what it is, and what to do.
_STARTS = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "fastgru.io.from_keras or load_keras_weights reads it"),
    b"\x93NUMPY": ("an .npy file", "fastgru.io.read_arrays reads it"),
    b"\x1f\x8b": ("a compressed file", "unpack it"),
    b"\x80": (
        "a pickle",
        "fastgru.io.from_torch reads those of PyTorch; of another one, where you trust it, save "
        "the arrays with numpy.savez",
    ),
    b"{": (
        "JSON",
        "fastgru.io.from_keras reads the model.json of TensorFlow.js, and fastgru.io.from_torch "
        "the index of a model in several files",
    ),
}
_ZIPPED = {
    ".keras": "fastgru.io.from_keras reads it",
    ".pt": "fastgru.io.from_torch reads it",
    ".pth": "fastgru.io.from_torch reads it",
    ".npz": "fastgru.io.read_arrays reads it",
}


def reader_of(path: str | PathLike[str], *, safetensors: bool = True) -> str | None:
    """Return what a file of another library is and who reads it; None for other files.

    ``safetensors=False`` is for the reader of that format itself: then these files give None.
    """
    path = Path(path)
    if path.is_dir():
        return "a folder; fastgru.io.from_keras reads SavedModels"
    if not path.is_file():
        return None
    file, _ = open_plain(path)
    with file:
        head = file.read(9)
    if head[:2] == b"PK":
        return f"a zip file; {_ZIPPED.get(path.suffix.lower(), 'unpack it, if a model is in it')}"
    if head[8:9] == b"{":  # safetensors, whose length may begin with any of these bytes
        readers = "fastgru.load reads those of fastgru.save, fastgru.io.from_torch those of PyTorch"
        return f"a safetensors file; {readers}" if safetensors else None
    if not head:
        return "an empty file; write or copy it again"
    if path.suffix.lower() == ".onnx":
        return "an ONNX model; fastgru.io.from_onnx reads it"
    for start, (what, reader) in _STARTS.items():
        if head.startswith(start):
            return f"{what}; {reader}"
    return None


def is_json(path: Path) -> bool:
    """Say whether a file begins as the JSON of an object does."""
    file, _ = open_plain(path)
    with file:
        return file.read(64).lstrip()[:1] == b"{"


def expect_unpacked(path: str | PathLike[str]) -> None:
    """Raise ValueError for an archive, which no reader looks into."""
    path = Path(path)
    if path.is_file() and path.name.lower().endswith(
        (".gz", ".tgz", ".tar", ".zip", ".bz2", ".xz", ".7z", ".zst")
    ):
        raise ValueError(
            f"{path}: expected a model, got an archive; unpack it and give the file in it"
        )
