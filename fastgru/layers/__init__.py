"""The layers Keras users know."""

from fastgru.layers.base import Layer
from fastgru.layers.bidirectional import Bidirectional
from fastgru.layers.cell import GRUCell
from fastgru.layers.gru import GRU
from fastgru.layers.rnn import RNN
from fastgru.layers.sequential import Sequential
from fastgru.layers.stacked import StackedRNNCells
from fastgru.layers.tape import Gradients, Tape

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
