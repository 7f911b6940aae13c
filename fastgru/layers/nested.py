"""Nested lists of states, as Keras 3 gives them: ``[state]`` per cell of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

# What calls return: one array, or outputs and states.
Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
WithState: TypeAlias = tuple[Array, *tuple[Array | list[Array], ...]]
if TYPE_CHECKING:
    # Type checkers know this module without its package. The default lets ``GRU`` alone be a type.
    from typing_extensions import TypeVar

    Result = TypeVar("Result", default=Any)
else:
    from typing import TypeVar

    Result = TypeVar("Result")


def flatten(nested: Any) -> list[Any]:
    """Return the leaves of nested lists, in order."""
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in flatten(part)]
    return [nested]


def map_nested(function: Any, nested: Any) -> Any:
    """Apply ``function`` to the leaves of nested lists, keeping the nesting."""
    if isinstance(nested, (list, tuple)):
        return [map_nested(function, part) for part in nested]
    return function(nested)


def unstacked(initial: Any, count: int) -> Any:
    """Return the states in one array (count, B, H) as a list; anything else as it is.

    PyTorch has all states of a module in one array, ``h_0`` of (num_layers * directions, B, H):
    of the first layer forward and backward, then of the next. No state of Keras has three axes.
    """
    stacked = not isinstance(initial, (list, tuple)) and getattr(initial, "ndim", 0) == 3
    return list(initial) if stacked and initial.shape[0] == count else initial


def described(nested: Any) -> str:
    """Return what the text of an error says was passed in place of the right list."""
    if isinstance(nested, (list, tuple)):
        return f"a list of {len(nested)}"
    shape = getattr(nested, "shape", None)
    return type(nested).__name__ if shape is None else f"an array of shape {tuple(shape)}"
