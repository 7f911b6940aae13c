"""Weights: arrays that nobody can change behind a packed copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from fastgru import locks
from fastgru.device import follow, held, on_device, plain
from fastgru.problem import as_array

if TYPE_CHECKING:
    from collections.abc import Sequence


class Variable(NDArrayOperatorsMixin):
    """A weight or a state of a layer, as `keras.Variable`.

    Parameters
    ----------
    value : array_like
        The first value; its shape and dtype stay for good.
    name : str
    trainable : bool
    regularizer, constraint : callable, optional
    owner : object, optional
        The `GRUCell` whose set of weights is made anew with every write.
    roams : bool
        Whether the value stays where it was assigned from, as states do; weights do not.
    copy : bool
        False: the first value is a C-contiguous ndarray that nobody writes to any more; it becomes
        read-only and is kept where it lies, in a mapped file for instance.
    scope : str
        The path of the layer that a variable without an owner belongs to.

    Notes
    -----
    ``value`` is a read-only array that is never written to: `assign` puts a new array in its
    place, so that a running call keeps the old one whole.

    Weights are in host memory, and backends keep copies where they compute; an array of a device
    is copied to the host when it is assigned. The states of a stateful layer stay where the last
    call left them. CuPy has no read-only arrays, so ``value`` of a state on a device is a copy.
    """

    def __init__(
        self,
        value: Any,
        *,
        name: str = "variable",
        trainable: bool = True,
        regularizer: Any = None,
        constraint: Any = None,
        owner: Any = None,
        roams: bool = False,
        copy: bool = True,
        scope: str = "",
    ) -> None:
        self._value: Any = _frozen_copy(value) if copy else frozen(value)
        self.name = name
        self.trainable = trainable
        self.regularizer = regularizer
        self.constraint = constraint
        self.owner = owner
        self.roams = roams
        self._scope = scope

    @property
    def value(self) -> Any:
        """The array, read-only."""
        return self._value.copy() if on_device(self._value) else self._value

    @property
    def path(self) -> str:
        """The path of its layer and its name, ``"gru/gru_cell/kernel"``; as in Keras.

        No two weights of a layer have the same, so it is the name for what belongs to a weight: an
        optimizer's moments, for example.
        """
        scope = self._scope if self.owner is None else self.owner.path
        return f"{scope}/{self.name}" if scope else self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self._value.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the value (it equals its name, as in ``v.dtype == "float32"``)."""
        return self._value.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._value.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._value.size

    def assign(self, value: Any) -> np.ndarray:
        """Replace the value by a copy of another.

        Parameters
        ----------
        value : array_like
            Of the same shape; it is cast to the variable's dtype.

        Returns
        -------
        ndarray
            The new value, read-only.

        Raises
        ------
        ValueError
            Another shape.
        TypeError
            Complex or non-numeric values.
        """
        return write_together([self], [self.checked(value)])[0]

    def assign_add(self, value: Any) -> np.ndarray:
        """Add to the value.

        Parameters
        ----------
        value : array_like
            Of a shape that broadcasts to the weight's.

        Returns
        -------
        ndarray
            The new value, read-only.
        """
        operand = self._operand(value)
        return self.assign(follow(self._value, operand) + operand)

    def assign_sub(self, value: Any) -> np.ndarray:
        """Subtract from the value, as `assign_add` adds to it.

        Parameters
        ----------
        value : array_like

        Returns
        -------
        ndarray
        """
        operand = self._operand(value)
        return self.assign(follow(self._value, operand) - operand)

    def numpy(self) -> np.ndarray:
        """Return a copy in host memory that may be written to."""
        return self._value.get() if on_device(self._value) else self._value.copy()

    def checked(self, value: Any) -> Any:
        """Return ``value`` as an array that `assign` takes, or raise; nothing is written."""
        array = self._operand(value)
        if array.shape != self._value.shape:
            raise ValueError(
                f"{self.name}: expected shape {self._value.shape}, got {array.shape}; "
                "a weight keeps its shape, so build another layer for another size"
            )
        return array

    def _operand(self, value: Any) -> Any:
        return as_array(value, self._value.dtype, self.name)

    def kept(self, value: Any) -> Any:
        """Return a copy of a checked value as ``_value`` keeps it; nothing is written."""
        return _frozen_copy(value if self.roams or not on_device(value) else value.get())

    def __dlpack__(self, **how: Any) -> Any:
        return self.value.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._value.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) != self._value.dtype:
            if copy is False:
                raise ValueError("a Variable of another dtype cannot be had without a copy")
            return self._value.astype(dtype)
        return self._value.copy() if copy else self._value

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(out, Variable) for out in kwargs.get("out", ())):
            raise TypeError(
                f"{self.name}: a weight is not changed in place; use assign(value), or "
                "assign_add(d) and assign_sub(d) where you would write w += d and w -= d"
            )
        plain = [i._value if isinstance(i, Variable) else i for i in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._value[key]

    def __len__(self) -> int:
        return len(self._value)

    def __float__(self) -> float:
        return float(self._value)

    def __repr__(self) -> str:
        return f"<Variable path={self.path}, shape={self.shape}, dtype={self.dtype.name}>"

    # NDArrayOperatorsMixin defines __eq__ element by element, which takes the hash away.
    __hash__ = object.__hash__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._value = _frozen_copy(self._value)  # pickle and deepcopy give writeable arrays


def write_together(variables: Sequence[Variable], values: Sequence[Any]) -> list[Any]:
    """Write checked values, all of them at one moment, and return them as they are kept.

    The sets of weights of the cells that own them go with them.
    """
    kept = [v.kept(value) for v, value in zip(variables, values, strict=True)]
    written = {id(v): value for v, value in zip(variables, kept, strict=True)}
    owners = {id(v.owner): v.owner for v in variables if v.owner is not None}.values()
    whole = [(owner, owner.renewed(written)) for owner in owners]
    changes = [(v, "_value", value) for v, value in zip(variables, kept, strict=True)]
    with locks.writing:
        for owner, weights in whole:
            if weights is None:  # the others as they are now
                weights = owner.weights_with(written)
            changes.append((owner, "_weights", weights))
        locks.publish(changes)
    return kept


def _frozen_copy(value: Any) -> Any:
    array = plain(value)
    return frozen(np.copy(array if on_device(array) else held(array), order="C"))


def frozen(array: Any) -> Any:
    """Return an array that nobody else has as a `Variable` keeps it, on the host read-only."""
    if on_device(array):
        return array
    array.setflags(write=False)
    # A view of read-only memory cannot be made writeable again, and nobody gets at the array that
    # owns the memory, to resize it.
    return held(array)
