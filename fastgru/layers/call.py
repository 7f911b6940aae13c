"""A call of an RNN, validated: what the user passed becomes batch-major arrays and problems.

A call goes through three phases, which `Bidirectional` and `Sequential` take for all their layers
before the next one begins. Making a `Call` validates everything and chooses the backends: a call
that raises has changed nothing. `start` builds what is not built and draws dropout masks. Then the
problems run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru import dispatch, locks
from fastgru.device import follow, overlap
from fastgru.layers.cell import GRUCell
from fastgru.layers.nested import flatten, map_nested
from fastgru.layers.stacked import cell_output_size
from fastgru.masks import MaskPlan, plan_mask, plan_resets
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
    from fastgru.layers.rnn import RNN


class Call:
    """One validated call.

    Attributes
    ----------
    x : array, shape (B, T, I), NumPy's or CuPy's, as all of the call's arrays
    shape : tuple
        Of the sequences as they came.
    mask : MaskPlan
    resets : ndarray of bool (B, T), or None
    states : list in the cell's nesting, or None for the cell's own initial state
    training : bool
    num_threads : int
    out : ndarray or None
        Batch-major view to write y into.
    out_copy : ndarray or None
        The user's out= when y is copied there at the end: where it overlaps an input, or there is
        more to do with y that may fail.
    kept : list of ndarray
        Where the new states that a stateful layer keeps will lie, if the user gets the backend's:
        taken before ``out`` is written, for after that nothing may fail.
    changes : list of (object, attribute, value)
        What the call leaves behind, once it was run.
    problems : list of (GRUCell, GRUProblem, Backend)
        One per GRU cell, in order; all but the first still lack their x, and none has its
        dropout masks yet. Empty for custom cells.
    weights : list of GRUWeights
        One per problem, once the call has started.
    """

    weights: list[GRUWeights]

    __slots__ = (
        "changes",
        "kept",
        "mask",
        "num_threads",
        "out",
        "out_copy",
        "problems",
        "resets",
        "shape",
        "states",
        "training",
        "weights",
        "x",
    )

    def __init__(
        self,
        layer: RNN,
        sequences: Any,
        initial_state: Any,
        mask: Any,
        training: bool | None,
        lengths: Any,
        reset_mask: Any,
        out: Any,
        num_threads: Any,
    ) -> None:
        dtype = layer._dtype
        x = as_array(sequences, dtype, "sequences")
        self.shape = x.shape
        if x.ndim != 3:
            order = "(T, B, I)" if layer.time_major else "(B, T, I)"
            hint = "; add the batch axis with sequences[None]" if x.ndim == 2 else ""
            raise ValueError(f"sequences: expected three axes {order}, got shape {x.shape}{hint}")
        if layer.time_major:
            x = x.transpose(1, 0, 2)
        batch, steps, inputs = x.shape
        cells = layer._gru_cells
        if cells and cells[0].spec is not None and inputs != cells[0].spec.input_dim:
            raise ValueError(
                f"sequences: expected I = {cells[0].spec.input_dim} features, as {layer.name} was "
                f"built, got {inputs} (shape {self.shape})"
            )
        self.x: Any = x
        self.mask: MaskPlan = plan_mask(mask, lengths, batch, steps, layer.time_major, x)
        self.resets = plan_resets(reset_mask, batch, steps, layer.time_major, x)
        if not (training is None or isinstance(training, (bool, int, np.bool_))):
            raise TypeError(f"training: expected True or False, got {training!r}")
        self.training = bool(training)
        self.num_threads = check_num_threads(num_threads)
        self.states = start_states(layer, initial_state, x)
        self.out: np.ndarray | None = None
        self.out_copy: np.ndarray | None = None
        self.changes: list[tuple[Any, str, Any]] = []
        self.kept: list[Any] = []
        if out is not None:
            self._place_output(layer, out, mask, reset_mask)
        if layer.time_major and layer.return_sequences and self.out is None:
            # The user's (T, B, H) array is contiguous, whatever order a backend works in.
            shape = (steps, batch, cell_output_size(layer.cell))
            y = np.empty_like(x, dtype, "C", shape=shape)
            self.out = y.transpose(1, 0, 2)
        self.problems = self._problems(layer) if cells else []
        if layer.use_cudnn is True and not cells:
            raise ValueError(f"{layer.name}: use_cudnn=True needs GRUCell, got a custom cell")

    def start(self, layer: RNN) -> None:
        """Build what is not built, and draw the dropout masks."""
        if not layer.built or (layer.stateful and layer.states is None):
            with locks.building:
                layer.build(self.shape)
            for cell, problem, _ in self.problems:
                assert cell.spec is not None
                problem.spec = cell.spec  # equal, and from now on the same object
        if layer.stateful and layer.return_state and layer.states is not None:
            variables = flatten(layer.states)
            self.kept = [np.empty_like(self.x, v.dtype, "C", shape=v.shape) for v in variables]
        if self.training:
            for cell, problem, _ in self.problems:
                shape = (self.x.shape[0], problem.spec.input_dim)
                problem.dropout, problem.recurrent_dropout = cell.draw(shape)
                cell.reset_dropout_mask()
                cell.reset_recurrent_dropout_mask()

    def _place_output(self, layer: RNN, out: Any, *inputs: Any) -> None:
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
        arrays = [self.x, *flatten(self.states or []), *inputs]
        if layer.activity_regularizer is not None or any(overlap(view, a) for a in arrays):
            self.out_copy = view
        else:
            self.out = view

    def keep_inputs(self, x: Any = None) -> None:
        """Copy the inputs: the user may write to them between forward and backward.

        ``x`` is a copy of the sequences that another call has made of the same.
        """
        self.x = self.x.copy() if x is None else x
        for _, problem, _ in self.problems:
            if problem.mask.steps is not None:
                steps = problem.mask.steps.copy()
                problem.mask = MaskPlan(
                    problem.mask.kind, steps=steps, any_empty=problem.mask.any_empty
                )
            problem.resets = None if problem.resets is None else problem.resets.copy()
            problem.h0 = None if problem.h0 is None else problem.h0.copy()

    def _problems(self, layer: RNN) -> list[tuple[GRUCell, GRUProblem, Backend]]:
        cells = layer._gru_cells
        assert cells is not None
        states = [None] * len(cells) if self.states is None else flatten(self.states)
        mask, resets, reverse = self.mask, self.resets, layer.go_backwards
        batch, steps, inputs = self.x.shape
        result = []
        for cell, state in zip(cells, states, strict=True):
            last = cell is cells[-1]
            problem = GRUProblem(
                cell.spec_for(inputs),
                self.x,
                state,
                mask,
                resets,
                None,
                None,
                reverse,
                layer.return_sequences or not last,
                layer.zero_output_for_mask,
                self.out if last else None,
                self.num_threads,
                layer.use_cudnn,
                layer.unroll,
            )
            if self.training:
                problem.dropout, problem.recurrent_dropout = cell.placeholders((batch, inputs))
            result.append((cell, problem, dispatch.choose(problem)))
            if reverse and not last:  # what comes out is in processing order already
                mask = mask.reversed(steps, self.x)
                if resets is not None:
                    resets = np.ascontiguousarray(resets[:, ::-1], like=resets)
                reverse = False
            inputs = cell.units
        return result


def start_states(layer: RNN, initial: Any, x: Any) -> list[Any] | None:
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


def check_states(layer: RNN, initial: Any, batch: int, what: str, like: Any) -> list[Any]:
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
        if len(sizes) != 1:
            raise ValueError(f"{what}: expected a list of {len(sizes)} states, got one array")
        initial = [initial]
    elif len(initial) != len(sizes):
        raise ValueError(f"{what}: expected {len(sizes)} state(s) (B, H), got {len(initial)}")
    if len(sizes) == 1:
        return [one(initial[0], sizes[0], what)]
    return [one(v, s, f"{what}[{i}]") for i, (v, s) in enumerate(zip(initial, sizes, strict=True))]
