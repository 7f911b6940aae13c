"""Masks: which steps of each row are valid.

A call gives the valid steps as ``mask`` (B, T) or as ``lengths`` (B,). This module makes a
`MaskPlan` of either, in input order (not reversed), and backends see only that. A mask of ones
becomes NONE and a right-padded mask LENGTHS, because these two are faster to compute.

Masks decide where kernels read and write. So each is copied first, and the copy is checked and
used: another thread may write to the caller's array at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru.device import check_place, device_array, follow, held, on_device, place

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
        For LENGTHS only, C-contiguous, in host memory even if the sequences are on a device.
    steps : array of bool, shape (B, T), or None
        For STEPS only, C-contiguous, on the sequences' host or device. Neither shares memory with
        an array of the caller's.
    any_empty : bool
        True if some row has no valid step.
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

    def valid(self, timesteps: int, like: Any = None) -> Any:
        """Return the (B, T) bool matrix in input order, or None if every step is valid.

        It is on the host or device of ``like``, the call's sequences.
        """
        if self.lengths is not None:
            return follow(np.arange(timesteps) < self.lengths[:, None], like)
        return self.steps

    def reversed(self, timesteps: int, like: Any = None) -> MaskPlan:
        """Return the plan of the same sequences ``like``, reversed in time."""
        if self.kind == NONE:
            return self
        valid = self.valid(timesteps, like)
        assert valid is not None
        steps = np.ascontiguousarray(valid[:, ::-1], like=valid)
        return MaskPlan(STEPS, steps=steps, any_empty=self.any_empty)


NO_MASK = MaskPlan(NONE)


def plan_mask(
    mask: Any,
    lengths: Any,
    batch: int,
    timesteps: int,
    time_major: bool = False,
    like: Any = None,
) -> MaskPlan:
    """Turn the call's ``mask`` or ``lengths`` into a `MaskPlan`.

    Parameters
    ----------
    mask : array_like of bool or 0/1, shape (B, T), or (T, B) with time_major, or None
    lengths : array_like of int, shape (B,), values 0..T, or None
    batch, timesteps : int
        B and T of the input.
    time_major : bool
        Whether ``mask`` is (T, B).
    like : array, optional
        The sequences, whose host or device is the call's; None is the host. A mask or lengths on a
        device make the call wait for the device once.

    Raises
    ------
    ValueError
        Both are given, a shape is wrong, or values are not 0/1 (mask) or not in 0..T (lengths).
    TypeError
        A dtype is neither bool nor numeric (mask) or not integer (lengths), or an array is not on
        the host or device of ``like``.
    """
    if mask is None:
        if lengths is None:
            return NO_MASK
        return _plan_lengths(_check_lengths(lengths, batch, timesteps, like), timesteps)
    if lengths is not None:
        raise ValueError("expected mask or lengths, not both; drop one of them")
    steps, binary = _as_steps(mask, batch, timesteps, time_major, like, "mask")
    counts = np.count_nonzero(steps, axis=1)
    padded = (steps == (np.arange(timesteps, like=steps) < counts[:, None])).all()
    counts, (is_padded, *is_binary) = _on_host(counts, padded, *binary)
    if not all(is_binary):
        raise _not_binary("mask")
    if is_padded:
        return _plan_lengths(counts, timesteps)
    return MaskPlan(STEPS, steps=steps, any_empty=bool((counts == 0).any()))


def plan_resets(
    reset_mask: Any, batch: int, timesteps: int, time_major: bool = False, like: Any = None
) -> Any:
    """Return ``reset_mask`` as a C-contiguous (B, T) bool copy, or None if it resets nothing."""
    if reset_mask is None:
        return None
    resets, binary = _as_steps(reset_mask, batch, timesteps, time_major, like, "reset_mask")
    no_counts = np.count_nonzero(resets[:0], axis=1)
    _, (any_reset, *is_binary) = _on_host(no_counts, resets.any(), *binary)
    if not all(is_binary):
        raise _not_binary("reset_mask")
    return resets if any_reset else None


def _as_steps(
    values: Any, batch: int, timesteps: int, time_major: bool, like: Any, what: str
) -> tuple[Any, list[Any]]:
    """Return a mask as a C-contiguous (B, T) bool copy, and flags that tell if it was binary.

    The list has one flag, which may be on a device; for bool arrays it is empty.
    """
    array = _plain_array(values, like, what)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{what}: expected a bool or 0/1 array, got dtype {array.dtype}; "
            f"convert it with {what}.astype(bool)"
        )
    expected = (timesteps, batch) if time_major else (batch, timesteps)
    if array.shape != expected:
        order = "(T, B)" if time_major else "(B, T)"
        raise ValueError(
            f"{what}: expected shape {order} = {expected} like the sequences, got {array.shape}"
        )
    steps = (array.T if time_major else array).copy(order="C")
    if steps.dtype.kind == "b":
        return steps, []
    numbers, steps = steps, steps != 0
    return steps, [(steps == numbers).all()]


def _not_binary(what: str) -> ValueError:
    return ValueError(
        f"{what}: expected only 0 and 1 (or bool), got other values; "
        f"say which steps count, e.g. {what} != 0"
    )


def _on_host(counts: Any, *flags: Any) -> tuple[np.ndarray, Any]:
    """Return integers (n,) and flags in host memory, copied from a device in one wait."""
    if not on_device(counts):
        return counts, flags
    facts: Any = np.concatenate([counts, *(flag[None] for flag in flags)])
    facts = facts.get()
    return facts[: len(counts)].astype(np.intp), facts[len(counts) :]


def _plain_array(values: Any, like: Any, what: str) -> Any:
    """Return an argument as an array on the host or device of ``like``."""
    where = place(values)
    check_place(where, values, like, what)
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(
            f"{what}: expected a plain array, got a numpy.ma.MaskedArray; pass its .filled(0)"
        )
    if where == "device":
        return device_array(values, what)
    try:
        array = held(np.asarray(values))
    except ValueError as error:  # ragged lists
        raise ValueError(f"{what}: expected a rectangular array, got {error}") from None
    return follow(array, like)


def _check_lengths(lengths: Any, batch: int, timesteps: int, like: Any) -> np.ndarray:
    if place(lengths) is None:  # a list stays on the host, where lengths are needed
        like = None
    array: Any = _plain_array(lengths, like, "lengths")
    if on_device(array):
        array = array.get()
    empty = array.dtype.kind == "f" and array.shape == (0,)  # made of an empty list
    if array.dtype.kind not in "iu" and not empty:
        raise TypeError(
            f"lengths: expected integers, got dtype {array.dtype}; "
            "give the number of valid steps of each row"
        )
    if array.shape != (batch,):
        raise ValueError(
            f"lengths: expected shape (B,) = ({batch},), one per row, got {array.shape}"
        )
    array = array.copy()  # before min() reads them: MemoryError if there are far too many
    if batch and (array.min() < 0 or array.max() > timesteps):
        raise ValueError(
            f"lengths: expected values in 0..T = 0..{timesteps}, "
            f"got values from {array.min()} to {array.max()}"
        )
    return array.astype(np.intp, copy=False)


def _plan_lengths(lengths: np.ndarray, timesteps: int) -> MaskPlan:
    if (lengths == timesteps).all():
        return NO_MASK
    return MaskPlan(
        LENGTHS, lengths=np.ascontiguousarray(lengths), any_empty=bool((lengths == 0).any())
    )
