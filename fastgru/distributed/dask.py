"""Layers on Dask arrays with chunks along the batch."""

from __future__ import annotations

import copy
import itertools
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.distributed.rows import check_rows_alone
from fastgru.layers.call import Arguments
from fastgru.layers.nested import flatten, map_nested

if TYPE_CHECKING:
    from collections.abc import Sequence


def apply(
    layer: Any,
    x: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: bool | None = False,
    *,
    lengths: Any = None,
    reset_mask: Any = None,
) -> Any:
    """Call a layer on a Dask array; nothing runs until Dask computes the result.

    Each block of rows is a task on one thread. This copies the layer with its weights. The copy is
    one constant of the graph, which Dask sends to each worker once.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Not stateful and not time_major. A layer that has no weights yet is built.
    x : dask.array.Array, shape (B, T, I)
        Blocks of NumPy or CuPy. B may have any chunks, also of unknown sizes; T and I one each.
    initial_state : array (B, H), or lists of them as the layer takes them, optional
    mask : array_like (B, T), optional
    training : bool
        Must be False.
    lengths : array_like (B,), optional
    reset_mask : array_like (B, T), optional
        As the layer takes them. Each is a Dask array with any chunks, or an array in memory.

    Returns
    -------
    dask.array.Array, or a tuple of them
        What the layer returns for the whole x, with x's chunks along B; a single row has one chunk,
        also where x has empty ones beside it. Compute the arrays of a tuple together,
        ``dask.compute(y, state)``, since the same tasks make them.

    Raises
    ------
    ValueError, TypeError
        The layer, chunks, shapes or dtypes are wrong; nothing has run. Wrong numbers, such as a
        length > T, raise when the result is computed.
    ImportError
        Dask is not installed.

    Examples
    --------
    >>> import dask.array as da, fastgru
    >>> x = da.zeros((1000, 20, 8), chunks=(250, 20, 8), dtype="float32")
    >>> fastgru.distributed.dask.apply(fastgru.GRU(4), x).chunks
    ((250, 250, 250, 250), (4,))
    """
    da, delayed, tokenize = _package()
    check_rows_alone(layer)
    if training:
        raise ValueError(
            "training: expected False, since what dropout draws depends on the calls before; "
            "examples/train_on_dask.py trains with forward and backward on shards"
        )
    if not isinstance(x, da.Array):
        raise TypeError(
            f"x: expected a Dask array, got {type(x).__name__}; call the layer itself, or use "
            "dask.array.from_array"
        )
    if x.ndim != 3 or x.numblocks[1:] != (1, 1) or np.isnan(x.shape[1:]).any():
        raise ValueError(
            "x: expected (B, T, I) with T and I in one chunk each, since a row is computed whole, "
            f"got chunks {x.chunks}; call x.rechunk({{1: -1, 2: -1}})"
        )
    if x.shape[0] == 1:
        # Dask takes an axis of length 1 as one to broadcast, and with empty blocks beside the row
        # its blockwise functions return a row for each of them.
        x = x.rechunk({0: -1})

    rows: list[Any] = []  # the arrays with chunks like x; ``places`` has their indices

    def number(value: Any, what: str) -> int | None:
        if value is None:
            return None
        rows.append(_chunked_like(x, value, what, da))
        return len(rows) - 1

    places = {
        "initial_state": map_nested(lambda one: number(one, "initial_state"), initial_state),
        "mask": number(mask, "mask"),
        "lengths": number(lengths, "lengths"),
        "reset_mask": number(reset_mask, "reset_mask"),
    }
    # `prepare` on no rows validates, and `start` builds the layer. A call of the copy on no rows
    # gives the outputs' shapes and dtypes, and leaves the layer's losses of its last call alone.
    none = [np.empty_like(a._meta, shape=(0, *a.shape[1:])) for a in (x, *rows)]
    given = _given(places, none[1:])
    layer.start(layer.prepare(Arguments(none[0], num_threads=1, **given)))
    key = f"layer-{tokenize(layer)}"
    layer = copy.deepcopy(layer)
    result = _call(layer, places, *none)

    axes = itertools.count(1)  # no two arrays share axes but B; the layer has compared their sizes
    blocked = [(array, (0, *itertools.islice(axes, array.ndim - 1))) for array in (x, *rows)]
    blocks = da.blockwise(
        call_layer,
        (0,),
        *itertools.chain(*blocked),
        places=places,
        layer=delayed(layer, name=key, traverse=False),
        align_arrays=False,
        meta=np.empty(0, object),
    )
    numbers = itertools.count()
    result = map_nested(lambda output: _output(blocks, next(numbers), output, da), result)
    return tuple(result) if isinstance(result, list) else result


def call_layer(*blocks: Any, layer: Any, places: dict[str, Any]) -> list[Any]:
    """Run the task of one block of rows; return a flat list of the layer's outputs."""
    arrays = []
    for block in blocks:
        while isinstance(block, list):  # of one item, for each axis of one chunk
            (block,) = block
        arrays.append(block)
    return flatten(_call(layer, places, *arrays))


def _given(places: dict[str, Any], rows: Sequence[Any]) -> dict[str, Any]:
    """Return a call's arguments: the arrays at the indices in ``places``."""
    return {
        what: map_nested(lambda i: None if i is None else rows[i], numbers)
        for what, numbers in places.items()
    }


def _call(layer: Any, places: dict[str, Any], x: Any, *rows: Any) -> Any:
    """Call a layer with x and its rows, on one thread."""
    return layer(x, **_given(places, rows), num_threads=1)


def _output(blocks: Any, number: int, output: Any, da: Any) -> Any:
    """Return the Dask array of one output; ``output`` is that output of no rows."""
    sizes = dict(enumerate(output.shape[1:], 1))
    axes = (0, *sizes)
    return da.blockwise(
        operator.getitem, axes, blocks, (0,), number, None, new_axes=sizes, meta=output
    )


def _chunked_like(x: Any, value: Any, what: str, da: Any) -> Any:
    """Return an argument with one item per row as a Dask array with x's chunks along B."""
    if isinstance(value, (bool, int, float)):
        raise TypeError(f"{what}: expected arrays with one row for each of x, got {value!r}")
    if not hasattr(value, "shape"):
        value = np.asarray(value, like=x._meta)
    if np.isnan(x.shape[0]):
        # Only a Dask array of as many blocks can be used without computing the sizes. If a block
        # has another number of rows than x's, its task raises.
        if isinstance(value, da.Array) and value.numblocks[:1] == x.numblocks[:1]:
            return value.rechunk(dict.fromkeys(range(1, value.ndim), -1))
        raise ValueError(
            f"{what}: expected a Dask array in {x.numblocks[0]} blocks of rows, since the sizes of "
            "x's are not known; call x.compute_chunk_sizes() for anything else"
        )
    if value.shape[:1] != x.shape[:1]:
        raise ValueError(f"{what}: expected B = {x.shape[0]} rows, got shape {value.shape}")
    chunks = (x.chunks[0], *value.shape[1:])
    if isinstance(value, da.Array):
        return value.rechunk(chunks)
    return da.from_array(value, chunks=chunks)


def _package() -> tuple[Any, Any, Any]:
    try:
        import dask.array
        from dask.base import tokenize
        from dask.delayed import delayed
    except ImportError as error:
        raise ImportError(
            f"fastgru.distributed.dask needs Dask ({error}); pip install 'fastgru[dask]'"
        ) from None
    return dask.array, delayed, tokenize
