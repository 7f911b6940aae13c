"""Masks: the one place that reasons about which steps count.

A call may say which steps are valid by ``mask`` (B,T) or by ``lengths`` (B,). Both become one
`MaskPlan` in input order (not reversed); backends see nothing else. A mask that turns out to be
all ones is NONE and one that is right-padded is LENGTHS, because those two have faster paths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NONE = "none"
LENGTHS = "lengths"
STEPS = "steps"


class MaskPlan:
    """Which steps of each row are valid.

    Attributes
    ----------
    kind : {"none", "lengths", "steps"}
        NONE: every step. LENGTHS: row b is valid for t < lengths[b]. STEPS: any pattern.
    lengths : ndarray of intp, shape (B,), or None
        Set for LENGTHS only, C-contiguous.
    steps : ndarray of bool, shape (B, T), or None
        Set for STEPS only, C-contiguous.
    any_empty : bool
        True when some row has no valid step at all.
    """

    __slots__ = ("any_empty", "kind", "lengths", "steps")

    def __init__(
        self,
        kind: str,
        lengths: np.ndarray | None = None,
        steps: np.ndarray | None = None,
        any_empty: bool = False,
    ) -> None:
        self.kind = kind
        self.lengths = lengths
        self.steps = steps
        self.any_empty = any_empty

    def valid(self, timesteps: int) -> np.ndarray | None:
        """Return the (B, T) bool matrix in input order, or None when every step is valid."""
        if self.lengths is not None:
            return np.arange(timesteps) < self.lengths[:, None]
        return self.steps

    def reversed(self, timesteps: int) -> MaskPlan:
        """Return the plan of the same sequence read backwards in time."""
        if self.kind == NONE:
            return self
        valid = self.valid(timesteps)
        assert valid is not None
        steps = np.ascontiguousarray(valid[:, ::-1])
        return MaskPlan(STEPS, steps=steps, any_empty=self.any_empty)


NO_MASK = MaskPlan(NONE)


def plan_mask(
    mask: Any, lengths: Any, batch: int, timesteps: int, time_major: bool = False
) -> MaskPlan:
    """Turn the call's ``mask`` or ``lengths`` into a `MaskPlan`.

    Parameters
    ----------
    mask : array_like of bool or 0/1, shape (B, T), or (T, B) with time_major, or None
    lengths : array_like of int, shape (B,), values 0..T, or None
    batch, timesteps : int
        B and T of the input.
    time_major : bool
        How ``mask`` is laid out.

    Raises
    ------
    ValueError
        Both given, a wrong shape, or values that are not 0/1 (mask) or not in 0..T (lengths).
    TypeError
        A dtype that is neither bool nor numeric (mask), or not integer (lengths).
    """
    if mask is None:
        if lengths is None:
            return NO_MASK
        return _plan_lengths(_check_lengths(lengths, batch, timesteps), timesteps)
    if lengths is not None:
        raise ValueError("expected mask or lengths, not both; drop one of them")
    steps = binary_matrix(mask, batch, timesteps, time_major, "mask")
    counts = np.count_nonzero(steps, axis=1)
    if np.array_equal(steps, np.arange(timesteps) < counts[:, None]):
        return _plan_lengths(counts, timesteps)
    return MaskPlan(STEPS, steps=np.ascontiguousarray(steps), any_empty=bool((counts == 0).any()))


def binary_matrix(
    values: Any, batch: int, timesteps: int, time_major: bool, what: str
) -> np.ndarray:
    """Validate a mask-like argument and return it as a (B, T) bool array."""
    array = _plain_array(values, what)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{what}: expected a bool or 0/1 array, came dtype {array.dtype}; "
            f"convert it with {what}.astype(bool)"
        )
    expected = (timesteps, batch) if time_major else (batch, timesteps)
    if array.shape != expected:
        order = "(T, B)" if time_major else "(B, T)"
        raise ValueError(
            f"{what}: expected shape {order} = {expected} like the sequences, came {array.shape}"
        )
    if array.dtype.kind != "b":
        as_bool = array != 0
        if not np.array_equal(as_bool, array):
            raise ValueError(
                f"{what}: expected only 0 and 1 (or bool), came other values; "
                f"say which steps count, e.g. {what} != 0"
            )
        array = as_bool
    return array.T if time_major else array


def plan_resets(
    reset_mask: Any, batch: int, timesteps: int, time_major: bool = False
) -> np.ndarray | None:
    """Return ``reset_mask`` as a C-contiguous (B, T) bool array, None when nothing is reset."""
    if reset_mask is None:
        return None
    resets = binary_matrix(reset_mask, batch, timesteps, time_major, "reset_mask")
    return np.ascontiguousarray(resets) if resets.any() else None


def _plain_array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(
            f"{what}: expected a plain array, came a numpy.ma.MaskedArray; pass its .filled(0)"
        )
    try:
        return np.asarray(values)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{what}: expected a rectangular array, came {error}") from None


def _check_lengths(lengths: Any, batch: int, timesteps: int) -> np.ndarray:
    array = _plain_array(lengths, "lengths")
    if array.dtype.kind not in "iu" and not (array.size == 0 and array.ndim == 1):
        raise TypeError(
            f"lengths: expected integers, came dtype {array.dtype}; "
            "give the number of valid steps of each row"
        )
    if array.shape != (batch,):
        raise ValueError(
            f"lengths: expected shape (B,) = ({batch},), one per row, came {array.shape}"
        )
    if batch and (array.min() < 0 or array.max() > timesteps):
        raise ValueError(
            f"lengths: expected values in 0..T = 0..{timesteps}, "
            f"came values from {array.min()} to {array.max()}"
        )
    return array.astype(np.intp)


def _plan_lengths(lengths: np.ndarray, timesteps: int) -> MaskPlan:
    if (lengths == timesteps).all():
        return NO_MASK
    return MaskPlan(
        LENGTHS, lengths=np.ascontiguousarray(lengths), any_empty=bool((lengths == 0).any())
    )
