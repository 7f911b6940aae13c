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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgru.io.keras import from_keras
    from fastgru.io.keras_weights import load_keras_weights, to_keras_weights

__all__ = ["from_keras", "load_keras_weights", "to_keras_weights"]

_HOMES = {
    "from_keras": "keras",
    "load_keras_weights": "keras_weights",
    "to_keras_weights": "keras_weights",
}


def __getattr__(name: str) -> Any:
    """Import a format's module when one of its functions is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"fastgru.io.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
