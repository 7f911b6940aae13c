"""Keras 3's activations on NumPy arrays, each with its derivative.

The table below defines each: name, value, derivative, parameters. Results agree with Keras' NumPy
backend, keep the input's dtype, and do not overflow where the result is finite. But NaN always
propagates, and `sparsemax` projects on the simplex, where Keras up to 3.15 errs (keras#23425).

Source: https://keras.io/api/layers/activations/.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastgru import serialization
from fastgru.device import plain, special_functions
from fastgru.serialization import deserialize_object, is_live_keras, serialize_object, unknown_name

_Array = Any  # an ndarray, a NumPy scalar, or another array that NumPy's functions dispatch on


class Activation:
    """An immutable activation with its parameters; equal to another of equal name and params.

    Call the instances of this module (``activations.tanh``, ...) like Keras' functions. Parameters
    of a call replace the instance's own.

    Parameters
    ----------
    name : str
        Keras' name.
    params : dict, optional
        Parameters by Keras' names. The others have their defaults.

    Attributes
    ----------
    name, __name__ : str
        Keras' name.
    params : tuple
        The values of all parameters, in Keras' order: float, bool, int or None.
    elementwise : bool
        False for `glu` and the softmax family, whose values depend on an axis: use `vjp`.
    shape_preserving : bool
        False for `glu` alone, which halves an axis. Layers refuse it.
    """

    __slots__ = ("_derivative", "_value", "elementwise", "name", "params", "shape_preserving")

    name: str
    params: tuple[Any, ...]
    elementwise: bool
    shape_preserving: bool
    _value: Callable[..., _Array]
    _derivative: Callable[..., _Array]

    def __init__(self, name: str, params: Mapping[str, Any] | None = None):
        if name not in _TABLE:
            raise unknown_name("activation", name, _TABLE)
        value, derivative, elementwise, shape_preserving, defaults = _TABLE[name]
        given = dict(params or {})
        values = tuple(_plain(name, key, given.pop(key, old), old) for key, old in defaults.items())
        if given:
            expected = ", ".join(defaults) or "none"
            raise TypeError(f"{name!r} takes parameters: {expected}; got {', '.join(given)}.")
        # In the order of __slots__.
        items = (derivative, value, elementwise, name, values, shape_preserving)
        for slot, item in zip(self.__slots__, items, strict=True):
            object.__setattr__(self, slot, item)

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"Activation {self.name!r} is immutable: use with_params for another.")

    @property
    def __name__(self) -> str:
        """Keras' name, as on a function."""
        return self.name

    def with_params(self, *args: Any, **params: Any) -> "Activation":
        """Return the same activation with other parameters: ``elu.with_params(alpha=0.5)``."""
        mine = self.get_config()["params"]
        if len(args) > len(mine):
            raise TypeError(f"{self.name!r} takes {len(mine)} parameters, got {len(args)}.")
        given = dict(**dict(zip(mine, args, strict=False)), **params)  # TypeError if given twice
        return Activation(self.name, {**mine, **given})

    def __call__(self, x: _Array, *args: Any, **params: Any) -> _Array:
        """Apply the activation.

        Parameters
        ----------
        x : array_like
            Any shape. Integers, bools and lists become float32, as in Keras. Complex numbers raise
            TypeError.
        *args, **params
            Keras' parameters of this activation.

        Returns
        -------
        ndarray
            The dtype of `x`, and its shape (except `glu`). `linear` returns `x` itself.
        """
        if args or params:
            return self.with_params(*args, **params)(x)
        if not hasattr(x, "dtype") or x.dtype.kind != "f":
            x = _as_floating(x, self.name)
        y = self._value(x, *self.params)
        return y if y.dtype == x.dtype else y.astype(x.dtype)

    def gradient(self, x: _Array, y: _Array) -> _Array:
        """Return the elementwise derivative.

        Parameters
        ----------
        x, y : ndarray
            The pre-activation and ``y = act(x)``.

        Returns
        -------
        ndarray
            ``d act / dx`` at each element, in the dtype and shape of `x`. What it is at a kink,
            docs/semantics.md says in rule 13.

        Raises
        ------
        ValueError
            The activation is not elementwise: use `vjp`.
        """
        if not self.elementwise:
            raise ValueError(f"{self.name!r} is not elementwise: use vjp(x, y, dy), not gradient.")
        return plain(self._derivative(x, y, *self.params)).astype(x.dtype, copy=False)

    def vjp(self, x: _Array, y: _Array, dy: _Array) -> _Array:
        """Return the gradient of ``<act(x), dy>`` for `x`; `dy` has the shape of `y`."""
        if self.elementwise:
            return dy * self.gradient(x, y)
        return plain(self._derivative(x, y, dy, *self.params)).astype(x.dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        """Return name and parameters, the arguments of `from_config`."""
        names = _TABLE[self.name][4]
        return {"name": self.name, "params": dict(zip(names, self.params, strict=True))}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Activation":
        """Rebuild from `get_config`."""
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        return Activation, (self.name, self.get_config()["params"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activation):
            return NotImplemented
        return self.name == other.name and self.params == other.params

    def __hash__(self) -> int:
        return hash((self.name, self.params))

    def __repr__(self) -> str:
        params = self.get_config()["params"]
        return f"<fastgru activation {self.name}{params or ''}>"


def _plain(name: str, key: str, value: Any, default: Any) -> Any:
    """Return a parameter as a Python number, which equality, hashing and configs need."""
    if value is None and default is None:
        return None
    kind = type(default) if isinstance(default, int) else float  # bool is an int
    try:
        plain = kind(value)
        exact = bool(plain == value)
    except (TypeError, ValueError):
        exact = False
    if not exact:  # also NaN, an array, 1.5 for an axis
        raise ValueError(f"Activation {name!r}: {key} must be {kind.__name__}, got {value!r}.")
    return plain


def _as_floating(x: Any, name: str) -> _Array:
    x = x if hasattr(x, "dtype") else np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"Activation {name!r} takes real numbers, got {x.dtype}.")
    return x.astype(np.float32)


# name -> (value, derivative, elementwise, shape_preserving, parameters with their defaults)
_Definition = tuple[Callable[..., _Array], Callable[..., _Array], bool, bool, dict[str, Any]]
_TABLE: dict[str, _Definition] = {}
_NAMES: dict[str, Activation] = {}


def _define(
    name: str,
    value: Callable[..., _Array],
    derivative: Callable[..., _Array],
    *,
    elementwise: bool = True,
    shape_preserving: bool = True,
    **defaults: Any,
) -> Activation:
    """Define ``value(x, *params)``, ``derivative(x, y, *params)`` or a vjp ``(x, y, dy, ...)``."""
    _TABLE[name] = (value, derivative, elementwise, shape_preserving, defaults)
    _NAMES[name] = Activation(name)
    return _NAMES[name]


# The functions that do not fit into the table below. Arguments are the activation's parameters.

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
_THRESHOLD_NEEDS = "'threshold' has no defaults: use threshold.with_params(limit, default_value)."
_SQRT_2, _SQRT_2_PI = float(np.sqrt(2)), float(np.sqrt(2 / np.pi))


def _exp(x: _Array) -> _Array:
    with np.errstate(over="ignore"):  # inf is right, also for _sigmoid
        return np.exp(x)


def _sigmoid(x: _Array) -> _Array:
    # (1 + tanh(x/2))/2 would lose the relative accuracy of small results.
    t = _exp(-x)
    t += 1
    return np.reciprocal(t)


def _softplus(x: _Array) -> _Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))  # np.logaddexp is slower, warns of NaN


def _relu(x: _Array, slope: float, top: float | None, threshold: float) -> _Array:
    if slope == 0 and top is None and threshold == 0:
        return np.maximum(x, 0)
    y = np.where(x <= threshold, 0, x)
    if top is not None:
        y = np.minimum(np.maximum(y, 0), top)
    return y + slope * np.minimum(x - threshold, 0) if slope else y


def _drelu(x: _Array, y: _Array, slope: float, top: float | None, threshold: float) -> _Array:
    at = slope if top is None and threshold == 0 else 0  # at the threshold
    below = np.where(x == threshold, at, slope) if at != slope else slope
    return np.where(x > threshold, 1 if top is None else (x > 0) & (x < top), below)


def _elu(x: _Array, alpha: float) -> _Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _delu(x: _Array, y: _Array, alpha: float) -> _Array:
    return np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))


def _normal_cdf(x: _Array, approximate: bool) -> _Array:
    if approximate:
        x = np.clip(x, -100, 100)  # tanh is +-1 there, and the cube of a large float32 overflows
        return 0.5 * (1 + np.tanh(_SQRT_2_PI * (x + 0.044715 * x**3)))
    return (special_functions(x).erf(x / _SQRT_2) + 1) * 0.5


def _dgelu(x: _Array, y: _Array, approximate: bool) -> _Array:
    p, x = _normal_cdf(x, approximate), np.clip(x, -100, 100)
    if approximate:
        return p + x * (2 * p * (1 - p)) * (_SQRT_2_PI * (1 + 3 * 0.044715 * x * x))
    return p + x * np.exp(-0.5 * x * x) * (_SQRT_2_PI / 2)


def _squareplus(x: _Array, b: float) -> _Array:
    s = np.hypot(x, b**0.5)  # in sqrt(x*x + b), x*x would overflow
    return np.where(x > 0, 0.5 * (x + s), 0.5 * b / (s - np.minimum(x, 0)))  # without cancellation


def _threshold(x: _Array, threshold: float | None, default_value: float | None) -> _Array:
    if threshold is None or default_value is None:
        raise ValueError(_THRESHOLD_NEEDS)
    return np.where(x <= threshold, default_value, x)


def _ramp(x: _Array) -> _Array:
    return 0.5 * (np.clip(x, -1, 1) + 1)


def _shifted(x: _Array, axis: int) -> _Array:
    return x - np.max(x, axis=axis, keepdims=True) if x.size else x


def _softmax(x: _Array, axis: int) -> _Array:
    e = np.exp(_shifted(x, axis))
    return e / np.sum(e, axis=axis, keepdims=True)


def _log_softmax(x: _Array, axis: int) -> _Array:
    x = _shifted(x, axis)
    return x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True)) if x.size else x


def _sparsemax(x: _Array, axis: int) -> _Array:
    # Martins and Astudillo 2016, algorithm 1, after a shift that makes the maximum 0.
    if x.size == 0:
        return x
    x = np.moveaxis(_shifted(x, axis), axis, -1)
    falling = -np.sort(-x, axis=-1)
    sums = np.cumsum(falling, axis=-1)
    k = np.arange(1, x.shape[-1] + 1, dtype=x.dtype, like=x)
    size = np.maximum(np.sum(1 + k * falling > sums, axis=-1, keepdims=True), 1)  # NaN gives 0
    tau = (np.take_along_axis(sums, size - 1, axis=-1) - 1) / size.astype(x.dtype)
    return np.moveaxis(np.maximum(x - tau, 0), -1, axis)


def _dsparsemax(x: _Array, y: _Array, dy: _Array, axis: int) -> _Array:
    support = (y > 0).astype(y.dtype)
    size = np.maximum(np.sum(support, axis=axis, keepdims=True), 1)
    return support * (dy - np.sum(dy * support, axis=axis, keepdims=True) / size)


def _glu_halves(x: _Array, axis: int) -> tuple[_Array, _Array]:
    if x.ndim == 0 or x.shape[axis] % 2:
        raise ValueError(f"Activation 'glu' expects an even length on axis {axis}, got {x.shape}.")
    a, b = np.split(x, 2, axis)
    return a, _sigmoid(b)


def _dglu(x: _Array, y: _Array, dy: _Array, axis: int) -> _Array:
    a, s = _glu_halves(x, axis)
    return np.concatenate([dy * s, dy * a * s * (1 - s)], axis)


# fmt: off
tanh = _define("tanh", np.tanh, lambda x, y: 1 - y * y)
sigmoid = _define("sigmoid", _sigmoid, lambda x, y: y * (1 - y))
linear = _define("linear", lambda x: x, lambda x, y: np.ones_like(x))
relu = _define("relu", _relu, _drelu, negative_slope=0.0, max_value=None, threshold=0.0)
relu6 = _define("relu6", lambda x: np.clip(x, 0, 6), lambda x, y: (x > 0) & (x < 6))
leaky_relu = _define("leaky_relu", lambda x, slope: np.where(x >= 0, x, slope * x),
                     lambda x, y, slope: np.where(x > 0, 1, slope), negative_slope=0.2)
elu = _define("elu", _elu, _delu, alpha=1.0)
selu = _define("selu", lambda x: _SELU_SCALE * _elu(x, _SELU_ALPHA),
               lambda x, y: _SELU_SCALE * _delu(x, y, _SELU_ALPHA))
celu = _define("celu",
               lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha),
               lambda x, y, alpha: np.exp(np.minimum(x, 0) / alpha), alpha=1.0)
exponential = _define("exponential", _exp, lambda x, y: y)
softplus = _define("softplus", _softplus, lambda x, y: _sigmoid(x))
log_sigmoid = _define("log_sigmoid", lambda x: -_softplus(-x), lambda x, y: _sigmoid(-x))
softsign = _define("softsign", lambda x: x / (1 + np.abs(x)),
                   lambda x, y: (1 / (1 + np.abs(x))) ** 2)
silu = _define("silu", lambda x: x * _sigmoid(x), lambda x, y: (s := _sigmoid(x)) + y * (1 - s))
mish = _define("mish", lambda x: x * np.tanh(_softplus(x)),
               lambda x, y: (t := np.tanh(_softplus(x))) + x * _sigmoid(x) * (1 - t * t))
gelu = _define("gelu", lambda x, approximate: x * _normal_cdf(x, approximate), _dgelu,
               approximate=False)
squareplus = _define("squareplus", _squareplus, lambda x, y, b: y / np.hypot(x, b**0.5), b=4.0)
tanh_shrink = _define("tanh_shrink", lambda x: x - np.tanh(x), lambda x, y: np.tanh(x) ** 2)
soft_shrink = _define("soft_shrink", lambda x, t: x - np.clip(x, -t, t),
                      lambda x, y, t: np.abs(x) > t, threshold=0.5)
hard_shrink = _define("hard_shrink", lambda x, t: np.where(np.abs(x) <= t, 0, x),
                      lambda x, y, t: np.abs(x) > t, threshold=0.5)
threshold = _define("threshold", _threshold, lambda x, y, t, default: x > t,
                    threshold=None, default_value=None)
hard_tanh = _define("hard_tanh", lambda x: np.clip(x, -1, 1), lambda x, y: np.abs(x) < 1)
hard_sigmoid = _define("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1),
                       lambda x, y: (np.abs(x) < 3) / 6)
hard_sigmoid_keras2 = _define("hard_sigmoid_keras2", lambda x: np.clip(0.2 * x + 0.5, 0, 1),
                              lambda x, y: 0.2 * (np.abs(x) < 2.5))
hard_silu = _define("hard_silu", lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
                    lambda x, y: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0))
sparse_plus = _define("sparse_plus", lambda x: np.where(x >= 1, x, _ramp(x) ** 2),
                      lambda x, y: _ramp(x))
sparse_sigmoid = _define("sparse_sigmoid", _ramp, lambda x, y: 0.5 * (np.abs(x) < 1))
softmax = _define("softmax", _softmax,
                  lambda x, y, dy, axis: y * (dy - np.sum(dy * y, axis=axis, keepdims=True)),
                  elementwise=False, axis=-1)
log_softmax = _define("log_softmax", _log_softmax,
                      lambda x, y, dy, axis: dy - np.exp(y) * np.sum(dy, axis=axis, keepdims=True),
                      elementwise=False, axis=-1)
sparsemax = _define("sparsemax", _sparsemax, _dsparsemax, elementwise=False, axis=-1)
glu = _define("glu", lambda x, axis: np.multiply(*_glu_halves(x, axis)), _dglu,
              elementwise=False, shape_preserving=False, axis=-1)
# fmt: on

swish, hard_swish = silu, hard_silu
_NAMES.update(swish=silu, hard_swish=hard_silu)

# Keras' activation layers, which Keras also takes as activations, with the layers' defaults.
_LAYERS = {"ReLU": relu, "LeakyReLU": leaky_relu.with_params(0.3), "ELU": elu, "Softmax": softmax}
_LAYER_OF = {act.name: layer for layer, act in _LAYERS.items()}


def get(
    identifier: Any, custom_objects: Mapping[str, Any] | None = None, *, keras2: bool = False
) -> Any:
    """Return the activation for anything that Keras takes as one.

    Parameters
    ----------
    identifier : None, str, dict, Activation or callable
        None is `linear`. A live function or activation layer of Keras becomes fastgru's of the same
        name. Any other callable is returned unchanged; to be trained, it needs a method
        ``gradient(x, y)``.
    custom_objects : mapping of str to callable, optional
        Your own activations, for names and dicts.
    keras2 : bool
        The identifier is of Keras 2, whose "hard_sigmoid" is ``clip(0.2 x + 0.5, 0, 1)``.

    Returns
    -------
    Activation or callable

    Raises
    ------
    ValueError
        The identifier is unknown or not callable, or `threshold` without its parameters.
    """
    act = _resolve(identifier, custom_objects, keras2)
    if isinstance(act, Activation) and act.name == "threshold" and None in act.params:
        raise ValueError(_THRESHOLD_NEEDS)
    return act


def _resolve(identifier: Any, custom_objects: Mapping[str, Any] | None, keras2: bool) -> Any:
    if isinstance(identifier, Activation):
        return identifier
    if identifier is None:
        return linear
    names = {**_NAMES, "hard_sigmoid": hard_sigmoid_keras2} if keras2 else _NAMES
    if isinstance(identifier, Mapping):
        return _from_dict(identifier, names, custom_objects, keras2)
    if isinstance(identifier, str):
        identifier = deserialize_object(identifier, names, custom_objects, "activation")
    elif is_live_keras(identifier):
        name = getattr(identifier, "__name__", None)
        if name == "hard_sigmoid" and not identifier.__module__.endswith("activations.activations"):
            return hard_sigmoid_keras2  # only Keras 3 has a module of that name
        if isinstance(name, str) and name in names:
            return names[name]
        if type(identifier).__name__ in (*_LAYERS, "Activation"):
            return _from_dict(serialize_object(identifier) or {}, names, custom_objects, keras2)
    if not callable(identifier):
        raise ValueError(
            f"Cannot use {identifier!r} as an activation: expected None, a name, a Keras config "
            f"dict or a callable, got {type(identifier).__name__}."
        )
    return identifier


def _from_dict(
    config: Mapping[str, Any],
    names: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None,
    keras2: bool,
) -> Any:
    """Read the dict of a function, Activation, activation layer of Keras, or custom class."""
    class_name, inner = config.get("class_name"), config.get("config") or {}
    own = {class_name, config.get("registered_name")} & set(custom_objects or ())
    if not own and not serialization.is_foreign(config):
        if class_name == "Activation" and "activation" in inner:
            return get(inner["activation"], custom_objects, keras2=keras2)
        if class_name in _LAYERS:
            values = {"negative_slope": inner["alpha"]} if "alpha" in inner else {}  # Keras 2
            values.update(inner)
            base = _LAYERS[class_name]
            mine = base.get_config()["params"]
            return base.with_params(**{key: values[key] for key in mine if key in values})
    names = {**names, "Activation": Activation}
    return deserialize_object(config, names, custom_objects, "activation")


def for_gate(identifier: Any, what: str = "activation") -> Any:
    """Return the activation for a layer's argument `what`, as `get` does; ValueError for `glu`."""
    act = get(identifier)
    if not getattr(act, "shape_preserving", True):
        raise ValueError(f"{what}: expected an activation that keeps the shape, got {act.name!r}.")
    return act


def serialize(activation: Any) -> Any:
    """Return a str or dict that `deserialize`, and Keras where it can, reads back.

    With default parameters it is the name, as in Keras. With others it is a Keras layer that
    computes the same (ReLU, LeakyReLU, ELU, Softmax), or a dict that only fastgru reads. Of a
    custom callable it is a dict of Keras 3, whose name `deserialize` finds in `custom_objects`.
    """
    act = get(activation)
    if not isinstance(act, Activation):
        return serialize_object(act)
    if act == _NAMES[act.name]:
        return act.name
    config, layer = act.get_config(), _LAYER_OF.get(act.name)
    return {
        "module": "keras.layers" if layer else "fastgru.activations",
        "class_name": layer or "Activation",
        "config": config["params"] if layer else config,
        "registered_name": None,
    }


def deserialize(
    config: Any, custom_objects: Mapping[str, Any] | None = None, *, keras2: bool = False
) -> Any:
    """Read a name or a Keras 3 or Keras 2 dict; parameters and errors as in `get`."""
    return get(config, custom_objects, keras2=keras2)
