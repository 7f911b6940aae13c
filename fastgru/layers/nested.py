"""Nested lists of states, as Keras 3 gives them: ``[state]`` per cell of a stack."""

from __future__ import annotations

from typing import Any


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


def described(nested: Any) -> str:
    """Return what the text of an error says was passed in place of the right list."""
    if isinstance(nested, (list, tuple)):
        return f"a list of {len(nested)}"
    return "an array" if hasattr(nested, "shape") else type(nested).__name__
