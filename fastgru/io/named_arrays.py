"""GRUs in files that have weights without a config: .npz, .npy, Keras' weights alone.

PyTorch's names say everything (`fastgru.io.torch`). Keras' names and shapes give the sizes, the
gates' order and the formula, but not the activations and options: those are Keras' defaults here,
and `ImportedLayer.recognised` says so. Shapes that two readings fit are an error.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgru.io import hdf5
from fastgru.io.arrays import arrays_in
from fastgru.io.budget import LAYER_STEPS, Budget, listed, text_bytes
from fastgru.io.imported_layer import ImportedLayer
from fastgru.io.keras_cells import errors_at, fill
from fastgru.layers import GRU

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

ROLES = ("kernel", "recurrent_kernel", "bias")
# "gru/gru_cell/kernel:0", "decoder.bias", "layers/gru/cell/vars/2"
_NAME = re.compile(
    r"(?:(?P<place>.*)[/.])?(?:(?P<role>kernel|recurrent_kernel|bias)(?::0)?|vars/(?P<n>\d{1,3}))",
    re.DOTALL,
)
# Variables that stateful layers have for their states.
_STATE = re.compile(r"(Variable|rnn_state)(_\d+)?")
# Parts of a place that say nothing about which layer it is.
_INNER = re.compile(r"(?:/|^)(?:gru_cell(?:_\d+)?|cell)$")


def without_config(path: Path) -> bool:
    """Say whether a file is HDF5 with weights, as Keras writes them without a model's config."""
    budget = Budget(str(path))
    with budget.open(path) as file:
        if file.read(8) != hdf5.SIGNATURE:
            return False
        return "model_config" not in hdf5.File(file, str(path), budget).root.attributes


def find(path: Path, budget: Budget | None = None) -> list[ImportedLayer]:
    """Return the GRUs of a file of named arrays.

    Raises
    ------
    ValueError
        The file cannot be read, or has no arrays with names and shapes of a GRU's weights; the
        message lists some of its names.
    """
    budget = budget or Budget(str(path))
    arrays = arrays_in(path, budget)
    from fastgru.io import torch
    from fastgru.io.torch_weights import split

    found: list[ImportedLayer] = []
    if any(split(name) is not None for name in arrays):
        found += torch.find(arrays, budget)
    found += keras_named(arrays, str(path), budget)
    if not found:
        few = listed((f"{name} {array.shape}" for name, array in arrays.items()), 9)
        raise ValueError(
            f"{path}: expected arrays named as PyTorch does, weight_ih_l0 (3H, I) and "
            f"weight_hh_l0 (3H, H), or as Keras does, kernel (I, 3H) and recurrent_kernel (H, 3H), "
            f"got {few or 'none'}; read_arrays and fastgru.gates.to_keras convert others"
        )
    return found


def find_keras(path: Path, budget: Budget) -> list[ImportedLayer]:
    """Return the GRUs of a file of named arrays that has Keras' names.

    Raises
    ------
    ValueError
        The file cannot be read, or no arrays have names and shapes of a GRU's weights.
    """
    arrays = arrays_in(path, budget)
    found = keras_named(arrays, str(path), budget)
    if not found:
        few = listed((f"{name} {array.shape}" for name, array in arrays.items()), 9)
        raise ValueError(
            f"{path}: expected arrays named as Keras does, kernel (I, 3H) and recurrent_kernel "
            f"(H, 3H), got {few or 'none'}; from_torch reads PyTorch's names"
        )
    return found


class ArrayGroup:
    """Arrays by name, as a group of a legacy file is; see `keras_cells.NamedArrays`."""

    def __init__(self, place: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.place, self._arrays = place, arrays

    def attribute(self, name: str) -> list[str] | None:
        """Return the names of the arrays as ``weight_names``."""
        return list(self._arrays) if name == "weight_names" else None

    def get(self, path: str) -> np.ndarray | None:
        """Return an array; None if there is none of the name."""
        return self._arrays.get(path)

    def array(self, path: str) -> np.ndarray:
        """Return an array."""
        return self._arrays[path]


def keras_named(
    arrays: Mapping[str, np.ndarray], where: str, budget: Budget
) -> list[ImportedLayer]:
    """Return a GRU with Keras' defaults for each group of arrays with a GRU's names and shapes."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        place, role, number = match.group("place", "role", "n")
        if number is not None:
            role = ROLES[int(number)] if int(number) < len(ROLES) else "more"
        group = groups.setdefault(place or "", {})
        if role in group:
            raise ValueError(f"{where}: expected one {role} under {place!r}, got two")
        group[role] = array
    for name in arrays:  # of a cell that has more variables than a GRU's
        place, _, last = name.removesuffix(":0").rpartition("/")
        if place in groups and place and _NAME.fullmatch(name) is None and role_of(last) == "more":
            groups[place]["more"] = arrays[name]
    cells = {
        place: group
        for place, group in groups.items()
        if is_gru({role: array.shape for role, array in group.items()})
    }
    names = {place: _INNER.sub("", place) or "gru" for place in cells}
    short = Counter(names.values())
    full = {place: name if short[name] == 1 else place or "." for place, name in names.items()}
    return [
        _with_defaults(place, full[place], group, where, budget) for place, group in cells.items()
    ]


def role_of(name: str) -> str:
    """Return the role of a variable of a cell or layer: "" of a state, "more" if a GRU has none."""
    return name if name in ROLES else "" if _STATE.fullmatch(name) else "more"


def is_gru(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Say whether these are all the weights of a GRU cell, by their shapes."""
    kernel, recurrent = shapes.get("kernel", ()), shapes.get("recurrent_kernel", ())
    if len(kernel) != 2 or len(recurrent) != 2 or 0 in (*kernel, *recurrent) or "more" in shapes:
        return False
    columns = 3 * recurrent[0]
    biases: list[Any] = [None, (2, columns), (columns,), (2 * columns,)]
    return kernel[1] == recurrent[1] == columns and shapes.get("bias") in biases


def _with_defaults(
    place: str, name: str, group: dict[str, np.ndarray], where: str, budget: Budget
) -> ImportedLayer:
    budget.make_objects(4, 4 * (text_bytes(place) + text_bytes(name)), place)
    weights = [group[role] for role in ROLES if role in group]
    bias = group.get("bias")
    backwards = name.rpartition("/")[2].startswith("backward_")
    after = bias is None or bias.shape != (3 * weights[1].shape[0],)
    budget.step(LAYER_STEPS, place)
    with errors_at(f"{where}: {place}"):
        layer = GRU(
            weights[1].shape[0],
            use_bias=bias is not None,
            reset_after=after,
            go_backwards=backwards,
            dtype="float64" if any(w.dtype.itemsize == 8 for w in weights) else "float32",
        )
        convention = fill(layer, [[w.astype(layer.dtype, copy=False) for w in weights]], budget)
    assumed = [
        "activation='tanh'",
        "recurrent_activation='sigmoid'",
        "return_sequences=False",
        f"go_backwards={backwards}" + (" (by its name)" if backwards else ""),
        *(["reset_after=True"] if bias is None else []),
    ]
    recognised = f"names and shapes of {place or 'its arrays'}; assumed: {', '.join(assumed)}"
    return ImportedLayer(name, layer, convention, recognised)
