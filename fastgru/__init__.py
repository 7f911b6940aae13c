"""Keras' GRU for NumPy and CuPy arrays, without a deep-learning framework.

Start at `GRU`; `gru` is the same arithmetic as a function. What masks, resets and empty rows
mean stands in docs/semantics.md.
"""

from fastgru import activations, constraints, initializers, regularizers
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
from fastgru.threads import get_num_threads, num_threads, set_num_threads
from fastgru.variables import Variable

__version__ = "0.1.0"

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
    "get_num_threads",
    "gru",
    "gru_cell",
    "initializers",
    "num_threads",
    "regularizers",
    "set_num_threads",
    "show_config",
    "use_backend",
]
