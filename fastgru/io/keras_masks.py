"""Which GRUs of a Keras model get a mask, from the model's config.

Keras passes masks from layer to layer beside the arrays. Arrays alone do not have them, so a GRU
that was taken out of its model has to be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.io.budget import short, text_bytes
from fastgru.io.keras_config import count_cells, is_object, layer_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgru.io.budget import Budget

# Layers whose output has no mask. A layer of an unknown class may pass it on, so it counts as if.
_ENDS = (
    *("Flatten", "Reshape", "Lambda", "RepeatVector", "Dot", "Conv", "DepthwiseConv"),
    *("SeparableConv", "Global", "MaxPooling", "AveragePooling", "UpSampling", "ZeroPadding"),
    *("Cropping", "LocallyConnected", "ConvLSTM", "StringLookup", "IntegerLookup"),
    *("Adaptive", "EinsumDense", "Permute", "RMSNormalization", "SpectralNormalization"),
    *("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"),  # operations, in tf.keras
)
_ELEMENTWISE = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
# Where Keras 3 says that a class is from, if it is one of its layers and not an operation.
_LAYER_MODULES = ("keras.layers", "keras.models", "keras.src.layers", "keras.src.models")
_RECURRENT = ("GRU", "LSTM", "SimpleRNN", "RNN", "CuDNNGRU", "CuDNNLSTM", "Bidirectional")
_MOST_NESTED = 32
_LONGEST = 1500  # characters of masks that are joined

_Mask = str | None  # what to tell of a tensor's mask


def mask_notes(model: Any, budget: Budget) -> dict[str, str]:
    """Return what to tell the user of each GRU that the model gives a mask.

    Parameters
    ----------
    model : dict
        ``{"class_name", "config"}`` of a model.
    budget : Budget
        Counts the names of the GRUs.

    Returns
    -------
    dict of str to str
        Texts by the name of the layer, as ``"encoder/gru"``.
    """
    notes: dict[str, str] = {}
    if is_object(model):
        _pass_on(model, (), [], _Notes(budget, notes))
    return notes


class _Notes(NamedTuple):
    """Texts by the name of the layer; `texts` is None where a layer computes without its mask."""

    budget: Budget
    texts: dict[str, str] | None

    def add(self, path: tuple[str, ...], text: str) -> None:
        """Note a text for the layer at a path of names."""
        if self.texts is not None:
            self.budget.make_objects(1, sum(map(text_bytes, path)), "its config")
            self.texts["/".join(path)] = text


def _pass_on(
    layer: dict[str, Any], path: tuple[str, ...], given: list[_Mask], notes: _Notes
) -> list[_Mask]:
    """Note the masks in a layer or model that gets these masks; return those of its outputs."""
    config, name = layer["config"], layer["class_name"]
    mask = next(filter(None, given), None)
    if name == "Masking":
        value = config.get("mask_value", 0.0) if isinstance(config, dict) else 0.0
        return [
            f"Masking layer {short(layer_name(layer))!r}: pass mask = (x != {short(repr(value))})"
            ".any(-1), of its x"
        ]
    if name == "Embedding" and isinstance(config, dict) and config.get("mask_zero"):
        own = short(layer_name(layer))
        return [f"Embedding layer {own!r}: pass mask = ids != 0, of its ids"]
    layers = config if isinstance(config, list) else config.get("layers")
    if isinstance(layers, (list, tuple)):
        inside = [part for part in layers if is_object(part)]
        ends = config if isinstance(config, dict) else {}
        if len(path) < _MOST_NESTED:
            return _through_model(inside, ends, path, given, notes)
        return [mask]
    if mask is not None and _has_gru(layer):
        notes.add(path or (layer_name(layer),), mask)
    if name in _RECURRENT or count_cells(layer) > 0:
        inner = config.get("layer")
        of = inner["config"] if is_object(inner) else config
        return [mask if isinstance(of, dict) and of.get("return_sequences") else None]
    if _is_operation(layer) or name.startswith(_ENDS):
        return [None]
    return [_joined(layer, given) if name in (*_ELEMENTWISE, "Concatenate") else mask]


def _is_operation(layer: dict[str, Any]) -> bool:
    """Say whether a layer of a graph is a function of ``keras.ops``, whose output has no mask."""
    module = str(layer.get("module") or "")
    if module:
        return module.startswith("keras.") and not module.startswith(_LAYER_MODULES)
    # An .h5 of Keras 3 has no modules; operations have no "trainable".
    named = ">" not in layer["class_name"]
    return named and _is_modern(layer) and "trainable" not in layer["config"]


def _is_modern(layer: dict[str, Any]) -> bool:
    """Say whether a layer of a graph is in the form of Keras 3."""
    nodes = layer.get("inbound_nodes")
    return isinstance(nodes, (list, tuple)) and any(isinstance(node, dict) for node in nodes)


def _joined(layer: dict[str, Any], given: list[_Mask]) -> _Mask:
    """Return the mask that a layer makes of those of its inputs; Keras' versions differ in it."""
    name = layer["class_name"]
    masks = list(dict.fromkeys(filter(None, given)))
    free = None in given
    if not masks or (free and name != "Concatenate" and _is_modern(layer)):
        return None
    if name != "Concatenate":
        free = False  # Keras 2 joins the masks that there are
    if len(masks) == 1 and not free:
        return masks[0]
    how = "Keras 3.15 computes a step that any of them has, Keras 2 one that all have"
    if free:
        how = (
            "Keras 2 leaves out the steps that these masks leave out; Keras 3.15 counts an "
            "input without a mask as one that has all steps, and leaves none out"
        )
    # Layer after layer may join what those before it have joined.
    joined = "; and from the ".join(masks)
    if len(joined) > _LONGEST:
        joined = f"{joined[:_LONGEST]} ..."
    return (
        f"{joined}. {name} layer {short(layer_name(layer))!r} joins the masks of "
        f"its inputs{', one of which has none' if free else ''}: {how}"
    )


def _has_gru(layer: dict[str, Any]) -> bool:
    """Say whether a layer is a GRU, or a wrapper around one."""
    for _ in range(_MOST_NESTED):
        if count_cells(layer):
            return True
        inner = [part for part in layer["config"].values() if is_object(part)]
        inner = [part for part in inner if isinstance(part["config"], dict)]
        if not inner:
            return False
        layer = next((part for part in inner if count_cells(part)), inner[0])
    return False


def _through_model(
    layers: list[dict[str, Any]],
    ends: dict[str, Any],
    path: tuple[str, ...],
    given: list[_Mask],
    notes: _Notes,
) -> list[_Mask]:
    """Pass masks through a model's layers, along its graph or, in a Sequential, in order.

    ``ends`` has the graph's ``input_layers`` and ``output_layers``.
    """
    graph = any("inbound_nodes" in layer for layer in layers)
    starts: dict[str, int] = {}
    for place, (name, _) in enumerate(_tensors(ends.get("input_layers"))):
        starts.setdefault(name, place)
    first = next(filter(None, given), None)
    outputs: dict[str, list[_Mask]] = {}
    for layer in layers:
        own = layer_name(layer)
        if graph:
            masks = _given(layer, outputs)
            if masks is None:  # one of the model's inputs
                place = starts.get(own, -1)
                masks = [given[place] if 0 <= place < len(given) > 1 else first]
            if not any(masks) and _takes_mask(layer.get("inbound_nodes")):
                masks = ["mask argument in the model: pass it as mask="]
        else:
            masks = given
        # Such a call computes without the mask, but its output carries the mask to later layers.
        loses = _loses_mask(layer.get("inbound_nodes"))
        kept = notes._replace(texts=None) if loses else notes
        outputs[own] = _pass_on(layer, (*path, own), masks, kept)
        if not graph:
            given = outputs[own]
    if not outputs:
        return given
    known = [(n, i) for n, i in _tensors(ends.get("output_layers")) if n in outputs]
    return [_at(outputs[n], i) for n, i in known] or next(reversed(outputs.values()))


def _given(layer: dict[str, Any], outputs: dict[str, list[_Mask]]) -> list[_Mask] | None:
    """Return the masks of a layer's inputs, in the first call that has any; None without inputs."""
    nodes = layer.get("inbound_nodes")
    found: list[_Mask] | None = None
    for node in nodes if isinstance(nodes, (list, tuple)) else ():
        masks = [_at(outputs.get(name, [None]), index) for name, index in _tensors([node])]
        if masks and (found is None or not any(found)):
            found = masks
    return found


def _at(masks: list[_Mask], index: int) -> _Mask:
    return masks[index] if 0 <= index < len(masks) else None


def _tensors(nodes: Any) -> Iterator[tuple[str, int]]:
    """Yield the tensors in a config, as a layer's name and a number, in the form of Keras 2 or 3.

    ``nodes`` is ``inbound_nodes``, ``input_layers`` or ``output_layers``.
    """
    todo = [nodes]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            history = part.get("config")
            history = history.get("keras_history") if isinstance(history, dict) else None
            if isinstance(history, (list, tuple)) and history and isinstance(history[0], str):
                yield _tensor(history)
            elif "args" in part:
                todo.append(part["args"])
            elif "class_name" not in part:  # outputs by name, which Keras sorts
                todo += [part[key] for key in sorted(part, key=str, reverse=True)]
        elif isinstance(part, (list, tuple)):  # live configs have tuples
            if part and isinstance(part[0], str):  # Keras 2: [layer, node, tensor, arguments]
                yield _tensor(part)
            else:
                todo += reversed(part)


def _tensor(history: Any) -> tuple[str, int]:
    index = history[2] if len(history) > 2 else 0
    return history[0], index if isinstance(index, int) else 0


def _loses_mask(nodes: Any) -> bool:
    """Say whether each call has an initial state, in the form of Keras 3, and no ``mask``.

    Keras 3 makes the argument ``mask`` of the input's mask only for a call with one argument of
    tensors. Keras 2 makes it for a call with an initial state too.
    """
    calls = nodes if isinstance(nodes, (list, tuple)) else []
    return (
        bool(calls)
        and all(isinstance(call, dict) and _has_state(call) for call in calls)
        and (not _takes_mask(calls))
    )


def _has_state(call: dict[str, Any]) -> bool:
    args, kwargs = call.get("args"), call.get("kwargs")
    # Positions are the sequences, the initial state and the mask.
    place = args[1] if isinstance(args, (list, tuple)) and len(args) == 2 else None
    named = kwargs.get("initial_state") if isinstance(kwargs, dict) else None
    return any(state not in (None, [], [None]) for state in (place, named))


def _takes_mask(nodes: Any) -> bool:
    """Say whether a call in the form of Keras 3 has an argument ``mask``."""
    return isinstance(nodes, (list, tuple)) and any(
        isinstance(node, dict)
        and isinstance(node.get("kwargs"), dict)
        and node["kwargs"].get("mask") not in (None, [None])
        for node in nodes
    )
