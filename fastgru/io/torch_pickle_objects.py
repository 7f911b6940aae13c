"""What stands for tensors and foreign objects in a pickle that was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_NAME = 200  # of a class, in messages


class Storage(NamedTuple):
    """A storage: ``size`` elements, in the member ``data/<key>`` of an archive for instance."""

    key: str
    dtype: str
    size: int


class PickledTensor(NamedTuple):
    """A view of a storage; offset and strides count elements. Only the types are checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Skipped:
    """An object of another class, which is not made.

    Attributes
    ----------
    name : str
        Its class, or the function that would make it.
    items : dict
        What was set in it by keys.
    state : object
        Its attributes, or None.
    """

    __slots__ = ("items", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = cut(name)
        self.items: dict[Any, Any] | None = None
        self.state: Any = None

    def children(self) -> Iterator[tuple[Any, Any]]:
        """Yield names and values: of a module its tensors and modules, else the items."""
        parts = ("_parameters", "_buffers", "_modules")
        if isinstance(self.state, dict) and isinstance(self.state.get("_modules"), dict):
            for part in parts:
                found = self.state.get(part)
                yield from found.items() if isinstance(found, dict) else ()
        yield from self.items.items() if self.items else ()


def cut(name: str) -> str:
    """Return a name of a class for messages, the same object if it is short or cut already."""
    return name if len(name) <= LONGEST_NAME + 3 else f"{name[:LONGEST_NAME]}..."
