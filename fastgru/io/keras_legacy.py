"""Which arrays of Keras' legacy ``.h5`` files belong to which GRU cell.

A file has one group for each layer of the outermost model, and a group has one list of arrays:
first the trainable ones, then the others. The names stored with the arrays are those that the
layers had when they were built. So there are two witnesses. Position: Keras itself reads by it, but
the config does not say of all arrays whether they were trainable. Names: right unless a layer was
renamed. Where both speak and differ, there is no way to know, and that is an error.
"""

from __future__ import annotations

import re
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io.keras_cells import cells_of, names_in
from fastgru.io.keras_config import kind_of, layer_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from fastgru.io.hdf5 import Group
    from fastgru.io.keras_cells import NamedArrays
    from fastgru.io.keras_config import LayerConfig

_ROLES = ("kernel", "recurrent_kernel", "bias")
# Keras 1 has an array for each gate, as "gru_1_W_z"; `fastgru.io.keras_cells.fill` joins them.
_KERAS_1_ROLES = tuple(f"{kind}_{gate}" for gate in "zrh" for kind in "WUb")
_NAME = re.compile(
    r"(?:(.*?)[/_])??(recurrent_kernel|kernel|bias|[WUb]_[zrh])((?:_\d+)?)(?::\d+)?", re.DOTALL
)
_AUTOMATIC = re.compile(r"(.*?)(?:_(\d+))?")
_MOST_PAIRS = 1 << 16  # of names that are compared; a file of many equal names goes by position
_MOST_PERMUTED = 5  # cells


class WantedCell(NamedTuple):
    """A GRU cell of a layer.

    Attributes
    ----------
    models : tuple of str
        Names of the models around its layer.
    names : tuple of str
        Names of its layer, of its half of a Bidirectional, and of the cell in a stack.
    half : str
        "forward" or "backward" in a Bidirectional, else "".
    units, arrays : int
        Its size, and 3 with a bias or 2 without.
    below : bool
        Whether its input is the output of the cell before it.
    frozen, inside_frozen : bool
        Whether itself, or itself or anything around it, is not trainable.
    """

    models: tuple[str, ...]
    names: tuple[str, ...]
    half: str
    units: Any
    arrays: int
    below: bool
    frozen: bool
    inside_frozen: bool


class StoredCell(NamedTuple):
    """The arrays of one GRU cell in a file: their common prefix, names by role, and sizes."""

    prefix: str
    names: dict[str, str]
    inputs: int
    units: int

    @property
    def parts(self) -> list[str]:
        """The prefix split at its slashes."""
        return self.prefix.split("/")

    @property
    def half(self) -> str:
        """Which half of a Bidirectional it is in, as Keras prefixes the names of these."""
        marks = [
            part.partition("_")[0]
            for part in self.parts
            if part.startswith(("forward_", "backward_"))
        ]
        return marks[-1] if marks else ""

    def read(self, group: NamedArrays) -> list[np.ndarray]:
        """Return the arrays, in the order that `fastgru.io.keras_cells.fill` takes."""
        roles = _ROLES if "kernel" in self.names else _KERAS_1_ROLES
        return [group.array(self.names[role]) for role in roles if role in self.names]


# ---- what a layer has ----------------------------------------------------------------------------


def wanted_of_config(config: LayerConfig) -> list[WantedCell]:
    """Return the cells of a layer of a model's config."""
    return list(_wanted(config.form, config.path[:-1], config.path[-1:], "", config.frozen))


def _wanted(
    form: Any, models: tuple[str, ...], names: tuple[str, ...], half: str, inside_frozen: bool
) -> Iterator[WantedCell]:
    config = form["config"]
    frozen = config.get("trainable", True) is False
    inside_frozen = inside_frozen or frozen
    kind = kind_of(form)
    if kind == "Bidirectional":
        for side, key in (("forward", "layer"), ("backward", "backward_layer")):
            part = config.get(key) or config["layer"]
            below = (*names, layer_name(part))
            yield from _wanted(part, models, below, side, inside_frozen)
        return
    if kind in ("GRU", "GRUCell"):
        arrays = 2 + (config.get("use_bias", True) is not False)
        units = config.get("units")
        yield WantedCell(models, names, half, units, arrays, False, frozen, inside_frozen)
        return
    cells = config["cell" if kind == "RNN" else "cells"]
    parts = cells if isinstance(cells, list) else [cells]
    for i, part in enumerate(parts):
        own = (*names, layer_name(part)) if len(parts) > 1 else names
        for j, cell in enumerate(_wanted(part, models, own, half, inside_frozen)):
            yield cell._replace(below=i + j > 0)


def wanted_of_layer(layer: Any) -> list[WantedCell]:
    """Return the cells of one of fastgru's layers; what it has frozen says nothing of a file."""
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
            WantedCell((), tuple(names), half, part.cell.units, arrays, below, False, False)
        )
    return result


# ---- what a file has -----------------------------------------------------------------------------


def stored_cells(group: NamedArrays) -> list[StoredCell]:
    """Return the GRU cells among the arrays of a group, in the order of its list of names."""
    found: dict[str, dict[str, str]] = {}
    for name in names_in(group, "weight_names"):
        match = _NAME.fullmatch(name)
        if match is not None:
            roles = found.setdefault(f"{match[1] or ''}{match[3]}", {})
            if match[2] in roles:
                raise ValueError(f"{group.place}: expected each name once, got twice: {name}")
            roles[match[2]] = name
    cells = []
    for prefix, roles in found.items():
        old = "W_z" in roles
        kernel = _shape(group, roles.get("W_z" if old else "kernel"))
        recurrent = _shape(group, roles.get("U_z" if old else "recurrent_kernel"))
        if len(kernel) == len(recurrent) == 2:
            units = recurrent[0]
            columns = units if old else 3 * units
            whole = len(roles) == 9 if old else set(roles) <= set(_ROLES)
            if whole and kernel[1] == recurrent[1] == columns:
                cells.append(StoredCell(prefix, roles, kernel[0], units))
    return cells


def _shape(group: NamedArrays, name: str | None) -> tuple[int, ...]:
    shape: tuple[int, ...] = getattr(group.get(name) if name else None, "shape", ())
    return shape


class LegacyModel:
    """The arrays of a whole model's GRUs; see the module's text.

    Parameters
    ----------
    root : Group
        The group ``model_weights``.
    configs : list of LayerConfig
        All GRUs of the model.
    """

    def __init__(self, root: Group, configs: Sequence[LayerConfig]) -> None:
        self._root = root
        self._configs: dict[str, list[LayerConfig]] = {}
        for config in configs:
            self._configs.setdefault(config.path[0], []).append(config)
        self._found: dict[str, dict[str, list[StoredCell]]] = {}

    def arrays(self, config: LayerConfig) -> list[list[np.ndarray]]:
        """Return the arrays of each cell of a layer.

        Raises
        ------
        ValueError
            The file has other arrays, or it cannot be known which are the layer's.
        """
        top = config.path[0]
        group = self._root.group(top)
        if group is None:
            got = ", ".join(self._root.names)
            raise ValueError(f"{self._root.place}: expected layer {top}, got {got}")
        stored = stored_cells(group)
        if not stored and len(self._configs[top]) == 1:
            return in_order(group, wanted_of_config(config), config.owner_frozen)
        if top not in self._found:
            self._found[top] = self._match(top, stored)
        return [cell.read(group) for cell in self._found[top][config.name]]

    def _match(self, top: str, stored: list[StoredCell]) -> dict[str, list[StoredCell]]:
        configs = self._configs[top]
        by_layer = {config.name: wanted_of_config(config) for config in configs}
        wanted = [cell for cells in by_layer.values() for cell in cells]
        keys: list[Any] = list(range(len(wanted)))
        if len(wanted) > len(stored):
            # What models share, or a stack has twice, is in the list of arrays once.
            forms = {config.name: repr((config.path[-1], config.form)) for config in configs}
            keys = [
                (forms[name], cell.names, cell.half)
                for name, cells in by_layer.items()
                for cell in cells
            ]
        first = dict(zip(reversed(keys), reversed(wanted), strict=True))
        once = [(key, first[key]) for key in dict.fromkeys(keys)]
        cells = [cell for _, cell in once]
        owner_frozen = any(config.owner_frozen for config in configs)
        chosen = _choose(cells, stored, _by_flags(cells, owner_frozen))
        found = {key: cell for (key, _), cell in zip(once, chosen, strict=True)}
        left = iter(keys)
        return {name: [found[next(left)] for _ in cells] for name, cells in by_layer.items()}


def _by_flags(wanted: Sequence[WantedCell], owner_frozen: bool) -> list[list[int]]:
    """Return the orders in which a file may list the cells: trainable ones first."""
    count = range(len(wanted))
    if owner_frozen:
        return [list(count)]
    orders = [
        sorted(count, key=lambda i: wanted[i].frozen),
        sorted(count, key=lambda i: wanted[i].inside_frozen),
    ]
    return orders[:1] if orders[0] == orders[1] else orders


def _choose(
    wanted: Sequence[WantedCell], stored: Sequence[StoredCell], orders: list[list[int]]
) -> list[StoredCell]:
    """Return the stored cell of each wanted one; ValueError where that is not certain."""
    by_position: list[list[StoredCell]] = []
    if len(wanted) == len(stored):
        for order in orders:
            cells = dict(zip(order, stored, strict=True))
            by_position.append([cells[i] for i in range(len(wanted))])
        by_position = [cells for cells in by_position if _fit(wanted, cells)]
    by_name = _by_names(wanted, stored)
    if by_name is not None and not _fit(wanted, by_name):
        by_name = None
    if by_name is not None and (not by_position or by_name in by_position):
        return by_name
    if by_name is None and len(by_position) == 1:
        return by_position[0]
    need = ", ".join(dict.fromkeys("/".join((*c.models, *c.names)) for c in wanted))
    got = ", ".join(cell.prefix for cell in stored) or "none"
    if by_position:
        why = "their names and their order do not agree on which is which"
    else:
        why = "neither their names nor their sizes and order say which is which"
    raise ValueError(
        f"expected weights of {need}, got those of {got}; {why}. Save the model as .keras, or "
        "give the layers the names that they were built with"
    )


def _fit(wanted: Sequence[WantedCell], cells: Sequence[StoredCell]) -> bool:
    """Say whether sizes, biases and halves of a Bidirectional are those of the wanted cells."""
    before: StoredCell | None = None
    for want, cell in zip(wanted, cells, strict=True):
        if want.units != cell.units or (want.half and cell.half not in ("", want.half)):
            return False
        if len(cell.names) not in (want.arrays, 9):
            return False
        if want.below and before is not None and before.units != cell.inputs:
            return False
        before = cell
    return True


def _by_names(
    wanted: Sequence[WantedCell], stored: Sequence[StoredCell]
) -> list[StoredCell] | None:
    """Return the stored cell of each wanted one by their names; None unless all are found."""
    if len(wanted) * len(stored) > _MOST_PAIRS:
        matches: dict[str, list[StoredCell]] = {}
        for cell in stored:
            for part in set(cell.parts):
                matches.setdefault(part, []).append(cell)
    else:
        matches = {}
    for strict in (True, False):
        result = []
        for want in wanted:
            pool = matches.get(want.names[0], []) if matches else stored
            if len(pool) > _MOST_PAIRS // max(len(wanted), 1) + 8:
                return None
            fits = [cell for cell in pool if _named(cell, want, strict)]
            if len(fits) != 1:
                break
            result.append(fits[0])
        else:
            if len({cell.prefix for cell in result}) == len(result):
                return result
    return None


def by_their_names(
    configs: Sequence[LayerConfig], stored: Sequence[StoredCell], place: str
) -> list[list[StoredCell]]:
    """Return the stored cells of each config, where a file's order says nothing.

    Raises
    ------
    ValueError
        Names and sizes do not say which are a layer's, or different layers have one name.
    """
    found: list[list[StoredCell]] = []
    owners: dict[str, tuple[str, str]] = {}
    for config in configs:
        wanted = wanted_of_config(config)
        cells = _by_names(wanted, stored)
        if cells is None or not _fit(wanted, cells):
            got = ", ".join(cell.prefix for cell in stored)[:1000] or "none"
            raise ValueError(f"{place}: expected weights of {config.name}, got those of {got}")
        form = config.path[-1], repr(config.form)
        for cell in cells:
            if owners.setdefault(cell.prefix, form) != form:
                raise ValueError(
                    f"{place}: expected weights of its own for {config.name}, got those of another "
                    f"layer, {cell.prefix}"
                )
        found.append(cells)
    return found


def _named(cell: StoredCell, want: WantedCell, strict: bool) -> bool:
    """Say whether a stored cell has the wanted names; strictly, no names around but the models'."""
    parts = cell.parts
    if want.names[0] not in parts:
        return False
    at = parts.index(want.names[0])
    if strict:
        around = iter(want.models)
        if not all(part in around for part in parts[:at]):
            return False
    rest = iter(parts[at + 1 :])
    names = want.names[1:]
    return all(any(p in (name, f"{want.half}_{name}") for p in rest) for name in names)


# ---- files of weights alone ----------------------------------------------------------------------


def in_order(
    group: NamedArrays, wanted: Sequence[WantedCell], owner_frozen: bool = False
) -> list[list[np.ndarray]]:
    """Return the arrays of a group whose names say nothing, cell after cell.

    Raises
    ------
    ValueError
        The group has another number of arrays, or some are trainable and others are not.
    """
    names = names_in(group, "weight_names")
    counts = [cell.arrays for cell in wanted]
    if len(names) == 9 * len(wanted):
        counts = [9] * len(wanted)
    if len(names) != sum(counts):
        raise ValueError(f"expected {sum(counts)} arrays, got {len(names)}: {', '.join(names)}")
    if not owner_frozen and len({cell.inside_frozen for cell in wanted}) > 1:
        raise ValueError(
            f"expected names that tell the cells apart, since some are not trainable, got "
            f"{', '.join(names)}"
        )
    taken = iter(names)
    return [[group.array(next(taken)) for _ in range(count)] for count in counts]


def alone(layer: Any, group: NamedArrays, stored: Sequence[StoredCell]) -> list[list[np.ndarray]]:
    """Return the arrays of the one layer that these stored cells of a group belong to.

    Raises
    ------
    ValueError
        They are those of another layer, or do not say which cell each is.
    """
    wanted = wanted_of_layer(layer)
    if not stored:
        return in_order(group, wanted)
    if len(stored) != len(wanted):
        got = ", ".join(cell.prefix for cell in stored)
        raise ValueError(f"{layer.name}: expected {len(wanted)} cells, got {len(stored)}: {got}")
    by_name = _by_names(wanted, stored)
    if by_name is not None and _fit(wanted, by_name):
        return [cell.read(group) for cell in by_name]
    result: list[StoredCell] = []
    for half in dict.fromkeys(want.half for want in wanted):
        part = [want for want in wanted if want.half == half]
        cells = list(stored) if not half else _of_half(stored, half)
        result += _in_stack(part, cells, layer.name)
    return [cell.read(group) for cell in result]


def _of_half(stored: Sequence[StoredCell], half: str) -> list[StoredCell]:
    """Return the cells of one half of a Bidirectional.

    Keras marks all halves but a ``backward_layer`` that was given to it.
    """
    marked = [cell for cell in stored if cell.half]
    if half == "forward":
        return [cell for cell in marked if cell.half == half]
    return [cell for cell in stored if cell.half != "forward"]


def _in_stack(
    wanted: Sequence[WantedCell], cells: Sequence[StoredCell], name: str
) -> list[StoredCell]:
    """Return the cells of a stack in the order of the stack, where sizes or numbers say it."""
    if len(wanted) == len(cells):
        if len(cells) == 1 or (_fit(wanted, cells) and _numbered(cells)):
            return list(cells)
        if len(cells) <= _MOST_PERMUTED:
            fits = [list(some) for some in permutations(cells) if _fit(wanted, some)]
            if len(fits) == 1:
                return fits[0]
    got = ", ".join(cell.prefix for cell in cells) or "none"
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
