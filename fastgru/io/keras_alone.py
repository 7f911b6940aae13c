"""Which arrays of Keras' legacy files of weights alone belong to which cell of a layer.

Such a file has no config. The layer that gets the weights stands for it, as the model does in
Keras: the cells that are not trainable there are those whose arrays come last in the file. See
`fastgru.io.keras_legacy` for the rest.
"""

from __future__ import annotations

import re
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

from fastgru.io.budget import listed
from fastgru.io.keras_cells import cells_of, is_unnamed
from fastgru.io.keras_legacy import (
    WantedCell,
    by_names,
    choose,
    fit,
    in_order,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from fastgru.io.keras_cells import NamedArrays
    from fastgru.io.keras_legacy import StoredCell

_AUTOMATIC = re.compile(r"(.*?)(?:_(\d+))?")
_MOST_PERMUTED = 5  # cells


def wanted_of_layer(layer: Any) -> list[WantedCell]:
    """Return the cells of one of fastgru's layers."""
    cells = list(cells_of(layer))
    result: list[WantedCell] = []
    for part in cells:
        half = next((h for h in ("forward", "backward") if part.group.startswith(h)), "")
        names = [layer.name]
        if half:
            names.append(getattr(layer, f"{half}_layer").name)
        if "cells/" in part.group:
            names.append(part.cell.name)
        below = bool(result) and result[-1].half == half
        arrays = 2 + part.cell.use_bias
        result.append(
            WantedCell((), tuple(names), half, part.cell.units, arrays, below, *2 * [part.frozen])
        )
    return result


def alone(
    layer: Any, group: NamedArrays, stored: Sequence[StoredCell], notes: list[str]
) -> list[list[np.ndarray]]:
    """Return the arrays of the one layer that these stored cells of a group belong to.

    Parameters
    ----------
    layer, group, stored
    notes : list of str
        Gets a sentence where the arrays are only probably the layer's.

    Raises
    ------
    ValueError
        They are those of another layer, or do not say which cell each is.
    """
    wanted = wanted_of_layer(layer)
    if not stored:
        order = _by_flags(wanted)
        plain = [wanted[i]._replace(inside_frozen=False) for i in order]
        arrays = dict(zip(order, in_order(group, plain), strict=True))
        return [arrays[i] for i in range(len(wanted))]
    if len(stored) != len(wanted):
        got = listed(cell.prefix for cell in stored)
        raise ValueError(f"{layer.name}: expected {len(wanted)} cells, got {len(stored)}: {got}")
    by_name = None if _has_unnamed_cells(layer) else by_names(wanted, stored)
    if by_name is not None and fit(wanted, by_name):
        return [cell.read(group) for cell in by_name]
    result: list[StoredCell] = []
    for half in dict.fromkeys(want.half for want in wanted):
        part = [want for want in wanted if want.half == half]
        cells = list(stored) if not half else _of_half(stored, half)
        result += _in_stack(part, cells, layer.name, notes)
    return [cell.read(group) for cell in result]


def all_of_group(
    layers: Sequence[Any], group: NamedArrays, stored: Sequence[StoredCell], notes: list[str]
) -> list[list[list[np.ndarray]]] | None:
    """Return the arrays of layers that are all the GRUs of a nested model; None if they are not.

    The names in the file are those that the layers were built with, so the order counts too.
    """
    wanted = [wanted_of_layer(layer) for layer in layers]
    cells = [cell for some in wanted for cell in some]
    if len(cells) != len(stored) or any(map(_has_unnamed_cells, layers)):
        return None
    try:
        chosen, note = choose(cells, stored, [_by_flags(cells)])
    except ValueError:
        return None
    notes += [note] if note else []
    left = iter(chosen)
    return [[next(left).read(group) for _ in some] for some in wanted]


def others_like(found: Sequence[StoredCell], stored: Sequence[StoredCell]) -> list[StoredCell]:
    """Return the stored cells that could be meant in place of those found by name.

    The size of their input may be another: a layer learns its own from the file.
    """
    mine = {cell.prefix for cell in found}
    like = {(cell.units, len(cell.names)) for cell in found}
    # Two halves are told from single cells; one mark alone may be part of a user's name.
    halves = {cell.half for cell in found}
    others = [cell for cell in stored if cell.prefix not in mine]
    if halves == {"forward", "backward"}:
        others = [cell for cell in others if cell.half]
    return [cell for cell in others if (cell.units, len(cell.names)) in like]


def _has_unnamed_cells(layer: Any) -> bool:
    return any("cells/" in part.group and is_unnamed(part.cell) for part in cells_of(layer))


def _by_flags(wanted: Sequence[WantedCell]) -> list[int]:
    """Return the order of Keras' list of arrays: those of trainable cells first."""
    return sorted(range(len(wanted)), key=lambda i: wanted[i].frozen)


def _of_half(stored: Sequence[StoredCell], half: str) -> list[StoredCell]:
    """Return the cells of one half of a Bidirectional.

    Keras marks all halves but a ``backward_layer`` that was given to it.
    """
    marked = [cell for cell in stored if cell.half]
    if half == "forward":
        return [cell for cell in marked if cell.half == half]
    return [cell for cell in stored if cell.half != "forward"]


def _in_stack(
    wanted: Sequence[WantedCell], cells: Sequence[StoredCell], name: str, notes: list[str]
) -> list[StoredCell]:
    """Return the cells of a stack in the order of the stack, where sizes or numbers say it."""
    got = listed(cell.prefix for cell in cells) or "none"
    if len(wanted) == len(cells):
        if len(cells) == 1:
            return list(cells)
        if len(cells) <= _MOST_PERMUTED:
            fits = [list(some) for some in permutations(cells) if fit(wanted, some)]
            if len(fits) == 1:
                return fits[0]
        order = _by_flags(wanted)
        placed = dict(zip(order, cells, strict=True))
        chosen = [placed[i] for i in range(len(wanted))]
        some_frozen = len({want.frozen for want in wanted}) > 1
        if fit(wanted, chosen) and (some_frozen or _numbered(cells)):
            if len({(c.inputs, c.units, len(c.names)) for c in cells}) < len(cells):
                notes.append(
                    f"{name}: the cells are taken in the order of the file, as Keras does: "
                    f"{listed(cell.prefix for cell in chosen)}. Cells that were not trainable "
                    "come last there. If there were some, give those of this layer "
                    "trainable=False, as Keras needs it too; or give all cells the names that "
                    "they have there, GRUCell(units, name=...)"
                )
            return chosen
    raise ValueError(
        f"{name}: expected {len(wanted)} cells in an order that is certain, got {got}; some may "
        "not have been trainable, which changes their order in the file. Give the cells the names "
        "that they have there, as in GRUCell(units, name=...)"
    )


def _numbered(cells: Sequence[StoredCell]) -> bool:
    """Say whether names are as Keras makes them, each with a higher number than the one before."""
    matches = [_AUTOMATIC.fullmatch(cell.parts[-1]) for cell in cells]
    pairs = [(m[1], int(m[2] or 0)) for m in matches if m is not None]
    numbers = [number for _, number in pairs]
    return len({stem for stem, _ in pairs}) == 1 and all(a < b for a, b in pairwise(numbers))
