"""StackedRNNCells, several cells as one, and what can be asked of any cell."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from fastgru.layers import options
from fastgru.layers.base import Layer, deserialize_layer, serialize_layer
from fastgru.layers.cell import GRUCell
from fastgru.layers.config import keras_config
from fastgru.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable


class StackedRNNCells(Layer):
    """Several cells as one: each cell's output is the next one's input.

    Parameters
    ----------
    cells : list of cells
        GRUCell, StackedRNNCells, or any object with ``state_size`` and
        ``__call__(inputs, states, training=False) -> (output, new_states)``.
    name : str, optional
    dtype : str, optional
        By default the cells'.
    trainable : bool
    **kwargs
        As for `GRUCell`.
    """

    _axes = 2
    cells: list[Any]

    def __init__(
        self,
        cells: Any,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None:
        cells = list(cells)
        if not cells:
            raise ValueError("cells: expected at least one cell, got an empty list")
        for cell in cells:
            check_cell(cell)
        if len({id(cell) for cell in cells}) != len(cells):
            raise ValueError("cells: expected different cells, got one of them twice")
        ours = [cell for cell in cells if isinstance(cell, Layer)]
        if dtype is None:
            dtype = ours[0].dtype_policy if ours else getattr(cells[0], "dtype", None)
        super().__init__(name=name, dtype=dtype, trainable=trainable, **kwargs)
        for cell in ours:
            if cell.dtype_policy != self.dtype_policy:
                raise ValueError(
                    f"cells: expected all to have dtype {self.dtype_policy.name}, got "
                    f"{cell.dtype_policy.name} for {cell.name}"
                )
        self.cells = cells
        self._made()

    def _layers_inside(self) -> list[Layer]:
        return [cell for cell in self.cells if isinstance(cell, Layer)]

    @property
    def state_size(self) -> list[Any]:
        """The cells' state sizes."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """Features of the last cell's output."""
        return cell_output_size(self.cells[-1])

    def build(self, input_shape: Any) -> None:
        """Build each cell for the output of the one before it."""
        shape = tuple(input_shape)
        for cell in self.cells:
            build_cell(cell, shape)
            shape = (*shape[:-1], cell_output_size(cell))
        self._set_initial_weights()
        self.built = True

    @property
    def weights(self) -> list[Variable]:
        """The cells' weights, cell after cell."""
        return [v for cell in self.cells for v in getattr(cell, "weights", [])]

    @property
    def trainable_weights(self) -> list[Variable]:
        """The cells' trainable weights, cell after cell."""
        if not self.trainable:
            return []
        return [v for cell in self.cells for v in getattr(cell, "trainable_weights", [])]

    def get_initial_state(self, batch_size: int | None = None) -> list[Any]:
        """Return each cell's initial state."""
        # As in Keras 3: what the cell gives, a list for GRUCell; else zeros, bare if there is one.
        states = []
        for cell in self.cells:
            state = initial_state(cell, batch_size, self._dtype)
            bare = not hasattr(cell, "get_initial_state") and not isinstance(
                cell.state_size, (list, tuple)
            )
            states.append(state[0] if bare else state)
        return states

    def __call__(
        self, inputs: Any, states: Any, training: bool = False
    ) -> tuple[np.ndarray, list[Any]]:
        """Run one step of each cell in order.

        Parameters
        ----------
        inputs : array_like, shape (B, I)
        states : list
            One entry per cell, as it takes it.
        training : bool
            Whether dropout is applied.

        Returns
        -------
        output : ndarray, shape (B, H)
            The last cell's.
        new_states : list
        """
        return self.step([caller_of(cell) for cell in self.cells], inputs, states, training)

    call = __call__  # Keras' name

    def step(
        self, callers: list[Any], inputs: Any, states: Any, training: bool
    ) -> tuple[np.ndarray, list[Any]]:
        """Do what a call does, by the `caller_of` of each cell."""
        if len(states) != len(self.cells):
            raise ValueError(
                f"states: expected one per cell ({len(self.cells)}), got {len(states)}"
            )
        new_states = []
        for call, state in zip(callers, states, strict=True):
            nested = isinstance(state, (list, tuple))
            inputs, new = call(inputs, list(state) if nested else [state], training)
            new = list(new) if isinstance(new, (list, tuple)) else [new]
            new_states.append(new if nested or len(new) != 1 else new[0])
        return inputs, new_states

    def reset_dropout_mask(self) -> None:
        """Forget the cells' input masks."""
        for cell in self.cells:
            if hasattr(cell, "reset_dropout_mask"):
                cell.reset_dropout_mask()

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the cells' recurrent masks."""
        for cell in self.cells:
            if hasattr(cell, "reset_recurrent_dropout_mask"):
                cell.reset_recurrent_dropout_mask()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        return {**super().get_config(), "cells": [serialize_layer(c) for c in self.cells]}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> StackedRNNCells:
        """Build the stack from a config of this library, of Keras 3 or of Keras 2."""
        config = keras_config(config, custom_objects, needs="cells")
        config["cells"] = [deserialize_layer(c, custom_objects) for c in config.pop("cells")]
        return cls(**config)


def check_cell(cell: Any) -> None:
    """Raise ValueError unless ``cell`` can be used as a cell."""
    if isinstance(cell, Layer) and cell._axes == 3:
        raise ValueError(
            f"cell: expected a cell, which takes one step, got the layer {cell!r}; call the layer "
            "itself, or put layers into Sequential"
        )
    if not callable(cell):
        raise ValueError(
            f"cell: expected an object with __call__(inputs, states, training=False), got {cell!r}"
        )
    sizes = getattr(cell, "state_size", None)
    if not isinstance(sizes, (int, np.integer, list, tuple)):
        raise ValueError(
            "cell: expected a state_size that is an integer or a list of them, "
            f"got {sizes!r} on {cell!r}"
        )


def build_cell(cell: Any, shape: tuple[Any, ...]) -> None:
    """Build a cell that can be built, once; our own cells check the shape every time."""
    if isinstance(cell, Layer) or (hasattr(cell, "build") and not getattr(cell, "built", False)):
        cell.build(shape)
        cell.built = True


def caller_of(cell: Any) -> Callable[[Any, Any, bool], tuple[Any, Any]]:
    """Return ``call(inputs, states, training)`` of a cell, which gets ``training`` if it takes it.

    Reading a signature takes longer than a step, so a loop over time asks once.
    """
    if type(cell) is StackedRNNCells:
        callers = [caller_of(inner) for inner in cell.cells]
        return lambda inputs, states, training: cell.step(callers, inputs, states, training)
    if isinstance(cell, Layer) or _takes_training(cell):
        return lambda inputs, states, training: cell(inputs, states, training=training)
    return lambda inputs, states, training: cell(inputs, states)


def _takes_training(cell: Any) -> bool:
    parameters = inspect.signature(getattr(cell, "call", cell.__call__)).parameters
    return "training" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )


def initial_state(cell: Any, batch_size: int | None, dtype: np.dtype) -> list[Any]:
    """Return a cell's initial state as a list."""
    check_batch_size(batch_size)
    if hasattr(cell, "get_initial_state"):
        state = cell.get_initial_state(batch_size=batch_size)
        return list(state) if isinstance(state, (list, tuple)) else [state]
    sizes = cell.state_size if isinstance(cell.state_size, (list, tuple)) else [cell.state_size]
    return [np.zeros((batch_size, size), dtype) for size in sizes]


def check_batch_size(batch_size: Any) -> None:
    """Raise ValueError unless it is an integer of at least 0."""
    if not hasattr(batch_size, "__index__") or batch_size.__index__() < 0:
        raise ValueError(f"batch_size: expected an integer of at least 0, got {batch_size!r}")


def cell_output_size(cell: Any) -> int:
    """Return the features of a cell's output."""
    size = getattr(cell, "output_size", None)
    if size is None:
        size = cell.state_size
        while isinstance(size, (list, tuple)):
            size = size[0]
    return int(size)


def gru_cells_of(cell: Any) -> list[GRUCell] | None:
    """Return the GRU cells that make up ``cell``, or None when some cell is of another kind."""
    if type(cell) is GRUCell:
        return [cell]
    if type(cell) is StackedRNNCells:
        parts = [gru_cells_of(inner) for inner in cell.cells]
        if all(part is not None for part in parts):
            return [c for part in parts for c in part]  # type: ignore[union-attr]
    return None
