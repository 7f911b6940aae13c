"""Keras 3's constraints: ``constraint(w)`` returns the weight to use instead of w, in its dtype.

Norms are Euclidean, along `axis` (an int or a sequence of ints). For a kernel (I, 3H), the norms
along axis 0 are those of the vectors of weights into one unit. Source:
https://keras.io/api/layers/constraints/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgru.serialization import Configured, check_number, get_object, named, serialize_object

_EPSILON = 1e-7  # keras.config.epsilon(); added to norms, so that a zero vector stays zero


class Constraint(Configured):
    """Base of the constraints."""

    def __call__(self, w: Any) -> Any:
        """Return the constrained weight, an array; `w` is not changed."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(w)")


class NonNeg(Constraint):
    """Sets negative weights to zero."""

    def __call__(self, w: Any) -> Any:
        """Return the constrained weight, an array; `w` is not changed."""
        return np.maximum(np.asarray(w), 0)


class MinMaxNorm(Constraint):
    """Moves norms into ``[min_value, max_value]``.

    Parameters
    ----------
    min_value, max_value : float
        The interval. ValueError for NaN; only the upper end may be infinite.
    rate : float
        Finite. Norms become ``rate * clip(norm) + (1 - rate) * norm``.
    axis : int or sequence of int
        The axes of the norms.
    """

    _arguments: tuple[str, ...] = ("min_value", "max_value", "rate", "axis")

    def __init__(
        self,
        min_value: float = 0.0,
        max_value: float = 1.0,
        rate: float = 1.0,
        axis: int | Sequence[int] = 0,
    ):
        self.min_value = check_number(self, "min_value", min_value)
        self.max_value = check_number(self, "max_value", max_value, infinite=True)
        self.rate = check_number(self, "rate", rate)
        self.axis = axis

    def __call__(self, w: Any) -> Any:
        """Return the constrained weight, an array; `w` is not changed."""
        w = np.asarray(w)
        norm = _norm(w, self.axis)
        clipped = np.clip(norm, self.min_value, self.max_value)
        desired = self.rate * clipped + (1 - self.rate) * norm
        return w * (desired / (_EPSILON + norm))


class MaxNorm(MinMaxNorm):
    """Scales vectors of larger norms to the norm ``max_value``.

    Parameters
    ----------
    max_value : float
        May be infinite. ValueError for NaN.
    axis : int or sequence of int
        The axes of the norms.
    """

    _arguments = ("max_value", "axis")

    def __init__(self, max_value: float = 2, axis: int | Sequence[int] = 0):
        super().__init__(0.0, max_value, 1.0, axis)


class UnitNorm(Constraint):
    """Scales vectors to the norm 1.

    Parameters
    ----------
    axis : int or sequence of int
        The axes of the norms.
    """

    _arguments = ("axis",)

    def __init__(self, axis: int | Sequence[int] = 0):
        self.axis = axis

    def __call__(self, w: Any) -> Any:
        """Return the constrained weight, an array; `w` is not changed."""
        w = np.asarray(w)
        return w / (_EPSILON + _norm(w, self.axis))


def _norm(w: np.ndarray, axis: int | Sequence[int]) -> Any:
    axes = tuple(axis) if isinstance(axis, Sequence) else axis  # a config holds a list
    return np.sqrt(np.sum(np.square(w), axis=axes, keepdims=True))


_OBJECTS = named((MaxNorm, MinMaxNorm, NonNeg, UnitNorm))


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the constraint for anything that Keras takes as one.

    Parameters
    ----------
    identifier : None, str, dict, class, constraint or callable
        A live Keras constraint of a known class becomes fastgru's. Other callables ``f(w)`` are
        kept.
    custom_objects : mapping of str to object, optional
        Your own classes and functions, for names and dicts.

    Returns
    -------
    Constraint, callable or None
        None for None.

    Raises
    ------
    ValueError
        The identifier is unknown or not callable.
    """
    return get_object(identifier, _OBJECTS, "constraint", custom_objects)


def serialize(constraint: Any) -> dict[str, Any] | None:
    """Return the Keras 3 config dict of a constraint or named function; None for None."""
    return serialize_object(constraint)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Read a name or a Keras 3 or Keras 2 dict; errors as in `get`."""
    return get(config, custom_objects)
