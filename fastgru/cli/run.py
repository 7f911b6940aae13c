"""``fastgru run``: a layer on a .npy file in batches, for files that are larger than memory."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.npy_header import MOST_BYTES, header_of
from fastgru.io.plain_files import open_plain
from fastgru.io.replacing import replacing
from fastgru.layers import Bidirectional, Sequential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

BATCH_BYTES = 16 << 20  # of a batch's inputs and all layers' outputs and states of it
# What an input without numbers may become. Its size says nothing, so a file of a hundred bytes
# could ask for any output.
MOST_FROM_NOTHING = 16 << 20


def run_file(
    layer: Any,
    source: Path,
    target: Path,
    *,
    lengths: Path | None = None,
    batch_size: int | None = None,
    num_threads: int | None = None,
) -> str:
    """Write a layer's outputs for the sequences of a file, and return a line that says what it did.

    Both files are mapped, and pages of finished batches are given back to the system. So memory
    holds one batch, whatever the files' sizes. A row's result does not depend on its batch.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built. This makes it stateless, since each row is a sequence of its own, and writes no
        states.
    source, target : path
        .npy files. The target has another name until it is complete. The caller has made sure that
        it is none of the inputs.
    lengths : path, optional
        .npy file of (B,) integers, the call's ``lengths``.
    batch_size : int, optional
        By default the rows that take 16 MB.
    num_threads : int, optional

    Raises
    ------
    ValueError, TypeError
        The layer does not take these files. Nothing is written.
    OSError
        The disk is full, for example. No part of the target is left.
    """
    last = _stateless(layer)
    x = _opened(source)
    order = "(T, B, I)" if layer.time_major else "(B, T, I)"
    if x.ndim != 3:
        raise ValueError(
            f"{source}: expected an array {order}, got shape {x.shape}"
            + ("; of one sequence, save x[None]" if x.ndim == 2 else "")
        )
    features = layer.weights[0].shape[0]
    if x.shape[2] != features:
        raise ValueError(
            f"{source}: expected I = {features} features in the last axis, as {layer.name} was "
            f"built, got {x.shape[2]}: the file's shape is {x.shape}"
        )
    batch_axis = 1 if layer.time_major else 0
    rows = x.shape[batch_axis]
    ends = None if lengths is None else _opened(lengths)
    if ends is not None and ends.shape != (rows,):
        raise ValueError(f"{lengths}: expected shape ({rows},), got {ends.shape}")
    ends = None if ends is None else np.array(ends)

    def call(part: slice, out: np.ndarray | None = None) -> Any:
        y = layer(
            x[:, part] if layer.time_major else x[part],
            lengths=None if ends is None else ends[part],
            out=out,
            num_threads=num_threads,
        )
        return y[0] if isinstance(y, (tuple, list)) else y

    # A call without rows checks features and dtype, and gives the shape and dtype of the output.
    like = call(slice(0, 0))
    y_axis = batch_axis if last.return_sequences else 0
    shape = tuple(rows if axis == y_axis else n for axis, n in enumerate(like.shape))
    # .npy files have no bfloat16; float32 has all its numbers.
    dtype = np.dtype("float32") if like.dtype.name == "bfloat16" else like.dtype
    row_bytes = _row_bytes(layer, x, dtype)
    if not x.size:
        _expect_little(source, x.shape, shape, rows * row_bytes)
    size = batch_size or max(1, BATCH_BYTES // row_bytes)
    with replacing(target) as file:
        y = _created(file, shape, dtype)
        held = 0
        with progress(rows) as done:
            for start in range(0, rows, size):
                part = slice(start, min(start + size, rows))
                there = y[:, part] if y_axis else y[part]
                if dtype == like.dtype:
                    call(part, there)
                else:
                    there[...] = call(part)
                held += (part.stop - part.start) * row_bytes
                if held >= BATCH_BYTES:  # not after each small batch, since the disk is slow
                    _release(x)
                    _release(y)
                    held = 0
                done(part.stop - part.start)
        _release(y)
    said = f"wrote {target}: {shape} {dtype.name}"
    same = x.dtype.newbyteorder("=") == like.dtype
    return said if same else f"{said}, the input cast from {x.dtype.name} to {like.dtype.name}"


def _stateless(layer: Any) -> Any:
    """Make a layer stateless, and return the one that gives the output; ValueError for two."""
    layers = layer.layers if isinstance(layer, Sequential) else [layer]
    for one in layers:
        for part in one.halves if isinstance(one, Bidirectional) else [one]:
            part.stateful = False
    last = layers[-1]
    if getattr(last, "merge_mode", "") is None:
        raise ValueError(f"{last.name}: expected one output, got two: its merge_mode is None")
    return last


def _expect_little(source: Path, got: Any, shape: Any, nbytes: int) -> None:
    """Raise unless what an input without numbers becomes is small."""
    if nbytes > MOST_FROM_NOTHING:
        raise ValueError(
            f"{source}: expected numbers, got the shape {got}, which has none; its output {shape} "
            f"and the states would take {nbytes} bytes, and at most {MOST_FROM_NOTHING} are made "
            "from no numbers"
        )


def _row_bytes(layer: Any, x: np.ndarray, dtype: np.dtype) -> int:
    """Return the bytes of a sequence, and of all cells' outputs and states of it."""
    units = sum(v.shape[0] for v in layer.weights if v.name == "recurrent_kernel")
    steps = x.shape[0 if layer.time_major else 1]
    itemsize = max(x.dtype.itemsize, dtype.itemsize)
    return int((steps * (x.shape[2] + units) + units) * itemsize)


# ---- mapped files --------------------------------------------------------------------------------


def _opened(path: Path) -> np.ndarray:
    """Return the array of a .npy file, mapped for reading."""
    try:
        file, status = open_plain(path)
    except OSError as error:
        raise ValueError(f"{path}: expected a .npy file of numbers: {error}") from None
    with file:
        try:
            header = header_of(file.read(MOST_BYTES + 12))
        except ValueError as error:
            raise ValueError(f"{path}: expected a .npy file of numbers: {error}") from None
        dtype, shape = header.dtype, header.shape
        if dtype is None:
            got = header.descr[:50]
            raise ValueError(f"{path}: expected a .npy file of numbers, got elements of {got!r}")
        nbytes = math.prod(shape) * dtype.itemsize
        if header.start + nbytes > status.st_size:
            raise ValueError(
                f"{path}: expected a .npy file of numbers, got shape {shape} of {dtype} in "
                f"{status.st_size} bytes"
            )
        if not nbytes:  # nothing to map
            return np.empty(shape, dtype)
        order: Any = "F" if header.fortran else "C"
        return np.memmap(file, dtype, "r", header.start, shape, order)


def _created(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array of a new .npy file, mapped for writing, with its disk space reserved.

    If the disk is full this raises OSError. Without the reservation a signal would end the process
    when the system writes a page.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    start, nbytes = file.tell(), math.prod(shape) * dtype.itemsize
    if not nbytes:
        return np.empty(shape, dtype)
    file.truncate(start + nbytes)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, start + nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot
                raise
    return np.memmap(file, dtype, "r+", start, shape)


def _release(array: np.ndarray) -> None:
    """Write changed pages to the file, and give all pages back to the system."""
    if not array.size:
        return
    mapping: Any = array.base  # an mmap.mmap
    if array.flags.writeable:
        mapping.flush()
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


# ---- progress ------------------------------------------------------------------------------------


def progress(rows: int) -> AbstractContextManager[Callable[[int], object]]:
    """Return a context that gives a function, to be called with each number of finished rows.

    It shows the progress on stderr if that is a terminal: as a bar with tqdm, else as a line.
    """
    if not sys.stderr.isatty():
        return contextlib.nullcontext(lambda _: None)
    try:
        from tqdm import tqdm
    except ImportError:
        return _line(rows)
    return _bar(tqdm(total=rows, unit=" rows", unit_scale=True, file=sys.stderr))


@contextlib.contextmanager
def _bar(bar: Any) -> Iterator[Callable[[int], object]]:
    with bar:
        yield bar.update


@contextlib.contextmanager
def _line(rows: int) -> Iterator[Callable[[int], object]]:
    done, start = 0, time.monotonic()

    def show(more: int) -> None:
        nonlocal done
        done += more
        rate = done / max(time.monotonic() - start, 1e-9)
        text = (
            f"\r{done * 100 // max(rows, 1):3d} %  {done:,} of {rows:,} rows, {rate:,.0f} a second"
        )
        print(text, end="", file=sys.stderr, flush=True)

    show(0)
    try:
        yield show
    finally:
        print(file=sys.stderr)
