"""GRUs of PyTorch: weights in files, in dicts or in live modules, and back.

`torch_source` opens the source. This module finds torch's modules by the names of their tensors
and compares shapes before it reads a tensor.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import activations, gates
from fastgru.io.budget import LAYER_STEPS, Budget, reading
from fastgru.io.imported_layer import ImportedLayer, verify_layer
from fastgru.io.torch_pickle import element_bytes
from fastgru.io.torch_source import opened
from fastgru.io.torch_weights import FLOATS, RECURRENT, LazyTensor
from fastgru.layers import GRU, RNN, Bidirectional, GRUCell, Sequential
from fastgru.layers.nested import Array, WithState
from fastgru.layers.sequence import SequenceLayer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

MOST_NAMED = 50  # modules in one message
# What DataParallel, torch.compile, FSDP and activation checkpoints put into the names.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_OTHERS = {4: "an LSTM", 1: "a plain RNN"}  # by the rows of weight_hh, in H


_MOST_OVERLAP = 4  # times a storage's size
_FREE_BYTES = 16 << 20


class _Module(NamedTuple):
    """The tensors of one module: ``parts[layer, direction][role]``."""

    prefix: str
    is_cell: bool
    parts: dict[tuple[int, int], dict[str, LazyTensor]]
    problem: str = ""

    def key(self, place: tuple[int, int], role: str) -> str:
        """Return torch's name for a tensor of this module."""
        suffix = "" if self.is_cell else f"_l{place[0]}{'_reverse' * place[1]}"
        return f"{self.prefix}.{role}{suffix}".removeprefix(".")


class _Sizes(NamedTuple):
    layers: int
    directions: int
    inputs: int
    units: int
    use_bias: bool
    dtype: str


def from_torch(
    source: Any,
    prefix: str = "",
    *,
    verify: Any = None,
    return_sequences: bool = True,
    return_state: bool = True,
    max_bytes: int | None = None,
) -> SequenceLayer[Array | WithState]:
    """Make a layer from a GRU that was trained in PyTorch.

    Parameters
    ----------
    source : path, mapping or module
        A ``.pt`` or ``.pth`` file of ``torch.save(model.state_dict(), path)``, of a checkpoint
        that holds one, or of a whole module; a ``.safetensors`` file; the index of a model in
        several files; a state dict of NumPy arrays or torch tensors; a live ``nn.GRU``,
        ``nn.GRUCell`` or a module with one of them in it.
    prefix : str
        What the keys of the wanted GRU begin with, as ``"encoder.gru"``. It may be left out if
        there is only one GRU. ``"."`` is the GRU whose keys have no prefix, among others that have.
        ``module.`` and ``_orig_mod.``, of torch's wrappers, may be left out of it.
    verify : pair of array_like, optional
        An input (B, T, I) and torch's output for it (``batch_first=True``), which is compared
        with this layer's.
    return_sequences, return_state : bool
        True as in torch, whose GRU returns the outputs and ``h_n``.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the files' bytes.

    Returns
    -------
    GRU, Bidirectional or Sequential
        A GRU, a Bidirectional, or a Sequential of ``num_layers`` of them. Called with x (B, T, I)
        it returns y (B, T, H), or (B, T, 2H) in both directions, then the state (B, H) of each
        direction of the last layer: ``h_n[-1]``, or ``h_n[-2], h_n[-1]``. An ``nn.GRUCell`` also
        becomes a GRU, whose ``layer.cell`` computes one step. The dtype is float32 if the source
        is in float16 or bfloat16, else the source's.

    Raises
    ------
    ValueError
        The source has no GRU, or several and no prefix is given (the message lists them); it is
        an LSTM or plain RNN; shapes do not fit, or layers, directions or biases are missing; the
        file is damaged, or one of several; a weight is computed from others in a way that the
        file does not tell (weight_norm and pruning are computed); the output is not the one that
        ``verify`` expects.
    ImportError
        A ``.safetensors`` file needs the package safetensors.

    Notes
    -----
    ``batch_first`` is not part of the weights. The layer takes (B, T, I), so transpose the inputs
    of a module without ``batch_first=True``. Dropout between torch's layers acts in training only;
    the layer does not have it.

    Examples
    --------
    >>> layer = fastgru.io.from_torch("model.pt", "encoder.gru")  # doctest: +SKIP
    >>> y, state = layer(x)  # doctest: +SKIP
    """
    with reading(*_room(source, max_bytes)) as budget, opened(source, budget) as opened_source:
        where, tensors, problems = opened_source
        module = _choose(where, _modules(tensors, problems), prefix)
        layer = _layer(module, _sizes(where, module), return_sequences, return_state, budget)
    verify_layer(layer, verify, f"{where}: {module.prefix or 'its GRU'}")
    return layer


def _room(source: Any, max_bytes: int | None) -> tuple[str, int | None]:
    """Return a source's name, and what reading it may take; one in memory is there already."""
    path = isinstance(source, str) or hasattr(source, "__fspath__")
    return (str(source), max_bytes) if path else (type(source).__name__, sys.maxsize)


def find(source: Any, budget: Budget | None = None) -> list[ImportedLayer]:
    """Return every GRU of a source, as `from_torch` makes it; its name is its prefix."""
    found = []
    budget = budget or Budget(*_room(source, None))
    with opened(source, budget) as (where, tensors, problems):
        for module in _modules(tensors, problems):
            if _other(module) is None:
                sizes = _sizes(where, module)
                biases = "two biases" if sizes.use_bias else "no bias"
                first = "weight_ih" if module.is_cell else "weight_ih_l0"
                found.append(
                    ImportedLayer(
                        module.prefix or ".",
                        _layer(module, sizes, True, True, budget),
                        f"gates r z n in rows, {biases}, reset after",
                        f"{first} (3H, I), {sizes.layers} layers, {sizes.directions} directions",
                    )
                )
    return found


def to_torch(layer: Any) -> dict[str, np.ndarray]:
    """Return a layer's weights by torch's names, for ``torch.nn.GRU(...).load_state_dict``.

    Parameters
    ----------
    layer : GRU, RNN over GRUCells, Bidirectional or Sequential of them; or GRUCell
        Built.

    Returns
    -------
    dict of str to ndarray
        ``weight_ih_l0`` (3H, I), ``weight_hh_l0`` (3H, H), ``bias_ih_l0`` and ``bias_hh_l0``
        (3H,), ``weight_ih_l0_reverse`` and so on, for an ``nn.GRU(I, H, num_layers, bias,
        bidirectional=...)``; of a GRUCell ``weight_ih`` and so on.

    Raises
    ------
    ValueError
        torch has no such GRU: ``reset_after=False``, other activations than tanh and sigmoid,
        layers of different sizes, a merge_mode other than "concat", go_backwards alone.

    Examples
    --------
    >>> arrays = fastgru.io.to_torch(layer)  # doctest: +SKIP
    >>> tensors = {key: torch.from_numpy(a) for key, a in arrays.items()}  # doctest: +SKIP
    >>> torch.nn.GRU(8, 16).load_state_dict(tensors)  # doctest: +SKIP
    """
    if type(layer) is GRUCell:
        return dict(zip(_ROLES, _torch_weights(layer), strict=False))
    weights: dict[str, np.ndarray] = {}
    like: tuple[Any, ...] | None = None
    for number, cells in enumerate(_torch_layers(layer)):
        for cell, suffix in zip(cells, ("", "_reverse"), strict=False):
            arrays = _torch_weights(cell)
            one = (cell.units, cell.use_bias, len(cells))
            if like not in (None, one):
                raise ValueError(
                    f"{layer.name}: expected the same units, use_bias and directions in all "
                    f"layers, as torch.nn.GRU has them, got {like} and {one}; convert the layers "
                    "one by one"
                )
            like = one
            for role, array in zip(_ROLES, arrays, strict=False):
                weights[f"{role}_l{number}{suffix}"] = array
    return weights


# ---- which GRU -----------------------------------------------------------------------------------


def _modules(tensors: Mapping[str, LazyTensor], problems: Mapping[str, str]) -> list[_Module]:
    """Return the modules whose tensors have torch's names of recurrent weights."""
    modules: dict[tuple[str, bool], _Module] = {}
    for key, tensor in tensors.items():
        prefix, _, last = key.rpartition(".")
        match = RECURRENT.fullmatch(last)
        if match:
            kind, which, number, reverse = match.groups()
            module = modules.setdefault(
                (prefix, number is None),
                _Module(prefix, number is None, {}, problems.get(prefix, "")),
            )
            place = int(number or 0), int(reverse is not None)
            module.parts.setdefault(place, {})[f"{kind}_{which}"] = tensor
    return list(modules.values())


def _other(module: _Module) -> str | None:
    """Return the kind of a module that is not a GRU, else None."""
    for part in module.parts.values():
        hidden = part.get("weight_hh")
        if "weight_hr" in part:
            return "an LSTM with a projection"
        if hidden is not None and len(hidden.shape) == 2 and hidden.shape[1] > 0:
            rows, units = hidden.shape
            if rows % units == 0 and rows // units in _OTHERS:
                return f"{_OTHERS[rows // units]}, weight_hh of shape {hidden.shape}"
    return None


def _unwrapped(prefix: str) -> str:
    """Return a prefix without the parts that torch's wrappers of whole modules put in."""
    return ".".join(part for part in prefix.split(".") if part not in WRAPPERS)


def _choose(where: str, modules: list[_Module], prefix: str) -> _Module:
    """Return the only GRU under a prefix; ValueError with what there is instead."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {prefix!r}")
    candidates = modules
    if prefix:
        wanted = prefix.removesuffix(".")
        candidates = [m for m in modules if m.prefix == wanted]
        for name in (_unwrapped, str):  # "a.gru" stands for "module.a.gru" too
            same = [m for m in modules if name(m.prefix) == name(wanted)]
            inside = [m for m in modules if f"{name(m.prefix)}.".startswith(f"{name(wanted)}.")]
            candidates = candidates or same or inside
    grus = [m for m in candidates if _other(m) is None]
    if len(grus) == 1:
        return grus[0]
    if grus:
        names = ", ".join(repr(m.prefix or ".") for m in grus[:MOST_NAMED])
        raise ValueError(f"{where}: expected one GRU, got several; pass as prefix one of {names}")
    got = ", ".join(
        f"{_other(m) or 'a GRU'} under {m.prefix or '.'!r}" for m in modules[:MOST_NAMED]
    )
    raise ValueError(
        f"{where}: expected a GRU{f' under {prefix!r}' if prefix else ''}, weight_hh of shape "
        f"(3H, H), got {got or 'no weight_ih_l0, weight_hh_l0 or the like'}"
    )


def _sizes(where: str, module: _Module) -> _Sizes:
    """Return a GRU's sizes; ValueError unless all its tensors fit each other."""
    if module.problem:
        raise ValueError(
            f"{where}: expected under {module.prefix or '.'!r} the weights that the GRU uses, "
            f"{module.problem}"
        )
    for place, part in module.parts.items():
        for role, tensor in part.items():
            if tensor.problem:
                raise ValueError(
                    f"{where}: expected {module.key(place, role)} as a tensor of "
                    f"{', '.join(FLOATS)}, got {tensor.problem}; make it a plain tensor "
                    "before saving"
                )
    layers = 1 + max(layer for layer, _ in module.parts)
    directions = 1 + max(direction for _, direction in module.parts)
    roles = _ROLES if any("bias_ih" in part for part in module.parts.values()) else _ROLES[:2]
    first = module.parts.get((0, 0), {})
    shapes = [first[role].shape for role in _ROLES[:2] if role in first]
    if len(shapes) != 2 or any(len(shape) != 2 for shape in shapes) or shapes[1][1] < 1:
        raise ValueError(
            f"{where}: expected {module.key((0, 0), 'weight_ih')} (3H, I) and "
            f"{module.key((0, 0), 'weight_hh')} (3H, H), got shapes {shapes} of {sorted(first)}"
        )
    inputs, units = shapes[0][1], shapes[1][1]
    dtypes = set()
    for place in ((k, d) for k in range(layers) for d in range(directions)):
        part = module.parts.get(place, {})
        expected = {
            "weight_ih": (3 * units, directions * units if place[0] else inputs),
            "weight_hh": (3 * units, units),
            "bias_ih": (3 * units,),
            "bias_hh": (3 * units,),
        }
        for role in roles:
            got = part[role].shape if role in part else "nothing"
            if got != expected[role]:
                raise ValueError(
                    f"{where}: expected {module.key(place, role)} of shape {expected[role]}, "
                    f"got {got}"
                )
            dtypes.add(part[role].dtype)
        if surplus := sorted(part.keys() - set(roles)):
            key = module.key(place, surplus[0])
            raise ValueError(f"{where}: expected {key} beside {' and '.join(_ROLES)} or not at all")
    if strange := sorted(dtypes - set(FLOATS)):
        raise ValueError(
            f"{where}: expected weights in {', '.join(FLOATS)}, got {', '.join(strange)}; "
            "dequantise them first"
        )
    _refuse_overlaps(where, module)
    dtype = "float64" if "float64" in dtypes else "float32"
    return _Sizes(layers, directions, inputs, units, len(roles) == 4, dtype)


def _layer(
    module: _Module, sizes: _Sizes, return_sequences: bool, return_state: bool, budget: Budget
) -> Any:
    """Build the layer with the weights of a module that `_sizes` has checked."""
    layers: list[Any] = []
    kept: dict[object, Any] = {}
    for k in range(sizes.layers):
        last = k == sizes.layers - 1
        layer: Any = GRU(
            sizes.units,
            use_bias=sizes.use_bias,
            return_sequences=return_sequences or not last,
            return_state=return_state and last,
            dtype=sizes.dtype,
            # As pad_packed_sequence gives the steps beyond a sequence's end; Bidirectional does so.
            zero_output_for_mask=return_sequences or not last,
        )
        if sizes.directions == 2:
            layer = Bidirectional(layer)
        for d, half in enumerate(layer.halves if sizes.directions == 2 else [layer]):
            budget.step(LAYER_STEPS, module.prefix)
            part = module.parts[k, d]
            tensors = [part[r] for r in _ROLES if r in part]
            half.cell.adopt(*_converted(tensors, sizes.dtype, kept, budget))
        layers.append(layer)
    result = layers[0] if sizes.layers == 1 else Sequential(layers)
    result.build((None, None, sizes.inputs))
    return result


def _converted(
    tensors: list[LazyTensor], dtype: str, kept: dict[object, Any], budget: Budget
) -> list[np.ndarray]:
    """Return kernel, recurrent kernel and bias; of tied tensors the same arrays, from ``kept``.

    So a file in which many layers share a tensor does not take more memory than its size allows.
    """
    keys: list[Any] = [tensor.identity for tensor in tensors]
    places = [keys[0], keys[1], tuple(keys[2:])][: 2 + (len(tensors) > 2)]
    places = [(n, key) for n, key in enumerate(places)]
    known = None not in keys
    if known and all(place in kept for place in places):
        return [kept[place] for place in places]
    size = np.dtype(dtype).itemsize
    budget.make_objects(40, sum(math.prod(tensor.shape) * size for tensor in tensors))
    arrays = [tensor.read().astype(dtype, copy=False) for tensor in tensors]
    fresh = [array for array in gates.to_keras("torch", *arrays) if array is not None]
    if not known:
        return fresh
    return [kept.setdefault(place, array) for place, array in zip(places, fresh, strict=True)]


def _refuse_overlaps(where: str, module: _Module) -> None:
    """Raise ValueError if views overlap so much that they are many times what is stored."""
    seen = set()
    views: dict[object, int] = {}
    stored: dict[object, int] = {}
    for tensor in (tensor for part in module.parts.values() for tensor in part.values()):
        if tensor.storage is not None and tensor.identity not in seen:
            seen.add(tensor.identity)
            key, size = tensor.storage
            stored[key] = size
            views[key] = views.get(key, 0) + math.prod(tensor.shape) * element_bytes(tensor.dtype)
    for key, size in views.items():
        if size > _MOST_OVERLAP * stored[key] + _FREE_BYTES:
            raise ValueError(
                f"{where}: expected tensors that share elements only where they are the same, got "
                f"{size} bytes of overlapping tensors in a storage of {stored[key]}"
            )


# ---- back to torch -------------------------------------------------------------------------------


def _torch_layers(layer: Any) -> list[list[GRUCell]]:
    """Return the cells of each of torch's layers, one per direction."""
    if type(layer) is Sequential:
        return [cells for inner in layer.layers for cells in _torch_layers(inner)]
    halves = layer.halves if type(layer) is Bidirectional else (layer,)
    stacks = [half._gru_cells or [] for half in halves if isinstance(half, RNN)]
    if not stacks or [] in stacks:
        raise ValueError(
            "expected GRU, RNN over GRUCells, Bidirectional or Sequential of them, or GRUCell, "
            f"got {layer!r}"
        )
    if halves[0].go_backwards:
        raise ValueError(
            f"{layer.name}: torch.nn.GRU has no go_backwards; it runs backwards only beside a "
            "forward half"
        )
    if len(halves) == 2 and (layer.merge_mode != "concat" or any(len(s) != 1 for s in stacks)):
        raise ValueError(
            f"{layer.name}: torch.nn.GRU joins two directions as merge_mode='concat' does, after "
            f"every layer, got merge_mode={layer.merge_mode!r} over "
            f"{' and '.join(str(len(s)) for s in stacks)} cells"
        )
    return [list(cells) for cells in zip(*stacks, strict=True)]


def _torch_weights(cell: GRUCell) -> tuple[np.ndarray, ...]:
    """Return weight_ih, weight_hh and, if there is a bias, bias_ih, bias_hh."""
    if not cell.built:
        raise ValueError(
            f"{cell.name}: it has no weights yet; call build(input_shape) or the layer first"
        )
    if not cell.reset_after:
        raise ValueError(
            f"{cell.name}: torch computes reset_after=True, tanh(.. + r * (h U + b)); the weights "
            "of reset_after=False mean something else there"
        )
    for what, only in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if getattr(cell, what) != activations.get(only):
            raise ValueError(
                f"{cell.name}: torch.nn.GRU has {only} as {what}, got {getattr(cell, what)!r}"
            )
    return gates.from_keras("torch", *(v.value for v in cell.weights))
