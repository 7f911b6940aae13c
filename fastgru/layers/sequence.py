"""SequenceLayer: what is called on sequences, be it one layer or several."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from fastgru import locks
from fastgru.layers.base import Layer
from fastgru.layers.call import Arguments
from fastgru.layers.nested import Result, flatten
from fastgru.layers.stream import Stream, row_count
from fastgru.problem import as_array

if TYPE_CHECKING:
    from fastgru.dispatch import Explanation
    from fastgru.layers.cell import GRUCell
    from fastgru.layers.tape import Tape


class SequenceLayer(Layer, Generic[Result], abstract=True):
    """What is called on sequences: a call is validated whole, then run.

    Subclasses say how: `prepare` validates and does no other work, `start` builds and draws
    dropout masks, `take_weights`, then `complete` or `forward_prepared` do the work. `Sequential`
    puts what one layer returned into the next one's call by `feed`. States and losses are kept
    last, of all layers together: where any of the work fails, none of them changes.
    """

    def __call__(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
        *,
        lengths: Any = None,
        reset_mask: Any = None,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> Result:
        """Run the layer.

        Parameters
        ----------
        sequences : array_like, shape (B, T, I), or (T, B, I) with time_major
            Other floats and integers are cast to the layer's dtype, which costs a copy.
        initial_state : array_like (B, H), or a list, optional
            One per cell; for Bidirectional first half forward, second half backward; for
            Sequential one entry per layer. Or one array (layers * directions, B, H), as PyTorch's
            ``h_0``.
        mask : array_like of bool or 0/1, shape (B, T), or (T, B) with time_major, optional
            True = use the step.
        training : bool
            Whether dropout is applied.
        lengths : array_like of int, shape (B,), optional
            Instead of mask: row b is valid for t < lengths[b].
        reset_mask : as mask, optional
            True = set the row's state to zero before that step.
        out : ndarray, optional
            Where the outputs are written; their shape and dtype.
        num_threads : int, optional
            Upper bound for this call.

        Returns
        -------
        y : ndarray, (B, T, H) or (T, B, H) with return_sequences, else (B, H)
            Bidirectional: merged, or two of them with merge_mode=None.
        state, ... : with return_state, as ``(y, state, ...)``

        Raises
        ------
        ValueError, TypeError
            Before any work; states, weights and ``out`` are unchanged.

        Notes
        -----
        KeyboardInterrupt, and what other signal handlers raise, ends a long call within about half
        a second. Weights and states are unchanged then; ``out`` may be partly written.
        """
        if (
            (training is False or training is None)
            and initial_state is None
            and mask is None
            and lengths is None
            and reset_mask is None
            and out is None
            and num_threads is None
        ):
            result: Any = self.fast_call(sequences)
            if result is None and type(sequences) is np.ndarray and sequences.dtype != self._dtype:
                sequences = as_array(sequences, self._dtype, "sequences")
                result = self.fast_call(sequences)
            if result is not None:
                return result
        call = self.prepare(
            Arguments(
                sequences, initial_state, mask, training, lengths, reset_mask, out, num_threads
            )
        )
        self.start(call)
        locks.at_once(lambda: self.take_weights(call))
        result = self.complete(call)
        changes = self.changes(call)
        if changes:
            locks.assign_all(changes)
        return result

    call = __call__  # Keras' name

    def forward(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = True,
        *,
        lengths: Any = None,
        reset_mask: Any = None,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
        save: str = "gates",
    ) -> tuple[Result, Tape]:
        """Run the layer and keep what `backward` needs.

        Parameters
        ----------
        sequences, initial_state, mask : as in the call
        training : bool
            As in the call, but True by default.
        lengths, reset_mask, out, num_threads : as in the call
        save : {"gates", "states"}
            What the tape keeps of every row and step: the gates too, 4 H numbers, or only the
            state, H numbers; then `backward` computes the gates again, which costs it about as
            much as another forward. The gradients are the same, bit for bit.

        Returns
        -------
        outputs : as the call's
        tape : Tape
            Good for one `backward`, as long as the weights stay the same.
        """
        if save not in ("gates", "states"):
            raise ValueError(f"save: expected 'gates' or 'states', got {save!r}")
        call = self.prepare(
            Arguments(
                sequences, initial_state, mask, training, lengths, reset_mask, out, num_threads
            )
        )
        self.start(call)
        locks.at_once(lambda: self.take_weights(call))
        result = self.forward_prepared(call, save == "gates")
        locks.assign_all(self.changes(call))
        return result

    def stream(self, n: int = 1) -> Stream:
        """Return a `Stream`: n rows of state that advance a time step at a time.

        Parameters
        ----------
        n : int
            At least 1.

        Raises
        ------
        ValueError
            The layer is not built, or runs backwards in time, or has a custom cell.
        """
        rows = row_count(n)
        return Stream(self.stream_cells(), rows)

    def explain(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
        *,
        lengths: Any = None,
        reset_mask: Any = None,
    ) -> Explanation:
        """Return an `Explanation`: which backend would serve the call, and why not another.

        Parameters
        ----------
        sequences, initial_state, mask, training, lengths, reset_mask : as in the call
            Nothing is run, built or drawn.
        """
        call = self.prepare(
            Arguments(sequences, initial_state, mask, training, lengths, reset_mask)
        )
        explanation = self.explanation(call)
        given = {"sequences": sequences, "initial_state": initial_state}
        own = self._dtype.name
        explanation.casts = [
            f"{what}: {name}, cast to {own} in a copy at each call; pass {own} to save it"
            for what, value in given.items()
            for name in dict.fromkeys(map(_dtype_name, flatten(value)))
            if name not in (None, own)
        ]
        return explanation

    def fast_call(self, sequences: Any) -> Any:
        """Return what a call with nothing but sequences returns; None: make a call of it."""
        return None

    @abstractmethod
    def stream_cells(self) -> list[GRUCell]:
        """Return the GRU cells of a stream in order, or raise ValueError that says why not."""

    @abstractmethod
    def prepare(self, arguments: Arguments) -> Any:
        """Validate a call: all that may be wrong with it is found here."""

    @abstractmethod
    def start(self, call: Any) -> None:
        """Build what is not built, and draw the dropout masks of a prepared call."""

    @abstractmethod
    def take_weights(self, call: Any) -> None:
        """Take the weights that a started call runs with, of all cells at one moment."""

    @abstractmethod
    def complete(self, call: Any) -> Any:
        """Run a started call and return what the user gets."""

    @abstractmethod
    def forward_prepared(self, call: Any, keep_gates: bool) -> tuple[Any, Tape]:
        """Run `forward` on a started call."""

    @abstractmethod
    def changes(self, call: Any) -> list[tuple[Any, str, Any]]:
        """Return what a call that was run leaves behind: (object, attribute, value)."""

    @abstractmethod
    def feed(self, call: Any, sequences: Any) -> None:
        """Give a started call other sequences of the same shape."""

    @abstractmethod
    def explanation(self, call: Any) -> Explanation:
        """Say which backends a prepared call would be served by."""


def _dtype_name(value: Any) -> str | None:
    """Return the name of an array's dtype, of any library; None for other values."""
    dtype = getattr(value, "dtype", None)
    return None if dtype is None else getattr(dtype, "name", str(dtype).rpartition(".")[2])
