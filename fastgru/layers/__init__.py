"""The layers Keras users know."""

from fastgru.layers.base import Gradients, Layer, Tape
from fastgru.layers.bidirectional import Bidirectional
from fastgru.layers.cell import GRUCell, StackedRNNCells
from fastgru.layers.gru import GRU
from fastgru.layers.rnn import RNN
from fastgru.layers.sequential import Sequential

__all__ = [
    "GRU",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "Gradients",
    "Layer",
    "Sequential",
    "StackedRNNCells",
    "Tape",
]
