"""Arrays from Keras' files into the cells of a layer, and the groups where the files keep them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import gates
from fastgru.io.keras_config import numbered
from fastgru.layers import GRU, RNN, Bidirectional, GRUCell, Sequential, StackedRNNCells
from fastgru.problem import BackendError, as_array, float_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastgru.io.hdf5 import Group

CONVENTIONS = {
    "keras": "gates z r h in columns, bias (2, 3H), reset after",
    "keras_reset_before": "gates z r h in columns, bias (3H,), reset before",
    "cudnn_gru": "CuDNNGRU: gates z r h, each block transposed, bias (6H,), reset after",
}
_SNAKES = (
    (GRU, "gru"),
    (RNN, "rnn"),
    (Bidirectional, "bidirectional"),
    (Sequential, "sequential"),
    (GRUCell, "gru_cell"),
    (StackedRNNCells, "stacked_rnn_cells"),
)

# What constructors raise for values that make no sense: RecursionError where the caller is deep
# already, BackendError for bfloat16 without ml_dtypes.
_REFUSALS = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
    *(RecursionError, BackendError),
)


@contextmanager
def named(place: str) -> Iterator[None]:
    """Turn what goes wrong inside into a ValueError that begins with the place."""
    try:
        yield
    except _REFUSALS as error:
        text = str(error)
        raise ValueError(text if text.startswith(place) else f"{place}: {text}") from error


class Cell(NamedTuple):
    """A cell of a layer, and where Keras 3 keeps its weights, relative to the layer."""

    cell: GRUCell
    group: str
    frozen: bool


def cells_of(layer: Any, group: str = "", frozen: bool = False) -> Iterator[Cell]:
    """Give the GRU cells of a layer in the order of its ``weights``.

    Raises
    ------
    TypeError
        It is no layer of fastgru's, or has cells that are no GRUCell.
    """
    frozen = frozen or not getattr(layer, "trainable", True)
    parts: list[tuple[Any, str]]
    if type(layer) is GRUCell:
        yield Cell(layer, group, frozen)
        return
    if isinstance(layer, Bidirectional):
        parts = [(layer.forward_layer, "forward_layer"), (layer.backward_layer, "backward_layer")]
    elif isinstance(layer, Sequential):
        parts = list(zip(layer.layers, sequential_groups(layer), strict=True))
    elif isinstance(layer, StackedRNNCells):
        snakes = numbered(map(snake_of, layer.cells))
        parts = [(cell, f"cells/{s}") for cell, s in zip(layer.cells, snakes, strict=True)]
    elif isinstance(layer, RNN):
        parts = [(layer.cell, "cell")]
    else:
        raise TypeError(
            "layer: expected GRU, RNN, Bidirectional or Sequential of GRU cells, got "
            f"{type(layer).__name__}"
        )
    for part, name in parts:
        yield from cells_of(part, f"{group}{name}/", frozen)


def snake_of(layer: Any) -> str:
    """Return what Keras 3's weights files call layers of this kind."""
    return next((snake for cls, snake in _SNAKES if isinstance(layer, cls)), "")


def sequential_groups(model: Sequential) -> list[str]:
    """Return the groups of a model's layers, as ``"layers/gru_1"``."""
    return [f"layers/{name}" for name in numbered(map(snake_of, model.layers))]


# ---- from a file's groups ------------------------------------------------------------------------


def keras3_arrays(root: Group, group: str) -> list[np.ndarray]:
    """Read one cell's arrays from a weights file of Keras 3, or of tf.keras' ``.keras`` files.

    Early ones, which Keras 3 reads too, call ``layers`` otherwise; CuDNNGRU has no cell.
    """
    old = group.replace("layers/", "_layer_checkpoint_dependencies/")
    for place in (group, group.removesuffix("cell/"), old, old.removesuffix("cell/")):
        variables = root.group(f"{place}vars")
        if variables is not None and variables.names:
            return [variables.array(str(i)) for i in range(len(variables.names))]
    raise ValueError(f"expected weights at {group}vars in {root.place}, got none")


def names_in(group: Group, what: str) -> list[str]:
    """Return a list of names from a legacy file's attribute, which may be cut in parts."""
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
            raise ValueError(f"{group.place}: expected a list of names as {what}, got {part!r}")
    return names


def legacy_arrays(root: Group, path: Sequence[str]) -> list[np.ndarray]:
    """Read the arrays of one layer from a legacy file, in the file's order.

    The group of a nested model holds the arrays of all its layers in one list. A layer's own are
    those whose names have its name in them, with nothing before it but models that it is in.
    """
    group = root.group(path[0])
    if group is None:
        raise ValueError(f"{root.place}: expected layer {path[0]}, got {', '.join(root.names)}")
    names = names_in(group, "weight_names")
    if len(path) > 1:
        names = [name for name in names if _is_below(name.split("/"), path)]
    return [group.array(name) for name in names]


def _is_below(parts: list[str], path: Sequence[str]) -> bool:
    if path[-1] not in parts:
        return False
    around = iter(path[:-1])
    return all(part in around for part in parts[: parts.index(path[-1])])


def shared_out(layer: Any, arrays: Sequence[np.ndarray], frozen: bool) -> list[list[np.ndarray]]:
    """Cut a legacy file's list of a layer's arrays into one list for each of its cells.

    Such files have what is trainable first, and Keras 1 has nine arrays for each cell.

    Raises
    ------
    ValueError
        There are more or fewer than the cells have.
    """
    cells = list(cells_of(layer, frozen=frozen))
    counts = [2 + part.cell.use_bias for part in cells]
    if len(arrays) == 9 * len(cells):
        counts = [9] * len(cells)
    if len(arrays) != sum(counts):
        raise ValueError(f"expected {sum(counts)} arrays, got {len(arrays)}")
    result: list[list[np.ndarray]] = [[] for _ in cells]
    at = 0
    for i in sorted(range(len(cells)), key=lambda i: cells[i].frozen):
        result[i] = list(arrays[at : at + counts[i]])
        at += counts[i]
    return result


# ---- into the layer ------------------------------------------------------------------------------


def fill(layer: Any, arrays: Sequence[Sequence[np.ndarray]]) -> str:
    """Give a layer its weights, building it if need be; return the convention they came in.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built or not. After an error it is as it was.
    arrays : list of lists
        For each cell, in the order of `cells_of`, the kernel, the recurrent kernel and the bias.

    Raises
    ------
    ValueError, TypeError
        Other shapes, numbers or dtypes of arrays than the layer's.
    """
    cells = [part.cell for part in cells_of(layer)]
    found = [_read_cell(cell, list(a)) for cell, a in zip(cells, arrays, strict=True)]
    weights = [weights for weights, _ in found]
    if layer.built:
        layer.set_weights([array for three in weights for array in three])
    else:
        _build(layer, cells, weights)
    return "; ".join(dict.fromkeys(convention for _, convention in found))


def _read_cell(cell: GRUCell, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Return a cell's weights in fastgru's layout, and the convention they came in."""
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
    """Build a layer on weights that are there: none are drawn, and after an error none are left."""
    try:
        for cell, arrays in zip(cells, weights, strict=True):
            dtype = float_dtype(cell.dtype)
            cell.adopt(*(as_array(array, dtype, cell.name) for array in arrays))
        layer.build((None, None, weights[0][0].shape[0]))
    except (TypeError, ValueError):
        _forget(layer)
        raise


def _forget(layer: Any) -> None:
    """Take a layer, and all that is in it, back to before it was built."""
    layer.built = False
    if isinstance(layer, GRUCell):
        layer.forget()
    parts = [part for name in ("layers", "halves", "cells") for part in getattr(layer, name, ())]
    for part in [*parts, layer.cell] if isinstance(layer, RNN) else parts:
        _forget(part)
