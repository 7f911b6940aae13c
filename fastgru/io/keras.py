"""GRUs from Keras' files and live Keras objects, without Keras.

| source | config | weights |
|---|---|---|
| ``.keras`` of Keras 3 or tf.keras, zipped or a folder | config.json | model.weights.h5 |
| ``.h5`` of Keras 1, 2 or 3 | attribute model_config | group model_weights |
| SavedModel folder | see `fastgru.io.savedmodel` | |
| ``model.json`` of TensorFlow.js | in it | files beside it, see `fastgru.io.tfjs` |
| TensorFlow checkpoint | none | see `fastgru.io.checkpoint` |
| live model or layer | get_config() | get_weights() |

`fastgru.io.keras_weights` reads weights without a config, and `fastgru.io.hdf5` reads HDF5.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from fastgru import activations
from fastgru.io import checkpoint, hdf5, savedmodel, tfjs
from fastgru.io.bounded import Archive, file_beside, parse_json
from fastgru.io.budget import LAYER_STEPS, Budget, listed, reading, short_message
from fastgru.io.bundle import prefix_of, read_file
from fastgru.io.foreign import is_json, reader_of
from fastgru.io.imported_layer import ImportedLayer, by_name, verify_layer
from fastgru.io.keras_cells import (
    arrays_at,
    cells_of,
    errors_at,
    fill,
    group_in,
)
from fastgru.io.keras_config import (
    LAYERS,
    LayerConfig,
    count_cells,
    grouped,
    mark,
    modern_form,
    recurrent_layers,
)
from fastgru.io.keras_legacy import BY_PLACE, LegacyModel, version_of
from fastgru.io.keras_masks import mask_notes
from fastgru.io.keras_shards import SHARDED
from fastgru.io.named_arrays import find_keras
from fastgru.io.torch_numpy import is_npz
from fastgru.layers import GRU, RNN, Bidirectional, GRUCell, StackedRNNCells
from fastgru.layers.base import deserialize_layer
from fastgru.serialization import is_live_keras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from fastgru.io.keras_legacy import StoredCell

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MOST_CONFIG = 1 << 30  # bytes of JSON; the budget counts what it takes to read it
# Wrappers that put other weights in the place of those that the file has.
_COMPUTES_WEIGHTS = re.compile(r"(Weight|Spectral)_?Norm|Quantiz|LoRA", re.IGNORECASE)
# Wrappers that call their layer and do nothing else; "" is for none.
_PLAIN_WRAPPERS = ("", "Bidirectional", "TimeDistributed")
LEAST_CELL = 256  # bytes that HDF5 needs at least for the arrays of a cell


class UnbuiltLayer(NamedTuple):
    """A recurrent layer of a source before it is made.

    Attributes
    ----------
    config : LayerConfig
    arrays : callable
        Takes the layer without weights; returns a list of arrays for each of its cells.
    mask : str
        What to tell the user of the mask that the model gives it; empty without a mask.
    notes : dict of str to str
        After ``arrays`` was called, what to tell of the arrays, by the layer's name.
    """

    config: LayerConfig
    arrays: Callable[[Any], list[list[np.ndarray]]]
    mask: str = ""
    notes: dict[str, str] | None = None


def from_keras(
    source: Any,
    name: str | None = None,
    *,
    verify: Any = None,
    custom_objects: dict[str, Any] | None = None,
    max_bytes: int | None = None,
) -> Any:
    """Return the GRUs of a Keras model, with their weights.

    Parameters
    ----------
    source : path, or a Keras model or layer
        A ``.keras`` file, a whole model as ``.h5`` (Keras 1, 2 or 3), a SavedModel folder, the
        ``model.json`` of TensorFlow.js, or a live object. `load_keras_weights` reads files of
        weights alone. Of these a TensorFlow checkpoint and an ``.npz`` file with Keras' names are
        read here too, since the names in them tell layers apart.
    name : str, optional
        The one layer to return; in nested models with their names, as ``"encoder/gru"``.
    verify : (input, expected output), optional
        This runs the input through the layer and compares; of several layers give the ``name``.
    custom_objects : dict, optional
        Your own activations and other objects, by their names in the model.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the files' bytes.

    Returns
    -------
    dict of str to layer, or one layer
        Every GRU, RNN of GRU cells, and Bidirectional of those. Other layers are left out.

    Raises
    ------
    ValueError
        The source is damaged, has no GRU or none of that name, or a GRU in it cannot be read; or
        the output is not the one that ``verify`` expects.

    Warns
    -----
    UserWarning
        The model gives a layer a mask, by Masking or Embedding(mask_zero=True); it says how to make
        the mask for the layer. Or the source has weights without a config, as a checkpoint and
        some SavedModels: it says which options are assumed. Or the names in an ``.h5`` file do not
        tell which arrays are whose: they are taken in order, as Keras does.

    Examples
    --------
    >>> layers = fastgru.io.from_keras("model.keras")  # doctest: +SKIP
    >>> encoder = fastgru.io.from_keras("model.h5", "encoder")  # doctest: +SKIP
    """
    what = str(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
    with reading(what, max_bytes) as budget:
        found = find(source, name, custom_objects, budget)
        result = by_name(found, name, what)
    told = (short_message(text) for one in found for text in _warnings(one, what))
    for text in dict.fromkeys(told):
        warnings.warn(text, UserWarning, stacklevel=2)
    if verify is not None:
        layers = found if name is None else [one for one in found if one.name == name]
        if len(layers) != 1:
            raise ValueError(
                f"verify: expected one layer, got {', '.join(one.name for one in layers)}; "
                "choose it by name="
            )
        verify_layer(layers[0].layer, verify, layers[0].name)
    return result


def _warnings(one: ImportedLayer, what: str) -> Iterator[str]:
    """Yield what the user has to know of a layer beside its numbers."""
    if "assumed:" in one.recognised:
        # load_keras_weights does not read SavedModels.
        saved_model = (Path(what) / "saved_model.pb").is_file()
        yield (
            f"{one.name}: {what} does not describe its layers; this one is known by "
            f"{one.recognised}. Where the model has others, make the layer with them and use "
            + (
                "build and set_weights, with get_weights() of this one"
                if saved_model
                else "load_keras_weights(layer, path)"
            )
        )
    if "of which nothing is known" in one.recognised:
        yield (
            f"{one.name}: {one.recognised}: what the wrapper itself computes, of the inputs, "
            "the outputs or the weights, is not in this layer; compare it with verify="
        )
    elif BY_PLACE in one.recognised:
        yield f"{one.name}: {one.recognised}"
    for part in cells_of(one.layer):
        if activations.sparsemax in (part.cell.activation, part.cell.recurrent_activation):
            yield (
                f"{one.name}: it computes sparsemax by its definition; Keras up to 3.15 has "
                "another threshold, so the model gives other numbers"
            )
            break
    if one.mask:
        yield (
            f"{one.name}: the model gives it a mask, which a layer alone does not have. It "
            f"comes from the {one.mask}"
        )


def find(
    source: Any,
    name: str | None = None,
    custom_objects: dict[str, Any] | None = None,
    budget: Budget | None = None,
) -> list[ImportedLayer]:
    """Return every GRU of a source, or only the one called ``name``; see `from_keras`."""
    if not isinstance(source, (str, os.PathLike)):
        place = f"live {type(source).__module__.partition('.')[0]} {type(source).__name__}"
        budget = Budget(place, sys.maxsize)  # its numbers are in memory already
        return _loaded(_live_parts(source, budget), place, name, custom_objects, budget)
    path, kinds = Path(source), _kinds(custom_objects)
    budget = budget or Budget(str(path))
    if prefix := prefix_of(path, budget):
        return _asked_for(checkpoint.find(prefix, budget), str(path), name)
    if path.is_dir():
        budget.stay_beside(path)
        if not (path / CONFIG).exists():
            return _asked_for(savedmodel.find(path, budget), str(path), name)
        config = read_file(budget, path / CONFIG, MOST_CONFIG)
        with budget.open(file_beside(path / CONFIG, WEIGHTS, budget)) as file:
            parts = _keras3_parts(config, file, path, kinds, budget)
            return _loaded(parts, f"{path}: {CONFIG}", name, custom_objects, budget)
    with budget.open(path) as file:
        start = file.read(8)
        if start == hdf5.SIGNATURE:
            parts = _legacy_parts(file, path, kinds, budget)
            return _loaded(parts, f"{path}: model_config", name, custom_objects, budget)
    if is_json(path):
        return _loaded(_tfjs_parts(path, kinds, budget), str(path), name, custom_objects, budget)
    if not start.startswith(b"PK"):
        got = reader_of(path) or f"a file that begins with {start!r}"
        raise ValueError(
            f"{path}: expected a .keras or .h5 file, a SavedModel folder, a checkpoint or the "
            f"model.json of TensorFlow.js, got {got}"
        )
    with Archive(path, budget) as archive:
        if any(member.endswith("/data.pkl") for member in archive.names):
            raise ValueError(
                f"{path}: expected a .keras file, got one of torch.save; fastgru.io.from_torch "
                "reads it"
            )
        if is_npz(archive):
            return _asked_for(find_keras(path, budget), str(path), name)
        weights = archive.read(WEIGHTS)
        parts = _keras3_parts(archive.read(CONFIG), weights, path, kinds, budget)
    return _loaded(parts, f"{path}: {CONFIG}", name, custom_objects, budget)


def _asked_for(found: list[ImportedLayer], place: str, name: str | None) -> list[ImportedLayer]:
    """Return all layers, or the one called ``name``."""
    if name is None:
        return found
    by_name(found, name, place)  # ValueError if there is none
    return [one for one in found if one.name == name]


def _loaded(
    parts: list[UnbuiltLayer],
    place: str,
    name: str | None,
    custom_objects: dict[str, Any] | None,
    budget: Budget,
) -> list[ImportedLayer]:
    """Make all layers, or the one called ``name``."""
    names = [part.config.name for part in parts]
    twice = [one for one, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{place}: expected a name of its own for each layer, got twice: {listed(twice)}"
        )
    if name is not None:
        if name not in names:
            got = f"expected one of {listed(names)}" if names else "it has no GRU"
            raise ValueError(f"{place}: {got}, got name={name!r}")
        parts = [parts[names.index(name)]]
    found = []
    for config, arrays, mask, notes in parts:
        with errors_at(f"{place}: {config.name}"):
            if _COMPUTES_WEIGHTS.search(config.wrapper):
                raise ValueError(
                    f"expected a layer that computes with the weights in the file, got one in "
                    f"{config.wrapper}, which makes others of them: load the model there, take the "
                    "wrapper off, and save the layer with the weights that it computes with"
                )
            budget.step(config.cells * LAYER_STEPS, config.name)
            layer = deserialize_layer(config.form, custom_objects)
            with budget.temporary():
                convention = fill(layer, arrays(layer), budget)
            budget.make_objects(0, sum(weight.value.nbytes for weight in layer.weights))
        recognised = f"{place}: {config.class_name}"
        unknown = [one for one in config.wrapper.split(" of ") if one not in _PLAIN_WRAPPERS]
        if unknown:
            recognised += f" in {unknown[0]}, of which nothing is known"
        if notes and config.name in notes:
            recognised += f"; {notes[config.name]}"
        found.append(ImportedLayer(config.name, layer, convention, recognised, mask))
    return found


# ---- one source each -----------------------------------------------------------------------------


def _configs(
    text: Any, place: str, size: int, kinds: dict[str, str], budget: Budget
) -> tuple[list[LayerConfig], dict[str, str]]:
    """Return the configs of a model's recurrent layers, and `mask_notes`, from the model's JSON.

    ``kinds`` is what `mark` takes.

    ValueError if there are more than a weights file of ``size`` bytes has arrays for, since each
    layer costs time and memory.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{place}: expected JSON, got {type(text).__name__}")
    configs, left = [], size // LEAST_CELL
    with errors_at(place):
        model = parse_json(text, budget, place)
        mark(model, kinds)
        for config in recurrent_layers(model, budget):
            configs.append(config)
            left -= config.cells
            if left < 0:
                raise ValueError(f"expected fewer GRUs than {size} bytes hold, got more")
        return configs, mask_notes(model, budget)


def _kinds(custom_objects: dict[str, Any] | None) -> dict[str, str]:
    """Return the names of the user's own classes that are, or derive from, fastgru's."""
    kinds = {}
    for name, cls in (custom_objects or {}).items():
        for base in getattr(cls, "__mro__", ()):
            if base in (GRU, RNN, Bidirectional, GRUCell, StackedRNNCells):
                kinds[name] = base.__name__
                break
    return kinds


def _keras3_parts(
    text: bytes, weights: BinaryIO | bytes, path: Path, kinds: dict[str, str], budget: Budget
) -> list[UnbuiltLayer]:
    root = hdf5.File(weights, f"{path}: {WEIGHTS}", budget).root
    configs, masks = _configs(text, f"{path}: {CONFIG}", root.file.size, kinds, budget)
    return _placed_parts(root, configs, masks)


def _placed_parts(
    root: Any, configs: list[LayerConfig], masks: dict[str, str]
) -> list[UnbuiltLayer]:
    """Return the layers whose weights are in groups that Keras 3 names by their places."""
    parts = []
    for config, same in zip(configs, grouped(configs), strict=True):

        def arrays(
            layer: Any, config: LayerConfig = config, same: list[LayerConfig] = same
        ) -> list[list[np.ndarray]]:
            return arrays_at(root, group_in(root, layer, config, same), layer)

        parts.append(UnbuiltLayer(config, arrays, _note(masks, config)))
    return parts


def _note(masks: dict[str, str], config: LayerConfig) -> str:
    """Return the note for a layer, or for the wrapper that it is in."""
    names = ("/".join(config.path[:end]) for end in range(len(config.path), 0, -1))
    return next((masks[name] for name in names if name in masks), "")


def _legacy_parts(
    file: BinaryIO, path: Path, kinds: dict[str, str], budget: Budget
) -> list[UnbuiltLayer]:
    root = hdf5.File(file, str(path), budget).root
    text = root.attribute("model_config")
    if text is None:
        raise ValueError(
            f"{path}: expected a whole model, got weights without a config; make a layer of the "
            "same arguments and use load_keras_weights(layer, path)"
        )
    weights = root.group("model_weights")
    if weights is None:
        raise ValueError(f"{path}: expected a group model_weights, got {listed(root.names)}")
    parts = []
    place = f"{path}: model_config"
    configs, masks = _configs(text, place, root.file.size, kinds, budget)
    model = LegacyModel(weights, configs, version_of(root))
    for config in configs:

        def arrays(_: Any, config: LayerConfig = config) -> list[list[np.ndarray]]:
            return model.arrays(config)

        parts.append(UnbuiltLayer(config, arrays, _note(masks, config), model.notes))
    return parts


def _tfjs_parts(path: Path, kinds: dict[str, str], budget: Budget) -> list[UnbuiltLayer]:
    if path.name.endswith(SHARDED):
        raise ValueError(
            f"{path}: expected a whole model, got weights without a config; make a layer of the "
            "same arguments and use load_keras_weights(layer, path)"
        )
    model = tfjs.Model(path, budget)
    with errors_at(str(path)):
        mark(model.config, kinds)
        configs, masks = tfjs.configs_of(model), mask_notes(model.config, budget)
        if model.by_places:
            return _placed_parts(model.root, configs, masks)
        stored = tfjs.cells_of_configs(model, configs)
    parts = []
    for config, cells in zip(configs, stored, strict=True):

        def arrays(_: Any, cells: list[StoredCell] = cells) -> list[list[np.ndarray]]:
            return [cell.read(model) for cell in cells]

        parts.append(UnbuiltLayer(config, arrays, _note(masks, config)))
    return parts


def _live_parts(source: Any, budget: Budget) -> list[UnbuiltLayer]:
    if not callable(getattr(source, "get_config", None)) or not hasattr(source, "get_weights"):
        raise TypeError(
            f"source: expected a path, or a live Keras model or layer, got {type(source).__name__}"
        )
    parts, masks = [], _live_masks(source, budget)
    for path, layer, form, wrapper in _live_layers(source, ()):

        def arrays(_: Any, layer: Any = layer) -> list[list[np.ndarray]]:
            return _live_cells(layer)

        cells = count_cells(form)
        config = LayerConfig(
            path, "", form["class_name"], modern_form(form), False, cells, wrapper=wrapper
        )
        parts.append(UnbuiltLayer(config, arrays, _note(masks, config)))
    return parts


def _live_masks(source: Any, budget: Budget) -> dict[str, str]:
    if not hasattr(source, "layers"):
        return {}
    try:
        config = source.get_config()
    except NotImplementedError:  # a model that is a class of the user's has none
        if makers := list(_mask_makers(source)):
            warnings.warn(
                f"{type(source).__name__} has no get_config(), so it cannot be told which of its "
                f"layers get a mask, and {makers[0]} makes one: pass mask to the layers that get "
                "it, mask = ids != 0 of an Embedding and mask = (x != value).any(-1) of a Masking",
                UserWarning,
                stacklevel=5,
            )
        return {}
    return mask_notes({"class_name": type(source).__name__, "config": config}, budget)


def _mask_makers(layer: Any) -> Iterator[str]:
    """Yield the names of layers in a live model that make a mask."""
    for part in getattr(layer, "layers", ()):
        makes = type(part).__name__ == "Masking" or getattr(part, "mask_zero", False)
        if makes or (not is_live_keras(type(part)) and "compute_mask" in vars(type(part))):
            yield part.name
        yield from _mask_makers(part)


def _live_layers(
    layer: Any, path: tuple[str, ...], wrapper: str = ""
) -> Iterator[tuple[tuple[str, ...], Any, dict[str, Any], str]]:
    """Yield path, object, Keras object dict and wrapper's class of the GRUs of a live object."""
    cls = type(layer)
    if cls.__name__ in LAYERS and is_live_keras(cls):
        form = {"class_name": cls.__name__, "config": layer.get_config()}
        if count_cells(form):
            yield path or (layer.name,), layer, form, wrapper
    elif isinstance(layers := getattr(layer, "layers", None), (list, tuple)):
        for part in layers:
            yield from _live_layers(part, (*path, part.name), wrapper)
    elif hasattr(layer, "layer"):
        around = (*filter(None, [wrapper]), cls.__name__)
        yield from _live_layers(layer.layer, path, " of ".join(around))


def _live_cells(layer: Any) -> list[list[np.ndarray]]:
    """Return the arrays of each cell of a live layer, in the order of `cells_of`."""
    if hasattr(layer, "forward_layer"):
        return [*_live_cells(layer.forward_layer), *_live_cells(layer.backward_layer)]
    if hasattr(getattr(layer, "cell", None), "get_weights"):
        return _live_cells(layer.cell)
    if hasattr(layer, "cells"):
        return [arrays for cell in layer.cells for arrays in _live_cells(cell)]
    arrays = layer.get_weights()
    if not arrays:
        raise ValueError("it has no weights yet: build it first, or call it on data")
    return [arrays]
