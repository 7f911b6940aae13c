"""RNN: a cell over time. Here a call is validated, run and differentiated for all GRU layers."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, Unpack, overload

import numpy as np

from fastgru import dispatch, locks, regularizers
from fastgru.layers import options, step_loop
from fastgru.layers.base import Layer, deserialize_layer, serialize_layer
from fastgru.layers.call import Arguments, Call
from fastgru.layers.cell import GRUCell
from fastgru.layers.config import keras_config
from fastgru.layers.differentiable import Differentiable
from fastgru.layers.nested import Array, Result, WithState, flatten, map_nested
from fastgru.layers.stacked import (
    StackedRNNCells,
    build_cell,
    cell_output_size,
    check_cell,
    gru_cells_of,
)
from fastgru.layers.states import KeepsStates
from fastgru.layers.tape import Record, Tape, record_of
from fastgru.variables import Variable, frozen

_FLAGS = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
    "time_major",
)


class RNN(KeepsStates, Differentiable[Result]):
    """A cell over a sequence, as `keras.layers.RNN`.

    Parameters
    ----------
    cell : cell, or list of cells
        GRUCell, StackedRNNCells, or any object with ``state_size`` and
        ``__call__(inputs, states, training=False) -> (output, new_states)``. A list becomes
        `StackedRNNCells`.
    return_sequences : bool
        Return every output instead of the last.
    return_state : bool
        Return the final states too.
    go_backwards : bool
        Process time in reverse; outputs come in processing order.
    stateful : bool
        Start each call from the states that the last one left.
    unroll : bool
        Kept for Keras' configs; there is nothing to unroll here.
    zero_output_for_mask : bool
        Outputs of masked steps are zeros instead of the previous output.
    time_major : bool
        Sequences, masks and returned sequences are (T, B, ...).
    activity_regularizer : regularizer, optional
        Of the outputs; its loss is divided by the batch size.
    dtype : str, optional
        By default the cell's.
    name : str, optional
    trainable : bool
    **kwargs
        Keras' ``input_shape`` (T, I), ``batch_input_shape`` or ``batch_shape`` (B, T, I), or
        ``input_dim`` with ``input_length`` and ``batch_size``: the layer is built at once.
        ``weights``: a list of arrays that it is built with.
    """

    _checks: ClassVar[dict[str, options.Check]] = {
        **dict.fromkeys(_FLAGS, options.flag),
        "activity_regularizer": lambda value, _: regularizers.get(value),
        "use_cudnn": options.one_of("auto", True, False),
    }

    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool
    zero_output_for_mask: bool
    time_major: bool
    activity_regularizer: Any
    use_cudnn: bool | str = "auto"  # GRU has the argument
    cell: Any

    @overload
    def __init__(
        self: RNN[Array],
        cell: Any,
        return_sequences: bool = False,
        return_state: Literal[False] = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        *,
        time_major: bool = False,
        activity_regularizer: Any = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    @overload
    def __init__(
        self: RNN[WithState],
        cell: Any,
        return_sequences: bool = False,
        *,
        return_state: Literal[True],
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        time_major: bool = False,
        activity_regularizer: Any = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    @overload
    def __init__(
        self: RNN[Array | WithState],
        cell: Any,
        return_sequences: bool = False,
        *,
        return_state: bool,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        time_major: bool = False,
        activity_regularizer: Any = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        *,
        time_major: bool = False,
        activity_regularizer: Any = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        self.time_major = time_major
        if isinstance(cell, (list, tuple)):
            cell = StackedRNNCells(cell, dtype=dtype)
        check_cell(cell)
        gru_cells = gru_cells_of(cell)
        if dtype is None:
            dtype = gru_cells[0].dtype_policy if gru_cells else getattr(cell, "dtype", None)
        super().__init__(name=name, dtype=dtype, trainable=trainable, **kwargs)
        for inner in gru_cells or ():
            if inner.dtype_policy != self.dtype_policy:
                raise ValueError(
                    f"dtype: expected the layer and its cells to agree, got "
                    f"{self.dtype_policy.name} for {self.name} and {inner.dtype_policy.name} for "
                    f"{inner.name}"
                )
        self.cell = cell
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.unroll = unroll
        self.zero_output_for_mask = zero_output_for_mask
        self.activity_regularizer = activity_regularizer
        self.states = None
        self._gru_cells = gru_cells
        self._activity_losses: list[Any] = []
        self._made()

    _fixed = frozenset(("cell",))

    def _is_fixed(self) -> bool:
        return hasattr(self, "_gru_cells")  # not by __dict__: it makes attributes slower to read

    def forget(self) -> None:
        """Go back to before build."""
        super().forget()
        self.states = None

    def _layers_inside(self) -> list[Layer]:
        return [self.cell] if isinstance(self.cell, Layer) else []

    # -- weights and shapes ----------------------------------------------------------------

    @property
    def weights(self) -> list[Variable]:
        """The cell's weights."""
        return getattr(self.cell, "weights", [])

    @property
    def trainable_weights(self) -> list[Variable]:
        """The cell's trainable weights; none when the layer is not trainable."""
        return getattr(self.cell, "trainable_weights", []) if self.trainable else []

    @property
    def state_size(self) -> list[Any]:
        """Sizes of the states."""
        sizes = self.cell.state_size
        return list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]

    def build(self, input_shape: Any) -> None:
        """Create the weights for sequences of shape (B, T, I); B and T may be None.

        A stateful layer also creates its states, for which B must be known.
        """
        if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
            raise ValueError(f"input_shape: expected (B, T, I), got {input_shape!r}")
        shape = tuple(input_shape)
        batch = shape[1] if self.time_major else shape[0]
        try:
            build_cell(self.cell, (batch, shape[2]))
            self._set_initial_weights()
        except (TypeError, ValueError):
            for cell in () if self.built else self._gru_cells or ():
                cell.forget()
            raise
        if self.stateful and self.states is None and batch is not None:
            self._create_states(batch)
        self.built = True  # last: another thread may be waiting to use what it says is there

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:
        """Return the shape of y, and with return_state of the states, for a sequences' shape."""
        if not isinstance(sequences_shape, (tuple, list)) or len(sequences_shape) != 3:
            raise ValueError(f"sequences_shape: expected (B, T, I), got {sequences_shape!r}")
        first, second = sequences_shape[:2]
        batch = second if self.time_major else first
        units = cell_output_size(self.cell)
        shape: Any = (first, second, units) if self.return_sequences else (batch, units)
        if not self.return_state:
            return shape
        return (shape, *map_nested(lambda size: (batch, size), self.state_size))

    def compute_mask(self, inputs: Any = None, mask: Any = None) -> Any:
        """Return the mask of the outputs: ``mask`` itself for sequences, else None."""
        output_mask = mask if self.return_sequences else None
        if self.return_state:
            return [output_mask, *(None for _ in self.state_size)]
        return output_mask

    def unbuilt_copy(self, name: str) -> RNN:
        """Return a layer of the same arguments with weights and states of its own, not built.

        A custom cell is copied as it is, weights included.
        """
        twin = copy.deepcopy(self)
        twin.name, twin.built, twin.states, twin._activity_losses = name, False, None, []
        for cell in twin._gru_cells or ():
            cell.forget()
        return twin

    # -- the call --------------------------------------------------------------------------

    def fast_call(self, sequences: Any) -> Any:
        """Serve a call with nothing but sequences by the fast path; None where it cannot.

        The sequences are checked where they are used, in C.
        """
        cells = self._gru_cells
        if (
            cells is None
            or len(cells) != 1
            or not self.built
            or self.stateful
            or self.time_major
            or self.activity_regularizer is not None
            or self.use_cudnn is True
        ):
            return None
        cell = cells[0]
        if cell.spec is None or cell._weights is None:
            return None
        return dispatch.fast_path().fast_call(
            cell._weights,
            cell.spec,
            sequences,
            self.return_sequences,
            self.return_state,
            self.go_backwards,
        )

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: bool | None = False
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Run the cell over time from a state, as Keras 3's layers do inside of a call.

        A stateful layer's states are neither read nor written, and no loss is noted.

        Parameters
        ----------
        sequences, initial_state, mask, training : as in the call

        Returns
        -------
        last_output : ndarray, shape (B, H)
        outputs : ndarray, shape (B, T, H), or (T, B, H) with time_major
            Without return_sequences only the last output, as (B, 1, H) or (1, B, H).
        states : list of ndarray (B, H)
        """
        call = self.prepare(Arguments(sequences, initial_state, mask, training))
        self.start(call)
        locks.at_once(lambda: self.take_weights(call))
        y, states, _ = self.run(call)
        outputs = y if self.return_sequences else y[:, None]
        if self.return_sequences:
            y = y[:, -1].copy() if y.shape[1] else np.zeros_like(y, shape=(len(y), y.shape[2]))
        return y, outputs.transpose(1, 0, 2) if self.time_major else outputs, states

    def complete(self, call: Call) -> Any:
        """Run a prepared call and return what the user gets."""
        y, states, _ = self.run(call)
        return self.finish(call, y, states)

    def feed(self, call: Call, sequences: np.ndarray) -> None:
        """Give a prepared call other sequences of the same shape."""
        call.x = sequences.transpose(1, 0, 2) if self.time_major else sequences

    def forward_prepared(self, call: Call, keep_gates: bool) -> tuple[Any, Tape]:
        """Run `forward` on a prepared call."""
        call.keep_inputs()
        return self.record(call, *self.run(call, save=True, keep_gates=keep_gates))

    def record(
        self, call: Call, y: np.ndarray, states: list[Any], records: list[Record]
    ) -> tuple[Any, Tape]:
        """Finish a call that was run for `backward`: what the user gets, and the tape."""
        outputs = self.finish(call, y, states)
        regularized = None
        if self.activity_regularizer is not None:
            regularized = (y.copy(), [s.copy() for s in flatten(states)])
        return outputs, Tape(
            self, records=records, x=call.x, y_shape=y.shape, regularized=regularized
        )

    def prepare(self, arguments: Arguments) -> Call:
        """Validate a call: all that may be wrong with it is found here."""
        return Call(self, arguments)

    def start(self, call: Call) -> None:
        """Build what is not built, and draw the dropout masks of a prepared call."""
        call.start(self)

    def take_weights(self, call: Call) -> None:
        """Take the weights that a started call runs with."""
        call.weights = [cell.snapshot() for cell, _, _ in call.cell_calls]

    def run(
        self, call: Call, save: bool = False, keep_gates: bool = True
    ) -> tuple[np.ndarray, list[Any], Any]:
        """Run a prepared call: y batch-major, the new states, and what backward needs."""
        if self._gru_cells is None:
            return step_loop.run(self, call)
        x = call.x
        records: list[Record] = []
        states: list[Any] = []
        # Cell after cell over the whole sequence equals step after step: a masked step changes
        # no cell's state, and the next cell does not read there.
        for (_, problem, backend), weights in zip(call.cell_calls, call.weights, strict=True):
            if problem.x is not x:
                problem = problem.with_x(x)
            output = backend.forward(problem, weights, save, keep_gates)
            if save:
                records.append(record_of(problem, weights, output, backend.name))
            x = output.y
            states.append(output.state)
        if len(states) > 1:  # Keras 3 gives the states of stacked cells as a list each
            states = [[state] for state in states]
        return x, states, records

    def finish(self, call: Call, y: np.ndarray, states: list[Any]) -> Any:
        """Note the new states and losses in the call; return what the user gets."""
        if self.stateful and self.states is not None:
            new = flatten(states)
            for i, kept in enumerate(call.kept):
                kept[...] = new[i]
                new[i] = kept
            pairs = zip(flatten(self.states), new, strict=True)
            call.changes = [(variable, "_value", frozen(state)) for variable, state in pairs]
        if self.activity_regularizer is not None:
            outputs = [y, *flatten(states)] if self.return_state else [y]
            rows = max(1, y.shape[0])
            losses = [self.activity_regularizer(o) / rows for o in outputs]
            call.changes.append((self, "_activity_losses", losses))
        if call.out_copy is not None:
            call.out_copy[...] = y
        if call.given_out is not None:
            y = call.given_out
        elif self.time_major and self.return_sequences:
            y = y.transpose(1, 0, 2)
        return (y, *states) if self.return_state else y

    def changes(self, call: Call) -> list[tuple[Any, str, Any]]:
        """Return the new states and losses of a call that was run."""
        return call.changes

    @property
    def activity_losses(self) -> list[Any]:
        """Activity losses of the last call, each divided by the batch size (semantics.md 8)."""
        return list(self._activity_losses)

    def explanation(self, call: Call) -> dispatch.Explanation:
        """Say which backends would serve the cells of a prepared call."""
        if not call.cell_calls:
            return dispatch.Explanation.of_custom_cell(self.name)
        parts = [(cell.name, dispatch.Explanation(problem)) for cell, problem, _ in call.cell_calls]
        return dispatch.Explanation.of_parts(parts)

    def stream_cells(self) -> list[GRUCell]:
        """Return the cells of a stream, or raise ValueError that says why there is none."""
        if self.go_backwards:
            raise ValueError(
                f"{self.name}: go_backwards=True needs the end of the sequence first, so there is "
                "no stream of it"
            )
        if self._gru_cells is None:
            raise ValueError(
                f"{self.name}: a stream needs GRUCell or a stack of them, got a custom cell; "
                "call the cell itself, a step at a time"
            )
        if not self.built:
            raise ValueError(
                f"{self.name}: it has no weights yet; call build(input_shape) or the layer first"
            )
        return list(self._gru_cells)

    # -- config ----------------------------------------------------------------------------

    def sequence_config(self) -> dict[str, Any]:
        """Return what RNN and its subclasses have in common in their configs."""
        config = {
            **Layer.get_config(self),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "stateful": self.stateful,
            "unroll": self.unroll,
            "zero_output_for_mask": self.zero_output_for_mask,
        }
        if self.time_major:
            config["time_major"] = True
        return config

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        config = {**self.sequence_config(), "cell": serialize_layer(self.cell)}
        if self.activity_regularizer is not None:
            config["activity_regularizer"] = regularizers.serialize(self.activity_regularizer)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Any:
        """Build a layer from a config of this library, of Keras 3 or of Keras 2."""
        config = keras_config(config, custom_objects, needs="cell")
        config["cell"] = deserialize_layer(config["cell"], custom_objects)
        return cls(**config)
