"""Copies arrays from Keras' files into a layer's cells, and knows the groups that have them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastgru import gates
from fastgru.dtypes import float_dtype
from fastgru.io.budget import short, text_bytes
from fastgru.io.imported_layer import parts_of
from fastgru.io.keras_config import numbered
from fastgru.layers import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells
from fastgru.problem import BackendError, as_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fastgru.io.budget import Budget
    from fastgru.io.keras_config import LayerConfig

CONVENTIONS = {
    "keras": "gates z r h in columns, bias (2, 3H), reset after",
    "keras_reset_before": "gates z r h in columns, bias (3H,), reset before",
    "cudnn_gru": "CuDNNGRU: gates z r h, each block transposed, bias (6H,), reset after",
}
_CELL_OBJECTS = 40  # of Python, for a layer with its cell, its config and its variables
_NAME_COPIES = 4  # of a cell's name, in those of its variables
_SNAKES = (
    (GRU, "gru"),
    (RNN, "rnn"),
    (Bidirectional, "bidirectional"),
    (Sequential, "sequential"),
    (GRUCell, "gru_cell"),
    (StackedRNNCells, "stacked_rnn_cells"),
)

_MOST_SHARED = 100  # models that one layer is in
# What constructors raise for wrong values: RecursionError if the caller's stack is deep already,
# BackendError for bfloat16 without ml_dtypes.
_REFUSALS = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
    *(RecursionError, BackendError),
)


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Turn errors inside the block into a ValueError that begins with the place."""
    try:
        yield
    except _REFUSALS as error:
        text = str(error)
        raise ValueError(text if text.startswith(place) else f"{place}: {text}") from error


class NamedArrays(Protocol):
    """A group of arrays with a list of their names: `fastgru.io.hdf5.Group`, `tfjs.Model`."""

    @property
    def place(self) -> str:
        """Its name in errors."""

    def attribute(self, name: str) -> Any:
        """Return the names of its arrays as ``weight_names``."""

    def get(self, path: str) -> Any:
        """Return what has the ``shape`` of an array; None if there is none."""

    def array(self, path: str) -> np.ndarray:
        """Return an array."""


class PlacedCell(NamedTuple):
    """A cell of a layer, and the group of its weights in Keras 3's files, below the layer's."""

    cell: GRUCell
    group: str
    frozen: bool


def cells_of(layer: Any, group: str = "", frozen: bool = False) -> Iterator[PlacedCell]:
    """Yield the GRU cells of a layer in the order of its ``weights``.

    Raises
    ------
    TypeError
        The layer is not one of fastgru's, or has a cell that is not a GRUCell.
    """
    frozen = frozen or not getattr(layer, "trainable", True)
    if type(layer) is GRUCell:
        yield PlacedCell(layer, group, frozen)
        return
    parts = parts_of(layer)
    if not parts:
        raise TypeError(
            "layer: expected GRU, RNN, Bidirectional or Sequential of GRU cells, got "
            f"{type(layer).__name__}"
        )
    snakes = numbered(snake_of(part) for _, part in parts)
    for (names, part), snake in zip(parts, snakes, strict=True):
        # Keras 3 names members of lists by their class, as "layers/gru_1".
        below = names[0] if len(names) == 1 else f"{names[0]}/{snake}"
        yield from cells_of(part, f"{group}{below}/", frozen)


def is_unnamed(layer: Any) -> bool:
    """Say whether nobody gave a layer its name, so that it equals one in a file only by chance."""
    return bool(layer.name == getattr(layer, "_automatic_name", None))


def snake_of(layer: Any) -> str:
    """Return the name of a layer's class in Keras 3's weights files."""
    return next((snake for cls, snake in _SNAKES if isinstance(layer, cls)), "")


# ---- from a file's groups ------------------------------------------------------------------------


def variables_at(root: Any, group: str) -> Any:
    """Return the group of one cell's variables in a weights file of Keras 3 or a ``.keras`` file.

    ``root`` is a group of `fastgru.io.hdf5`, of several files or of TensorFlow.js' weights.
    Early files have another name for ``layers``, and Keras 3 reads them too. CuDNNGRU has no cell.
    """
    old = group.replace("layers/", "_layer_checkpoint_dependencies/")
    for place in (group, group.removesuffix("cell/"), old, old.removesuffix("cell/")):
        variables = root.group(f"{place}vars")
        if variables is not None and variables.names:
            return variables
    return None


def arrays_at(root: Any, group: str, layer: Any) -> list[list[np.ndarray]]:
    """Read the arrays of each cell of a layer whose group is known.

    Raises
    ------
    ValueError
        A cell has none. A cell that a stack has twice is in the file once.
    """
    result: list[list[np.ndarray]] = []
    read: dict[tuple[str, str], list[np.ndarray]] = {}
    for part in cells_of(layer):
        half, key = part.group.partition("/")[0], part.cell.name
        variables = variables_at(root, group + part.group)
        if variables is not None:
            arrays = [variables.array(str(i)) for i in range(len(variables.names))]
            read[half, key] = arrays
        elif (half, key) in read:
            arrays = read[half, key]
        else:
            raise ValueError(
                f"expected weights at {group}{part.group}vars in {root.place}, got none"
            )
        result.append(arrays)
    return result


def group_in(root: Any, layer: Any, config: LayerConfig, same: list[LayerConfig]) -> str:
    """Return the group of a layer's weights.

    The file has the weights of a shared layer once, in the group of the first model that has it;
    ``same`` has all configs that are equal. A wrapper may hold its layer under a name of its own.
    """
    first = next(cells_of(layer)).group

    def there(groups: Iterable[str]) -> list[str]:
        return [group for group in groups if variables_at(root, group + first) is not None]

    if there([config.group]) and not config.wrapper:
        return config.group
    found = there([config.group]) or there(one.group for one in same[:_MOST_SHARED])
    if config.wrapper:
        around = config.group.rstrip("/").rpartition("/")[0]
        wrapper = root.group(around)
        names = wrapper.names if wrapper is not None else []
        inside = there(f"{around}/{name}/" for name in names[:_MOST_SHARED])
        # Keras 3 stores each layer's name, and an attribute's name in a config may be another's.
        called = [group for group in inside if name_at(root, group) == layer.name]
        found = called if len(called) == 1 else found or inside
        if len(found) == 1 and name_at(root, found[0]) not in ("", layer.name):
            raise ValueError(
                f"expected weights of {layer.name} at {found[0]} in {root.place}, got those of "
                f"{name_at(root, found[0])}: the wrapper's config and its file name its layers "
                "differently"
            )
    return found[0] if len(found) == 1 else config.group


def name_at(root: Any, group: str) -> str:
    """Return the name that Keras 3 stores with a layer's group; empty in early files."""
    own = root.group(f"{group}vars")
    name = own.attribute("name") if own is not None else None
    return name if isinstance(name, str) else ""


def names_in(group: NamedArrays, what: str) -> list[str]:
    """Return a list of names from a legacy file's attribute, which may be split into several."""
    parts = [group.attribute(what)]
    if parts[0] is None:
        parts = []
        while (part := group.attribute(f"{what}{len(parts)}")) is not None:
            parts.append(part)
    names: list[str] = []
    for part in parts:
        if isinstance(part, list):
            names += part
        elif np.size(part) or isinstance(part, str):  # an empty list is an array of floats
            raise ValueError(
                f"{group.place}: expected a list of names as {what}, got {short(repr(part))}"
            )
    return names


# ---- into the layer ------------------------------------------------------------------------------


def fill(layer: Any, arrays: Sequence[Sequence[np.ndarray]], budget: Budget | None = None) -> str:
    """Give a layer its weights, build it if it is not, and return the arrays' convention.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built or not. An error leaves it unchanged.
    arrays : list of lists
        For each cell, in the order of `cells_of`, the kernel, the recurrent kernel and the bias.
    budget : Budget, optional
        Of the file; it counts the layer's own weights.

    Raises
    ------
    ValueError, TypeError
        The arrays have other shapes, another number or other dtypes than the layer's.
    """
    cells = [part.cell for part in cells_of(layer)]
    if len(arrays) != len(cells):
        raise ValueError(f"expected weights of {len(cells)} cells, got those of {len(arrays)}")
    if budget is not None:
        for cell, parts in zip(cells, arrays, strict=True):
            size = float_dtype(cell.dtype).itemsize
            nbytes = sum(a.size * size for a in parts) + _NAME_COPIES * text_bytes(cell.name)
            budget.make_objects(_CELL_OBJECTS, nbytes, cell.name)
    found = [_read_cell(cell, list(a)) for cell, a in zip(cells, arrays, strict=True)]
    weights = [weights for weights, _ in found]
    if layer.built:
        layer.set_weights([array for three in weights for array in three])
    else:
        _build(layer, cells, weights)
    return "; ".join(dict.fromkeys(convention for _, convention in found))


def _read_cell(cell: GRUCell, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Return a cell's weights in fastgru's layout, and the arrays' convention."""
    H, old = cell.units, len(arrays) == 9
    if old:  # Keras 1: kernel, recurrent kernel and bias of z, then of r, then of h
        if len({a.shape[:-1] for a in arrays[0::3]}) != 1:
            raise ValueError("expected kernels of one shape for the three gates")
        arrays = [np.concatenate(arrays[i::3], axis=-1) for i in range(3)]
    if len(arrays) != 2 + cell.use_bias:
        raise ValueError(
            f"expected {2 + cell.use_bias} arrays for a cell with use_bias={cell.use_bias}, "
            f"got {len(arrays)}"
        )
    layout = "keras" if cell.reset_after else "keras_reset_before"
    if cell.use_bias:
        layouts = {(2, 3 * H): "keras", (3 * H,): "keras_reset_before", (6 * H,): "cudnn_gru"}
        got = layouts.get(arrays[2].shape)
        if got is None or gates.LAYOUTS[got].reset_after != cell.reset_after:
            raise ValueError(
                f"units={H} and reset_after={cell.reset_after}: expected a bias of shape "
                f"{(2, 3 * H) if cell.reset_after else (3 * H,)}, got {arrays[2].shape}"
            )
        layout = got
    kernel, recurrent_kernel, bias = gates.to_keras(layout, *arrays)
    if recurrent_kernel.shape[0] != H:
        raise ValueError(
            f"units={H}: expected a recurrent kernel ({H}, {3 * H}), got {recurrent_kernel.shape}"
        )
    weights = [kernel, recurrent_kernel] + ([] if bias is None else [bias])
    convention = "Keras 1: nine arrays, gates z r h, reset before" if old else CONVENTIONS[layout]
    return weights, convention if cell.use_bias else convention.replace("bias", "without bias")


def _build(layer: Any, cells: list[GRUCell], weights: list[list[np.ndarray]]) -> None:
    """Build a layer with these weights and draw none; an error leaves the layer without weights."""
    try:
        for cell, arrays in zip(cells, weights, strict=True):
            dtype = float_dtype(cell.dtype)
            cell.adopt(*(as_array(array, dtype, cell.name) for array in arrays))
        layer.build((None, None, weights[0][0].shape[0]))
    except (TypeError, ValueError):
        layer.forget()
        raise
