"""The states that a stateful layer keeps between calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru.layers.base import Layer
from fastgru.layers.nested import flatten, map_nested
from fastgru.layers.stacked import initial_state
from fastgru.variables import Variable, write_together


class KeepsStates(Layer, abstract=True):
    """A layer with a cell, which keeps the cell's states if it is ``stateful``."""

    cell: Any
    stateful: bool
    states: list[Any] | None

    def get_initial_state(self, batch_size: int | None) -> list[Any]:
        """Return the states a call starts from by default, a list."""
        return initial_state(self.cell, batch_size, self._dtype)

    def reset_state(self) -> None:
        """Set the states of a stateful layer to zero; nothing on other layers, as in Keras 3."""
        if self.states is not None:
            self.reset_states()

    def reset_states(self, states: Any = None) -> None:
        """Set the states of a stateful layer.

        Parameters
        ----------
        states : array_like (B, H), or a list of them; None means zeros

        Raises
        ------
        AttributeError
            The layer is not stateful.
        ValueError
            The batch size is not known yet, or a state has another shape or dtype.
        """
        if not self.stateful:
            raise AttributeError(
                f"{self.name}: it is not stateful; build it with stateful=True to keep states"
            )
        if self.states is None:
            raise ValueError(
                f"{self.name}: its batch size is not known yet; call the layer or "
                "build((B, T, I)) first"
            )
        variables = flatten(self.states)
        if states is None:
            values = [np.zeros(v.shape, v.dtype) for v in variables]
        else:
            values = flatten(states if isinstance(states, (list, tuple)) else [states])
            if len(values) != len(variables):
                raise ValueError(f"states: expected {len(variables)}, got {len(values)}")
            try:
                values = [v.checked(value) for v, value in zip(variables, values, strict=True)]
            except TypeError as error:  # as documented: a wrong dtype here is a ValueError
                raise ValueError(str(error)) from None
        write_together(variables, values)

    def _create_states(self, batch: int) -> None:
        self.states = map_nested(
            lambda value: Variable(
                value, name="rnn_state", trainable=False, roams=True, scope=self.path
            ),
            self.get_initial_state(batch),
        )
