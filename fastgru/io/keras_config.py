"""The GRUs in the config of a model that Keras 1, 2 or 3 wrote.

A config is data. This module skips layers of other kinds, whatever their configs contain.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.dtypes import policy_name
from fastgru.io.budget import text_bytes
from fastgru.serialization import KERAS_PACKAGES, is_foreign

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fastgru.io.budget import Budget

# The classes of recurrent layers in a model; cells are inside of these.
LAYERS = ("GRU", "CuDNNGRU", "RNN", "Bidirectional")
# Their classes in the names that Keras makes, a pattern.
SNAKES = "gru|rnn|bidirectional|cu_dnngru"
_AUTOMATIC = re.compile(rf"({SNAKES})(_\d+)?")
_INSIDE = ("cell", "cells", "layer", "backward_layer")
MOST_NESTED = 32
_MOST_STACKED = 8  # layers and cells in each other that are one layer, as an RNN in a Bidirectional
# Of Python, for the config of a layer with one cell; and how often its names are copied on the way.
_CONFIG_OBJECTS, _COPIES = 20, 4
_COPIED_IN_A_STEP = 1 << 10  # characters
_ALIAS = "stands for"
_WIDTHS = ["float32", "float64"]

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
    owner_frozen : bool
        Whether the layer of the outermost model that it is, or is in, is not trainable.
    wrapper : str
        The class of the wrapper around it, or empty; of several "Outer of Inner".
    """

    path: tuple[str, ...]
    group: str
    class_name: str
    form: dict[str, Any]
    frozen: bool
    cells: int
    owner_frozen: bool = False
    wrapper: str = ""

    @property
    def name(self) -> str:
        """The path as one string, such as ``"encoder/gru"``."""
        return "/".join(self.path)


def recurrent_layers(
    model: Any,
    budget: Budget,
    path: tuple[str, ...] = (),
    group: str = "",
    frozen: bool = False,
    owner_frozen: bool = False,
) -> Iterator[LayerConfig]:
    """Yield the GRUs of a model: alone, in RNN, Bidirectional, StackedRNNCells and nested models.

    Parameters
    ----------
    model : dict
        ``{"class_name", "config"}`` of a model, or of one layer.
    budget : Budget
        Counts the configs and the names in them: a long name may be around many layers.
    path, group, frozen, owner_frozen
        Of ``model`` itself; see `LayerConfig`.

    Raises
    ------
    ValueError
        Models are nested more than `MOST_NESTED` deep, or the configs take more than the budget.
    """
    if not is_object(model):
        return
    if len(path) > MOST_NESTED:
        raise ValueError(f"expected models nested at most {MOST_NESTED} deep, got more")
    budget.step(1 + len(group) // _COPIED_IN_A_STEP, "its config")
    inner = model["config"]
    if cells := count_cells(model):
        owner_frozen = owner_frozen or (len(path) < 2 and _is_frozen(inner))
        named = sum(map(text_bytes, path)) + text_bytes(group)
        budget.make_objects(_CONFIG_OBJECTS * cells, _COPIES * named, "its config")
        yield LayerConfig(
            path or (layer_name(model),),
            *(group, model["class_name"], modern_form(model), frozen, cells, owner_frozen),
        )
        return
    layers = inner if isinstance(inner, list) else inner.get("layers")  # Keras 1 and 2.0: a list
    if len(path) == 1:
        owner_frozen = _is_frozen(inner)
    frozen = frozen or _is_frozen(inner)
    if isinstance(layers, list):
        layers = [layer for layer in layers if is_object(layer)]
        groups = numbered(snake_case(layer["class_name"]) for layer in layers)
        for layer, below in zip(layers, groups, strict=True):
            yield from recurrent_layers(
                layer,
                budget,
                *((*path, layer_name(layer)), f"{group}layers/{below}/", frozen, owner_frozen),
            )
    elif isinstance(inner, dict):  # a wrapper, of Keras or of others
        found = {
            key: list(
                recurrent_layers(part, budget, path, f"{group}{place}/", frozen, owner_frozen)
            )
            for key, place, part in _inside_of(inner)
        }
        several = sum(map(bool, found.values())) > 1
        for key, configs in found.items():
            for config in configs:
                # The wrapper's name is enough where there is one GRU in it.
                names = (*path, key, *config.path[len(path) :]) if several else config.path
                around = (model["class_name"], *filter(None, [config.wrapper]))
                copied = text_bytes(model["class_name"]) + text_bytes(config.wrapper)
                budget.make_objects(2, copied, "its config")
                budget.step(copied // _COPIED_IN_A_STEP, "its config")
                yield config._replace(path=names, wrapper=" of ".join(around))


def identity(config: LayerConfig) -> tuple[str, bytes]:
    """Return what two configs of one shared layer have in common: its name and a hash of it."""
    form = repr(config.form).encode("utf-8", "surrogatepass")
    return config.path[-1], hashlib.sha256(form).digest()


def grouped(configs: Sequence[LayerConfig]) -> list[list[LayerConfig]]:
    """Return, for each config, all that are of the same layer, which several models may share."""
    own = [identity(config) for config in configs]
    same: dict[tuple[str, bytes], list[LayerConfig]] = {}
    for config, key in zip(configs, own, strict=True):
        same.setdefault(key, []).append(config)
    return [same[key] for key in own]


def _inside_of(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, Keras 3's group and object dict of the layers in a config, in lists too."""
    for key, value in config.items():
        if is_object(value):
            yield key, key, value
        elif isinstance(value, list):
            parts = [part for part in value if is_object(part)]
            groups = numbered(snake_case(part["class_name"]) for part in parts)
            for i, (part, below) in enumerate(zip(parts, groups, strict=True)):
                yield f"{key}/{i}", f"{key}/{below}", part


def _is_frozen(config: Any) -> bool:
    return isinstance(config, dict) and config.get("trainable", True) is False


def is_object(value: Any) -> bool:
    """Say whether a value of a config is an object dict."""
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
    return _count(layer, 0) if kind_of(layer) in LAYERS else 0


def kind_of(layer: dict[str, Any]) -> str:
    """Return the class of Keras that an object dict is of, or that `mark` says it stands for."""
    return str(layer.get(_ALIAS) or layer["class_name"])


def mark(model: Any, kinds: dict[str, str]) -> None:
    """Note in a model's config which of the user's own classes stand for a class of Keras.

    Parameters
    ----------
    model : dict or list
        JSON; it changes.
    kinds : dict of str to str
        Keras' names by the users' names of classes, registered names too.
    """
    todo = [model]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            part.pop(_ALIAS, None)  # a file cannot say this
            for name in (part.get("registered_name"), part.get("class_name")):
                if isinstance(name, str):
                    kind = kinds.get(name) or kinds.get(name.rpartition(">")[2])
                    if kind and isinstance(part.get("config"), (dict, list)):
                        part[_ALIAS] = kind
        if isinstance(part, (dict, list)):
            todo += part.values() if isinstance(part, dict) else part


def _count(layer: Any, depth: int) -> int:
    if isinstance(layer, list):
        counts = [_count(part, depth) for part in layer]
        return sum(counts) if all(counts) else 0
    if not is_object(layer) or not isinstance(layer["config"], dict):
        return 0
    if is_foreign(layer, KERAS_PACKAGES) and _ALIAS not in layer:
        return 0  # another package's class of the same name
    kind = kind_of(layer)
    if kind in ("GRU", "CuDNNGRU", "GRUCell"):
        return 1
    if kind not in ("RNN", "Bidirectional", "StackedRNNCells"):
        return 0
    if depth > _MOST_STACKED:  # each layer around them counts them again
        raise ValueError(
            f"expected at most {_MOST_STACKED} recurrent layers and cells in each other, got more"
        )
    config = layer["config"]
    inside = ("cell",) if kind == "RNN" else _INSIDE
    count = _count([config[key] for key in inside if config.get(key) is not None], depth + 1)
    twin = kind == "Bidirectional" and config.get("backward_layer") is None
    return 2 * count if twin else count


def modern_form(layer: Any) -> Any:
    """Return a recurrent layer's object dict with the names and defaults of Keras 2 or 3.

    Keys of Keras 1 get their later names, and CuDNNGRU becomes the GRU that computes the same. The
    dtype becomes that of the variables, or float32 where these are narrower.
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
    # 0 is Keras 2.0's default, and TensorFlow.js writes null; both compute what 1 does.
    if config.get("implementation", 1) in (0, None):
        config["implementation"] = 1
    if class_name == "GRUCell" and config.get("activity_regularizer") is None:
        config.pop("activity_regularizer", None)  # TensorFlow.js' cells have one
    if class_name == "RNN" and is_object(config.get("cell")):
        # TensorFlow.js writes the cell's arguments beside those of the layer too.
        twice = set(config["cell"]["config"]) - {"name", "trainable", "dtype"}
        config = {key: value for key, value in config.items() if key not in twice}
    config.pop("num_constants", None)  # tf.keras' RNN: the number of inputs without a time axis
    config.update((key, modern_form(config[key])) for key in _INSIDE if key in config)
    form = {"class_name": class_name, "config": config}
    _set_dtype(form, max(_dtypes(form), key=_WIDTHS.index, default=None))
    for key in (_ALIAS, "registered_name") if _ALIAS in layer else ():
        form[key] = layer.get(key)
    return form


def _dtypes(form: Any) -> Iterator[str]:
    """Yield the dtypes that a form's cells and layers compute in, where fastgru has them."""
    config = form["config"]
    parts = [config[key] for key in _INSIDE if config.get(key) is not None]
    parts = [part for some in parts for part in (some if isinstance(some, list) else [some])]
    for part in parts:
        yield from _dtypes(part)
    if not parts and config.get("dtype") is not None:
        dtype = policy_name(config["dtype"])
        # float32 holds the numbers of 16 bits exactly, and is what mixed policies keep weights in.
        if isinstance(dtype, str) and dtype.endswith("float16"):
            dtype = "float32"
        if dtype in _WIDTHS:
            yield dtype


def _set_dtype(form: Any, dtype: str | None) -> None:
    """Give a layer, and all in it, the widest dtype there is: fastgru has one for the whole."""
    if dtype is None:
        return
    form["config"]["dtype"] = dtype
    for key in _INSIDE:
        part = form["config"].get(key)
        for one in part if isinstance(part, list) else [part]:
            if isinstance(one, dict):
                _set_dtype(one, dtype)


def snake_case(class_name: str) -> str:
    """Return a class name as Keras 3 spells it in weights files, such as ``stacked_rnn_cells``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def are_automatic(names: Iterable[str]) -> bool:
    """Say whether names are those that Keras gives to recurrent layers that have none."""
    return all(_AUTOMATIC.fullmatch(name) for name in names)


def numbered(names: Any) -> list[str]:
    """Return names where the second, third, ... equal one ends in ``_1``, ``_2``, ..."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, -1) + 1
        result.append(f"{name}_{counts[name]}" if counts[name] else name)
    return result
