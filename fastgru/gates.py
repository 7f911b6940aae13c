"""The table of other libraries' weight layouts, and conversions between them and Keras' layout.

Every array of fastgru is in Keras' layout: gates z (update), r (reset), h (candidate) side by side
in columns. A `Layout` says how another library stores the same weights; `to_keras` and `from_keras`
convert. This module handles the arrays of one direction of one layer, not files and layers.

The formulas of all layouts are docs/semantics.md 1, with z as the share of the old state. Some
libraries have an update gate u = 1 - z, h' = (1 - u) h + u c: their layouts are ``complementary``.
There u = f(a) becomes z = 1 - f(a) = f(-a), so the weights and biases of u are negated. That holds
for sigmoid and hard_sigmoid; give `fastgru.GRU` no other recurrent_activation with such weights.

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
paddle
    ``paddle.nn.GRU``: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``, as torch's.
paddle_dynamic_gru, paddle_dynamic_gru_origin
    Paddle's operators gru, gru_unit and dynamic_gru, ``origin_mode`` False (the default) and True:
    the (I, 3H) weight of the layer before the operator; its own (H, 3H) weight, whose memory is
    (H, 2H) of u and r, then (H, H) of c; its bias (1, 3H). A bias of the layer before is added to
    that. The update gate is complementary unless ``origin_mode`` is true.
lasagne
    ``lasagne.layers.GRULayer``, as its class stacks its matrices: side by side r, u, c. madmom's
    GRULayer has the same formula. The bias of c stands outside of the reset gate's product.
rnnoise
    The ``GRULayer`` of RNNoise, also in WebRTC: weights and biases are int8, in 256ths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import ArrayLike, NDArray

KERAS_GATES = "zrh"

Matrices = Literal["columns", "rows", "reread", "candidate_apart"]
Biases = Literal["both", "pair", "joined", "sum", "split_h"]


class Layout(NamedTuple):
    """How a source stores one direction of one GRU layer.

    Parameters
    ----------
    gates : str
        The source's order of z, r and h.
    matrices : {"columns", "rows", "reread", "candidate_apart"}
        Gates side by side, (n, 3H); gates stacked, each transposed, (3H, n); CuDNNGRU's (n, 3H)
        whose blocks are to be read again as (H, n); or Paddle's, (I, 3H) side by side and (H, 3H)
        whose memory is (H, 2H) of two gates and (H, H) of h, which is the last of ``gates``.
    biases : {"both", "pair", "joined", "sum", "split_h"}
        One array (2, 3H); two of (3H,); one (6H,), input half first; one (3H,) or (1, 3H); or one
        (4H,), three of the gates in their order and then the recurrent bias of h. With
        ``reset_after`` the bias of h in "sum" is the input's: c = f(x W + b + r * (h U)).
    reset_after : bool
        The formula of the weights, docs/semantics.md 1. Pass it to `fastgru.GRU`.
    complementary : bool
        True: the update gate is the share of the new state, h' = (1 - u) h + u c.
    scale : float, optional
        What integers are multiplied by where `to_keras` is not given a ``scale``.
    """

    gates: str
    matrices: Matrices
    biases: Biases
    reset_after: bool
    complementary: bool = False
    scale: float | None = None


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
    "paddle": Layout("rzh", "rows", "pair", True),
    "paddle_dynamic_gru": Layout("zrh", "candidate_apart", "sum", False, complementary=True),
    "paddle_dynamic_gru_origin": Layout("zrh", "candidate_apart", "sum", False),
    "lasagne": Layout("rzh", "columns", "sum", True, complementary=True),
    "rnnoise": Layout("zrh", "columns", "sum", False, scale=1 / 256),
}


def to_keras(
    layout: str | Layout,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    scale: ArrayLike | Mapping[str, ArrayLike] | None = None,
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
    scale : float, array_like or dict, optional
        What arrays of int8, int16 or int32 are multiplied by: one number, or one for each of the
        3H columns (or rows) of gates, in the source's order. A dict gives the arrays scales of
        their own, by the names of the arguments: ``{"w_ih": s1, "w_hh": s2, "b_ih": 1.0}``. By
        default the layout's `scale`. Arrays of floats are not multiplied.

    Returns
    -------
    kernel : ndarray, (I, 3H)
    recurrent_kernel : ndarray, (H, 3H)
    bias : ndarray or None
        (2, 3H) if the layout's `reset_after` is true, else (3H,): with reset_after=False two
        biases act as their sum, and are summed. None if no bias is given.
        All three are new, C-contiguous, and of the arguments' dtype; float32 if all are integers.

    Raises
    ------
    ValueError
        Unknown layout, wrong shape, wrong number of bias arrays, integers without a scale.
    TypeError
        An array is not float16, float32, float64, int8, int16 or int32, or not all floats have one
        dtype.

    Examples
    --------
    >>> kernel, recurrent_kernel, bias = to_keras("torch", w_ih, w_hh, b_ih, b_hh)  # doctest: +SKIP
    """
    name, source = _resolve(layout)
    given = {"w_ih": w_ih, "w_hh": w_hh}
    given.update((k, b) for k, b in (("b_ih", b_ih), ("b_hh", b_hh)) if b is not None)
    if b_ih is None and b_hh is not None:
        raise ValueError(f"layout {name}: b_hh was given without b_ih; a single bias array is b_ih")
    columns = source.matrices != "rows"
    arrays = _same_float(_dequantised(name, source, given, scale))
    I, H = _sizes(name, columns, arrays["w_ih"], arrays["w_hh"])
    order = [source.gates.index(gate) for gate in KERAS_GATES]
    recurrent = _apart(arrays["w_hh"], H) if _is_apart(source) else arrays["w_hh"]
    blocks = (arrays["w_ih"], I), (recurrent, H)
    weights = [_ordered(source, _read_matrix(source.matrices, w, n, H), order) for w, n in blocks]

    biases = [arrays[k] for k in ("b_ih", "b_hh") if k in arrays]
    if not biases:
        return weights[0], weights[1], None
    _check_biases(name, source.biases, biases, H)
    bias = _signed(source, _read_bias(source, biases, H)[:, order])
    if source.reset_after:
        return weights[0], weights[1], _flat(bias)
    return weights[0], weights[1], bias.sum(axis=0).reshape(3 * H)


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
        Unknown layout, wrong shape, a bias for the other `reset_after`, or a recurrent bias of the
        candidate in a layout that cannot store it.
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
    w_ih = _signed(target, arrays["kernel"].reshape(I, 3, H))[:, order]
    w_hh = _signed(target, arrays["recurrent_kernel"].reshape(H, 3, H))[:, order]
    weights = _write_matrix(target.matrices, w_ih), _write_matrix(target.matrices, w_hh)
    if _is_apart(target):
        parts = [w_hh[:, :2].ravel(), w_hh[:, 2].ravel()]
        weights = weights[0], np.concatenate(parts).reshape(H, 3 * H)
    if bias is None:
        return weights

    b = arrays["bias"]
    expected = (2, 3 * H) if target.reset_after else (3 * H,)
    if b.shape != expected:
        raise ValueError(
            f"layout {name} has reset_after={target.reset_after}: expected bias of shape "
            f"{expected}, got {b.shape}; this layout cannot store a GRU of the other reset_after"
        )
    b = _signed(target, b.reshape(-1, 3, H))
    if target.biases == "sum" and target.reset_after and b[1, KERAS_GATES.index("h")].any():
        raise ValueError(
            f"layout {name}: expected zeros as the candidate's recurrent bias, got others; this "
            "layout has no place for it inside of the reset gate's product"
        )
    return *weights, *_write_bias(target, b[:, order])


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


def _is_apart(layout: Layout) -> bool:
    return layout.matrices == "candidate_apart"


def _apart(w: NDArray[Any], H: int) -> NDArray[Any]:
    """Return (H, 3H) side by side of an array whose memory is (H, 2H) and then (H, H)."""
    memory = w.reshape(-1)
    return np.hstack([memory[: 2 * H * H].reshape(H, 2 * H), memory[2 * H * H :].reshape(H, H)])


def _signed(layout: Layout, w: NDArray[Any]) -> NDArray[Any]:
    """Negate z of an array in Keras' order if the layout's update gate is the other share."""
    if not layout.complementary:
        return w
    w = w.copy()
    z = w[:, KERAS_GATES.index("z")]
    np.negative(z, out=z)
    return w


def _ordered(layout: Layout, w: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """Return (n, 3H) in Keras' order of (n, 3, H), the only copy that is made of a weight."""
    ordered = np.empty(w.shape, w.dtype)
    for k, gate in enumerate(order):
        ordered[:, k] = w[:, gate]
    if layout.complementary:
        z = ordered[:, KERAS_GATES.index("z")]
        np.negative(z, out=z)
    return ordered.reshape(w.shape[0], 3 * w.shape[2])


def _read_bias(layout: Layout, biases: list[NDArray[Any]], H: int) -> NDArray[Any]:
    form, h = layout.biases, layout.gates.index("h")
    if form == "pair":
        return np.stack(biases).reshape(2, 3, H)
    b = biases[0]
    if form in ("sum", "split_h"):
        both = np.zeros((2 if layout.reset_after or form == "split_h" else 1, 3, H), b.dtype)
        both[0] = b.reshape(-1)[: 3 * H].reshape(3, H)
        if form == "split_h":
            both[1, h] = b[3 * H :]
        return both
    return b.reshape(2, 3, H)


def _write_bias(layout: Layout, b: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    form, h, H = layout.biases, layout.gates.index("h"), b.shape[2]
    if form == "sum":
        return (b.sum(axis=0).reshape(3 * H),)
    if b.shape[0] == 1:
        b = np.concatenate([b, np.zeros_like(b)])
    if form == "pair":
        return b[0].reshape(3 * H).copy(), b[1].reshape(3 * H).copy()
    if form == "split_h":
        first = b.sum(axis=0)
        first[h] = b[0, h]
        return (np.concatenate([first.reshape(3 * H), b[1, h]]),)
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
        for what, forms in (("matrices", Matrices), ("biases", Biases)):
            if getattr(layout, what) not in get_args(forms):
                raise ValueError(
                    f"expected {what} among {', '.join(get_args(forms))}, got "
                    f"{getattr(layout, what)!r}"
                )
        if _is_apart(layout) and layout.gates[2] != "h":
            raise ValueError(
                f"expected gates that end in 'h' with matrices='candidate_apart', got "
                f"{layout.gates!r}"
            )
        return repr(layout), layout
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}")
    return repr(layout), LAYOUTS[layout]


def _dequantised(
    name: str, layout: Layout, given: dict[str, ArrayLike], scale: Any
) -> dict[str, ArrayLike]:
    """Return the arrays, those of integers multiplied by their scales."""
    arrays = {key: np.asarray(value) for key, value in given.items()}
    own = scale if isinstance(scale, Mapping) else dict.fromkeys(arrays, scale)
    if surplus := sorted(set(own) - set(arrays)):
        raise ValueError(f"scale: expected names among {', '.join(arrays)}, got {surplus}")
    floats = [array.dtype for array in arrays.values() if array.dtype.kind == "f"]
    for key, array in arrays.items():
        if array.dtype.kind != "i" or array.dtype.itemsize > 4:
            continue
        by = own.get(key)
        by = layout.scale if by is None else by
        if by is None:
            raise ValueError(
                f"layout {name}: {key} is of {array.dtype}: pass scale=, what its integers are "
                "multiplied by (1.0 if they are the weights)"
            )
        along = _along_gates(key, layout, array, np.asarray(by))
        arrays[key] = (array * along).astype(floats[0] if floats else np.float32)
    return dict(arrays)


def _along_gates(
    key: str, layout: Layout, array: NDArray[Any], scale: NDArray[Any]
) -> NDArray[Any]:
    """Return a scale that broadcasts: one number, or one for each column of gates."""
    if scale.dtype.kind not in "fiu" or not np.isfinite(scale).all():
        raise ValueError(f"scale of {key}: expected finite numbers, got {scale.dtype}")
    scale = scale.astype(np.float64)
    if scale.size == 1:
        return scale.reshape(())
    if key.startswith("w") and (
        layout.matrices == "reread" or (key == "w_hh" and _is_apart(layout))
    ):
        raise ValueError(
            f"scale of {key}: expected one number, since this layout has no columns of gates in "
            f"it, got shape {scale.shape}"
        )
    rows = array.ndim == 2 and layout.matrices == "rows"
    n = array.shape[0 if rows else -1] if array.ndim else 0
    if n != scale.size:
        raise ValueError(
            f"scale of {key}: expected one number, or one for each of {n} columns of gates, got "
            f"shape {scale.shape}"
        )
    return scale.reshape(-1, 1) if rows else scale.reshape(-1)


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
    if form == "sum" and [b.shape for b in biases] == [(1, 3 * H)]:
        return
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
