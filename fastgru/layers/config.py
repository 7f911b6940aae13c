"""Configs of Keras 2 and Keras 3, read as the constructors of this library want them."""

from __future__ import annotations

from typing import Any

from fastgru import activations, constraints, initializers, regularizers
from fastgru.dtypes import policy_of

# Where Keras writes things that say nothing about the layer's arithmetic.
_IGNORED = (
    "batch_input_shape",
    "batch_shape",
    "input_shape",
    "input_dim",
    "input_length",
    "ragged",
    "stacked",
    "autocast",
)
_ACTIVATIONS = ("activation", "recurrent_activation")


def is_keras2(config: dict[str, Any]) -> bool:
    """Say whether a layer's config was written by Keras 2 (tf.keras 2.x).

    Keras 3 and this library always write ``seed`` for a GRU; Keras 2 never does, and writes one
    of the other keys.
    """
    return "seed" not in config and any(
        key in config for key in ("implementation", "time_major", "batch_input_shape")
    )


def keras_config(
    config: dict[str, Any], custom_objects: dict[str, Any] | None = None, needs: str = ""
) -> dict[str, Any]:
    """Return a copy of ``config`` as constructor arguments.

    Dtype policies become names, activations become objects (a Keras 2 ``hard_sigmoid`` keeps its
    slope of 0.2, semantics.md 10), and a Keras 2 config without ``reset_after`` means False, its
    default before there was a choice.

    Raises
    ------
    TypeError
        ``config`` is not a dict.
    ValueError
        It lacks the key ``needs``.
    """
    if not isinstance(config, dict):
        raise TypeError(f"config: expected a dict, as get_config() gives, got {config!r}")
    if needs and needs not in config:
        raise ValueError(
            f"config: expected the key {needs!r}, as get_config() gives, got the keys "
            f"{sorted(config)}"
        )
    result = {key: value for key, value in config.items() if key not in _IGNORED}
    keras2 = is_keras2(config)
    if "dtype" in result:
        result["dtype"] = policy_of(result["dtype"]).name
    for key in _ACTIVATIONS:
        if key in result:
            result[key] = activations.get(result[key], custom_objects, keras2=keras2)
    for module in (initializers, regularizers, constraints):
        suffix = "_" + module.__name__.rpartition(".")[2][:-1]
        for key in result:
            if key.endswith(suffix):
                result[key] = module.get(result[key], custom_objects)
    if keras2 and "units" in result:
        result.setdefault("reset_after", False)
    return result
