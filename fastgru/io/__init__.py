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

# Public function -> its module here, which is imported when the function is first used.
_PLACES = {
    "from_keras": "keras",
    "load_keras_weights": "keras_weights",
    "to_keras_weights": "keras_weights",
}

__all__ = ["from_keras", "load_keras_weights", "to_keras_weights"]


def __getattr__(name: str) -> Any:
    """Import the module of a public function when the function is first used."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"fastgru.io.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
