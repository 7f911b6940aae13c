"""Activation functions of ONNX's recurrent operators, to and from `fastgru.activations`.

A node lists the functions' names, the values of alpha and the values of beta. As in ONNX Runtime,
each function that has such a parameter takes the next value, so Tanh takes none. If no value is
left, the function has the default of the ONNX operator of its name. Affine and ScaledTanh have no
agreed default, and neither has ThresholdedRelu: 1 in ONNX' text, 0 in ONNX Runtime.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru import activations

if TYPE_CHECKING:
    from collections.abc import Sequence

# A function's name, alpha and beta; None if it has no such parameter.
_Row = tuple[str, float | None, float | None]

_REQUIRED = math.nan  # values in files are finite

# name -> the defaults of alpha and beta.
_DEFAULTS: dict[str, tuple[float | None, float | None]] = {
    "Tanh": (None, None),
    "Sigmoid": (None, None),
    "Relu": (None, None),
    "Softsign": (None, None),
    "Softplus": (None, None),
    "Affine": (_REQUIRED, _REQUIRED),
    "ScaledTanh": (_REQUIRED, _REQUIRED),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (_REQUIRED, None),
    "Elu": (1.0, None),
}
_SPELLED = {name.lower(): name for name in _DEFAULTS}  # files differ in case

# The functions that equal an activation of fastgru. Of two equal ones `to_names` takes the first.
_SAME: dict[_Row, activations.Activation] = {
    ("Tanh", None, None): activations.tanh,
    ("Sigmoid", None, None): activations.sigmoid,
    ("Relu", None, None): activations.relu,
    ("Softsign", None, None): activations.softsign,
    ("Softplus", None, None): activations.softplus,
    ("HardSigmoid", 1 / 6, 0.5): activations.hard_sigmoid,
    ("HardSigmoid", 0.2, 0.5): activations.hard_sigmoid_keras2,
    ("Affine", 1.0, 0.0): activations.linear,
    ("ScaledTanh", 1.0, 1.0): activations.tanh,
}
# The functions that equal an activation of fastgru with any alpha. At x = alpha, where
# ThresholdedRelu jumps, fastgru's relu is 0 and the operator's ThresholdedRelu is alpha.
_WITH_ALPHA = {
    "LeakyRelu": (activations.leaky_relu, "negative_slope"),
    "Elu": (activations.elu, "alpha"),
    "ThresholdedRelu": (activations.relu, "threshold"),
}


def from_names(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], place: str
) -> list[activations.Activation]:
    """Return the activations that a node lists.

    Raises
    ------
    ValueError
        ONNX or `fastgru.activations` does not have a function, alpha or beta is missing or not
        finite, or there are more values than the functions take.
    """
    if not all(map(math.isfinite, [*alphas, *betas])):
        raise ValueError(f"{place}: expected finite activation_alpha and activation_beta")
    alphas_left, betas_left = list(alphas), list(betas)
    result = []
    for given in names:
        name = _SPELLED.get(given.lower())
        if name is None:
            raise ValueError(
                f"{place}: expected activations among {', '.join(_DEFAULTS)}, got {given!r}"
            )
        alpha, beta = _DEFAULTS[name]
        if alpha is not None and alphas_left:
            alpha = alphas_left.pop(0)
        if beta is not None and betas_left:
            beta = betas_left.pop(0)
        if _REQUIRED in (alpha, beta):
            raise ValueError(
                f"{place}: {name} has no defaults that are agreed on; expected its "
                f"alpha{'' if beta is None else ' and beta'} in activation_alpha"
                f"{'' if beta is None else ' and activation_beta'}"
            )
        result.append(_activation_of((name, alpha, beta), place))
    if alphas_left or betas_left:
        raise ValueError(
            f"{place}: activation_alpha {list(alphas)} and activation_beta {list(betas)} have more "
            f"values than {', '.join(names)} take; which belongs to which cannot be said"
        )
    return result


def to_names(acts: Sequence[Any]) -> tuple[list[str], list[float], list[float]]:
    """Return the names, alphas and betas by which a node lists ``acts``.

    Raises
    ------
    ValueError
        ONNX's GRU has no such activation.
    """
    rows = [_row_of(act) for act in acts]
    names = [name for name, _, _ in rows]
    alphas = [alpha for _, alpha, _ in rows if alpha is not None]
    betas = [beta for _, _, beta in rows if beta is not None]
    return names, alphas, betas


def _activation_of(row: _Row, place: str) -> activations.Activation:
    name, alpha, beta = row
    for (same, a, b), act in _SAME.items():
        if name == same and _equal(alpha, a) and _equal(beta, b):
            return act
    if name in _WITH_ALPHA:
        act, parameter = _WITH_ALPHA[name]
        return act.with_params(**{parameter: alpha})
    raise ValueError(
        f"{place}: activation {name} with alpha={alpha} and beta={beta} is none of "
        "fastgru.activations, so no layer can be made of the node"
    )


def _row_of(act: Any) -> _Row:
    for row, same in _SAME.items():
        if act == same:
            return row
    for name, (base, parameter) in _WITH_ALPHA.items():
        if isinstance(act, activations.Activation) and act.name == base.name:
            alpha = act.get_config()["params"][parameter]
            if act == base.with_params(**{parameter: alpha}):
                return name, alpha, None
    raise ValueError(
        f"activation: ONNX's GRU has {', '.join(_DEFAULTS)}; it cannot express {act!r}"
    )


def _equal(a: float | None, b: float | None) -> bool:
    """Compare in float32, which is the type of attributes in a file."""
    return a == b or (a is not None and b is not None and np.float32(a) == np.float32(b))
