"""TensorFlow.js' layers models: a ``model.json`` with the config, and files of weights beside it.

The JSON lists the weights with names, shapes and types, in the order in which they lie in the
files. Weights may be quantized: ``value * scale + min`` with integers of 8 or 16 bits, or float16.

Source: TensorFlow.js, ``tfjs-core/src/io/types.ts`` (ModelJSON, WeightsManifestEntry) and
``tfjs-converter/docs``. A layer is found by the names of its weights, as TensorFlow.js itself does;
in a model that was converted from Keras 3 these are the places of its ``.weights.h5``.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru.io.bounded import check_shape, file_beside, parse_json
from fastgru.io.budget import listed, short, text_bytes
from fastgru.io.bundle import read_file
from fastgru.io.keras_cells import arrays_at, group_in
from fastgru.io.keras_config import are_automatic, grouped, recurrent_layers
from fastgru.io.keras_legacy import by_their_names, stored_cells
from fastgru.layers import Sequential

if TYPE_CHECKING:
    from pathlib import Path

    from fastgru.io.budget import Budget
    from fastgru.io.keras_config import LayerConfig
    from fastgru.io.keras_legacy import StoredCell

MOST_JSON = 64 << 20  # bytes of model.json; a layer takes about 3000
MOST_FILES = 1000
MOST_AXES = 8
MOST_PARTS = 256  # of a weight's name, between slashes
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "u1", "float16": "<f2"}
_PLACED = re.compile(r"(.*/)?vars/\d+", re.DOTALL)  # a weight's name in Keras 3
_QUANTIZED = {"uint8": "u1", "uint16": "<u2", "float16": "<f2"}


class _Weight(NamedTuple):
    """A weight in the files: bytes from ``start`` of a group's, and how to read them."""

    shape: tuple[int, ...]
    stored: np.dtype
    dtype: np.dtype
    scale: float | None
    least: float
    group: int
    start: int


class Model:
    """A layers model of TensorFlow.js.

    Parameters
    ----------
    path : Path
        Of its ``model.json``.
    budget : Budget

    Attributes
    ----------
    config : dict or None
        Keras' object dict of the model.
    graph_only : bool
        Whether it is a graph model, which has operations and no layers.
    version : str
        Of the Keras that described it.
    weights : dict
        Name to what the files have under it; `array` reads one.

    Raises
    ------
    ValueError
        It is another kind of JSON, names files elsewhere, or the files have other sizes.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget = path, budget
        try:
            model = parse_json(read_file(budget, path, MOST_JSON), budget)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(model, dict) or not isinstance(model.get("weightsManifest"), list):
            got = "other JSON"
            if isinstance(model, dict) and "class_name" in model:
                got = (
                    "a config of Keras' to_json, which has no weights; make a layer of the same "
                    "arguments, and use load_keras_weights(layer, file_of_weights)"
                )
            raise ValueError(
                f"{path}: expected a model of TensorFlow.js, with a weightsManifest, got {got}"
            )
        topology = model.get("modelTopology")
        topology = topology if isinstance(topology, dict) else {}
        self.graph_only = model.get("format") == "graph-model" or "node" in topology
        self.config = topology.get("model_config", topology if "class_name" in topology else None)
        self.version = str(topology.get("keras_version", ""))
        self.weights: dict[str, _Weight] = {}
        self._groups: list[list[Path]] = []
        self._files = 0  # in all groups
        self._data: dict[int, bytes] = {}
        for group in model["weightsManifest"]:
            self._add(group)

    def _add(self, group: Any) -> None:
        """Add a group of the manifest: files, and the weights that lie in them one by one."""
        paths = group.get("paths") if isinstance(group, dict) else None
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(paths, list) or not isinstance(weights, list):
            raise ValueError(f"{self.path}: expected lists of paths and weights in its manifest")
        self._files += len(paths)
        if self._files > MOST_FILES:
            raise ValueError(f"{self.path}: expected at most {MOST_FILES} files of weights")
        files = [file_beside(self.path, name, self.budget) for name in paths]
        size = sum(file.stat().st_size for file in files)
        self._groups.append(files)
        at = 0
        for entry in weights:
            self.budget.make_objects(6)
            name, weight = self._weight(entry, at)
            if name in self.weights:
                raise ValueError(f"{self.path}: expected each weight once, got twice: {name[:200]}")
            at += math.prod(weight.shape) * weight.stored.itemsize
            if at > size:
                raise ValueError(
                    f"{self.path}: expected {name[:200]} to end at byte {at} of "
                    f"{listed(paths)}, got files of {size} bytes"
                )
            self.weights[name] = weight
        if at != size:
            raise ValueError(
                f"{self.path}: expected {at} bytes of weights in {listed(paths)}, got {size}"
            )

    def _weight(self, entry: Any, at: int) -> tuple[str, _Weight]:
        entry = entry if isinstance(entry, dict) else {}
        name, shape, kind = entry.get("name"), entry.get("shape"), entry.get("dtype")
        whole = isinstance(shape, list) and len(shape) <= MOST_AXES
        if not isinstance(name, str) or not whole or any(type(n) is not int for n in shape):
            raise ValueError(
                f"{self.path}: expected weights with a name and at most {MOST_AXES} sizes, got "
                f"{str(entry)[:200]}"
            )
        how = entry.get("quantization")
        scale: Any = None
        least: Any = 0.0
        stored = _DTYPES.get(kind) if isinstance(kind, str) else None
        if how is not None:
            how = how if isinstance(how, dict) else {}
            stored = _QUANTIZED.get(str(how.get("dtype")))
            if stored is not None and stored != "<f2":
                scale, least = how.get("scale"), how.get("min")
        numbers = all(_is_number(n) for n in (scale, least) if n is not None)
        if stored is None or min(shape, default=0) < 0 or not numbers or least is None:
            raise ValueError(
                f"{self.path}: {name[:200]}: expected float32, int32 or bool, or such quantized to "
                f"uint8, uint16 with scale and min, or float16, got {kind!r:.50} {str(how)[:100]}"
            )
        plain = np.dtype("f4" if kind in ("float32", "float16") else stored)
        return name, _Weight(
            tuple(shape), np.dtype(stored), plain, scale, float(least), len(self._groups) - 1, at
        )

    def array(self, path: str) -> np.ndarray:
        """Return a weight, quantized ones as float32; it may be read-only."""
        weight = self.weights[path]
        if weight.group not in self._data:
            files = self._groups[weight.group]
            sizes = [file.stat().st_size for file in files]
            if len(files) > 1:
                self.budget.make(sum(sizes), "its files, joined")
            self._data[weight.group] = b"".join(
                read_file(self.budget, file, size, exactly=True)
                for file, size in zip(files, sizes, strict=True)
            )
        data, count = self._data[weight.group], math.prod(weight.shape)
        if weight.start + count * weight.stored.itemsize > len(data):
            raise ValueError(f"{self.path}: {path[:200]}: the files changed while they were read")
        check_shape(weight.shape, f"{self.path}: {short(path)}")
        array = np.frombuffer(data, weight.stored, count, weight.start).reshape(weight.shape)
        self.budget.make(count * 8 if weight.scale is not None else 0, path)
        if weight.scale is None:
            return array.astype(weight.dtype, copy=False)
        # TensorFlow.js computes in double precision and stores the result in single.
        return (array * np.float64(weight.scale) + weight.least).astype(np.float32)

    @property
    def by_places(self) -> bool:
        """Whether the weights have Keras 3's places for names, as ``layers/gru/cell/vars/0``."""
        return any(_PLACED.fullmatch(name) for name in self.weights)

    @property
    def root(self) -> PlacedWeights:
        """The weights as groups of Keras 3's places."""
        tree: dict[str, Any] = {}
        for name in self.weights:
            node, parts = tree, name.split("/", MOST_PARTS)[:MOST_PARTS]
            self.budget.make_objects(1, 2 * text_bytes(name), "the names of its weights")
            for part in parts[:-1]:
                if part not in node:
                    self.budget.make_objects(4, 0, "the names of its weights")
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise ValueError(
                        f"{self.path}: expected a group or a weight, got both: {short(part)}"
                    )
            if node.setdefault(parts[-1], name) != name:
                raise ValueError(f"{self.path}: expected one weight {name[:200]}, got several")
        return PlacedWeights(self, tree)

    # -- what `fastgru.io.keras_legacy` needs of a group of arrays -------------------------

    @property
    def place(self) -> str:
        """The file's name in errors."""
        return str(self.path)

    def attribute(self, name: str) -> list[str] | None:
        """Return the names of all weights as ``weight_names``."""
        if name != "weight_names":
            return None
        self.budget.step(len(self.weights), "the names of its weights")
        return list(self.weights)

    def get(self, path: str) -> _Weight | None:
        """Return what is known of a weight, its shape too."""
        return self.weights.get(path)


class PlacedWeights:
    """A group of weights whose names are Keras 3's places; see `fastgru.io.hdf5.Group`."""

    def __init__(self, model: Model, tree: dict[str, Any]) -> None:
        self.model, self.place, self._tree = model, model.place, tree

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        return list(self._tree)

    def group(self, path: str) -> PlacedWeights | None:
        """Return the group at a path below this one; None if there is none."""
        tree: Any = self._tree
        for part in filter(None, path.split("/")):
            self.model.budget.step()
            tree = tree.get(part) if isinstance(tree, dict) else None
        return PlacedWeights(self.model, tree) if isinstance(tree, dict) else None

    def array(self, name: str) -> np.ndarray:
        """Return the weight of a name in this group; ValueError if there is none."""
        full = self._tree.get(name)
        if not isinstance(full, str):
            raise ValueError(f"{self.place}: expected a weight {name}, got {listed(self.names)}")
        return self.model.array(full)


def _is_number(value: Any) -> bool:
    """Say whether a value of JSON is a number that a float can be."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def configs_of(model: Model) -> list[LayerConfig]:
    """Return the configs of a model's GRUs.

    Raises
    ------
    ValueError
        It is a graph model, or has no config.
    """
    if model.graph_only or not isinstance(model.config, dict):
        raise ValueError(
            f"{model.path}: expected a layers model, got a graph model of TensorFlow.js, which has "
            "operations and no layers; convert the Keras model with --output_format "
            "tfjs_layers_model, or take its arrays from read_arrays"
        )
    return list(recurrent_layers(model.config, model.budget))


def cells_of_configs(model: Model, configs: list[LayerConfig]) -> list[list[StoredCell]]:
    """Return, for each config, the names of the arrays of each cell.

    Raises
    ------
    ValueError
        The names do not tell, or two layers would get the same arrays.
    """
    if model.version.startswith("tfjs"):
        configs = [_named_in_javascript(config) for config in configs]
    return by_their_names(configs, stored_cells(model), model.place, model.budget)


def _named_in_javascript(config: LayerConfig) -> LayerConfig:
    """Return a config with the names that TensorFlow.js gives to the cells of a stack."""

    def renamed(form: Any) -> Any:
        if not isinstance(form, dict):
            return form
        inner = dict(form["config"])
        for key in ("layer", "backward_layer", "cell"):
            if key in inner:
                inner[key] = renamed(inner[key])
        if isinstance(cells := inner.get("cells"), list):
            inner["cells"] = [
                {**cell, "name": f"RNNCell_{i}"} if isinstance(cell, dict) else cell
                for i, cell in enumerate(cells)
            ]
        return {**form, "config": inner}

    return config._replace(form=renamed(config.form))


def arrays_for(layer: Any, model: Model) -> list[list[np.ndarray]]:
    """Return the arrays of each cell of a layer, in the order that `keras_cells.fill` takes.

    Raises
    ------
    ValueError
        The model has no such layer, or several.
    """
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    configs = configs_of(model)
    chosen = []
    for part in parts:
        named = [c for c in configs if part.name in (c.name, c.path[-1])]
        chosen += named if len(named) == 1 else []
    if len(chosen) != len(parts):
        automatic = are_automatic(part.name for part in parts)
        if not automatic or len(configs) != len(parts):
            raise ValueError(
                f"expected one {' and one '.join(part.name for part in parts)}, got "
                f"{listed(c.name for c in configs) or 'none'}; give the layer the name "
                "that it has there"
            )
        chosen = configs  # in order, as Keras does
    if model.by_places:
        root = model.root
        pairs = zip(parts, chosen, strict=True)
        same = dict(zip(map(id, configs), grouped(configs), strict=True))
        placed = [
            arrays_at(root, group_in(root, part, config, same[id(config)]), part)
            for part, config in pairs
        ]
        return [cell for cells in placed for cell in cells]
    stored = cells_of_configs(model, chosen)
    return [cell.read(model) for cells in stored for cell in cells]
