"""Layers as functions of Spark's columns."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.distributed.rows import check_rows_alone, load_layer
from fastgru.layers.nested import flatten, map_nested

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike


def predict_udf(
    path: str | PathLike[str],
    timesteps: int,
    *,
    arguments: Sequence[str] = (),
    outputs: Sequence[str] = ("y",),
    batch_size: int = 256,
) -> Any:
    """Return a function of Spark columns that runs a layer, made by ``predict_batch_udf``.

    Each Python worker of Spark loads the layer once and runs its batches on one thread. Spark's
    columns have flat arrays: a sequence (T, I) is T * I numbers, step after step, and an output
    (T, H) is T * H numbers.

    Parameters
    ----------
    path : path
        A file of `fastgru.save`, of a layer that is not stateful and not time_major. The driver
        and every worker open this path.
    timesteps : int
        T. Pad shorter rows, and pass their lengths.
    arguments : sequence of {"mask", "lengths", "reset_mask", "initial_state"}
        The function's arguments after the sequences, in this order. Columns of mask have T bools,
        of lengths one integer, of reset_mask T bools. initial_state is a column of H numbers for
        each of the layer's states.
    outputs : sequence of str
        Names for the arrays that the layer returns, in order. It returns several with return_state
        or merge_mode=None.
    batch_size : int
        Rows of a call.

    Returns
    -------
    function of columns
        ``f("x", "n")`` is a column of arrays of the layer's dtype; or, if the layer returns
        several, a column of structs with the names of ``outputs``.

    Raises
    ------
    ValueError
        The layer cannot run on some rows at a time, or returns another number of arrays than
        ``outputs`` has names.
    ImportError
        PySpark is not installed.

    Examples
    --------
    >>> predict = predict_udf("gru.safetensors", 20, arguments=["lengths"])  # doctest: +SKIP
    >>> frame.withColumn("y", predict("x", "n"))  # doctest: +SKIP
    """
    predict_batch_udf, types = _package()
    if isinstance(arguments, str) or isinstance(outputs, str):
        raise TypeError("arguments, outputs: expected lists of names, got a string")
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"timesteps: expected an integer >= 1, got {timesteps!r}")
    layer = load_layer(path)
    check_rows_alone(layer)
    dtype = layer.compute_dtype
    if dtype not in ("float32", "float64"):
        raise ValueError(f"{path}: expected a layer of float32 or float64, got {dtype}")
    inputs = layer.weights[0].shape[0]
    returned = flatten(layer(np.empty((0, timesteps, inputs), dtype)))
    if len(returned) != len(outputs):
        raise ValueError(
            f"outputs: expected {len(returned)} names, as {layer.name} returns so many arrays, "
            f"got {list(outputs)}"
        )
    known: dict[str, list[list[int] | None]] = {
        "mask": [[timesteps]],
        "lengths": [None],
        "reset_mask": [[timesteps]],
        "initial_state": [[state.shape[1]] for state in flatten(layer.get_initial_state(0))],
    }
    shapes: list[list[int] | None] = [[timesteps, inputs]]
    for what in arguments:
        if what not in known:
            raise ValueError(f"arguments: expected some of {', '.join(known)}, got {what!r}")
        shapes += known[what]
    number = types.FloatType() if layer.compute_dtype == "float32" else types.DoubleType()
    numbers = types.ArrayType(number, containsNull=False)
    several = types.StructType([types.StructField(name, numbers) for name in outputs])
    make = functools.partial(
        _load_predict, os.path.abspath(path), tuple(arguments), tuple(outputs), len(shapes)
    )
    return predict_batch_udf(
        make,
        return_type=several if len(outputs) > 1 else numbers,
        batch_size=batch_size,
        input_tensor_shapes=shapes,
    )


def _load_predict(
    path: str, arguments: tuple[str, ...], outputs: tuple[str, ...], count: int
) -> Any:
    """Return, in a worker, a function of ``count`` NumPy columns that gives the layer's outputs."""
    layer = load_layer(path)

    def predict(*columns: np.ndarray) -> Any:
        left = iter(columns)
        x = next(left)
        given = {}
        for what in arguments:
            pattern = layer.get_initial_state(0) if what == "initial_state" else None
            given[what] = map_nested(lambda _: next(left), pattern)
        results = flatten(layer(x, num_threads=1, **given))
        flat = [array.reshape(len(x), -1) for array in results]
        return flat[0] if len(flat) == 1 else dict(zip(outputs, flat, strict=True))

    # Spark passes one column for each parameter of the signature.
    predict.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(f"column_{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(count)]
    )
    return predict


def _package() -> Any:
    try:
        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql import types
    except ImportError as error:
        raise ImportError(
            f"fastgru.distributed.spark needs PySpark ({error}); pip install 'fastgru[spark]'"
        ) from None
    return predict_batch_udf, types
