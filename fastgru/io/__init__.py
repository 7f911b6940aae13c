"""Weights and whole layers from files, and back, without the framework that wrote them.

A file is data: nothing in it is executed, its shapes are compared with its config before anything
is allocated, and what is truncated, altered or hostile is a ValueError that names the place.

| source | reads | writes |
|---|---|---|
| Keras 3 and 2, CuDNNGRU, SavedModel | `from_keras`, `load_keras_weights` | `to_keras_weights` |
| PyTorch | `from_torch` | `to_torch` |
| ONNX | `from_onnx` | `to_onnx` |
| fastgru's own | `load` | `save` |

The packages that read a format (h5py, safetensors, onnx) are extras, imported when they are needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgru.io.safetensors import load, save
    from fastgru.io.torch import from_torch, to_torch

# Which module has what; it is imported when it is first asked for.
_PLACES = {
    "from_torch": "torch",
    "load": "safetensors",
    "save": "safetensors",
    "to_torch": "torch",
}

__all__ = ["from_torch", "load", "save", "to_torch"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"fastgru.io.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
