"""Weights and whole layers from files, and back, without the framework that wrote them.

A file is data: nothing in it is executed, its shapes are compared with its config before anything
is allocated, and what is truncated, altered or hostile is a ValueError that names the place.

| source | reads | writes |
|---|---|---|
| Keras 3 and 2, CuDNNGRU, SavedModel | `from_keras`, `load_keras_weights` | `to_keras_weights` |
| PyTorch | `from_torch` | `to_torch` |
| ONNX | `from_onnx` | `to_onnx` |
| fastgru's own | `load` | `save` |

The packages that a format needs (safetensors, onnx; h5py to write) are extras, imported when they
are needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgru.io.keras import from_keras
    from fastgru.io.keras_weights import load_keras_weights, to_keras_weights
    from fastgru.io.onnx import from_onnx
    from fastgru.io.onnx_writer import to_onnx
    from fastgru.io.safetensors import load, save
    from fastgru.io.torch import from_torch, to_torch

# Public function -> its module here, which is imported when the function is first used.
_PLACES = {
    "from_keras": "keras",
    "from_onnx": "onnx",
    "from_torch": "torch",
    "load": "safetensors",
    "load_keras_weights": "keras_weights",
    "save": "safetensors",
    "to_keras_weights": "keras_weights",
    "to_onnx": "onnx_writer",
    "to_torch": "torch",
}

__all__ = [
    "from_keras",
    "from_onnx",
    "from_torch",
    "load",
    "load_keras_weights",
    "save",
    "to_keras_weights",
    "to_onnx",
    "to_torch",
]


if not TYPE_CHECKING:  # a checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        """Import the module of a public function when the function is first used."""
        if name in _PLACES:
            return getattr(importlib.import_module(f"fastgru.io.{_PLACES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
