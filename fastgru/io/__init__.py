"""Weights and whole layers from files, and back, without the framework that wrote them.

A file is data. The readers execute nothing in it, and compare its shapes with its config before
they allocate memory. A truncated, altered or forged file raises a ValueError that names the place.

| source | reads | writes |
|---|---|---|
| Keras 3 and 2, CuDNNGRU, SavedModel | `from_keras`, `load_keras_weights` | `to_keras_weights` |
| PyTorch | `from_torch` | `to_torch` |
| ONNX | `from_onnx` | `to_onnx` |
| fastgru's own | `load` | `save` |
| all of these, .npz and .npy: the arrays alone | `read_arrays` | |

Some formats need a package (safetensors, onnx; h5py to write). These packages are extras, and the
functions import them when they need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgru.io.arrays import read_arrays as read_arrays
    from fastgru.io.keras import from_keras as from_keras
    from fastgru.io.keras_weights import load_keras_weights as load_keras_weights
    from fastgru.io.keras_weights import to_keras_weights as to_keras_weights
    from fastgru.io.onnx import from_onnx as from_onnx
    from fastgru.io.onnx_writer import to_onnx as to_onnx
    from fastgru.io.safetensors import load as load
    from fastgru.io.safetensors import save as save
    from fastgru.io.torch import from_torch as from_torch
    from fastgru.io.torch import to_torch as to_torch

# Public function -> its module in this package, imported when the function is first used.
_PLACES = {
    "from_keras": "keras",
    "from_onnx": "onnx",
    "from_torch": "torch",
    "load": "safetensors",
    "load_keras_weights": "keras_weights",
    "read_arrays": "arrays",
    "save": "safetensors",
    "to_keras_weights": "keras_weights",
    "to_onnx": "onnx_writer",
    "to_torch": "torch",
}

__all__ = sorted(_PLACES)

if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept every misspelt name

    def __getattr__(name: str) -> Any:
        """Import the module of a public function when the function is first used."""
        if name in _PLACES:
            return getattr(importlib.import_module(f"fastgru.io.{_PLACES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
