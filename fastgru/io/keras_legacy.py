"""Which arrays of Keras' legacy ``.h5`` files belong to which GRU cell.

A file has one group for each layer of the outermost model, and a group has one list of arrays:
first the trainable ones, then the others. The names stored with the arrays are those that the
layers had when they were built. So there are two witnesses. Position: Keras itself reads by it, but
the config does not say of all arrays whether they were trainable. Names: right unless a layer was
renamed. Where both speak and differ, or names say nothing, position decides, as in Keras, and a
note says so. Where the position is not certain either, that is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io.budget import listed, short
from fastgru.io.keras_cells import names_in
from fastgru.io.keras_config import identity, kind_of, layer_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from fastgru.io.budget import Budget
    from fastgru.io.hdf5 import Group
    from fastgru.io.keras_cells import NamedArrays
    from fastgru.io.keras_config import LayerConfig

_ROLES = ("kernel", "recurrent_kernel", "bias")
# Keras 1 has an array for each gate, as "gru_1_W_z"; `fastgru.io.keras_cells.fill` joins them.
_KERAS_1_ROLES = tuple(f"{kind}_{gate}" for gate in "zrh" for kind in "WUb")
_NAME = re.compile(
    r"(?:(.*?)[/_])??(recurrent_kernel|kernel|bias|[WUb]_[zrh])((?:_\d+)?)(?::\d+)?", re.DOTALL
)
BY_PLACE = "the arrays are taken in its order, as Keras does"
_MOST_PARTS = 256  # of an array's name, between slashes
_MOST_PAIRS = 1 << 16  # of names that are compared; a file of many equal names goes by position


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


# ---- what a file has -----------------------------------------------------------------------------


def version_of(root: Group) -> str:
    """Return the version of the Keras that wrote a whole model; empty if the file has none."""
    weights = root.group("model_weights")
    texts = [group.attribute("keras_version") for group in (root, weights) if group is not None]
    return next((text for text in texts if isinstance(text, str)), "")


def stored_cells(group: NamedArrays) -> list[StoredCell]:
    """Return the GRU cells among the arrays of a group, in the order of its list of names."""
    found: dict[str, dict[str, str]] = {}
    for name in names_in(group, "weight_names"):
        match = _NAME.fullmatch(name)
        if name.count("/") > _MOST_PARTS:
            raise ValueError(
                f"{group.place}: expected at most {_MOST_PARTS} names in each other, got "
                f"{short(name)}"
            )
        if match is not None:
            roles = found.setdefault(f"{match[1] or ''}{match[3]}", {})
            if match[2] in roles:
                raise ValueError(
                    f"{group.place}: expected each name once, got twice: {short(name)}"
                )
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
    version : str
        The version of the Keras that wrote the file.

    Attributes
    ----------
    notes : dict of str to str
        By the name of a layer that `arrays` has read, why its arrays are only probably its own.
    """

    def __init__(self, root: Group, configs: Sequence[LayerConfig], version: str = "") -> None:
        self.notes: dict[str, str] = {}
        self._root = root
        self._version = version
        self._configs: dict[str, list[LayerConfig]] = {}
        for config in configs:
            self._configs.setdefault(config.path[0], []).append(config)
        self._found: dict[str, dict[str, list[StoredCell]]] = {}
        self._stored: dict[str, list[StoredCell]] = {}

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
            got = listed(self._root.names)
            raise ValueError(f"{self._root.place}: expected layer {short(top)}, got {got}")
        if top not in self._stored:
            self._stored[top] = stored_cells(group)
        stored = self._stored[top]
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
            forms = {config.name: identity(config) for config in configs}
            keys = [
                (forms[name], cell.names, cell.half)
                for name, cells in by_layer.items()
                for cell in cells
            ]
        first = dict(zip(reversed(keys), reversed(wanted), strict=True))
        once = [(key, first[key]) for key in dict.fromkeys(keys)]
        cells = [cell for _, cell in once]
        owner_frozen = any(config.owner_frozen for config in configs)
        orders = _by_flags(cells, owner_frozen, self._version)
        chosen, note = choose(cells, stored, orders)
        self.notes.update((config.name, note) for config in configs if note)
        found = {key: cell for (key, _), cell in zip(once, chosen, strict=True)}
        left = iter(keys)
        return {name: [found[next(left)] for _ in cells] for name, cells in by_layer.items()}


def _by_flags(wanted: Sequence[WantedCell], owner_frozen: bool, version: str) -> list[list[int]]:
    """Return the orders in which a file may list the cells: trainable ones first.

    Keras 3 asks each variable alone. In Keras 2 a model that is not trainable has nothing that is,
    but lists what would be before the rest.
    """
    count = range(len(wanted))
    modern = version.startswith("3")
    orders = [] if modern and owner_frozen else [sorted(count, key=lambda i: wanted[i].frozen)]
    if owner_frozen:
        orders.append(list(count))
    elif not modern:
        orders.append(sorted(count, key=lambda i: wanted[i].inside_frozen))
    return orders[:1] if orders[0] == orders[-1] else orders


def choose(
    wanted: Sequence[WantedCell], stored: Sequence[StoredCell], orders: list[list[int]]
) -> tuple[list[StoredCell], str]:
    """Return the stored cell of each wanted one, and a note where others could be meant.

    Raises
    ------
    ValueError
        Sizes, order and names do not say which is which.
    """
    by_position: list[list[StoredCell]] = []
    if len(wanted) == len(stored):
        for order in orders:
            cells = dict(zip(order, stored, strict=True))
            by_position.append([cells[i] for i in range(len(wanted))])
        by_position = [cells for cells in by_position if fit(wanted, cells)]
    by_name = by_names(wanted, stored)
    if by_name is not None and not fit(wanted, by_name):
        by_name = None
    if by_name is not None and (not by_position or by_name in by_position):
        return by_name, ""
    if len(by_position) == 1:
        return by_position[0], _note(wanted, by_position[0], by_name)
    need = listed(dict.fromkeys(short("/".join((*c.models, *c.names))) for c in wanted))
    got = listed(cell.prefix for cell in stored) or "none"
    if by_position:
        why = "the order is not certain, since some were not trainable, nor do their names tell"
    else:
        why = "neither their names nor their sizes and order say which is which"
    raise ValueError(
        f"expected weights of {need}, got those of {got}; {why}. Save the model as .keras, or "
        "give the layers the names that they were built with"
    )


def _note(
    wanted: Sequence[WantedCell],
    chosen: Sequence[StoredCell],
    by_name: Sequence[StoredCell] | None,
) -> str:
    """Say why cells that were taken by their place may be others; empty where they cannot."""
    sizes = Counter(map(_sizes, wanted, chosen))
    if by_name is None and max(sizes.values()) == 1:
        return ""
    what = "does not have the names" if by_name is None else "has the names in another order"
    both = zip(wanted, chosen, strict=True)
    pairs = (f"{short('/'.join(w.names))} from {short(c.prefix)}" for w, c in both)
    return (
        f"the file {what}, so {BY_PLACE}: "
        f"{listed(pairs)[:500]}. That is right where layers were renamed after they were built. "
        "Where the cell alone of a GRU was not trainable (gru.cell.trainable = False), the order "
        "is another, and Keras mixes the layers up too: then save the model as .keras"
    )


def _sizes(want: WantedCell, cell: StoredCell) -> tuple[Any, ...]:
    """Return what two cells have in common that can stand for each other."""
    return want.half, want.below, cell.inputs, cell.units, len(cell.names)


def fit(wanted: Sequence[WantedCell], cells: Sequence[StoredCell]) -> bool:
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


def by_names(wanted: Sequence[WantedCell], stored: Sequence[StoredCell]) -> list[StoredCell] | None:
    """Return the stored cell of each wanted one by their names; None unless all are found."""
    matches = by_parts(stored) if len(wanted) * len(stored) > _MOST_PAIRS else {}
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


def by_parts(stored: Sequence[StoredCell]) -> dict[str, list[StoredCell]]:
    """Return the stored cells that have a part in their names, by that part."""
    matches: dict[str, list[StoredCell]] = {}
    for cell in stored:
        for part in set(cell.parts):
            matches.setdefault(part, []).append(cell)
    return matches


def by_their_names(
    configs: Sequence[LayerConfig], stored: Sequence[StoredCell], place: str, budget: Budget
) -> list[list[StoredCell]]:
    """Return the stored cells of each config, where a file's order says nothing.

    Raises
    ------
    ValueError
        Names and sizes do not say which are a layer's, or different layers have one name.
    """
    found: list[list[StoredCell]] = []
    owners: dict[str, tuple[str, bytes]] = {}
    matches = by_parts(stored)
    for config in configs:
        wanted = wanted_of_config(config)
        pool = matches.get(wanted[0].names[0], []) if wanted else []
        budget.step(len(pool) * len(wanted), place)
        cells = by_names(wanted, pool)
        if cells is None or not fit(wanted, cells):
            got = listed(cell.prefix for cell in stored) or "none"
            raise ValueError(
                f"{place}: expected weights of {short(config.name)}, got those of {got}"
            )
        form = identity(config)
        for cell in cells:
            if owners.setdefault(cell.prefix, form) != form:
                raise ValueError(
                    f"{place}: expected weights of its own for {short(config.name)}, got those of "
                    f"another layer, {short(cell.prefix)}"
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


# ---- arrays without names ------------------------------------------------------------------------


def in_order(
    group: NamedArrays, wanted: Sequence[WantedCell], owner_frozen: bool = False
) -> list[list[np.ndarray]]:
    """Return the arrays of a group whose names say nothing, cell after cell.

    Raises
    ------
    ValueError
        The group has another number of arrays, or a model's layers are not all trainable.
    """
    names = names_in(group, "weight_names")
    counts = [cell.arrays for cell in wanted]
    if len(names) == 9 * len(wanted):
        counts = [9] * len(wanted)
    if len(names) != sum(counts):
        raise ValueError(f"expected {sum(counts)} arrays, got {len(names)}: {listed(names)}")
    if not owner_frozen and len({cell.inside_frozen for cell in wanted}) > 1:
        raise ValueError(
            f"expected names that tell the cells apart, since some are not trainable, got "
            f"{listed(names)}"
        )
    taken = iter(names)
    return [[group.array(next(taken)) for _ in range(count)] for count in counts]
