"""The loop over time for cells that are not ours: one Python call a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.layers.stacked import call_cell, cell_output_size, initial_state

if TYPE_CHECKING:
    from fastgru.layers.call import Call
    from fastgru.layers.rnn import RNN


def run(layer: RNN, call: Call) -> tuple[np.ndarray, list[Any], None]:
    """Run a prepared call of a layer over a custom cell.

    Returns
    -------
    y : ndarray, (B, T, O) in processing order with return_sequences, else (B, O)
    states : list, in the cell's nesting
    None : a custom cell has no derivative, so nothing is kept for backward
    """
    cell, x = layer.cell, call.x
    batch, steps, _ = x.shape
    dtype = np.dtype(layer.dtype)
    states = initial_state(cell, batch, dtype) if call.states is None else list(call.states)
    valid = call.mask.valid(steps)
    if valid is not None:
        x = np.where(valid[:, :, None], x, dtype.type(0))  # a NaN there must not reach the cell
    previous = np.zeros((batch, cell_output_size(cell)), dtype)
    y = np.empty((batch, steps, previous.shape[1]), dtype) if layer.return_sequences else None
    order = range(steps - 1, -1, -1) if layer.go_backwards else range(steps)
    for s, t in enumerate(order):
        if call.resets is not None:
            states = select(call.resets[:, t], None, states)
        output, new_states = call_cell(cell, x[:, t], states, call.training)
        output = np.asarray(output).astype(dtype, copy=False)
        if not isinstance(new_states, (list, tuple)):
            new_states = [new_states]
        if valid is None:
            states, previous = list(new_states), output
        else:
            used = valid[:, t]
            states = select(used, new_states, states)
            skipped = np.zeros_like(output) if layer.zero_output_for_mask else previous
            previous = np.where(used[:, None], output, skipped)
        if y is not None:
            y[:, s] = previous
    for reset in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
        if hasattr(cell, reset):
            getattr(cell, reset)()
    result = previous if y is None else y
    if call.out is not None:
        call.out[...] = result
        result = call.out
    return result, states, None


def select(rows: np.ndarray, chosen: Any, other: Any) -> Any:
    """Return ``chosen`` (None means zeros) in the rows that are True, ``other`` elsewhere."""
    if isinstance(other, (list, tuple)):
        picked = [None] * len(other) if chosen is None else chosen
        return [select(rows, c, o) for c, o in zip(picked, other, strict=True)]
    other = np.asarray(other)
    mask = rows.reshape(-1, *(1,) * (other.ndim - 1))
    return np.where(mask, other.dtype.type(0) if chosen is None else np.asarray(chosen), other)
