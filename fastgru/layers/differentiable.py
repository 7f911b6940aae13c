"""Backward of a layer whose cells are GRU cells: from its tape to gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.layers.call import check_states
from fastgru.layers.nested import Result, flatten
from fastgru.layers.sequence import SequenceLayer
from fastgru.layers.tape import (
    Gradients,
    Tape,
    backward_through,
    check_differentiable,
    check_tape,
    gradient_array,
    plus_activity,
    trainable_gradients,
)

if TYPE_CHECKING:
    from fastgru.layers.cell import GRUCell


class Differentiable(SequenceLayer[Result], abstract=True):
    """A layer over time with ``cell`` and ``_gru_cells``, which are None for a custom cell."""

    time_major: bool
    return_sequences: bool
    return_state: bool
    activity_regularizer: Any
    _gru_cells: list[GRUCell] | None

    def backward(self, tape: Tape, output_gradients: Any, state_gradients: Any = None) -> Gradients:
        """Return the gradient of <outputs, output_gradients> + <state, state_gradients> + losses.

        Parameters
        ----------
        tape : Tape
            From `forward`.
        output_gradients : array_like in the outputs' shape, or None for zeros
        state_gradients : array_like (B, H), or a list as the states, or None for zeros

        Returns
        -------
        Gradients
            ``inputs``, ``initial_state`` and ``weights``; the regularizers' share included.

        Raises
        ------
        ValueError
            A tape that was used, or whose weights have changed since; a custom activation,
            regularizer or cell without a derivative; a wrong shape.
        """
        kept = self.check_tape(tape)
        dy, dstates = self.output_gradients(kept, output_gradients, state_gradients)
        tape.spend()
        return self.gradients(*backward_through(kept["records"], dy, dstates))

    def gradients(self, dx: Any, dh0: list[Any], weights: list[Any]) -> Gradients:
        """Return what `backward` does, from what the backends gave; dx may be None."""
        return Gradients(
            dx.transpose(1, 0, 2) if self.time_major and dx is not None else dx,
            dh0 if len(dh0) > 1 else dh0[0],
            trainable_gradients(self.weights, self.trainable_weights, weights),
        )

    def check_tape(self, tape: Tape) -> dict[str, Any]:
        """Return what the tape kept; ValueError unless `backward` can run on it."""
        kept = check_tape(tape, self)
        if self._gru_cells is None:
            raise ValueError(
                f"{self.name}: backward needs the derivative of the cell, and a custom cell has "
                "none; use GRUCell or StackedRNNCells of GRUCells"
            )
        for cell, record in zip(self._gru_cells, kept["records"], strict=True):
            if cell.snapshot() is not record.weights:
                raise ValueError(
                    f"tape: the weights of {cell.name} have changed since forward(...); "
                    "run it again"
                )
            check_differentiable("activation", cell.activation)
            check_differentiable("recurrent_activation", cell.recurrent_activation)
            for v in cell.trainable_weights if self.trainable else ():
                check_differentiable(f"regularizer of {v.name}", v.regularizer)
        check_differentiable("activity_regularizer", self.activity_regularizer)
        return kept

    def output_gradients(
        self, kept: dict[str, Any], output_gradients: Any, state_gradients: Any
    ) -> tuple[Any, list[Any]]:
        """Validate what `backward` was given: dy batch-major, and one dstate per cell."""
        y_shape = kept["y_shape"]
        swap = self.time_major and self.return_sequences
        shape = (y_shape[1], y_shape[0], y_shape[2]) if swap else y_shape
        dy = gradient_array(
            output_gradients, shape, kept["x"], "output_gradients", "of the outputs"
        )
        if swap and dy is not None:
            dy = dy.transpose(1, 0, 2)
        assert self._gru_cells is not None
        dstates: list[np.ndarray | None] = [None] * len(self._gru_cells)
        if state_gradients is not None:
            layer: Any = self  # an RNN
            given = check_states(layer, state_gradients, y_shape[0], "state_gradients", kept["x"])
            dstates = list(flatten(given))
        if kept["regularized"] is not None:
            y, states = kept["regularized"]
            dy = plus_activity(dy, self.activity_regularizer, y)
            for i, state in enumerate(states if self.return_state else ()):
                dstates[i] = plus_activity(dstates[i], self.activity_regularizer, state)
        return dy, dstates
