"""Which layers of a Keras model are GRUs: configs of Keras 1, 2 and 3 walked, none of them run.

Layers of other kinds are passed over as data, whatever their configs hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.serialization import KERAS_PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a recurrent layer of a model may be; cells come inside these.
LAYERS = ("GRU", "CuDNNGRU", "RNN", "Bidirectional")
_INSIDE = ("cell", "cells", "layer", "backward_layer")
MOST_NESTED = 32

# Keras 1's names. Its initializers and regularizers are left out: their forms are its own, and a
# layer that has its weights needs neither to run.
_KERAS_1 = {
    "output_dim": "units",
    "inner_activation": "recurrent_activation",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
}
_KERAS_1_KEPT = (
    *("name", "trainable", "activation", "return_sequences", "go_backwards", "stateful"),
    *("unroll", "batch_input_shape"),
)
# CuDNNGRU has no choice in these, and so no such keys.
_CUDNN = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "reset_after": True,
}


class Entry(NamedTuple):
    """A recurrent layer in a model's config.

    Attributes
    ----------
    path : tuple of str
        Names of the models it is nested in, and its own.
    group : str
        Where Keras 3 keeps its weights, with a slash at the end.
    class_name : str
        As the model calls it, "CuDNNGRU" for one.
    config : dict
        What `fastgru.layers.base.deserialize_layer` takes.
    frozen : bool
        Whether a model around it is not trainable.
    cells : int
        How many GRU cells it has.
    """

    path: tuple[str, ...]
    group: str
    class_name: str
    config: dict[str, Any]
    frozen: bool
    cells: int

    @property
    def name(self) -> str:
        """The path as one string, as ``"encoder/gru"``."""
        return "/".join(self.path)


def recurrent_layers(
    model: Any, path: tuple[str, ...] = (), group: str = "", frozen: bool = False
) -> Iterator[Entry]:
    """Give the GRUs of a model: alone, in RNN, Bidirectional and StackedRNNCells, in nested models.

    Parameters
    ----------
    model : dict
        ``{"class_name", "config"}`` of a model, or of one layer.
    path, group, frozen
        Of ``model`` itself; see `Entry`.

    Raises
    ------
    ValueError
        Models are nested more than `MOST_NESTED` deep.
    """
    if not _is_object(model):
        return
    if len(path) > MOST_NESTED:
        raise ValueError(f"expected models nested at most {MOST_NESTED} deep, got more")
    inner = model["config"]
    if cells := count_cells(model):
        name = path or (layer_name(model),)
        yield Entry(name, group, model["class_name"], ours(model), frozen, cells)
        return
    layers = inner if isinstance(inner, list) else inner.get("layers")  # Keras 1 and 2.0: a list
    if isinstance(inner, dict):
        frozen = frozen or inner.get("trainable", True) is False
    if isinstance(layers, list):
        layers = [layer for layer in layers if _is_object(layer)]
        groups = numbered(snake_case(layer["class_name"]) for layer in layers)
        for layer, below in zip(layers, groups, strict=True):
            yield from recurrent_layers(
                layer, (*path, layer_name(layer)), f"{group}layers/{below}/", frozen
            )
    elif isinstance(inner, dict) and "layer" in inner:  # a wrapper stands for what it wraps
        yield from recurrent_layers(inner["layer"], path, f"{group}layer/", frozen)


def _is_object(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), (dict, list))
    )


def layer_name(layer: dict[str, Any]) -> str:
    """Return a layer's name, which Keras writes in its config, beside it, or both."""
    config = layer["config"]
    name = layer.get("name") or (config.get("name") if isinstance(config, dict) else None)
    return name if isinstance(name, str) else snake_case(layer["class_name"])


def count_cells(layer: dict[str, Any]) -> int:
    """Return the cells of a layer that is one of Keras' own `LAYERS`, of GRU cells alone; or 0."""
    return _count(layer) if layer["class_name"] in LAYERS else 0


def _count(layer: Any) -> int:
    if isinstance(layer, list):
        counts = [_count(part) for part in layer]
        return sum(counts) if all(counts) else 0
    if not _is_object(layer) or not isinstance(layer["config"], dict):
        return 0
    if str(layer.get("module") or "keras").partition(".")[0] not in KERAS_PACKAGES:
        return 0  # somebody's own class of the same name
    if layer["class_name"] in ("GRU", "CuDNNGRU", "GRUCell"):
        return 1
    if layer["class_name"] not in ("RNN", "Bidirectional", "StackedRNNCells"):
        return 0
    config = layer["config"]
    count = _count([config[key] for key in _INSIDE if config.get(key) is not None])
    twin = layer["class_name"] == "Bidirectional" and config.get("backward_layer") is None
    return 2 * count if twin else count


def ours(layer: Any) -> Any:
    """Return a recurrent layer's object form with the names and defaults of Keras 2 or 3.

    Keras 1's keys are renamed, CuDNNGRU becomes the GRU it computes, and a mixed precision policy
    the dtype of its variables.
    """
    if isinstance(layer, list):
        return [ours(part) for part in layer]
    if not isinstance(layer, dict):
        return layer
    class_name, config = layer["class_name"], dict(layer["config"])
    if "output_dim" in config:
        old = {key: config[key] for key in _KERAS_1_KEPT if key in config}
        old.update((new, config[key]) for key, new in _KERAS_1.items() if key in config)
        config = {**old, "implementation": 1}  # so it is no Keras 3; one dropout mask for each gate
    if class_name == "CuDNNGRU":
        class_name, config = "GRU", {**config, **_CUDNN}
    config.pop("num_constants", None)  # tf.keras' RNN: how many inputs are no sequences
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict):
        dtype = dtype["config"].get("name")
    if dtype in ("mixed_float16", "mixed_bfloat16"):
        config["dtype"] = "float32"
    config.update((key, ours(config[key])) for key in _INSIDE if key in config)
    return {"class_name": class_name, "config": config}


def snake_case(class_name: str) -> str:
    """Return a class's name as Keras 3 spells it in weights files: ``stacked_rnn_cells``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def numbered(names: Any) -> list[str]:
    """Return names with ``_1``, ``_2``, ... behind the second, third, ... of a kind."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, -1) + 1
        result.append(f"{name}_{counts[name]}" if counts[name] else name)
    return result
