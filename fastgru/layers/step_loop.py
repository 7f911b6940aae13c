"""The loop over time for cells that are not ours: one Python call a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.device import follow, plain
from fastgru.layers.nested import described, map_nested
from fastgru.layers.stacked import caller_of, cell_output_size, initial_state
from fastgru.problem import as_array, check_shape

if TYPE_CHECKING:
    from fastgru.layers.call import Call, CalledLayer


def run(layer: CalledLayer, call: Call) -> tuple[np.ndarray, list[Any], None]:
    """Run a prepared call of a layer over a custom cell.

    Returns
    -------
    y : ndarray, (B, T, O) in processing order with return_sequences, else (B, O)
    states : list, in the cell's nesting
    None : a custom cell has no derivative, so nothing is kept for backward
    """
    cell, x = layer.cell, call.x
    batch, steps, _ = x.shape
    dtype = layer._dtype
    states = call.states
    if states is None:
        states = map_nested(lambda state: follow(state, x), initial_state(cell, batch, dtype))
    valid = call.mask.valid(steps, x)
    if valid is not None:
        x = np.where(valid[:, :, None], x, dtype.type(0))  # a NaN there must not reach the cell
    size = cell_output_size(cell)
    previous = np.zeros_like(x, dtype, "C", shape=(batch, size))
    y = np.empty_like(x, dtype, "C", shape=(batch, steps, size)) if layer.return_sequences else None
    step = caller_of(cell)
    order = range(steps - 1, -1, -1) if layer.go_backwards else range(steps)
    for s, t in enumerate(order):
        if call.resets is not None:
            states = select(call.resets[:, t], None, states)
        output, new_states = _checked(cell, step(x[:, t], states, call.training), previous, states)
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
    return result, map_nested(np.copy, states), None  # the cell may have kept these arrays


def _checked(cell: Any, returned: Any, like: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
    """Return a cell's output and new states in the layer's dtype, or say what is wrong."""
    name = type(cell).__name__
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(
            f"{name}: expected it to return (output, new_states), got {described(returned)}"
        )
    output = as_array(returned[0], like.dtype, f"output of {name}", like)
    check_shape(output, like.shape, f"output of {name}", "(B, output_size)")
    new_states = returned[1] if isinstance(returned[1], (list, tuple)) else [returned[1]]

    def matched(new: Any, old: Any) -> Any:
        if isinstance(old, (list, tuple)):
            if not isinstance(new, (list, tuple)) or len(new) != len(old):
                raise ValueError(
                    f"{name}: expected {len(old)} new states, as its state_size says, got {new!r}"
                )
            return [matched(n, o) for n, o in zip(new, old, strict=True)]
        array = as_array(new, like.dtype, f"state of {name}", like)
        check_shape(array, np.shape(old), f"state of {name}", "as before the step")
        return array

    return output, matched(new_states, states)


def select(rows: np.ndarray, chosen: Any, other: Any) -> Any:
    """Return ``chosen`` (None means zeros) in the rows that are True, ``other`` elsewhere."""
    if isinstance(other, (list, tuple)):
        picked = [None] * len(other) if chosen is None else chosen
        return [select(rows, c, o) for c, o in zip(picked, other, strict=True)]
    other = plain(other)
    mask = rows.reshape(-1, *(1,) * (other.ndim - 1))
    return np.where(mask, other.dtype.type(0) if chosen is None else plain(chosen), other)
