"""The dropout masks of a cell: drawn at the first asking and kept until they are reset."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru.device import follow, held, on_device
from fastgru.dropout import INPUT, RECURRENT, DropoutGenerator
from fastgru.layers.base import Layer


class DropoutMasks(Layer, abstract=True):
    """A cell with dropout, as Keras' ``DropoutRNNCell``."""

    units: int
    dropout: float
    recurrent_dropout: float
    implementation: int
    seed_generator: DropoutGenerator
    masks_for_cell: dict[int, np.ndarray]
    _dropout_mask: Any
    _recurrent_dropout_mask: Any

    def placeholders(
        self, input_shape: tuple[int, ...]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return what `draw` would, as ones without memory: for asking backends, not computing.

        Raises
        ------
        ValueError
            Masks that were drawn before and not reset do not fit this call.
        """
        one = np.ones((), self._dtype)
        drop, recurrent = None, None
        if 0.0 < self.dropout < 1.0:
            self._check_kept(self._dropout_mask, input_shape)
            drop = np.broadcast_to(
                one, (3, *input_shape) if self.implementation == 1 else input_shape
            )
        if 0.0 < self.recurrent_dropout < 1.0:
            state_shape = (input_shape[0], self.units)
            self._check_kept(self._recurrent_dropout_mask, state_shape)
            recurrent = np.broadcast_to(one, (3, *state_shape))
        return drop, recurrent

    def _check_kept(self, kept: Any, shape: tuple[int, ...]) -> None:
        """Raise ValueError when masks drawn before were drawn for another shape."""
        drawn = shape if kept is None else np.shape(kept)[-2:]
        if drawn != shape:
            raise ValueError(
                f"{self.name}: its dropout mask was drawn for shape {drawn}, and the call needs "
                f"{shape}; call reset_dropout_mask() and reset_recurrent_dropout_mask() between "
                "batches"
            )

    def draw(self, input_shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the masks of one training call: dropout (B, I) or (3, B, I), recurrent (3, B, H).

        Masks that were drawn before and not reset are used again.
        """
        drop, recurrent = None, None
        if 0.0 < self.dropout < 1.0:
            drop = self._take(INPUT, input_shape, self._dropout_mask)
        if 0.0 < self.recurrent_dropout < 1.0:
            state_shape = (input_shape[0], self.units)
            recurrent = self._take(RECURRENT, state_shape, self._recurrent_dropout_mask)
        return drop, recurrent

    def _take(self, stream: int, shape: tuple[int, ...], kept: Any) -> np.ndarray:
        """Return the masks that were drawn before, else new ones, which are not kept."""
        if kept is not None:
            return held(kept) if isinstance(kept, np.ndarray) else np.stack(kept)
        masks = self._draw(stream, shape)
        return masks if len(masks) == 3 else masks[0]

    def _draw(self, stream: int, shape: tuple[int, ...]) -> np.ndarray:
        rate = self.dropout if stream == INPUT else self.recurrent_dropout
        count = 3 if stream == RECURRENT or self.implementation == 1 else 1
        return self.seed_generator.draw(stream, shape, rate, self._dtype, count)

    def get_dropout_mask(self, step_input: Any) -> Any:
        """Return the input mask of this call, drawn at the first asking.

        Parameters
        ----------
        step_input : array_like, shape (B, I)
            Only its shape counts, and where it is.

        Returns
        -------
        None, ndarray or list of ndarray
            None without dropout, a list of three with implementation 1.
        """
        if self._dropout_mask is None and self.dropout:
            masks = self._draw(INPUT, np.shape(step_input))
            self._dropout_mask = list(masks) if len(masks) == 3 else masks[0]
        return _follow_all(self._dropout_mask, step_input)

    def get_recurrent_dropout_mask(self, step_input: Any) -> Any:
        """Return the masks of the state, drawn at the first asking.

        Parameters
        ----------
        step_input : array_like, shape (B, H)
            The state; only its shape counts, and where it is.

        Returns
        -------
        None or list of three ndarray, shape (B, H)
            None without recurrent_dropout.
        """
        if self._recurrent_dropout_mask is None and self.recurrent_dropout:
            self._recurrent_dropout_mask = list(self._draw(RECURRENT, np.shape(step_input)))
        return _follow_all(self._recurrent_dropout_mask, step_input)

    def reset_dropout_mask(self) -> None:
        """Forget the input mask, so that the next call draws another."""
        self._dropout_mask = None
        self.masks_for_cell.pop(INPUT, None)

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the recurrent masks, so that the next call draws others."""
        self._recurrent_dropout_mask = None
        self.masks_for_cell.pop(RECURRENT, None)


def _follow_all(masks: Any, like: Any) -> Any:
    """Return masks, one or a list of them or None, where ``like`` is."""
    if not on_device(like) or masks is None:
        return masks
    return [follow(m, like) for m in masks] if isinstance(masks, list) else follow(masks, like)
