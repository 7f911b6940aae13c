"""How the outputs of both halves of a Bidirectional become one, and their gradients two again."""

from __future__ import annotations

from typing import Any

import numpy as np


def merged_shape(mode: str, first: Any, second: Any) -> tuple[Any, ...]:
    """Return the shape of the merged outputs from those of the halves."""
    return (*first[:-1], first[-1] + second[-1]) if mode == "concat" else tuple(first)


def merged_outputs(mode: str, y: Any, y_rev: Any, out: Any = None) -> Any:
    """Return two outputs merged, in ``out`` if it is given.

    Parameters
    ----------
    mode : {"concat", "sum", "ave", "mul"}
    y, y_rev : ndarray, shape (..., H), both in input order of time
    out : ndarray, optional
    """
    if mode == "concat":
        return np.concatenate([y, y_rev], axis=-1, out=out)
    if mode == "sum":
        return np.add(y, y_rev, out=out)
    if mode == "ave":
        return np.divide(y + y_rev, y.dtype.type(2), out=out)
    return np.multiply(y, y_rev, out=out)


def split_gradient(mode: str, d: Any, units: int, factors: Any) -> tuple[Any, Any]:
    """Return the gradients of the two outputs from that of the merged one.

    Parameters
    ----------
    mode : as for `merged_outputs`
    d : ndarray
    units : int
        Of the forward half.
    factors : pair of ndarray
        The two outputs, for "mul".
    """
    if mode == "concat":
        return d[..., :units], d[..., units:]
    if mode == "mul":
        y, y_rev = factors
        return d * y_rev, d * y
    if mode == "ave":
        d = d / d.dtype.type(2)
    return d, d
