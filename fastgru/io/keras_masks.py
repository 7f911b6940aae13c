"""Which GRUs of a Keras model get a mask, from the model's config.

Keras passes masks from layer to layer beside the arrays. Arrays alone do not have them, so a GRU
that was taken out of its model has to be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru.io.keras_config import count_cells, is_object, layer_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# Layers whose output has no mask. A layer of an unknown class may pass it on, so it counts as if.
_ENDS = (
    *("Flatten", "Reshape", "Lambda", "RepeatVector", "Dot", "Conv", "DepthwiseConv"),
    *("SeparableConv", "Global", "MaxPooling", "AveragePooling", "UpSampling", "ZeroPadding"),
    *("Cropping", "LocallyConnected", "ConvLSTM", "StringLookup", "IntegerLookup"),
)
_RECURRENT = ("GRU", "LSTM", "SimpleRNN", "RNN", "CuDNNGRU", "CuDNNLSTM", "Bidirectional")
_MOST_NESTED = 32


def mask_notes(model: Any) -> dict[str, str]:
    """Return what to tell the user of each GRU that the model gives a mask.

    Parameters
    ----------
    model : dict
        ``{"class_name", "config"}`` of a model.

    Returns
    -------
    dict of str to str
        Texts by the name of the layer, as ``"encoder/gru"``.
    """
    notes: dict[str, str] = {}
    if is_object(model):
        _pass_on(model, (), None, notes)
    return notes


def _pass_on(
    layer: dict[str, Any], path: tuple[str, ...], mask: str | None, notes: dict[str, str]
) -> str | None:
    """Note the masks in a layer or model that gets this mask; return the mask of its output."""
    config, name = layer["config"], layer["class_name"]
    if name == "Masking":
        value = config.get("mask_value", 0.0) if isinstance(config, dict) else 0.0
        return (
            f"Masking layer {layer_name(layer)!r}: pass mask = (x != {value!r}).any(-1), of its x"
        )
    if name == "Embedding" and isinstance(config, dict) and config.get("mask_zero"):
        return f"Embedding layer {layer_name(layer)!r}: pass mask = ids != 0, of its ids"
    layers = config if isinstance(config, list) else config.get("layers")
    if isinstance(layers, (list, tuple)):
        inside = [part for part in layers if is_object(part)]
        return _through_model(inside, path, mask, notes) if len(path) < _MOST_NESTED else mask
    recurrent = name in _RECURRENT or count_cells(layer) > 0
    if mask is not None and _has_gru(layer):
        notes["/".join(path or (layer_name(layer),))] = mask
    if recurrent:
        inner = config.get("layer")
        of = inner["config"] if is_object(inner) else config
        return mask if isinstance(of, dict) and of.get("return_sequences") else None
    return None if name.startswith(_ENDS) else mask


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
    path: tuple[str, ...],
    mask: str | None,
    notes: dict[str, str],
) -> str | None:
    """Pass a mask through a model's layers, along its graph or, in a Sequential, in order."""
    graph = any("inbound_nodes" in layer for layer in layers)
    outputs: dict[str, str | None] = {}
    for layer in layers:
        if graph:
            names = list(_inputs(layer.get("inbound_nodes")))
            given = next((outputs[n] for n in names if outputs.get(n)), None)
            given = given if names else mask
            if given is None and _takes_mask(layer.get("inbound_nodes")):
                given = "mask argument in the model: pass it as mask="
        else:
            given = mask
        own = layer_name(layer)
        # Such a call computes without the mask, but its output carries the mask to later layers.
        kept = {} if _loses_mask(layer.get("inbound_nodes")) else notes
        mask_out = _pass_on(layer, (*path, own), given, kept)
        outputs[own] = mask_out
        if not graph:
            mask = mask_out
    return next(reversed(outputs.values())) if outputs else mask


def _inputs(nodes: Any) -> Iterator[str]:
    """Yield the layers that a layer's ``inbound_nodes`` name, in the form of Keras 2 or 3."""
    todo = list(nodes) if isinstance(nodes, (list, tuple)) else []
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            history = part.get("config")
            history = history.get("keras_history") if isinstance(history, dict) else None
            if isinstance(history, (list, tuple)) and history and isinstance(history[0], str):
                yield history[0]
            elif "args" in part:
                todo.append(part["args"])
        elif isinstance(part, (list, tuple)):  # live configs have tuples
            if part and isinstance(part[0], str):  # Keras 2: [layer, node, tensor, arguments]
                yield part[0]
            else:
                todo += part


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
