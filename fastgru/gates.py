"""The table of other libraries' weight layouts, and conversions between them and Keras' layout.

Every array of fastgru is in Keras' layout: gates z (update), r (reset), h (candidate) side by side
in columns. A `Layout` says how another library stores the same weights; `to_keras` and `from_keras`
convert. This module handles the arrays of one direction of one layer, not files and layers.

The sources of the table's rows:

keras, keras_reset_before
    ``keras.layers.GRU``, ``reset_after=True`` and ``False``.
cudnn_gru
    Keras 2's ``CuDNNGRU``: Keras' shape, but each block has cuDNN's (H, I) matrix row by row. To
    convert it, the block's memory is reread as (H, I) and transposed.
torch
    ``torch.nn.GRU``: ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``.
cudnn
    NVIDIA's linear layers 0, 1, 2 (input) and 3, 4, 5 (recurrent), stacked in that order.
onnx_lbr1, onnx_lbr0
    Operator GRU, ``linear_before_reset`` 1 and 0; pass ``W[d], R[d], B[d]`` for direction ``d``.
openvino_lbr1, openvino_lbr0
    GRUCell and GRUSequence, likewise. The two biases of z and of r are stored as their sums; with
    ``linear_before_reset`` both biases of h follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import ArrayLike, NDArray

KERAS_GATES = "zrh"

Matrices = Literal["columns", "rows", "reread"]
Biases = Literal["both", "pair", "joined", "sum", "split_h"]


class Layout(NamedTuple):
    """How a source stores one direction of one GRU layer.

    Parameters
    ----------
    gates : str
        The source's order of z, r and h.
    matrices : {"columns", "rows", "reread"}
        Gates side by side, (n, 3H); gates stacked, each transposed, (3H, n); or CuDNNGRU's (n, 3H)
        whose blocks are to be read again as (H, n).
    biases : {"both", "pair", "joined", "sum", "split_h"}
        One array (2, 3H); two of (3H,); one (6H,), input half first; one (3H,); or one (4H,) of
        z, r, the input's h, the recurrent h.
    reset_after : bool
        The formula of the weights, docs/semantics.md 1. Pass it to `fastgru.GRU`.
    """

    gates: str
    matrices: Matrices
    biases: Biases
    reset_after: bool


LAYOUTS: dict[str, Layout] = {
    "keras": Layout("zrh", "columns", "both", True),
    "keras_reset_before": Layout("zrh", "columns", "sum", False),
    "cudnn_gru": Layout("zrh", "reread", "joined", True),
    "torch": Layout("rzh", "rows", "pair", True),
    "cudnn": Layout("rzh", "rows", "pair", True),
    "onnx_lbr1": Layout("zrh", "rows", "joined", True),
    "onnx_lbr0": Layout("zrh", "rows", "joined", False),
    "openvino_lbr1": Layout("zrh", "rows", "split_h", True),
    "openvino_lbr0": Layout("zrh", "rows", "sum", False),
}


def to_keras(
    layout: str | Layout,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Convert a source's weights to Keras' layout.

    Parameters
    ----------
    layout : str or Layout
        A name in `LAYOUTS`, or a layout of your own.
    w_ih, w_hh : array_like
        Input and recurrent matrix: (3H, I) and (3H, H), or (I, 3H) and (H, 3H) if the layout has
        its gates in columns.
    b_ih, b_hh : array_like, optional
        The biases. Pass a layout's single bias array as `b_ih`.

    Returns
    -------
    kernel : ndarray, (I, 3H)
    recurrent_kernel : ndarray, (H, 3H)
    bias : ndarray or None
        (2, 3H) if the layout's `reset_after` is true, else (3H,): with reset_after=False two
        biases act as their sum, and are summed. None if no bias is given.
        All three are new, C-contiguous, and of the arguments' dtype.

    Raises
    ------
    ValueError
        Unknown layout, wrong shape, wrong number of bias arrays.
    TypeError
        An array is not float16, float32 or float64, or not all have one dtype.

    Examples
    --------
    >>> kernel, recurrent_kernel, bias = to_keras("torch", w_ih, w_hh, b_ih, b_hh)  # doctest: +SKIP
    """
    name, source = _resolve(layout)
    given = {"w_ih": w_ih, "w_hh": w_hh}
    given.update((k, b) for k, b in (("b_ih", b_ih), ("b_hh", b_hh)) if b is not None)
    if b_ih is None and b_hh is not None:
        raise ValueError(f"layout {name}: b_hh was given without b_ih; a single bias array is b_ih")
    arrays = _same_float(given)
    I, H = _sizes(name, source.matrices != "rows", arrays["w_ih"], arrays["w_hh"])
    order = [source.gates.index(gate) for gate in KERAS_GATES]
    kernel = _read_matrix(source.matrices, arrays["w_ih"], I, H)[:, order]
    recurrent_kernel = _read_matrix(source.matrices, arrays["w_hh"], H, H)[:, order]
    weights = _flat(kernel), _flat(recurrent_kernel)

    biases = [arrays[k] for k in ("b_ih", "b_hh") if k in arrays]
    if not biases:
        return *weights, None
    _check_biases(name, source.biases, biases, H)
    bias = _read_bias(source.biases, biases, H)[:, order]
    if source.reset_after:
        return *weights, _flat(bias)
    return *weights, bias.sum(axis=0).reshape(3 * H)


def from_keras(
    layout: str | Layout,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
) -> tuple[NDArray[Any], ...]:
    """Convert weights in Keras' layout to another's; the inverse of `to_keras`.

    Parameters
    ----------
    layout : str or Layout
        A name in `LAYOUTS`, or a layout of your own.
    kernel : array_like, (I, 3H)
    recurrent_kernel : array_like, (H, 3H)
    bias : array_like, optional
        (2, 3H) for a layout whose `reset_after` is true, else (3H,).

    Returns
    -------
    tuple of ndarray
        ``(w_ih, w_hh)`` and then no, one or two bias arrays, as the layout has them. These are the
        arguments of `to_keras` after the layout. They are new, C-contiguous, and of the arguments'
        dtype. If the layout has two biases and ``reset_after=False``, the second one is zeros.

    Raises
    ------
    ValueError
        Unknown layout, wrong shape, or a bias for the other `reset_after`.
    TypeError
        An array is not float16, float32 or float64, or not all have one dtype.
    """
    name, target = _resolve(layout)
    given = {"kernel": kernel, "recurrent_kernel": recurrent_kernel}
    if bias is not None:
        given["bias"] = bias
    arrays = _same_float(given)
    I, H = _sizes("keras", True, arrays["kernel"], arrays["recurrent_kernel"])
    order = [KERAS_GATES.index(gate) for gate in target.gates]
    w_ih = arrays["kernel"].reshape(I, 3, H)[:, order]
    w_hh = arrays["recurrent_kernel"].reshape(H, 3, H)[:, order]
    weights = _write_matrix(target.matrices, w_ih), _write_matrix(target.matrices, w_hh)
    if bias is None:
        return weights

    b = arrays["bias"]
    expected = (2, 3 * H) if target.reset_after else (3 * H,)
    if b.shape != expected:
        raise ValueError(
            f"layout {name} has reset_after={target.reset_after}: expected bias of shape "
            f"{expected}, got {b.shape}; this layout cannot store a GRU of the other reset_after"
        )
    return *weights, *_write_bias(target.biases, b.reshape(-1, 3, H)[:, order])


# ---- the forms -----------------------------------------------------------------------------------
# In between, matrices are (n, 3, H) and biases (1 or 2, 3, H), with the gates on axis 1.


def _read_matrix(form: Matrices, w: NDArray[Any], n: int, H: int) -> NDArray[Any]:
    if form == "rows":
        return w.reshape(3, H, n).transpose(2, 0, 1)
    blocks = w.reshape(n, 3, H)
    if form == "reread":
        # This computes k.T.reshape(k.shape, order="F") for each block k at once.
        return blocks.transpose(1, 0, 2).reshape(3, H, n).transpose(2, 0, 1)
    return blocks


def _write_matrix(form: Matrices, w: NDArray[Any]) -> NDArray[Any]:
    n, _, H = w.shape
    rows = w.transpose(1, 2, 0)
    if form == "rows":
        return np.array(rows.reshape(3 * H, n), order="C")
    if form == "reread":
        w = rows.reshape(3, n, H).transpose(1, 0, 2)
    return _flat(w)


def _read_bias(form: Biases, biases: list[NDArray[Any]], H: int) -> NDArray[Any]:
    if form == "pair":
        return np.stack(biases).reshape(2, 3, H)
    b = biases[0]
    if form == "sum":
        return b.reshape(1, 3, H)
    if form == "split_h":
        both = np.zeros((2, 3, H), b.dtype)
        both[0] = b[: 3 * H].reshape(3, H)
        both[1, 2] = b[3 * H :]
        return both
    return b.reshape(2, 3, H)


def _write_bias(form: Biases, b: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    H = b.shape[2]
    if form == "sum":
        return (b.reshape(3 * H).copy(),)
    if b.shape[0] == 1:
        b = np.concatenate([b, np.zeros_like(b)])
    if form == "pair":
        return b[0].reshape(3 * H).copy(), b[1].reshape(3 * H).copy()
    if form == "split_h":
        return (np.concatenate([b[0, 0] + b[1, 0], b[0, 1] + b[1, 1], b[0, 2], b[1, 2]]),)
    return (np.array(b.reshape((2, 3 * H) if form == "both" else 6 * H), order="C"),)


def _flat(w: NDArray[Any]) -> NDArray[Any]:
    return np.array(w.reshape(w.shape[0], 3 * w.shape[2]), order="C")


# ---- validation ----------------------------------------------------------------------------------


def _resolve(layout: str | Layout) -> tuple[str, Layout]:
    if isinstance(layout, Layout):
        if sorted(layout.gates) != sorted(KERAS_GATES):
            raise ValueError(
                f"expected gates to be an order of 'z', 'r', 'h', got {layout.gates!r}"
            )
        return repr(layout), layout
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}")
    return repr(layout), LAYOUTS[layout]


def _same_float(given: dict[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    arrays = {name: np.asarray(value) for name, value in given.items()}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
            raise TypeError(
                f"expected {name} of float16, float32 or float64, got {array.dtype}; "
                f"convert it with astype first"
            )
    native = {name: array.dtype.newbyteorder("=") for name, array in arrays.items()}
    if len(set(native.values())) > 1:
        got = ", ".join(f"{name} {dtype}" for name, dtype in native.items())
        raise TypeError(f"expected arrays of one dtype, got {got}; convert them with astype first")
    return {name: array.astype(native[name], copy=False) for name, array in arrays.items()}


def _sizes(name: str, columns: bool, w_ih: NDArray[Any], w_hh: NDArray[Any]) -> tuple[int, int]:
    """Return I and H; ValueError unless the shapes fit each other."""
    if w_ih.ndim == 2 and w_hh.ndim == 2:
        I, three_h = w_ih.shape if columns else w_ih.shape[::-1]
        H, also = w_hh.shape if columns else w_hh.shape[::-1]
        if three_h == also == 3 * H and H > 0:
            return I, H
    expected = "(I, 3H) and (H, 3H)" if columns else "(3H, I) and (3H, H)"
    hint = (
        "transposed arrays: is it another layout?"
        if w_ih.ndim == w_hh.ndim == 2
        else "give one direction of one layer: with a leading axis of directions, pass w[d]"
    )
    raise ValueError(
        f"layout {name}: expected input and recurrent matrix of shapes {expected}, "
        f"got {w_ih.shape} and {w_hh.shape}; {hint}"
    )


def _check_biases(name: str, form: Biases, biases: list[NDArray[Any]], H: int) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "both": [(2, 3 * H)],
        "pair": [(3 * H,), (3 * H,)],
        "joined": [(6 * H,)],
        "sum": [(3 * H,)],
        "split_h": [(4 * H,)],
    }
    got = [b.shape for b in biases]
    if got != shapes[form]:
        fits = [key for key, layout in LAYOUTS.items() if shapes[layout.biases] == got]
        hint = f"; such biases belong to {' or '.join(fits)}" if fits else ""
        raise ValueError(
            f"layout {name} with H={H}: expected bias shapes {shapes[form]}, got {got}{hint}"
        )
