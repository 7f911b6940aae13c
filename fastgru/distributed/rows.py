"""Checks for all engines: which layers may run on some rows at a time."""

from __future__ import annotations

import os
from typing import Any

from fastgru.io.safetensors import load
from fastgru.layers.sequence import SequenceLayer


def check_rows_alone(layer: Any) -> None:
    """Raise TypeError or ValueError unless rows may be computed on any machine in any order.

    The engines split axis 0, so it must be the batch.
    """
    if not isinstance(layer, SequenceLayer):
        raise TypeError(
            f"layer: expected GRU, RNN, Bidirectional or Sequential, got {type(layer).__name__}"
        )
    parts: list[Any] = getattr(layer, "layers", [layer])
    if any(part.stateful for part in parts):
        raise ValueError(
            f"{layer.name}: expected stateful=False, since a call's pieces run on any machine in "
            "any order, and states would stay behind there; pass initial_state, and take the "
            "states with return_state=True"
        )
    if parts[0].time_major:
        raise ValueError(
            f"{layer.name}: expected time_major=False, since the engines cut axis 0, which must be "
            "the batch; build the layer with time_major=False and transpose the sequences"
        )


def check_built(layer: Any) -> None:
    """Raise ValueError if the layer has no weights, since each worker would draw its own."""
    if not layer.built:
        raise ValueError(
            f"{layer.name}: it has no weights yet, and each worker would draw its own; call "
            "build(input_shape) or the layer first"
        )


def load_layer(source: Any) -> Any:
    """Return the layer of a file of `fastgru.save`; or ``source`` itself, if it is not a path."""
    return load(source) if isinstance(source, (str, os.PathLike)) else source
