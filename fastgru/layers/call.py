"""A call of an RNN, validated: what the user passed becomes batch-major arrays and problems.

A call goes through three phases, which `Bidirectional` and `Sequential` take for all their layers
before the next one begins. Making a `Call` validates everything and chooses the backends: a call
that raises has changed nothing. `start` builds what is not built and draws dropout masks. Then the
problems run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastgru import dispatch, locks
from fastgru.device import follow, overlap
from fastgru.layers.nested import described, flatten, map_nested, unstacked
from fastgru.layers.stacked import cell_output_size
from fastgru.masks import plan_mask, plan_resets
from fastgru.problem import (
    GRUProblem,
    GRUWeights,
    as_array,
    check_num_threads,
    check_out,
    check_shape,
)

if TYPE_CHECKING:
    from fastgru.backends.base import Backend
    from fastgru.layers.cell import GRUCell
    from fastgru.masks import MaskPlan


class Arguments(NamedTuple):
    """The arguments of a call as the user passed them; `SequenceLayer` says what each is."""

    sequences: Any
    initial_state: Any = None
    mask: Any = None
    training: Any = False
    lengths: Any = None
    reset_mask: Any = None
    out: Any = None
    num_threads: Any = None

    def of_part(self, sequences: Any, initial_state: Any, out: Any = None) -> Arguments:
        """Return those of a call that is a part of this one, faster than ``_replace`` does."""
        return Arguments(sequences, initial_state, *self[2:6], out, self[7])


class CalledLayer(Protocol):
    """What a call reads of the layer that it is a call of; `fastgru.RNN` has it."""

    name: str
    built: bool
    cell: Any
    _gru_cells: list[GRUCell] | None  # None: some cell is not ours
    states: list[Any] | None
    stateful: bool
    time_major: bool
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    zero_output_for_mask: bool
    unroll: bool
    use_cudnn: bool | str
    activity_regularizer: Any
    _dtype: np.dtype

    @property
    def state_size(self) -> list[Any]:
        """Sizes of the states."""

    def build(self, input_shape: Any) -> None:
        """Create the weights, and the states of a stateful layer."""


class Call:
    """One validated call.

    Attributes
    ----------
    x : array, shape (B, T, I), NumPy's or CuPy's, as all of the call's arrays
    shape : tuple
        Of the sequences as the user passed them.
    mask : MaskPlan
    resets : ndarray of bool (B, T), or None
    states : list in the cell's nesting, or None for the cell's own initial state
    training : bool
    num_threads : int
    out : ndarray or None
        Batch-major view to write y into.
    given_out : ndarray or None
        The user's out=, which is returned.
    out_copy : ndarray or None
        The user's out= when y is copied there at the end: where it overlaps an input, or there is
        more to do with y that may fail.
    kept : list of ndarray
        Where the new states that a stateful layer keeps will lie, if the user gets the backend's:
        taken before ``out`` is written, for after that nothing may fail.
    changes : list of (object, attribute, value)
        What the call leaves behind, once it was run.
    cell_calls : list of (GRUCell, GRUProblem, Backend)
        One per GRU cell, in order; empty for custom cells. The problems of all but the first have
        the x of the first, and before `start` none has its dropout masks.
    weights : list of GRUWeights
        One per cell call, once the call has started.
    """

    weights: list[GRUWeights]

    __slots__ = (
        "cell_calls",
        "changes",
        "given_out",
        "kept",
        "mask",
        "num_threads",
        "out",
        "out_copy",
        "resets",
        "shape",
        "states",
        "training",
        "weights",
        "x",
    )

    def __init__(self, layer: CalledLayer, arguments: Arguments) -> None:
        sequences, initial_state, mask, training, lengths, reset_mask, out, threads = arguments
        self.x: Any = batch_major(layer, sequences)
        self.shape: tuple[int, ...] = self.x.shape
        batch, steps, _ = self.x.shape
        if layer.time_major:
            self.shape = (steps, batch, self.shape[2])
        self.mask: MaskPlan = plan_mask(mask, lengths, batch, steps, layer.time_major, self.x)
        self.resets = plan_resets(reset_mask, batch, steps, layer.time_major, self.x)
        if not (training is None or isinstance(training, (bool, int, np.bool_))):
            raise TypeError(f"training: expected True or False, got {training!r}")
        self.training = bool(training)
        self.num_threads = check_num_threads(threads)
        self.states = start_states(layer, initial_state, self.x)
        self.out: np.ndarray | None = None
        self.out_copy: np.ndarray | None = None
        self.given_out = out
        self.changes: list[tuple[Any, str, Any]] = []
        self.kept: list[Any] = []
        if out is not None:
            self._place_output(layer, out)
        if layer.time_major and layer.return_sequences and self.out is None:
            # The user's (T, B, H) array is contiguous, whatever order a backend works in.
            shape = (steps, batch, cell_output_size(layer.cell))
            y = np.empty_like(self.x, layer._dtype, "C", shape=shape)
            self.out = y.transpose(1, 0, 2)
        self.cell_calls = self._plan_cells(layer)
        if layer.use_cudnn is True and not self.cell_calls:
            raise ValueError(f"{layer.name}: use_cudnn=True needs GRUCell, got a custom cell")

    def start(self, layer: CalledLayer) -> None:
        """Build what is not built, and draw the dropout masks."""
        build = not layer.built or (layer.stateful and layer.states is None)
        if build:
            with locks.building:
                layer.build(self.shape)
        if layer.stateful and layer.return_state and layer.states is not None:
            variables = flatten(layer.states)
            self.kept = [np.empty_like(self.x, v.dtype, "C", shape=v.shape) for v in variables]
        for i, (cell, problem, backend) in enumerate(self.cell_calls):
            assert cell.spec is not None
            changes: dict[str, Any] = {}
            if cell.spec is not problem.spec:
                if cell.spec != problem.spec:  # by another thread, since the call was validated
                    raise ValueError(
                        f"{cell.name}: another thread has built it for I = {cell.spec.input_dim} "
                        f"features meanwhile, got {problem.spec.input_dim}; call the layer again"
                    )
                changes["spec"] = cell.spec
            if self.training:
                drawn = cell.draw((self.x.shape[0], problem.spec.input_dim))
                cell.reset_dropout_mask()
                cell.reset_recurrent_dropout_mask()
                if drawn[0] is not None or drawn[1] is not None:
                    changes["dropout"], changes["recurrent_dropout"] = drawn
            if changes:
                self.cell_calls[i] = cell, problem._replace(**changes), backend

    def _place_output(self, layer: CalledLayer, out: Any) -> None:
        batch, steps, _ = self.x.shape
        units = cell_output_size(layer.cell)
        swap = layer.time_major and layer.return_sequences
        shape: tuple[int, ...] = (batch, steps, units) if layer.return_sequences else (batch, units)
        if swap:
            shape = (steps, batch, units)
        hint = ("(T, B, H)" if swap else "(B, T, H)") if layer.return_sequences else "(B, H)"
        view = check_out(out, shape, layer._dtype, hint, self.x)
        if swap:
            view = view.transpose(1, 0, 2)
        arrays = [self.x, *flatten(self.states or [])]
        if layer.activity_regularizer is not None or any(overlap(view, a) for a in arrays):
            self.out_copy = view
        else:
            self.out = view

    def keep_inputs(self, x: Any = None) -> None:
        """Copy the inputs: the user may write to them between forward and backward.

        ``x`` is a copy of the sequences that another call has made of the same.
        """
        self.x = self.x.copy() if x is None else x
        for i, (cell, problem, backend) in enumerate(self.cell_calls):
            if problem.h0 is not None:
                self.cell_calls[i] = cell, problem._replace(h0=problem.h0.copy()), backend

    def _plan_cells(self, layer: CalledLayer) -> list[tuple[GRUCell, GRUProblem, Backend]]:
        """Return each cell's problem and backend; dropout masks are ones without memory."""
        cells = layer._gru_cells
        if cells is None:
            return []
        states = [None] * len(cells) if self.states is None else flatten(self.states)
        mask, resets, reverse = self.mask, self.resets, layer.go_backwards
        batch, steps, inputs = self.x.shape
        result = []
        for cell, state in zip(cells, states, strict=True):
            last = cell is cells[-1]
            dropout = recurrent_dropout = None
            if self.training:
                dropout, recurrent_dropout = cell.placeholders((batch, inputs))
            problem = GRUProblem(
                spec=cell.spec_for(inputs),
                x=self.x,
                h0=state,
                mask=mask,
                resets=resets,
                dropout=dropout,
                recurrent_dropout=recurrent_dropout,
                reverse=reverse,
                return_sequences=layer.return_sequences or not last,
                zero_output_for_mask=layer.zero_output_for_mask,
                out=self.out if last else None,
                num_threads=self.num_threads,
                use_cudnn=layer.use_cudnn,
                unroll=layer.unroll,
            )
            result.append((cell, problem, dispatch.choose(problem)))
            if reverse and not last:  # what comes out is in processing order already
                mask = mask.reversed(steps, self.x)
                if resets is not None:
                    resets = np.ascontiguousarray(resets[:, ::-1], like=resets)
                reverse = False
            inputs = cell.units
        return result


def batch_major(layer: CalledLayer, sequences: Any) -> Any:
    """Return the sequences as an array (B, T, I) that the layer can read, or raise."""
    x = as_array(sequences, layer._dtype, "sequences")
    if x.ndim != 3:
        order = "(T, B, I)" if layer.time_major else "(B, T, I)"
        whole = ".to_numpy()" if hasattr(sequences, "to_numpy") else ""
        hint = f"; add the batch axis with sequences{whole}[None]" if x.ndim == 2 else ""
        raise ValueError(f"sequences: expected three axes {order}, got shape {x.shape}{hint}")
    cells = layer._gru_cells
    if cells and cells[0].spec is not None and x.shape[2] != cells[0].spec.input_dim:
        raise ValueError(
            f"sequences: expected I = {cells[0].spec.input_dim} features, as {layer.name} was "
            f"built, got {x.shape[2]} (shape {x.shape})"
        )
    return x.transpose(1, 0, 2) if layer.time_major else x


def start_states(layer: CalledLayer, initial: Any, x: Any) -> list[Any] | None:
    """Return the states a call on x starts from, in the cell's nesting; None means its default."""
    batch = x.shape[0]
    if layer.stateful and layer.states is not None:
        expected = flatten(layer.states)[0].shape[0]
        if batch != expected:
            raise ValueError(
                f"sequences: {layer.name} is stateful and keeps B = {expected} rows, got "
                f"B = {batch}; use the same batch size or build another layer"
            )
    if initial is not None:
        return check_states(layer, initial, batch, "initial_state", x)
    if layer.stateful and layer.states is not None:
        return list(map_nested(lambda v: follow(v.value, x), layer.states))
    return None


def _nested_as(sizes: Any, states: Any) -> Any:
    """Return states that are in one list, bare or each in a list, in the nesting of a stack.

    A call returns those of stacked cells so, however deep the stacks are nested.
    """
    leaves = flatten(states)
    deeper = any(isinstance(size, (list, tuple)) for size in sizes)
    if not deeper or not len(states) == len(leaves) == len(flatten(sizes)):
        return states
    left = iter(leaves)
    return map_nested(lambda _: next(left), sizes)


def check_states(layer: CalledLayer, initial: Any, batch: int, what: str, like: Any) -> list[Any]:
    """Return the user's states in the cell's nesting, each an array (B, size), where like is."""
    dtype = layer._dtype

    def one(value: Any, size: Any, name: str) -> Any:
        if isinstance(size, (list, tuple)):
            if not isinstance(value, (list, tuple)) or len(value) != len(size):
                raise ValueError(f"{name}: expected a list of {len(size)} states, got {value!r}")
            return [
                one(v, s, f"{name}[{i}]") for i, (v, s) in enumerate(zip(value, size, strict=True))
            ]
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        array = as_array(value, dtype, name, like)
        check_shape(array, (batch, size), name, "(B, H)")
        return array

    sizes = layer.state_size
    if not isinstance(initial, (list, tuple)):
        initial = unstacked(initial, len(flatten(sizes)))
    if not isinstance(initial, (list, tuple)):
        if len(sizes) != 1:
            raise ValueError(
                f"{what}: expected a list of {len(sizes)} states, got {described(initial)}"
            )
        initial = [initial]
    initial = _nested_as(sizes, initial)
    if len(initial) != len(sizes):
        raise ValueError(
            f"{what}: expected {len(sizes)} state(s) (B, H), got {len(initial)}; a list holds one "
            "array for each state, not the rows of one"
        )
    if len(sizes) == 1:
        return [one(initial[0], sizes[0], what)]
    return [one(v, s, f"{what}[{i}]") for i, (v, s) in enumerate(zip(initial, sizes, strict=True))]
