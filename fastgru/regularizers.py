"""Keras 3's regularizers, each with its gradient: ``regularizer(x)`` is a scalar of x's dtype.

Source: https://keras.io/api/layers/regularizers/.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgru.device import plain
from fastgru.dtypes import sum_dtype
from fastgru.serialization import Configured, check_number, get_object, named, serialize_object


class Regularizer(Configured):
    """Base of the regularizers; a subclass defines ``__call__`` and, to be trained, `gradient`."""

    def __call__(self, x: Any) -> Any:
        """Return the penalty of `x`, a scalar of its dtype."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(x)")


class L1L2(Regularizer):
    """The penalty ``l1 * sum(abs(x)) + l2 * sum(x**2)``.

    Parameters
    ----------
    l1, l2 : float or None
        Finite and not negative, else ValueError; None is 0.
    """

    _arguments: tuple[str, ...] = ("l1", "l2")

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0):
        self.l1 = float(check_number(self, "l1", 0.0 if l1 is None else l1, 0))
        self.l2 = float(check_number(self, "l2", 0.0 if l2 is None else l2, 0))

    def __call__(self, x: Any) -> Any:
        """Return the penalty of `x`, a scalar of its dtype; of 16 bits, of float32."""
        x = _summable(x)
        penalty = x.dtype.type(0)
        if self.l1:
            penalty += self.l1 * np.sum(np.abs(x))
        if self.l2:
            penalty += self.l2 * np.sum(np.square(x))
        return penalty

    def gradient(self, x: Any) -> Any:
        """Return the penalty's gradient. That of ``abs(x)`` is 0 at 0.

        Parameters
        ----------
        x : ndarray
            Of any shape; the gradient has its shape, and the penalty's dtype.
        """
        x = _summable(x)
        return self.l1 * np.sign(x) + (2 * self.l2) * x


class L1(L1L2):
    """The penalty ``l1 * sum(abs(x))``.

    Parameters
    ----------
    l1 : float or None
        Finite and not negative, else ValueError; None is 0.01.
    """

    _arguments = ("l1",)

    def __init__(self, l1: float | None = 0.01):
        super().__init__(l1=0.01 if l1 is None else l1)


class L2(L1L2):
    """The penalty ``l2 * sum(x**2)``.

    Parameters
    ----------
    l2 : float or None
        Finite and not negative, else ValueError; None is 0.01.
    """

    _arguments = ("l2",)

    def __init__(self, l2: float | None = 0.01):
        super().__init__(l2=0.01 if l2 is None else l2)


class OrthogonalRegularizer(Regularizer):
    """The penalty ``factor * mean(|cos|)`` over the pairs of rows, or columns, of a matrix.

    Parameters
    ----------
    factor : float
        Finite and not negative, else ValueError.
    mode : {"rows", "columns"}
        Whether rows or columns shall be orthogonal.

    Notes
    -----
    Keras' NumPy backend divides the columns by the wrong norms; this agrees with its other
    backends. A single row has no pairs, so its penalty is 0.
    """

    _arguments = ("factor", "mode")

    def __init__(self, factor: float = 0.01, mode: str = "rows"):
        self.factor = float(check_number(self, "factor", factor, 0))
        if mode not in ("rows", "columns"):
            raise ValueError(
                f"OrthogonalRegularizer: expected mode 'rows' or 'columns', got {mode!r}."
            )
        self.mode = mode

    def __call__(self, x: Any) -> Any:
        """Return the penalty of the matrix `x`, as `L1L2` does."""
        unit, _, scale = self._normalized(x)
        product = unit @ unit.T
        np.fill_diagonal(product, 0)
        return scale * np.sum(np.abs(product))

    def gradient(self, x: Any) -> Any:
        """Return the penalty's gradient.

        Parameters
        ----------
        x : ndarray
            A matrix; the gradient has its shape, and the penalty's dtype.
        """
        unit, norm, scale = self._normalized(x)
        sign = np.sign(unit @ unit.T)
        np.fill_diagonal(sign, 0)
        d_unit = (2 * scale) * (sign @ unit)
        radial = np.sum(d_unit * unit, axis=1, keepdims=True)
        # Rows shorter than epsilon are divided by epsilon, not by their norm.
        d_rows = (d_unit - np.where(norm > _EPSILON, radial, 0) * unit) / np.maximum(norm, _EPSILON)
        return d_rows if self.mode == "rows" else d_rows.T

    def _normalized(self, x: Any) -> tuple[np.ndarray, np.ndarray, float]:
        """Return rows (or columns, as rows) of norm 1, their norms, and the factor of one |cos|."""
        x = _summable(x)
        if x.ndim != 2:
            raise ValueError(f"OrthogonalRegularizer: expected a matrix, got shape {x.shape}.")
        rows = x if self.mode == "rows" else x.T
        norm = np.sqrt(np.sum(np.square(rows), axis=1, keepdims=True))
        size = len(rows)
        scale = self.factor / max(size * (size - 1), 1)  # the products contain every pair twice
        return rows / np.maximum(norm, _EPSILON), norm, scale


_EPSILON = 1e-7  # keras.config.epsilon()


def _summable(x: Any) -> Any:
    """Return x as an array in the dtype of sums."""
    array = plain(x)
    return array.astype(sum_dtype(array.dtype), copy=False)


_OBJECTS = named((L1, L2, OrthogonalRegularizer))
_OBJECTS.update(L1L2=L1L2, l1l2=L1L2, l1_l2=L1L2)


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the regularizer for anything that Keras takes as one.

    Parameters
    ----------
    identifier : None, str, dict, class, regularizer or callable
        "l1_l2" is ``L1L2(0.01, 0.01)``, as Keras documents it. A live Keras regularizer of a known
        class becomes fastgru's. Other callables ``f(x)`` are kept; to be trained, they need a
        method ``gradient(x)``.
    custom_objects : mapping of str to object, optional
        Your own classes and functions, for names and dicts.

    Returns
    -------
    Regularizer, callable or None
        None for None.

    Raises
    ------
    ValueError
        The identifier is unknown or not callable.
    """
    is_name = isinstance(identifier, str) and identifier not in (custom_objects or ())
    if is_name and identifier == "l1_l2":
        return L1L2(0.01, 0.01)
    return get_object(identifier, _OBJECTS, "regularizer", custom_objects)


def serialize(regularizer: Any) -> dict[str, Any] | None:
    """Return the Keras 3 config dict of a regularizer or named function; None for None."""
    return serialize_object(regularizer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Read a name or a Keras 3 or Keras 2 dict; errors as in `get`."""
    return get(config, custom_objects)
