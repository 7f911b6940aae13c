"""Keras' GRU for NumPy and CuPy arrays, without a deep-learning framework.

Start at `GRU`; `gru` is the same arithmetic as a function. docs/semantics.md says what masks,
resets and empty rows mean.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastgru import activations, constraints, gates, initializers, regularizers
from fastgru.backends.cpu import warn_if_not_built as _warn_if_not_built
from fastgru.config import show_config
from fastgru.dispatch import use_backend
from fastgru.functional import gru, gru_cell
from fastgru.layers import (
    GRU,
    RNN,
    Bidirectional,
    GRUCell,
    Sequential,
    StackedRNNCells,
)
from fastgru.problem import BackendError
from fastgru.seeds import set_random_seed
from fastgru.threads import get_num_threads, num_threads, set_num_threads
from fastgru.variables import Variable
from fastgru.version import __version__

if TYPE_CHECKING:
    from fastgru import distributed, io
    from fastgru.io.safetensors import load, save

__all__ = [
    "GRU",
    "RNN",
    "BackendError",
    "Bidirectional",
    "GRUCell",
    "Sequential",
    "StackedRNNCells",
    "Variable",
    "__version__",
    "activations",
    "constraints",
    "distributed",
    "gates",
    "get_num_threads",
    "gru",
    "gru_cell",
    "initializers",
    "io",
    "load",
    "num_threads",
    "regularizers",
    "save",
    "set_num_threads",
    "set_random_seed",
    "show_config",
    "use_backend",
]


_LATE = {
    "distributed": "fastgru.distributed",
    "io": "fastgru.io",
    "load": "fastgru.io.safetensors",
    "save": "fastgru.io.safetensors",
}

if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept every misspelt name

    def __getattr__(name: str) -> Any:
        """Import `fastgru.io` and `fastgru.distributed` when they are first used."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_LATE[name])
        return module if name in ("distributed", "io") else getattr(module, name)


def __dir__() -> list[str]:
    """Return what is public, and nothing else."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


_warn_if_not_built()
