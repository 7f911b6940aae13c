"""Nodes of an ONNX model whose output follows from constants, as functions of arrays.

Most of them only move numbers. Cast and DequantizeLinear convert numbers as the operators' texts
say; ConstantOfShape repeats one. Each function takes the node's attributes, of which tensors are
arrays, and its inputs. Before opset 10 to 13 some of the inputs were attributes. An input that is
left out is None. `onnx_graph.Scope` bounds what the functions may make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.onnx_tensors import BFLOAT16, MOST_AXES, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _integers(array: NDArray[Any], what: str) -> list[int]:
    array = np.asarray(array)
    if array.dtype.kind != "i" or array.size > MOST_AXES:
        raise ValueError(f"expected {what} as at most {MOST_AXES} integers, got {array!r}")
    return array.reshape(-1).tolist()


def _axes(given: dict[str, Any], *axes: Any) -> tuple[int, ...] | None:
    if not axes and "axes" not in given:
        return None
    return tuple(_integers(axes[0] if axes else given["axes"], "axes"))


def _unsqueeze(given: dict[str, Any], x: NDArray[Any], *axes: Any) -> NDArray[Any]:
    return np.expand_dims(x, _axes(given, *axes) or ())


def _squeeze(given: dict[str, Any], x: NDArray[Any], *axes: Any) -> NDArray[Any]:
    return np.squeeze(x, _axes(given, *axes))


def _transpose(given: dict[str, Any], x: NDArray[Any]) -> NDArray[Any]:
    return np.transpose(x, given.get("perm"))


def _reshape(given: dict[str, Any], x: NDArray[Any], *shape: Any) -> NDArray[Any]:
    wanted = _integers(shape[0] if shape else given["shape"], "shape")
    if not given.get("allowzero"):  # then 0 means: the length of x
        wanted = [n or x.shape[axis] for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


def _concat(given: dict[str, Any], *parts: NDArray[Any]) -> NDArray[Any]:
    if len({part.dtype for part in parts}) > 1:
        raise ValueError(f"expected one dtype, got {[part.dtype.name for part in parts]}")
    return np.concatenate(parts, axis=int(given["axis"]))


def _slice(given: dict[str, Any], x: NDArray[Any], *arguments: Any) -> NDArray[Any]:
    names = ("starts", "ends", "axes", "steps")
    values = dict(zip(names, arguments, strict=False)) or given
    parts = {name: _integers(values[name], name) for name in names if values.get(name) is not None}
    starts, ends = parts["starts"], parts["ends"]
    axes = parts.get("axes", range(len(starts)))
    cut = [slice(None)] * x.ndim
    for axis, *bounds in zip(
        axes, starts, ends, parts.get("steps", [1] * len(starts)), strict=True
    ):
        cut[axis] = slice(*bounds)
    return x[tuple(cut)]


def _expand(given: dict[str, Any], x: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_integers(shape, "shape"))))


def _shape(given: dict[str, Any], x: NDArray[Any]) -> NDArray[Any]:
    return np.array(x.shape[given.get("start", 0) : given.get("end")], np.int64)


def _mul(given: dict[str, Any], x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    # Of lengths only; a product of weights is not folded.
    _integers(x, "a length"), _integers(y, "a length")
    return np.multiply(x, y)


def _constant_of_shape(given: dict[str, Any], shape: NDArray[Any]) -> NDArray[Any]:
    number = one_number(given)
    # One number with strides of 0: it takes no memory before the caller has counted it.
    return np.broadcast_to(number.reshape(()), tuple(_integers(shape, "shape")))


def one_number(given: dict[str, Any]) -> NDArray[Any]:
    """Return the value of a ConstantOfShape, whose default is 0.0, as an array of one number."""
    number = np.asarray(given.get("value", np.float32(0)))
    if number.size != 1:
        raise ValueError(f"expected one value, got shape {number.shape}")
    return number


def _cast(given: dict[str, Any], x: NDArray[Any]) -> NDArray[Any]:
    to = given["to"]
    if to not in NUMBERS:
        raise ValueError(f"expected a Cast to a float or an integer type, got to={to!r}")
    dtype = np.dtype(np.float32 if to == BFLOAT16 else NUMBERS[to])
    with np.errstate(all="ignore"):  # a number beyond float16 is inf, as for ONNX Runtime
        if dtype.kind != "f" and (x.dtype.kind == "f" or (x.astype(dtype) != x).any()):
            raise ValueError(f"numbers of {x.dtype} are not all numbers of {dtype}")
        # float64 would be rounded twice on its way over float32.
        return rounded_to_bfloat16(x) if to == BFLOAT16 else x.astype(dtype)


def rounded_to_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """Round to the nearest bfloat16, ties to even, and return it as float32."""
    if x.dtype.itemsize > 4 or x.dtype.kind != "f":
        raise ValueError(f"expected a Cast to bfloat16 from float32 or float16, got {x.dtype}")
    x = x.astype(np.float32)
    bits = np.ascontiguousarray(x).view(np.uint32)
    bits = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, bits.astype(np.uint32).view(np.float32).reshape(x.shape))


def _dequantize_linear(
    given: dict[str, Any], x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return (x - zero) * scale, in float32 and then in the scale's dtype, as ONNX Runtime does."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize > 4:
        raise ValueError(f"expected x of integers of 4 to 32 bits, got {x.dtype}")
    if scale.dtype not in (np.float32, np.float16):
        raise ValueError(f"expected scale of float32 or float16, got {scale.dtype}")
    if zero is not None and (zero.dtype, zero.shape) != (x.dtype, scale.shape):
        raise ValueError(
            f"expected a zero point {x.dtype} {scale.shape}, got {zero.dtype} {zero.shape}"
        )
    if given.get("output_dtype", 0) not in (0, 10 if scale.dtype == np.float16 else 1):
        raise ValueError("expected output_dtype to be the scale's dtype")
    # float32 has all integers of 16 bits and their differences, so that nothing wider is made.
    whole: Any = x.astype(np.float32 if x.dtype.itemsize <= 2 else np.int64)
    if zero is not None:
        for part, zeros in _spread(whole, zero, given):
            part -= zeros
    whole = whole.astype(np.float32, copy=False)
    for part, scales in _spread(whole, scale, given):
        part *= scales
    result: NDArray[Any] = whole.astype(scale.dtype, copy=False)
    return result


def _spread(
    whole: NDArray[Any], part: NDArray[Any], given: dict[str, Any]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return views of an array, each with the scales that broadcast to it.

    Scales are those of the whole tensor, along an axis, or of blocks. Nothing is copied.
    """
    shape, block = whole.shape, given.get("block_size", 0)
    if part.size == 1 and part.ndim <= 1 and not block:
        return [(whole, part.reshape(()))]
    axis = given.get("axis", 1)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"expected an axis of shape {shape}, got {axis}")
    axis, n = axis % len(shape), shape[axis]
    if not block:
        if part.shape != (n,):
            raise ValueError(f"expected {n} scales along axis {axis}, got {part.shape}")
        return [(whole, part.reshape([n if a == axis else 1 for a in range(len(shape))]))]
    blocks = (*shape[:axis], -(-n // block), *shape[axis + 1 :]) if block > 0 else None
    if part.shape != blocks:
        raise ValueError(f"expected scales {blocks} of blocks of {block}, got {part.shape}")
    # Each block with its scale, or the first, second, ... of all blocks: whatever is fewer parts.
    before = (slice(None),) * axis
    if block * block > n:
        starts = range(0, n, block)
        cuts = [(slice(k, k + block), slice(k // block, k // block + 1)) for k in starts]
    else:
        cuts = [(slice(j, None, block), slice(-(-(n - j) // block))) for j in range(block)]
    return [(whole[(*before, cut)], part[(*before, scales)]) for cut, scales in cuts]


FOLDS: dict[str, Callable[..., NDArray[Any]]] = {
    "Identity": lambda given, x: x,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Concat": _concat,
    "Slice": _slice,
    "Expand": _expand,
    "Shape": _shape,
    "Mul": _mul,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize_linear,
}
# Nodes that make new arrays; the others give a view of their first input wherever that can be.
COPIES = {"Cast", "Concat", "DequantizeLinear"}
# Nodes with inputs that may be left out.
OPTIONAL = {"Slice", "DequantizeLinear"}
# Nodes whose output consists of numbers of their first input.
SPREADS = {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Expand", "Tile"}
