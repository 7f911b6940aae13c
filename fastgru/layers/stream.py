"""Streams: rows of state that advance a time step at a time."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

from fastgru import dispatch, locks
from fastgru.device import follow, held, on_device, plain
from fastgru.layers.cell import GRUCell
from fastgru.masks import NO_MASK
from fastgru.problem import GRUProblem, as_array, check_shape

_weights_of = attrgetter("_weights")  # in C: no other thread runs between two cells


class Stream:
    """Rows of state of a layer, advanced by `step`; made by ``layer.stream(n)``.

    Parameters
    ----------
    cells : list of GRUCell
        Built; the first reads x, each other one what the one before it gave.
    rows : int
        How many rows of state are kept, n.

    Notes
    -----
    The states go where the inputs of a step are, to host memory or to a device.

    One owner at a time: of two threads that step a stream at once, one gets a ValueError, or the
    states are wrong. Any number of streams share one layer; a weight that is written is used from
    the next step on. Dropout is not applied.

    `state` is all that a stream remembers: saved, and assigned to another stream of as many rows,
    it continues bit for bit. `pickle` and `copy.deepcopy` take the weights along, as they do with
    a layer; what is pickled together with its layer goes on sharing them.
    """

    def __init__(self, cells: list[GRUCell], rows: int) -> None:
        self._cells = cells
        self._rows = rows
        self._dtype = cells[0]._dtype
        self._specs = [spec for cell in cells if (spec := cell.spec) is not None]  # all are built
        self._shape = (rows, self._specs[0].input_dim)
        self._keep([np.zeros((rows, spec.units), self._dtype) for spec in self._specs])

    def _keep(self, states: list[Any]) -> None:
        """Take states as the stream's own, and buffers where they are."""
        # The user gets views of the outputs, and is not to resize what owns them.
        self._states = [state if on_device(state) else held(state) for state in states]
        outputs = [np.empty_like(state) for state in states]
        self._outputs = [output if on_device(output) else held(output) for output in outputs]
        self._fast_step = (
            dispatch.open_stepper(
                self._specs, self._cells, self._states, self._outputs, _weights_of
            )
            or _no_fast_step
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_cells", "_rows", "_dtype", "_specs", "_shape", "_states")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep(self._states)

    def __repr__(self) -> str:
        cells = ", ".join(cell.path for cell in self._cells)
        inputs = self._shape[1]
        return f"<Stream of {cells}: n={self._rows}, I={inputs}, dtype={self._dtype.name}>"

    def step(self, x: Any, rows: Any = None) -> np.ndarray:
        """Advance all rows, or only some, by one time step.

        Parameters
        ----------
        x : array_like, shape (n, I), or (len(rows), I)
        rows : array_like of int, optional
            Which rows advance, each at most once; x is in their order.

        Returns
        -------
        ndarray, shape (n, H) or (len(rows), H)
            The stream's own buffer: valid until the next step.

        Raises
        ------
        ValueError, TypeError
            Before any work; no row has advanced.
        """
        served = self._fast_step(x, rows)
        if served is None:
            x, rows = self._checked(x, rows)
            served = self._fast_step(x, rows)
        return self._in_python(x, rows) if served is None else served

    def _checked(self, x: Any, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        for cell, spec in zip(self._cells, self._specs, strict=True):
            if cell.spec != spec:
                raise ValueError(
                    f"{cell.name}: it has been built anew since, for another number of features; "
                    "open another stream"
                )
        count = self._rows
        if rows is not None:
            rows = plain(rows)
            rows = rows.get() if on_device(rows) else held(rows)
            empty = rows.dtype.kind == "f" and not rows.size  # what a list of none becomes
            if rows.ndim != 1 or not (rows.dtype.kind in "iu" or empty):
                raise TypeError(
                    f"rows: expected a list of row numbers, got shape {rows.shape}, dtype "
                    f"{rows.dtype}"
                )
            given = rows  # for the message: as intp, large numbers of uint64 are negative
            if rows.size > count:  # before they are read: there may be any number of them
                raise ValueError(
                    f"rows: expected each row at most once, got {rows.size} numbers "
                    f"for {count} rows"
                )
            rows = np.array(rows, np.intp)  # a copy, which is checked and used
            if rows.size and (rows.min() < 0 or rows.max() >= count):
                raise ValueError(
                    f"rows: expected numbers in 0..{count - 1}, got values from {given.min()} to "
                    f"{given.max()}"
                )
            if len(set(rows.tolist())) != rows.size:
                raise ValueError("rows: expected each row at most once, got one of them twice")
            count = rows.size
        array = as_array(x, self._dtype, "x")
        hint = "(n, I)" if rows is None else "(len(rows), I)"
        check_shape(array, (count, self._shape[1]), "x", hint)
        self._move(array)
        if isinstance(array, np.ndarray) and not array.flags.carray:
            array = np.array(array, order="C")  # and aligned, as the native step wants it
        return array, None if rows is None else follow(rows, array)

    def _move(self, like: Any) -> None:
        """Take states and buffers to where ``like`` is."""
        if on_device(like) == on_device(self._states[0]):
            return
        self._keep([follow(state, like) for state in self._states])

    def _in_python(self, x: Any, rows: np.ndarray | None) -> Any:
        """Step through the backends' forward, for cells that the fused kernels do not serve."""
        weights = locks.at_once(lambda: [cell.snapshot() for cell in self._cells])
        for i, (spec, state, output) in enumerate(
            zip(self._specs, self._states, self._outputs, strict=True)
        ):
            h0 = state if rows is None else state[rows]
            problem = GRUProblem(
                spec=spec, x=x[:, None, :], h0=h0, mask=NO_MASK, return_sequences=False
            )
            new = dispatch.choose(problem).forward(problem, weights[i]).state
            state[slice(None) if rows is None else rows] = new
            # Of a view that the user may do with what they want; the next step takes another.
            x = (output if on_device(output) else held(output))[: len(new)]
            x[...] = new
        return x

    @property
    def state(self) -> Any:
        """A copy of the state, (n, H), or a list of them for several cells; may be assigned."""
        copies = [state.copy() for state in self._states]
        return copies if len(copies) > 1 else copies[0]

    @state.setter
    def state(self, value: Any) -> None:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) != len(self._states):
            raise ValueError(f"state: expected {len(self._states)} array(s), got {len(values)}")
        first = as_array(values[0], self._dtype, "state")
        arrays = [first, *(as_array(v, self._dtype, "state", first) for v in values[1:])]
        for array, state in zip(arrays, self._states, strict=True):
            check_shape(array, state.shape, "state", "(n, H)")
        self._move(first)
        for array, state in zip(arrays, self._states, strict=True):
            state[...] = array

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or of some, to zero.

        Parameters
        ----------
        rows : array_like of int, optional
        """
        chosen: Any = slice(None)
        if rows is not None:
            like = self._states[0]
            x = np.zeros_like(like, shape=(np.size(rows), self._shape[1]))
            chosen = self._checked(x, rows)[1]
        for state in self._states:
            state[chosen] = 0


def _no_fast_step(x: Any, rows: Any = None) -> None:
    return None


def row_count(n: Any) -> int:
    """Return the number of rows of a stream, or raise."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: expected a number of rows, got {n!r}")
    count = int(n.__index__())
    if count < 1:
        raise ValueError(f"n: expected at least 1 row, got {count}")
    return count
