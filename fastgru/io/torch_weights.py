"""Weights that a file holds as something else: weight_norm, pruning, weight drop, parametrizations.

torch keeps the original of such a weight under a longer name (``weight_hh_l0_g``,
``parametrizations.weight_hh_l0.original0``), and may keep what was computed from it last under the
plain name. `resolved` computes the weights whose formula is known. Of the others it says why not:
the plain name alone would give numbers that the model does not use.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# torch's names of recurrent weights; hr is an LSTM's projection.
RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l(0|[1-9][0-9]{0,2})(_reverse)?)?")
FLOATS = ("float16", "bfloat16", "float32", "float64")
_MASKS = (*FLOATS, "bool", "uint8", "int8", "int32", "int64")

# Such a name, and what follows it in the names of what belongs to that weight.
_LONGER = re.compile(rf"(?P<base>{RECURRENT.pattern})_?(?P<more>.*)", re.DOTALL)
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.(.+)", re.DOTALL)
_PATH = "parametrizations."


class LazyTensor(NamedTuple):
    """A tensor of a source that is not read yet.

    ``read()`` gives an array of ``shape`` with any strides and byte order, bfloat16 as float32.
    Tensors with one ``identity`` are one tensor. ``storage`` is what its elements lie in, and how
    many bytes that has. A ``problem`` says why there are no elements to read.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    identity: object = None
    storage: tuple[object, int] | None = None
    problem: str = ""


def unreadable(what: str) -> LazyTensor:
    """Return the tensor of which nothing is known but what it is instead."""
    return LazyTensor((), what, partial(np.zeros, ()), problem=what)


def split(name: str) -> tuple[str, str, str] | None:
    """Return a name as prefix, recurrent weight and rest; None if it has no recurrent weight in it.

    The rest is "" for the weight itself, ``g`` for ``weight_hh_l0_g``, and
    ``parametrizations.original`` for ``parametrizations.weight_hh_l0.original``.
    """
    match = _PARAMETRIZED.fullmatch(name) if _PATH in name else None
    if match:
        prefix, base, rest = match.groups()
        return (prefix or "", base, _PATH + rest) if RECURRENT.fullmatch(base) else None
    prefix, _, last = name.rpartition(".")
    found = _LONGER.fullmatch(last)
    if found is None:
        return None
    base = found["base"]
    return prefix, base, last[len(base) :].removeprefix("_")


def joined(prefix: str, base: str) -> str:
    """Return the plain name of a weight in a module."""
    return f"{prefix}.{base}" if prefix else base


def resolved(
    tensors: Mapping[str, LazyTensor],
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the weights by torch's plain names, and the modules that cannot be read.

    Parameters
    ----------
    tensors : mapping
        Every tensor whose name `split` takes apart.

    Returns
    -------
    weights : dict
        Each recurrent weight, computed from its originals where the formula is known.
    problems : dict
        Prefix of a module -> why its weights cannot be told with certainty.
    """
    weights: dict[str, LazyTensor] = {}
    problems: dict[str, str] = {}
    originals: dict[tuple[str, str], dict[str, LazyTensor]] = {}
    full: dict[tuple[str, str, str], str] = {}
    dropped: dict[str, tuple[str, str, str]] = {}
    for name, tensor in tensors.items():
        prefix, base, rest = split(name) or ("", name, "")
        if rest:
            originals.setdefault((prefix, base), {})[rest] = tensor
            full[prefix, base, rest] = name
        else:
            weights[name] = tensor
    prefixes = {name.rpartition(".")[0] for name in weights}
    for (prefix, base), parts in originals.items():
        name = joined(prefix, base)
        made = _computed(parts)
        if isinstance(made, LazyTensor):
            copy = weights.get(name)
            weights[name] = made if copy is None else _compared(name, made, copy)
            prefixes.add(prefix)
            continue
        names = " and ".join(full[prefix, base, rest] for rest in sorted(parts)[:3])
        text = f"got {names}, {made}"
        if "raw" in parts:
            dropped.setdefault(prefix, (base, full[prefix, base, "raw"], text))
        else:
            problems.setdefault(prefix, text)
            if prefix in prefixes or f"{_PATH}original" in parts or "orig" in parts:
                weights.setdefault(name, _placeholder(parts))
    # The module of weight drop holds the original, a module inside it the copy.
    lengths = sorted({len(prefix) for prefix in dropped}, reverse=True)
    for prefix in prefixes if dropped else ():
        for length in lengths:  # not each part of a prefix, which may have hundreds
            outer = prefix[:length]
            if outer in dropped and (not outer or prefix[length : length + 1] in ("", ".")):
                base, original, text = dropped[outer]
                advice = f"state[{joined(prefix, base)!r}] = state.pop({original!r})"
                problems.setdefault(
                    prefix, f"{text}; put the original in the place of its copy: {advice}"
                )
                break
    return weights, problems


def _placeholder(parts: dict[str, LazyTensor]) -> LazyTensor:
    """Return what stands for a weight that cannot be computed, so that its module is seen."""
    for name in ("orig", f"{_PATH}original"):
        shape = parts[name].shape if name in parts else ()
        if len(shape) == 2 and shape[0] > shape[1]:  # a square may be in the place of any matrix
            return parts[name]
    return unreadable("parts of a weight")


def _computed(parts: dict[str, LazyTensor]) -> LazyTensor | str:
    """Return a weight from its originals, or why that cannot be done."""
    names = set(parts)
    if names in ({"g", "v"}, {f"{_PATH}original0", f"{_PATH}original1"}):
        g, v = (parts[name] for name in sorted(names))
        ok = g.shape == () or (
            len(g.shape) == len(v.shape)
            and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
        )
        if not ok or {g.dtype, v.dtype} - set(FLOATS):
            return (
                "which are not weight_norm's: expected one length for each row, column or all, "
                f"got {g.dtype} of shape {g.shape} for {v.dtype} of shape {v.shape}"
            )
        return _derived(v, g, partial(_normed, g, v))
    if names == {"orig", "mask"}:
        mask, orig = parts["mask"], parts["orig"]
        if mask.shape != orig.shape or mask.dtype not in _MASKS or orig.dtype not in FLOATS:
            return (
                "which are not pruning's: expected a mask of the original's shape, got "
                f"{mask.dtype} of shape {mask.shape} for {orig.dtype} of shape {orig.shape}"
            )
        return _derived(orig, mask, partial(_pruned, orig, mask))
    if "raw" in names:
        return "weight drop's original beside its copy, which is what the last dropout left of it"
    ends = {name.rpartition(".")[2].strip("_") for name in names}
    if "u" in ends:
        kind = "spectral_norm's"
    elif "base" in ends:
        kind = "torch.nn.utils.parametrizations.orthogonal's"
    elif f"{_PATH}original" in names:
        kind = "of a parametrization that the file does not name"
    else:
        return (
            "which torch gives no part of a weight; take it out of the state dict if the GRU does "
            "not use it"
        )
    return (
        f"{kind}; only weight_norm and pruning can be computed here: before saving, take it out of "
        "the module (torch.nn.utils.parametrize.remove_parametrizations, remove_spectral_norm)"
    )


def _derived(main: LazyTensor, other: LazyTensor, read: Callable[[], np.ndarray]) -> LazyTensor:
    """Return the tensor that is computed from two, in the shape of the first."""
    known = main.identity is not None and other.identity is not None
    dtype = "float64" if main.dtype == "float64" else "float32"
    return LazyTensor(
        main.shape,
        dtype,
        read,
        (main.identity, other.identity) if known else None,
        main.storage,
        main.problem or other.problem,
    )


def _float64(tensor: LazyTensor) -> np.ndarray:
    array = tensor.read().astype(np.float64)
    if array.shape != tensor.shape:
        raise ValueError(f"expected a tensor of shape {tensor.shape}, got {array.shape}")
    return array


def _normed(length: LazyTensor, direction: LazyTensor) -> np.ndarray:
    """Return weight_norm's product: rows (or columns, or the whole) of given lengths."""
    g, v = _float64(length), _float64(direction)
    axes = tuple(k for k in range(v.ndim) if g.ndim == 0 or g.shape[k] == 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where torch has it too
        return np.asarray(v * (g / np.sqrt((v * v).sum(axis=axes, keepdims=True))))


def _pruned(original: LazyTensor, mask: LazyTensor) -> np.ndarray:
    """Return pruning's product."""
    return _float64(original) * _float64(mask)


def _compared(name: str, made: LazyTensor, copy: LazyTensor) -> LazyTensor:
    """Return a computed weight that is read only if the copy beside it says the same."""

    def read() -> np.ndarray:
        array = made.read()
        if copy.shape != made.shape or copy.dtype not in FLOATS:
            raise ValueError(f"{name} has the shape {copy.shape}, its original {made.shape}")
        largest = float(np.abs(array - copy.read()).max(initial=0))
        if not largest <= 1e-2 * max(1.0, float(np.abs(array).max(initial=0))):
            raise ValueError(
                f"expected {name} as its originals beside it give it, got one that differs by up "
                f"to {largest:.3g}; keep one of the two"
            )
        return array

    return made._replace(read=read)
