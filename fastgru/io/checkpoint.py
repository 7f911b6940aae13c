"""TensorFlow checkpoints: ``model.save_weights``, ``tf.train.Checkpoint`` and TF 1's ``Saver``.

A checkpoint (`fastgru.io.bundle`) has tensors, and no configs. Since TensorFlow 2 it has the graph
of objects too: which layer has which cell, and which variable is a cell's kernel. An optimizer in
it keeps tensors of the weights' shapes and names; its objects are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io.budget import listed, short, text_bytes
from fastgru.io.bundle import Bundle
from fastgru.io.keras_config import are_automatic
from fastgru.io.named_arrays import ROLES, is_gru, keras_named, role_of
from fastgru.io.savedmodel import ObjectGraph, paths_of_cells
from fastgru.layers import Sequential

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from fastgru.io.budget import Budget
    from fastgru.io.imported_layer import ImportedLayer

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# The layers of a model of Keras 2, numbered in its order.
_TOP = re.compile(r"(?:.*?/)?layer_with_weights-(\d{1,6})(?=/|$)")
_MOST_LISTED = 20  # objects in a message


class _Object(NamedTuple):
    """An object of a checkpoint: the variables of the cells of a layer, and names it goes by.

    Attributes
    ----------
    path : str
        The names of objects that lead to it, or the name before those of the variables.
    names : set of str
        Of layers around its variables.
    keys : list of list of str
        For each cell, its tensors.
    """

    path: str
    names: set[str]
    keys: list[list[str]]


def find(prefix: Path, budget: Budget) -> list[ImportedLayer]:
    """Return a GRU with Keras' defaults for each GRU cell of a checkpoint.

    Raises
    ------
    ValueError
        The checkpoint is damaged, or has no variables with a GRU's names and shapes.
    """
    checkpoint = _Checkpoint(prefix, budget)
    cells = list(checkpoint.cells())
    full = [checkpoint.full_name(cell) for cell in cells]
    counts = Counter(full)
    arrays: dict[str, np.ndarray] = {}
    places: set[str] = set()
    for cell, name in zip(cells, full, strict=True):
        place = name if name and counts[name] == 1 else cell.path
        if place in places:
            raise ValueError(
                f"{checkpoint.bundle.path}: expected a name of its own for each layer, got two "
                f"called {short(place)}: make the layers and use load_keras_weights(layer, path)"
            )
        places.add(place)
        budget.make(4 * text_bytes(place), "the names of its layers")
        for key, role in zip(cell.keys[0], ROLES, strict=False):
            arrays[f"{place}/{role}"] = checkpoint.bundle.floats(key)
    found = keras_named(arrays, str(checkpoint.bundle.path), budget)
    if not found:
        names = listed(key for key in checkpoint.bundle.entries if key != GRAPH)
        raise ValueError(
            f"{checkpoint.bundle.path}: expected variables kernel (I, 3H) and recurrent_kernel "
            f"(H, 3H), by which a GRU of Keras is known, got {names or 'none'}"
        )
    return found


def arrays_for(layer: Any, prefix: Path, budget: Budget) -> list[list[np.ndarray]]:
    """Return the arrays of each cell of a layer, in the order that `keras_cells.fill` takes.

    Raises
    ------
    ValueError
        The checkpoint is damaged, has no such layer, or several.
    """
    checkpoint = _Checkpoint(prefix, budget)
    chosen = _chosen(checkpoint, layer.layers if isinstance(layer, Sequential) else [layer])
    return [[checkpoint.bundle.floats(key) for key in cell] for one in chosen for cell in one.keys]


def _chosen(checkpoint: _Checkpoint, parts: list[Any]) -> list[_Object]:
    """Return the objects of a layer's parts: by their names, or else the only ones there are."""
    places = [checkpoint.places(part) for part in parts]
    named = [
        [one for one in found if part.name in one.names]
        for part, found in zip(parts, places, strict=True)
    ]
    if all(len(found) == 1 for found in named):
        return [found[0] for found in named]
    if len(parts) == 1 and not named[0] and len(places[0]) == 1:
        return places[0]
    # In order, as Keras does, if the file's layers have one and the names are not the user's.
    automatic = are_automatic(part.name for part in parts)
    if automatic and (ordered := checkpoint.ordered(parts)):
        return ordered
    got = dict.fromkeys(
        f"{short(o.path or '.')} ({listed(sorted(o.names - {o.path}), 5) or 'no other name'})"
        for found in places
        for o in found[:_MOST_LISTED]
    )
    raise ValueError(
        f"expected weights of one {' and one '.join(part.name for part in parts)}, got "
        f"{listed(got) or 'none'}; give the layer the name that it has there"
    )


class _Checkpoint:
    """A checkpoint's variables, by the graph of its objects or, without one, by names."""

    def __init__(self, prefix: Path, budget: Budget) -> None:
        self.bundle = Bundle(prefix.parent, prefix.name, budget)
        self._paths: dict[int, str] = {}
        self._names: dict[str, str] = {}  # key of a variable -> its own name
        self._keys: dict[int, dict[str, str]] = {}  # object -> its variables by role
        self._graph: ObjectGraph | None = None
        if GRAPH in self.bundle.entries:
            self._graph = ObjectGraph(self.bundle)
            self._paths = dict(self._graph.model_objects())
            for number in self._paths:
                if variable := self._graph.variable(number):
                    self._names[variable[1]] = variable[0].removesuffix(":0")

    def cells(self) -> list[_Object]:
        """Return every GRU cell, known by the names and shapes of its variables."""
        return self._with_cells([()])

    def places(self, layer: Any) -> list[_Object]:
        """Return every object that has all cells of a layer where the layer has them."""
        paths = list(paths_of_cells(layer))
        found = self._with_cells(paths)
        if paths == [("cell",)]:  # a CuDNNGRU has its variables itself
            known = {one.path for one in found}
            found += [one for one in self.cells() if one.path not in known and _whole(one.path)]
        return found

    def ordered(self, layers: list[Any]) -> list[_Object]:
        """Return the objects of a stack of layers in the model's order; none if not certain."""
        tops = {match[0]: int(match[1]) for one in self.cells() if (match := _TOP.match(one.path))}
        paths = sorted(tops, key=lambda path: tops[path])
        if len(paths) != len(layers) or len(set(tops.values())) != len(paths):
            return []
        found = [
            [one for one in self.places(layer) if one.path == path]
            for layer, path in zip(layers, paths, strict=True)
        ]
        return [one for objects in found for one in objects] if all(found) else []

    def full_name(self, cell: _Object) -> str:
        """Return the name of a cell by its variables' own names; "" if these do not agree."""
        names = {self._names.get(key, key).rpartition("/")[0] for key in cell.keys[0]}
        return names.pop() if len(names) == 1 else ""

    def _with_cells(self, paths: list[tuple[str, ...]]) -> list[_Object]:
        """Return the objects that have a GRU cell's variables at each of some paths."""
        if self._graph is None:
            tables = [(place, [keys]) for place, keys in self._by_name().items()]
        else:
            graph = self._graph
            tables = [
                (place, [self._by_graph(graph, number, path) for path in paths])
                for number, place in self._paths.items()
            ]
        found = []
        for place, cells in tables:
            if all(is_gru(self._shapes(keys)) for keys in cells):
                keys = [[keys[role] for role in ROLES if role in keys] for keys in cells]
                found.append(_Object(place, self._names_of(place, keys[0]), keys))
        return found

    def _names_of(self, place: str, keys: list[str]) -> set[str]:
        """Return the names that an object goes by: parts of paths to it, and the whole paths."""
        copied = sum(text_bytes(self._names.get(key, key)) for key in keys)
        copied = 2 * copied + 4 * text_bytes(place)
        self.bundle.budget.make_objects(8, copied, "the names of its layers")
        self.bundle.budget.step(copied // 8, "the names of its layers")
        own = [self._names.get(key, key).split("/")[:-1] for key in keys]
        layers = [[part for part in parts if part != "gru_cell"] for parts in own]
        names = {part for parts in layers for part in parts} | {"/".join(p) for p in layers}
        return (names | {place, place.rpartition("/")[2]}) - {""}

    def _by_graph(self, graph: ObjectGraph, number: int, path: tuple[str, ...]) -> dict[str, str]:
        """Return the keys of the variables, by role, of the object at the end of a path.

        A cell that has more variables than a GRU's computes something else with them.
        """
        cell = graph.at(path, number)
        if cell is None:
            return {}
        if cell not in self._keys:  # many layers may have one cell
            keys = {}
            for name, child in graph.children(cell).items():
                variable = graph.variable(child)
                if variable is not None:
                    keys[role_of(name)] = variable[1]
            self._keys[cell] = keys
        return self._keys[cell]

    def _by_name(self) -> dict[str, dict[str, str]]:
        """Return the keys by role of each place in a checkpoint that has no graph."""
        tables: dict[str, dict[str, str]] = {}
        for key in self.bundle.entries:
            place, _, name = key.rpartition("/")
            if place or name in ROLES:  # at the top there are counters and the like
                tables.setdefault(place, {})[role_of(name)] = key
        return tables

    def _shapes(self, keys: dict[str, str]) -> dict[str, tuple[int, ...]]:
        return {role: self.bundle.locate(key).shape for role, key in keys.items()}


def _whole(path: str) -> bool:
    """Say whether an object is a layer rather than the cell of one."""
    return re.search(r"(^|/)(cell|cells/\d+)$", path) is None
