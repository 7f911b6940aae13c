"""TensorFlow SavedModels, read without TensorFlow.

A SavedModel is a folder. Its ``variables/`` is a checkpoint (`fastgru.io.bundle`) and contains the
object graph: the names of each object's children, and the tensors that hold the variables' values.
Other files say what the objects are:

- Keras 2 describes each layer as JSON with class and config, in ``keras_metadata.pb``; before
  TensorFlow 2.5 in the nodes of ``saved_model.pb``.
- ``tf.saved_model.save`` and Keras 3's ``model.export`` describe no layer. Then this reader knows a
  GRU by the names and shapes of its weights, and takes Keras' defaults for all other arguments.

Sources: ``saved_model.proto``, ``saved_object_graph.proto`` and ``trackable_object_graph.proto`` of
TensorFlow, ``saved_metadata.proto`` of Keras 2.
"""

from __future__ import annotations

import mmap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io.bounded import parse_json
from fastgru.io.budget import LAYER_STEPS, Budget, listed, short, text_bytes
from fastgru.io.bundle import Bundle, read_file
from fastgru.io.imported_layer import ImportedLayer, parts_of
from fastgru.io.keras_cells import errors_at, fill
from fastgru.io.keras_config import count_cells, layer_name, modern_form
from fastgru.io.keras_masks import mask_notes
from fastgru.io.named_arrays import ROLES, is_gru, keras_named, role_of
from fastgru.io.protobuf import Message
from fastgru.layers.base import deserialize_layer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from fastgru.io.bundle import TensorLocation

MOST_METADATA = 64 << 20  # bytes of keras_metadata.pb; a layer takes about 3000
_NODE_OBJECTS = 3  # of Python, for an object of a graph
_NODE_STEPS = 4  # to read one, beside those for what is made of it
MOST_DEPTH = 50  # of nested objects
_HALVES = ("forward_layer", "backward_layer")
_OPTIMIZERS = ("optimizer", "_optimizer")

ObjectPath = tuple[str, ...]  # the names that lead from the model to an object


class Description(NamedTuple):
    """A layer as Keras 2 describes it; ``form`` has its class_name and config."""

    path: ObjectPath
    name: str
    form: dict[str, Any]
    where: str


def find(folder: str | PathLike[str], budget: Budget | None = None) -> list[ImportedLayer]:
    """Return the GRU layers of a SavedModel, in the order in which it describes them.

    Parameters
    ----------
    folder : path
        With ``saved_model.pb`` and ``variables/`` in it.
    budget : Budget, optional

    Returns
    -------
    list of ImportedLayer
        Layers of nested models have the models' names first, as ``"encoder/gru"``. Layers that
        share a name, as a subclassed model may have them, are named by the attributes that lead to
        them. Layers that were never called have no weights and are left out.

    Raises
    ------
    ValueError
        The folder is not a SavedModel or is damaged, a GRU's weights do not fit its config, or
        the folder describes no layers and has no weights that look like a GRU's.
    """
    folder, budget = Path(folder), budget or Budget(str(folder))
    budget.stay_beside(folder)
    if not (folder / "saved_model.pb").is_file():
        raise ValueError(
            f"{folder}: expected a SavedModel, a folder with saved_model.pb and variables/ in it"
            + (
                "; for TensorFlow.js give its model.json"
                if (folder / "model.json").is_file()
                else ""
            )
        )
    try:
        objects = ObjectGraph(Bundle(folder / "variables", "variables", budget))
        described = list(_described(folder, budget))
        return _by_configs(folder, objects, described) or (
            [] if described else _by_weights(folder, objects)
        )
    except RecursionError:
        raise ValueError(f"{folder}: its configs are nested deeper than any layer's") from None


# ---- the checkpoint's objects --------------------------------------------------------------------


class ObjectGraph:
    """The objects of a checkpoint by their numbers; the model is number 0."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        key = "_CHECKPOINTABLE_OBJECT_GRAPH"
        graph = Message(bundle.text(key), f"{bundle.path}: {key}")
        self.nodes = _objects(graph, 1, bundle.budget)
        self._children: dict[int, dict[str, int]] = {}
        self._variables: dict[int, tuple[str, str] | None] = {}

    def at(self, path: ObjectPath, start: int = 0) -> int | None:
        """Return the number of the object at the end of a path of names, or None."""
        number: int | None = start
        for name in path:
            if number is None:
                break
            number = self.children(number).get(name)
        return number

    def children(self, number: int) -> dict[str, int]:
        """Return the numbers of an object's children by name."""
        if number not in self._children:
            nodes, budget = self.nodes, self.bundle.budget
            self._children[number] = dict(_children(nodes[number], len(nodes), budget))
        return self._children[number]

    def model_objects(self) -> Iterator[tuple[int, str]]:
        """Yield the model's objects, each with the shortest path to it, and none of an optimizer.

        An optimizer keeps tensors of the weights' shapes, under their names.
        """
        seen, level = {0}, [("", 0)]
        for _ in range(MOST_DEPTH):
            below: list[tuple[str, int]] = []
            for path, number in level:
                yield number, path
                for name, child in self.children(number).items():
                    if child not in seen and name not in _OPTIMIZERS:
                        seen.add(child)
                        copied = 2 * (text_bytes(path) + text_bytes(name))
                        self.bundle.budget.make(copied, "its objects")
                        below.append((f"{path}/{name}".lstrip("/"), child))
            level = below

    def variable(self, number: int) -> tuple[str, str] | None:
        """Return a variable's full name and the key of its value; None for other objects."""
        if number not in self._variables:
            self._variables[number] = self._variable(number)
        return self._variables[number]

    def _variable(self, number: int) -> tuple[str, str] | None:
        self.bundle.budget.step(len(self.nodes[number].data) // 8, "its objects")
        for attribute in self.nodes[number].messages(2, "attribute"):
            if attribute.text(1) == "VARIABLE_VALUE":
                return attribute.text(2), attribute.text(3)
        return None


def _objects(graph: Message, field: int, budget: Budget) -> list[Message]:
    nodes = []
    place = f"{graph.place}: object"
    for data in graph.bytes(field):
        budget.make_objects(_NODE_OBJECTS, what=place)
        nodes.append(Message(data, place))
    if not nodes:
        raise ValueError(f"{graph.place}: expected a graph of objects, got an empty one")
    return nodes


def _children(node: Message, count: int, budget: Budget) -> Iterator[tuple[str, int]]:
    for data in node.bytes(1):
        budget.make_objects(_NODE_OBJECTS, 2 * len(data), node.place)
        budget.step(_NODE_STEPS, node.place)
        child = Message(data, node.place)
        number, name = 0, b""
        for key, value in child.fields():  # one walk for both, since there are many children
            if key == 1 and isinstance(value, int):
                number = value
            elif key == 2 and not isinstance(value, int):
                name = bytes(value)
            elif key in (1, 2):
                raise ValueError(f"{node.place}: expected a number and a name of a child")
        if number >= count:
            raise ValueError(f"{node.place}: expected one of {count} objects, got {number}")
        try:
            yield name.decode(), number
        except UnicodeDecodeError as error:
            raise ValueError(f"{node.place}: the name of a child is not UTF-8: {error}") from None


# ---- Keras 2's description -----------------------------------------------------------------------


def _described(folder: Path, budget: Budget) -> Iterator[Description]:
    """Yield the layers of Keras 2's metadata, in either file; nothing if there is none."""
    path = folder / "keras_metadata.pb"
    if path.exists():
        for node in Message(read_file(budget, path, MOST_METADATA), str(path)).messages(1, "node"):
            names = tuple(node.text(3).split(".", MOST_DEPTH + 2))[1:]  # the first is "root"
            yield from _parsed(path, names, node.text(4), node.text(5), budget)
        return
    path = folder / "saved_model.pb"
    # Most of the file are graphs that TensorFlow runs. A memory map skips them without reading.
    with budget.open(path) as file:
        if not file.seek(0, 2):
            raise ValueError(f"{path}: expected a SavedModel, got an empty file")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for graph in Message(data, str(path)).messages(2, "graph"):
        for objects in graph.messages(7, "objects"):
            for names, user in _user_objects(_objects(objects, 1, budget), budget):
                yield from _parsed(path, names, user.text(1), user.text(3), budget)


def _user_objects(nodes: list[Message], budget: Budget) -> Iterator[tuple[ObjectPath, Message]]:
    """Yield the objects of the user's model, each by the shortest path to it."""
    seen, level = {0}, [((), 0)]
    for _ in range(MOST_DEPTH):
        below: list[tuple[Any, int]] = []
        for names, number in level:
            for user in nodes[number].messages(4, "user object"):
                yield names, user
            for name, child in _children(nodes[number], len(nodes), budget):
                if child not in seen:
                    seen.add(child)
                    budget.make_objects(1, 8 * len(names), "its objects")
                    below.append(((*names, name), child))
        level = below


def _parsed(
    path: Path, names: ObjectPath, identifier: str, metadata: str, budget: Budget
) -> Iterator[Description]:
    """Yield the layer that a node's metadata describes; nothing for nodes of other kinds."""
    budget.step(_NODE_STEPS, "its layers")
    if not identifier.startswith("_tf_keras_") or not metadata:
        return
    where = f"{path.name}: {short('.'.join(('root', *names)))}"
    if len(names) > MOST_DEPTH:
        raise ValueError(f"{path}: expected at most {MOST_DEPTH} objects in each other: {where}")
    try:
        parsed = parse_json(metadata, budget, where)
    except ValueError as error:
        raise ValueError(f"{path.parent}: {where}: its metadata: {error}") from None
    if isinstance(parsed, dict) and isinstance(parsed.get("config"), dict):
        form = {"class_name": str(parsed.get("class_name")), "config": parsed["config"]}
        yield Description(names, layer_name(parsed), form, where)


def _by_configs(
    folder: Path, objects: ObjectGraph, described: list[Description]
) -> list[ImportedLayer]:
    found: dict[int, tuple[Description, ImportedLayer]] = {}
    halves = set()
    for layer in described:
        if not count_cells(layer.form):
            continue
        number = objects.at(layer.path)
        if number is None:
            raise ValueError(f"{objects.bundle.path}: expected the object of {layer.where} in it")
        if number not in found:
            one = _read(folder, layer, objects, number)
            if one is not None:
                found[number] = layer, one
                if layer.form["class_name"] == "Bidirectional":
                    halves |= {objects.at((name,), number) for name in _HALVES}
    kept = [pair for number, pair in found.items() if number not in halves]
    names = {layer.path: layer.name for layer in described}
    full = [_full_name(layer, names, objects.bundle.budget) for layer, _ in kept]
    counts = Counter(full)
    model = next((layer.form for layer in described if not layer.path), None)
    masks = mask_notes(model, objects.bundle.budget)
    return [
        one._replace(
            name=name if counts[name] == 1 else ".".join(layer.path), mask=masks.get(name, "")
        )
        for (layer, one), name in zip(kept, full, strict=True)
    ]


def _full_name(layer: Description, names: dict[ObjectPath, str], budget: Budget) -> str:
    """Return the names of the models around a layer and its own, as ``"encoder/gru"``."""
    parts = [
        names[path] for n in range(1, len(layer.path) + 1) if (path := layer.path[:n]) in names
    ]
    if layer.path[-1:] == ("layer",) and len(parts) > 1:
        parts.pop()  # of a wrapper, such as TimeDistributed, and its layer only one name counts
    budget.make_objects(1, 2 * sum(map(text_bytes, parts)), "the names of its layers")
    return "/".join(parts) or layer.name


def _read(
    folder: Path, layer: Description, objects: ObjectGraph, number: int
) -> ImportedLayer | None:
    """Return a described layer with its weights; None if the file has no weights of it."""
    with errors_at(f"{folder}: {layer.where}"):
        objects.bundle.budget.step(count_cells(layer.form) * LAYER_STEPS, layer.where)
        made = deserialize_layer(modern_form(layer.form))
        keys = [_variables(objects, number, path) for path in paths_of_cells(made)]
        if not any(keys):
            return None
        convention = fill(
            made,
            [[objects.bundle.floats(key) for key in cell] for cell in keys],
            objects.bundle.budget,
        )
    return ImportedLayer(layer.name, made, convention, f"{layer.where}: {layer.form['class_name']}")


def paths_of_cells(layer: Any) -> Iterator[ObjectPath]:
    """Yield the names under which a layer holds its cells, in the order of its weights."""
    parts = parts_of(layer)
    if not parts:
        yield ()
    for names, part in parts:
        for path in paths_of_cells(part):
            yield (*names, *path)


def _variables(objects: ObjectGraph, layer: int, path: ObjectPath) -> list[str]:
    """Return the keys of the weights that a cell has, in Keras' order."""
    keys = []
    for role in ROLES:
        number = objects.at((*path, role), layer)
        variable = None if number is None else objects.variable(number)
        if variable is not None:
            keys.append(variable[1])
    return keys


# ---- without a description -----------------------------------------------------------------------


def _by_weights(folder: Path, objects: ObjectGraph) -> list[ImportedLayer]:
    """Return a GRU with Keras' defaults for each group of weights with a GRU's names and shapes."""
    bundle = objects.bundle
    groups: dict[str, dict[str, tuple[str, TensorLocation]]] = {}
    names = []
    others = set()  # cells that compute with more than a GRU's weights
    for number, _ in objects.model_objects():
        variable = objects.variable(number)
        if variable is None:
            continue
        full_name, key = variable
        names.append(full_name)
        cell, _, role = full_name.rpartition("/")
        if role not in ROLES:
            if cell and role_of(role):
                others.add(cell)
            continue
        location = bundle.locate(key)
        known = groups.setdefault(cell, {}).setdefault(role, (key, location))[1]
        # model.export writes some weights twice. Weights of one name must be equal.
        if (known.shape, known.checksum) != (location.shape, location.checksum):
            raise ValueError(
                f"{bundle.path}: expected one weight {full_name}, got two that differ; the "
                "layers' names do not tell them apart, and nothing else does. Name them and save "
                "the model again, or save it with Keras as .keras or .h5"
            )
    arrays = {
        f"{cell}/{role}": bundle.floats(key)
        for cell, group in groups.items()
        if cell not in others
        and is_gru({role: location.shape for role, (_, location) in group.items()})
        for role, (key, _) in group.items()
    }
    found = keras_named(arrays, str(bundle.path), bundle.budget)
    if not found:
        got = listed(names)
        raise ValueError(
            f"{folder}: it does not describe its layers (there is no keras_metadata.pb), and "
            "expected weights named .../kernel (I, 3H) and .../recurrent_kernel (H, 3H), by which "
            f"a GRU would be known; got {got or 'no weights'}. Save the model with Keras, as "
            ".keras or .h5, and read that"
        )
    return found
