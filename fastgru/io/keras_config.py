"""The GRUs in the config of a model that Keras 1, 2 or 3 wrote.

A config is data. This module skips layers of other kinds, whatever their configs contain.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.serialization import KERAS_PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

# The classes of recurrent layers in a model; cells are inside of these.
LAYERS = ("GRU", "CuDNNGRU", "RNN", "Bidirectional")
_INSIDE = ("cell", "cells", "layer", "backward_layer")
MOST_NESTED = 32

# Keras 1's names. Its initializers and regularizers are left out: Keras 1 writes them in a form of
# its own, and a layer that has its weights does not need them to run.
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
# CuDNNGRU computes with these and no others, so its config has no such keys.
_CUDNN = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "reset_after": True,
}


class LayerConfig(NamedTuple):
    """The config of a recurrent layer of a model.

    Attributes
    ----------
    path : tuple of str
        Names of the models it is nested in, and its own.
    group : str
        Where Keras 3 keeps its weights, with a slash at the end.
    class_name : str
        Its class in the model, such as "CuDNNGRU".
    form : dict
        The object dict that `fastgru.layers.base.deserialize_layer` takes.
    frozen : bool
        Whether a model around it is not trainable.
    cells : int
        How many GRU cells it has.
    """

    path: tuple[str, ...]
    group: str
    class_name: str
    form: dict[str, Any]
    frozen: bool
    cells: int

    @property
    def name(self) -> str:
        """The path as one string, such as ``"encoder/gru"``."""
        return "/".join(self.path)


def recurrent_layers(
    model: Any, path: tuple[str, ...] = (), group: str = "", frozen: bool = False
) -> Iterator[LayerConfig]:
    """Yield the GRUs of a model: alone, in RNN, Bidirectional, StackedRNNCells and nested models.

    Parameters
    ----------
    model : dict
        ``{"class_name", "config"}`` of a model, or of one layer.
    path, group, frozen
        Of ``model`` itself; see `LayerConfig`.

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
        yield LayerConfig(name, group, model["class_name"], modern_form(model), frozen, cells)
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
    elif isinstance(inner, dict) and "layer" in inner:  # of a wrapper, its layer counts
        yield from recurrent_layers(inner["layer"], path, f"{group}layer/", frozen)


def _is_object(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), (dict, list))
    )


def layer_name(layer: dict[str, Any]) -> str:
    """Return a layer's name, which Keras writes into its config, beside it, or both."""
    config = layer["config"]
    name = layer.get("name") or (config.get("name") if isinstance(config, dict) else None)
    return name if isinstance(name, str) else snake_case(layer["class_name"])


def count_cells(layer: dict[str, Any]) -> int:
    """Count the GRU cells of one of Keras' own `LAYERS`; 0 for others and with other cells."""
    return _count(layer) if layer["class_name"] in LAYERS else 0


def _count(layer: Any) -> int:
    if isinstance(layer, list):
        counts = [_count(part) for part in layer]
        return sum(counts) if all(counts) else 0
    if not _is_object(layer) or not isinstance(layer["config"], dict):
        return 0
    if str(layer.get("module") or "keras").partition(".")[0] not in KERAS_PACKAGES:
        return 0  # another package's class of the same name
    if layer["class_name"] in ("GRU", "CuDNNGRU", "GRUCell"):
        return 1
    if layer["class_name"] not in ("RNN", "Bidirectional", "StackedRNNCells"):
        return 0
    config = layer["config"]
    count = _count([config[key] for key in _INSIDE if config.get(key) is not None])
    twin = layer["class_name"] == "Bidirectional" and config.get("backward_layer") is None
    return 2 * count if twin else count


def modern_form(layer: Any) -> Any:
    """Return a recurrent layer's object dict with the names and defaults of Keras 2 or 3.

    Keys of Keras 1 get their later names, CuDNNGRU becomes the GRU that computes the same, and a
    mixed precision policy becomes the dtype of its variables.
    """
    if isinstance(layer, list):
        return [modern_form(part) for part in layer]
    if not isinstance(layer, dict):
        return layer
    class_name, config = layer["class_name"], dict(layer["config"])
    if "output_dim" in config:
        old = {key: config[key] for key in _KERAS_1_KEPT if key in config}
        old.update((new, config[key]) for key, new in _KERAS_1.items() if key in config)
        config = {**old, "implementation": 1}  # marks Keras 2; one dropout mask for each gate
    if class_name == "CuDNNGRU":
        class_name, config = "GRU", {**config, **_CUDNN}
    config.pop("num_constants", None)  # tf.keras' RNN: the number of inputs without a time axis
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict):
        dtype = dtype["config"].get("name")
    if dtype in ("mixed_float16", "mixed_bfloat16"):
        config["dtype"] = "float32"
    config.update((key, modern_form(config[key])) for key in _INSIDE if key in config)
    return {"class_name": class_name, "config": config}


def snake_case(class_name: str) -> str:
    """Return a class name as Keras 3 spells it in weights files, such as ``stacked_rnn_cells``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def numbered(names: Any) -> list[str]:
    """Return names where the second, third, ... equal one ends in ``_1``, ``_2``, ..."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, -1) + 1
        result.append(f"{name}_{counts[name]}" if counts[name] else name)
    return result
