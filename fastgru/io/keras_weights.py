"""Keras' weights files, which do not describe layers: read into a layer, written from one."""

from __future__ import annotations

import io
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgru.io import hdf5
from fastgru.io.bounded import Archive
from fastgru.io.keras_cells import (
    cells_of,
    errors_at,
    fill,
    keras3_arrays,
    legacy_arrays,
    names_in,
    snake_of,
    split_by_cell,
)
from fastgru.layers import Sequential

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np


def load_keras_weights(layer: Any, path: str | os.PathLike[str]) -> None:
    """Give a layer the weights in a Keras file.

    Parameters
    ----------
    layer : GRU, RNN, Bidirectional or Sequential
        Built or not, with the same arguments as the layer that was saved. In the file of a larger
        model it is the layer of the same ``name``, or else the only one of its kind.
    path : path
        ``.weights.h5`` of Keras 3, ``.h5`` of Keras 1, 2 or 3, whole models and weights alone, or
        ``.keras``.

    Raises
    ------
    ValueError
        The file is damaged, has no such layer or several, or arrays of other shapes. The layer
        does not change.
    """
    cells = list(cells_of(layer))
    with _weights_file(Path(path)) as root, errors_at(root.file.place):
        legacy = root.group("model_weights") or root
        if legacy is not root or {"layer_names", "layer_names0"} & legacy.attributes:
            arrays = _from_legacy(layer, legacy)
        else:
            group = _group_of(layer, root)
            arrays = [keras3_arrays(root, group + part.group) for part in cells]
        fill(layer, arrays)


@contextmanager
def _weights_file(path: Path) -> Iterator[hdf5.Group]:
    """Open the HDF5 file at a path, or inside the zip file at that path."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            yield hdf5.File(file, str(path)).root
            return
    with Archive(path) as archive:
        member = "model.weights.h5"
        yield hdf5.File(io.BytesIO(archive.read(member)), f"{path}: {member}").root


def _from_legacy(layer: Any, root: hdf5.Group) -> list[list[np.ndarray]]:
    """Return the arrays of a layer's cells, of the layers of the same names or of all there are."""
    names = []
    for name in names_in(root, "layer_names"):
        group = root.group(name)
        if group is not None and names_in(group, "weight_names"):
            names.append(name)
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    if all(part.name in names for part in parts):
        chosen = [part.name for part in parts]
    elif len(names) == len(parts):  # in order, as Keras does
        chosen = names
    else:
        raise ValueError(
            f"expected weights of {', '.join(part.name for part in parts)}, got those of "
            f"{', '.join(names) or 'none'}; give the layer the name that it has there"
        )
    return [
        arrays
        for part, name in zip(parts, chosen, strict=True)
        for arrays in split_by_cell(part, legacy_arrays(root, [name]), not layer.trainable)
    ]


def _group_of(layer: Any, root: hdf5.Group) -> str:
    """Return a layer's group in a weights file of Keras 3, with a slash at its end."""
    first = next(cells_of(layer)).group
    if root.group(f"{first}vars") is not None:
        return ""  # the file is of this layer or model alone
    kind = snake_of(layer)
    groups = dict(_groups_like(kind, root, ""))
    chosen = [group for group, name in groups.items() if name == layer.name] or list(groups)
    if len(chosen) != 1:
        got = ", ".join(f"{group} ({name})" for group, name in groups.items()) or "none"
        raise ValueError(
            f"expected weights of one {kind} called {layer.name}, got {got}; give the layer the "
            "name that it has there"
        )
    return chosen[0]


def _groups_like(kind: str, root: hdf5.Group, below: str) -> Iterator[tuple[str, str]]:
    """Yield group and layer name of all layers of a kind in a weights file, nested ones too."""
    layers = root.group(f"{below}layers")
    for key in layers.names if layers else ():
        group = f"{below}layers/{key}/"
        if re.fullmatch(rf"{kind}(_\d+)?", key):
            own = root.group(f"{group}vars")
            yield group, str(own.attribute("name")) if own else "no name"
        yield from _groups_like(kind, root, group)


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
        The layer is not built, or the path has another ending.
    ImportError
        h5py is not installed.
    """
    if not str(path).endswith(".weights.h5"):
        raise ValueError(f"path: expected a name that ends in .weights.h5, got {path}")
    cells = list(cells_of(layer))
    if not layer.built:
        raise ValueError(f"{layer.name}: it has no weights yet; call build(input_shape) first")
    try:
        import h5py
    except ImportError as error:
        raise ImportError("writing .h5 files needs h5py: pip install 'fastgru[h5]'") from error
    with h5py.File(path, "w") as file:
        group = "" if isinstance(layer, Sequential) else f"layers/{snake_of(layer)}/"
        for part in cells:
            for i, variable in enumerate(part.cell.weights):
                file[f"{group}{part.group}vars/{i}"] = variable.numpy()
        # Keras reads a single layer from the top of the file, and a model of it from layers/.
        for name in file[group] if group else ():
            file[name] = file[group][name]
