"""Keras' weights files, which do not describe layers: read into a layer, written from one."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru import activations
from fastgru.io import checkpoint, hdf5, tfjs
from fastgru.io.arrays import arrays_of_npz
from fastgru.io.bounded import Archive, parse_json
from fastgru.io.budget import listed, reading, text_bytes
from fastgru.io.bundle import prefix_of
from fastgru.io.foreign import is_json
from fastgru.io.keras_alone import all_of_group, alone, others_like
from fastgru.io.keras_cells import (
    arrays_at,
    cells_of,
    errors_at,
    fill,
    is_unnamed,
    name_at,
    names_in,
    snake_of,
    variables_at,
)
from fastgru.io.keras_config import (
    SNAKES,
    are_automatic,
    kind_of,
    layer_name,
    numbered,
    recurrent_layers,
)
from fastgru.io.keras_legacy import LegacyModel, stored_cells, version_of
from fastgru.io.keras_shards import SHARDED, shards
from fastgru.io.named_arrays import ArrayGroup
from fastgru.io.replacing import expect_replaceable, replacing
from fastgru.io.torch_numpy import is_npz
from fastgru.layers import Bidirectional, Sequential

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from fastgru.io.budget import Budget
    from fastgru.io.keras_cells import NamedArrays
    from fastgru.io.keras_legacy import StoredCell

_MOST_METADATA = 1 << 16
_MOST_NESTED = 64  # groups


def load_keras_weights(
    layer: Any, path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> None:
    """Give a layer the weights in a Keras file.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built or not, with the same arguments as the layer that was saved. In the file of a larger
        model it is the layer of the same ``name``, or else the only one of its kind.
    path : path
        ``.weights.h5`` of Keras 3, or the ``.weights.json`` of several of them; ``.h5`` of Keras
        1, 2 or 3, whole models and weights alone; ``.keras``; the ``model.json`` of TensorFlow.js;
        ``.npz`` with Keras' names; or a TensorFlow checkpoint: its name as TensorFlow takes it, its
        ``.index`` or a ``.data`` file, or the folder of which the latest is to be read. There the
        layer's name may be a path, as ``"encoder/gru"``.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the files' bytes.

    Raises
    ------
    ValueError
        The file is damaged, has no such layer or several, or arrays of other shapes. The layer
        does not change.

    Warns
    -----
    UserWarning
        The names in an ``.h5`` file do not tell for certain which arrays are whose. They are taken
        in order, as Keras does: those of cells that are not ``trainable`` in ``layer`` come last.
        Or the file does not say which Keras wrote it, and ``hard_sigmoid`` depends on that.
    """
    path = Path(path)
    list(cells_of(layer))  # TypeError for what has no GRU cells
    with reading(path, max_bytes) as budget:
        _load(layer, path, budget)


def _load(layer: Any, path: Path, budget: Budget) -> None:
    if prefix := prefix_of(path, budget):
        with errors_at(f"{prefix}.index"):
            arrays = checkpoint.arrays_for(layer, prefix, budget)
            _check_formulas(layer, "", f"{prefix}.index")
            fill(layer, arrays, budget)
        return
    if path.is_dir():
        raise ValueError(
            f"{path}: expected a file of weights or a checkpoint, got a folder; from_keras reads "
            "SavedModels: layer.set_weights(from_keras(path, name).get_weights())"
        )
    if is_json(path) and not path.name.endswith(SHARDED):
        with errors_at(str(path)):
            model = tfjs.Model(path, budget)
            arrays = tfjs.arrays_for(layer, model)
            _check_formulas(layer, model.version, str(path))
            fill(layer, arrays, budget)
        return
    notes: list[str] = []
    with _weights_file(path, budget) as (root, version, place), errors_at(place):
        if isinstance(root, ArrayGroup):
            arrays = _from_arrays(layer, root)
        elif (legacy := _legacy_in(root)) is not None:
            version = legacy.attribute("keras_version") or "1"
            arrays = _from_legacy(layer, root, legacy, notes)
        else:
            arrays = _from_keras3(layer, root)
            # Keras 3 stores names with groups, and earlier versions did not.
            version = version or ("3" if name_at(root, "") else "")
        _check_formulas(layer, str(version), place)
        fill(layer, arrays, budget)
    for note in dict.fromkeys(notes):
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=3)


@contextmanager
def _weights_file(path: Path, budget: Budget) -> Iterator[tuple[Any, str, str]]:
    """Open a file of weights; give what is in it, the version of its Keras, and its name in errors.

    It is HDF5 itself, in a zip file, or in several files, or an ``.npz`` file. The version is empty
    where the file does not say it.
    """
    with budget.open(path) as file:
        start = file.read(8)
        if start[:2] != b"PK" and not path.name.endswith(SHARDED):
            yield hdf5.File(file, str(path), budget).root, "", str(path)
            return
    if start[:2] != b"PK":
        with shards(path, budget) as root:
            yield root, "3", str(path)  # no earlier version writes shards
        return
    with Archive(path, budget) as archive:
        if is_npz(archive):
            yield ArrayGroup(str(path), arrays_of_npz(archive)), "", str(path)
            return
        member, version = "model.weights.h5", ""
        if "metadata.json" in archive.names:
            metadata = parse_json(archive.read("metadata.json")[:_MOST_METADATA], budget)
            version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
        weights = archive.read(member)
        place = f"{path}: {member}"
        yield hdf5.File(weights, place, budget).root, version, place


def _legacy_in(root: Any) -> Any:
    """Return the group of weights of Keras 1 and 2 in a file; None in one of Keras 3."""
    legacy = root.group("model_weights") or root
    if legacy is not root or {"layer_names", "layer_names0"} & legacy.attributes:
        return legacy
    return None


def _from_arrays(layer: Any, group: ArrayGroup) -> list[list[np.ndarray]]:
    """Return the arrays of a layer's cells, by Keras' names of them."""
    stored = stored_cells(group)
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    notes: list[str] = []  # such a file has no order that says anything
    found = [_of_group(part, {"": (group, stored)}, notes) for part in parts]
    if len(parts) == 1 and found[0] is None and stored:
        found = [alone(parts[0], group, stored, notes)]
    if any(arrays is None for arrays in found):
        raise ValueError(
            f"expected weights of {', '.join(part.name for part in parts)}, got those of "
            f"{listed(cell.prefix or '.' for cell in stored) or 'none'}; give the layer "
            "the name that it has there"
        )
    return [cell for arrays in found for cell in arrays or []]


def _check_formulas(layer: Any, version: str, place: str) -> None:
    """Refuse weights that were trained with another formula of an activation than the layer has.

    Raises
    ------
    ValueError
        Keras 1 or 2 or TensorFlow.js wrote the file, and the layer has Keras 3's ``hard_sigmoid``.
    """
    functions = [f for part in cells_of(layer) for f in _activations(part.cell)]
    in_javascript = version.startswith("tfjs")
    if activations.hard_sigmoid in functions and (in_javascript or version[:1] in ("", "1", "2")):
        advice = (
            "hard_sigmoid is clip(0.2 x + 0.5, 0, 1) in Keras 1 and 2 and in TensorFlow.js, and "
            "relu6(x + 3) / 6 in Keras 3, as in this layer"
        )
        if not version:
            warnings.warn(
                f"{place}: {advice}. The file does not say which Keras wrote it: if it was Keras "
                "2, make the layer with 'hard_sigmoid_keras2'",
                UserWarning,
                stacklevel=4,  # the caller of load_keras_weights
            )
            return
        raise ValueError(
            f"expected a layer with hard_sigmoid_keras2 for weights of "
            f"{version if in_javascript else f'Keras {version}'}, got "
            f"hard_sigmoid: {advice}. Make the layer with 'hard_sigmoid_keras2'; or with "
            "'hard_sigmoid', if the weights are to run with Keras 3's formula, and set_weights"
        )


def _activations(cell: Any) -> tuple[Any, Any]:
    return cell.activation, cell.recurrent_activation


# ---- legacy files --------------------------------------------------------------------------------


def _from_legacy(
    layer: Any, root: hdf5.Group, weights: hdf5.Group, notes: list[str]
) -> list[list[np.ndarray]]:
    """Return the arrays of a layer's cells, of the layers of the same names or of all there are."""
    groups: dict[str, tuple[NamedArrays, list[StoredCell]]] = {}
    for name in dict.fromkeys(names_in(weights, "layer_names")):
        group = weights.group(name)
        if group is not None and names_in(group, "weight_names"):
            groups[name] = (group, stored_cells(group))
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    if len(groups) == len(parts) > 1 and all(map(is_unnamed, parts)):
        return _in_place(parts, groups, notes)
    named = _of_config(parts, root, notes)
    if named is None:
        named = _of_groups(parts, groups, notes)
    if all(arrays is not None for arrays in named):
        return [cell for arrays in named for cell in arrays or []]
    unnamed = are_automatic([part.name for part in parts])
    some = any(arrays is not None for arrays in named)
    ordered = len(parts) == 1 or unnamed or (not some and are_automatic(list(groups)))
    if not ordered or len(groups) != len(parts):
        raise ValueError(
            f"expected weights of {', '.join(part.name for part in parts)}, got those of "
            f"{listed(groups) or 'none'}; give the layer the name that it has there"
        )
    return _in_place(parts, groups, notes)


def _in_place(
    parts: list[Any], groups: dict[str, tuple[NamedArrays, list[StoredCell]]], notes: list[str]
) -> list[list[np.ndarray]]:
    """Return the arrays of layers in the order of the groups, as Keras does."""
    pairs = zip(parts, groups.values(), strict=True)
    return [cell for part, (group, stored) in pairs for cell in alone(part, group, stored, notes)]


def _of_config(
    parts: list[Any], root: hdf5.Group, notes: list[str]
) -> list[list[list[np.ndarray]] | None] | None:
    """Return the arrays of layers that the config in the file names; None if it does not."""
    text, weights = root.attribute("model_config"), root.group("model_weights")
    if not isinstance(text, str) or weights is None:
        return None
    budget = root.file.budget
    configs = list(recurrent_layers(parse_json(text, budget, "model_config"), budget))
    model = LegacyModel(weights, configs, version_of(root))
    result: list[list[list[np.ndarray]] | None] = []
    for part in parts:
        found = [config for config in configs if config.name == part.name]
        found = found or [config for config in configs if config.path[-1] == part.name]
        # A layer in a wrapper goes by the wrapper's name, and has its own.
        found = found or [config for config in configs if layer_name(config.form) == part.name]
        if len(found) != 1 or found[0].cells != len(list(cells_of(part))):
            return None
        both = kind_of(found[0].form) == "Bidirectional"
        if both != isinstance(part, Bidirectional):
            return None
        result.append(model.arrays(found[0]))
    notes += model.notes.values()
    return result


def _of_groups(
    parts: list[Any],
    groups: dict[str, tuple[NamedArrays, list[StoredCell]]],
    notes: list[str],
) -> list[list[list[np.ndarray]] | None]:
    """Return the arrays of the layers of these names, None for those that are not there."""
    named: list[list[list[np.ndarray]] | None] = []
    nested: list[str] = []
    for part in parts:
        named.append(_of_group(part, groups, nested))
    if nested and len(groups) == 1 and not any(part.name in groups for part in parts):
        # The layers may be all there are, as in a nested model of the same architecture.
        whole = all_of_group(parts, *next(iter(groups.values())), notes)
        if whole is not None:
            return list(whole)
    notes += nested
    return named


def _of_group(
    part: Any, groups: dict[str, tuple[NamedArrays, list[StoredCell]]], notes: list[str]
) -> list[list[np.ndarray]] | None:
    """Return the arrays of the layer of this name, at the top or in a nested model; None if none.

    Raises
    ------
    ValueError
        Several layers have the name.
    """
    if part.name in groups:
        return alone(part, *groups[part.name], notes)
    found: list[tuple[NamedArrays, list[StoredCell]]] = []
    path = part.name.split("/")
    for top, (group, stored) in groups.items():
        below = path[1:] if path[0] == top else path
        inside: dict[str, list[StoredCell]] = {}
        for cell in stored:
            names = cell.parts
            for at in range(len(names)):
                if names[at : at + len(below)] == below:
                    inside.setdefault("/".join(names[:at]), []).append(cell)
                    break
        found += [(group, cells) for cells in inside.values()]
    if len(found) > 1:
        got = listed(f"{group.place}: {cells[0].prefix}" for group, cells in found)
        raise ValueError(f"expected one layer called {part.name}, got several: {got}")
    if not found:
        return None
    everything = [cell for _, stored in groups.values() for cell in stored]
    if others := others_like(found[0][1], everything):
        notes.append(
            f"{part.name}: it is in a nested model or a wrapper, and there the file has the names "
            "that layers were built with. If they were renamed later, this name may be that of "
            f"{listed(cell.prefix for cell in others)[:500]}; a file of the whole model tells"
        )
    return alone(part, *found[0], notes)


# ---- files of Keras 3 ----------------------------------------------------------------------------


class _Place(NamedTuple):
    """A group of a file that has all the cells of a layer, and the names that it goes by."""

    group: str
    names: tuple[str, ...]


def _from_keras3(layer: Any, root: Any) -> list[list[np.ndarray]]:
    if not isinstance(layer, Sequential):
        return arrays_at(root, _group_of(layer, root), layer)
    own = [f"layers/{snake}/" for snake in numbered(snake_of(part) for part in layer.layers)]
    whole = all(_has(root, group, part) for group, part in zip(own, layer.layers, strict=True))
    names = [name_at(root, group) for group in own]
    wanted = [part.name for part in layer.layers]
    if whole and (names == wanted or not any(names)):
        return arrays_at(root, "", layer)
    places = [place for part in layer.layers for place in _places(part, root)]
    there = {name for place in places for name in place.names}
    inside = [key for key in root.group("layers").names if _is_recurrent(key)] if whole else []
    if len(inside) == len(own):  # in order, as Keras does, unless the names say otherwise
        if are_automatic(wanted) and (
            set(wanted) != set(names) or all(map(is_unnamed, layer.layers))
        ):
            return arrays_at(root, "", layer)
        if are_automatic(names) and not there & set(wanted):
            return arrays_at(root, "", layer)
    groups = [_group_of(part, root, only_named=True) for part in layer.layers]
    pairs = zip(layer.layers, groups, strict=True)
    return [cell for part, group in pairs for cell in arrays_at(root, group, part)]


def _is_recurrent(key: str) -> bool:
    """Say whether a group of this name has GRUs, or may have them inside."""
    return (
        re.fullmatch(rf"({SNAKES}|time_distributed|sequential|functional)(_\d+)?", key) is not None
    )


def _group_of(layer: Any, root: Any, only_named: bool = False) -> str:
    """Return a layer's group in a weights file of Keras 3, with a slash at its end."""
    places = _places(layer, root)
    if places and places[0].group == "" and not only_named:
        return ""  # the file is of this layer alone
    chosen = [place for place in places if layer.name in place.names]
    if not chosen and not only_named:
        chosen = places
    if len(chosen) != 1:
        got = listed(f"{p.group} ({listed(p.names) or 'no name'})" for p in places) or "none"
        raise ValueError(
            f"expected weights of one {snake_of(layer)} called {layer.name}, got {got}; give the "
            "layer the name that it has there"
        )
    return chosen[0].group


def _places(layer: Any, root: Any) -> list[_Place]:
    """Return all groups that have a layer's cells: of models, of wrappers, of users' classes."""
    found: dict[int, _Place] = {}
    seen: set[int] = set()
    budget = root.file.budget
    todo: list[tuple[str, Any, tuple[str, ...]]] = [("", root, ())]
    while todo:
        group, node, around = todo.pop()
        if id(node) in seen or group.count("/") > _MOST_NESTED:
            continue
        seen.add(id(node))
        own = name_at(root, group)
        if _has(root, group, layer):
            names = ((own,) if own else ()) + around
            key = id(variables_at(root, group + next(cells_of(layer)).group))
            if key not in found:
                found[key] = _Place(group, names)
            elif len(group) < len(found[key].group):
                found[key] = _Place(group, names + found[key].names)
        for name in reversed(node.names):
            below = node.group(name)
            if name != "vars" and below is not None:
                # What is in a wrapper is known by the wrapper's name too.
                outer = (own, *around) if own and group and name != "layers" else ()
                place = f"{group}{name}/"
                budget.make_objects(2, 3 * text_bytes(place), below.path)
                todo.append((place, below, outer))
    return list(found.values())


def _has(root: Any, group: str, layer: Any) -> bool:
    """Say whether a group has the variables of all cells of a layer, GRU cells by their shapes."""
    for part in cells_of(layer):
        variables = variables_at(root, group + part.group)
        if variables is None:
            return False
        kernel, recurrent = variables.get("0"), variables.get("1")
        if not isinstance(kernel, hdf5.Array) or not isinstance(recurrent, hdf5.Array):
            return False
        if len(kernel.shape) != 2 or len(recurrent.shape) != 2:
            return False
        if not kernel.shape[1] == recurrent.shape[1] == 3 * recurrent.shape[0]:
            return False
    return True


def to_keras_weights(layer: Any, path: str | os.PathLike[str]) -> None:
    """Write a layer's weights as a ``.weights.h5`` of Keras 3.

    ``load_weights`` of a Keras model reads it: a model of the one layer, or for
    `fastgru.Sequential` a ``keras.Sequential`` of the same layers. ``keras.saving.load_weights``
    also reads it into a single layer.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built.
    path : path
        Must end in ``.weights.h5``, as Keras demands.

    Raises
    ------
    ValueError
        The layer is not built, the path has another ending, or there is a link, a folder, a device
        or a pipe.
    ImportError
        h5py is not installed.
    """
    if not str(path).endswith(".weights.h5"):
        raise ValueError(f"path: expected a name that ends in .weights.h5, got {path}")
    expect_replaceable(path)
    cells = list(cells_of(layer))
    if not layer.built:
        raise ValueError(f"{layer.name}: it has no weights yet; call build(input_shape) first")
    try:
        import h5py
    except ImportError as error:
        raise ImportError("writing .h5 files needs h5py: pip install 'fastgru[h5]'") from error
    # h5py writes to the open file, not to a name.
    with replacing(path) as opened, h5py.File(opened, "w") as file:
        group = "" if isinstance(layer, Sequential) else f"layers/{snake_of(layer)}/"
        for part in cells:
            for i, variable in enumerate(part.cell.weights):
                file[f"{group}{part.group}vars/{i}"] = variable.numpy()
        own = [layer] if group else layer.layers
        snakes = [""] if group else [f"layers/{s}/" for s in numbered(map(snake_of, own))]
        for one, below in zip(own, snakes, strict=True):
            file.require_group(f"{group}{below}vars").attrs["name"] = one.name
        # Keras reads a single layer from the top of the file, and a model of it from layers/.
        for name in file[group] if group else ():
            file[name] = file[group][name]
