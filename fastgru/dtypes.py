"""Dtypes of layers, by the names and policies of Keras.

A policy has two dtypes: variables are kept in one, calls compute in the other. They differ only in
"mixed_float16" and "mixed_bfloat16", whose variables are float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastgru.errors import BackendError

FLOATS = ("float32", "float64", "float16", "bfloat16")
_MIXED = "mixed_"


class DTypePolicy(NamedTuple):
    """What ``layer.dtype_policy`` is, as `keras.DTypePolicy`: a name and the two dtypes' names."""

    name: str
    compute_dtype: str
    variable_dtype: str


def policy_of(dtype: Any, what: str = "dtype") -> DTypePolicy:
    """Return the policy that a layer's ``dtype`` argument names.

    Parameters
    ----------
    dtype : str, dtype, type, dict, object or None
        A name; a NumPy dtype or scalar type; a policy of Keras 2 or 3, live or as its config;
        None for float32. A quantized policy, such as "int8_from_float32", ends in the policy that
        it was made from, and stands for that one.
    what : str
        What the argument is called, for the error.

    Raises
    ------
    ValueError
        Another name.
    BackendError
        bfloat16 without the package ml_dtypes.
    """
    name = "float32" if dtype is None else policy_name(dtype)
    if isinstance(name, str):
        compute = name.removeprefix(_MIXED)
        mixed = name.startswith(_MIXED)
        if compute in (("float16", "bfloat16") if mixed else FLOATS):
            float_dtype(compute, what)
            return DTypePolicy(name, compute, "float32" if mixed else compute)
    names = ", ".join(repr(n) for n in (*FLOATS, "mixed_float16"))
    raise ValueError(f"{what}: expected {names} or 'mixed_bfloat16', got {dtype!r}")


def policy_name(dtype: Any) -> Any:
    """Return the name that `policy_of` reads, known or not; what has no name returns unchanged."""
    while isinstance(dtype, dict) and isinstance(dtype.get("config"), dict):
        inner = dtype["config"]
        dtype = inner.get("name", inner.get("default_policy", inner.get("source_name")))
    # A DTypePolicyMap of Keras has one policy for all layers that it does not name.
    dtype = getattr(dtype, "default_policy", dtype)
    dtype = getattr(dtype, "name", dtype)
    if isinstance(dtype, type):
        try:
            return np.dtype(dtype).name
        except TypeError:  # no scalar type of NumPy's
            return dtype
    return dtype.rpartition("_from_")[2] if isinstance(dtype, str) else dtype


def float_dtype(name: str, what: str = "dtype") -> np.dtype:
    """Return the NumPy dtype of a name in `FLOATS`.

    NumPy has no bfloat16 of its own; the package ml_dtypes, which CuPy uses too, brings it.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        raise BackendError(f"{what}: bfloat16 needs the package ml_dtypes ({error})") from None
    return np.dtype(bfloat16)


def sum_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype of sums and gates for arrays of ``dtype``: float32 for 16 bits."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def rounded(array: Any, dtype: np.dtype) -> Any:
    """Return an array of wider floats as ``dtype``, to nearest even; beyond its range is inf."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # of a signalling NaN
        return array.astype(dtype)
