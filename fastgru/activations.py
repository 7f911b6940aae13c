"""Keras 3's activations on NumPy arrays, each with its derivative.

The table below is the whole content: name, value, derivative, parameters. Results agree with Keras' NumPy backend, keep
the input's dtype, and do not overflow where the result is finite. Two differences are meant: NaN always propagates
(Keras' piecewise activations turn some NaN into a constant), and `sparsemax` is the projection on the simplex, where
Keras up to 3.15 computes a wrong threshold (keras#23425).

Sources: https://keras.io/api/layers/activations/ and the papers named there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastgru.serialization import deserialize_object, is_live_keras, serialize_object, unknown_name

_Array = Any  # an ndarray, a NumPy scalar, or any array type that NumPy's functions dispatch on


class Activation:
    """An activation with its parameters: immutable, equal and hashed by ``(name, params)``.

    The instances of this module (``activations.tanh``, ...) are called like Keras' functions; keyword parameters of a
    call override the instance's own.

    Parameters
    ----------
    name : str
        Keras' name.
    params : dict, optional
        Parameters by Keras' names; the rest keep their defaults.

    Attributes
    ----------
    name, __name__ : str
        Keras' name.
    params : tuple
        The values of all parameters, in Keras' order: float, bool, int or None.
    elementwise : bool
        False for the softmax family, whose values depend on a whole axis; those have `vjp` only.
    shape_preserving : bool
        False for `glu` alone, which halves an axis; layers refuse it.
    """

    __slots__ = ("_derivative", "_value", "elementwise", "name", "params", "shape_preserving")

    name: str
    params: tuple[Any, ...]
    elementwise: bool
    shape_preserving: bool

    def __init__(self, name: str, params: Mapping[str, Any] | None = None):
        if name not in _TABLE:
            raise unknown_name("activation", name, _TABLE)
        value, derivative, elementwise, shape_preserving, defaults = _TABLE[name]
        unknown = [key for key in params or () if key not in defaults]
        if unknown:
            raise TypeError(
                f"Activation {name!r} has no parameter {unknown[0]!r}: expected {', '.join(defaults) or 'none at all'}."
            )
        values = {**defaults, **(params or {})}
        put = partial(object.__setattr__, self)
        put("name", name)
        put("params", tuple(_plain(name, key, values[key], defaults[key]) for key in defaults))
        put("elementwise", elementwise)
        put("shape_preserving", shape_preserving)
        put("_value", value)
        put("_derivative", derivative)

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(
            f"Activation {self.name!r} is immutable: use with_params({key}=...) for another one."
        )

    __delattr__ = __setattr__  # type: ignore[assignment]

    @property
    def __name__(self) -> str:
        """Keras' name, as on a function."""
        return self.name

    def with_params(self, *args: Any, **params: Any) -> "Activation":
        """Give the same activation with other parameters: ``activations.elu.with_params(alpha=0.5)``."""
        names = tuple(_TABLE[self.name][4])
        if len(args) > len(names):
            raise TypeError(
                f"Activation {self.name!r} takes {len(names)} parameters ({', '.join(names)}), got {len(args)}."
            )
        given = dict(zip(names, args, strict=False))
        twice = given.keys() & params.keys()
        if twice:
            raise TypeError(f"Activation {self.name!r} got parameter {twice.pop()!r} twice.")
        return Activation(self.name, {**self.get_config()["params"], **given, **params})

    def __call__(self, x: _Array, *args: Any, **params: Any) -> _Array:
        """Apply the activation.

        Parameters
        ----------
        x : array_like
            Any shape. Integers, bools and lists become float32, as in Keras; complex raises TypeError.
        *args, **params
            Keras' own parameters of this activation.

        Returns
        -------
        ndarray
            The dtype of `x`, and its shape (except `glu`). `linear` returns `x` itself.
        """
        if args or params:
            return self.with_params(*args, **params)(x)
        if getattr(x, "dtype", None) is None or x.dtype.kind != "f":
            x = _as_floating(x, self.name)
        y = self._value(x, *self.params)
        return y if y.dtype == x.dtype else y.astype(x.dtype)

    def gradient(self, x: _Array, y: _Array) -> _Array:
        """Give the elementwise derivative.

        Parameters
        ----------
        x, y : ndarray
            The pre-activation and ``y = act(x)``.

        Returns
        -------
        ndarray
            ``d act / dx`` at each element, in the dtype and shape of `x`. At a kink, one of the two one-sided
            derivatives: the smaller one for the rectifiers, as in TensorFlow.

        Raises
        ------
        ValueError
            For an activation that is not elementwise: use `vjp`.
        """
        if not self.elementwise:
            raise ValueError(
                f"Activation {self.name!r} is not elementwise: it has no gradient(x, y), use vjp(x, y, dy)."
            )
        return np.asarray(self._derivative(x, y, *self.params), dtype=x.dtype)

    def vjp(self, x: _Array, y: _Array, dy: _Array) -> _Array:
        """Give the gradient of ``<act(x), dy>`` with respect to `x`; shapes as `x`, `y`, and `dy` as `y`."""
        if self.elementwise:
            return dy * self.gradient(x, y)
        return np.asarray(self._derivative(x, y, dy, *self.params), dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        """Give name and parameters, as `from_config` takes them."""
        return {
            "name": self.name,
            "params": dict(zip(_TABLE[self.name][4], self.params, strict=True)),
        }

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
        given = ", ".join(f"{key}={value!r}" for key, value in self.get_config()["params"].items())
        return f"<fastgru activation {self.name}({given})>"


def _plain(name: str, key: str, value: Any, default: Any) -> Any:
    """Turn a parameter into the plain Python value that equality, hashing and configs rely on."""
    if value is None and default is None:
        return None
    kind = type(default) if isinstance(default, (bool, int)) else float
    try:
        plain = kind(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Activation {name!r}: expected a {kind.__name__} for {key!r}, got {value!r}."
        ) from error
    if plain != value:
        raise ValueError(
            f"Activation {name!r}: expected a finite {kind.__name__} for {key!r}, got {value!r}."
        )
    return plain


def _as_floating(x: Any, name: str) -> _Array:
    x = np.asarray(x, None if hasattr(x, "dtype") else np.float32) if not hasattr(x, "dtype") else x
    if x.dtype.kind == "c":
        raise TypeError(
            f"Activation {name!r} takes real arrays, got {x.dtype}: pass x.real or abs(x)."
        )
    return x.astype(np.float32) if x.dtype.kind in "biu" else x


# The table: name -> (value, derivative, elementwise, shape_preserving, parameters with defaults).
_TABLE: dict[
    str, tuple[Callable[..., _Array], Callable[..., _Array], bool, bool, dict[str, Any]]
] = {}
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
    """Enter an activation: ``value(x, *params)``; ``derivative(x, y, *params)``, or ``(x, y, dy, *params)`` for a vjp."""
    _TABLE[name] = (value, derivative, elementwise, shape_preserving, defaults)
    _NAMES[name] = Activation(name)
    return _NAMES[name]


def _sigmoid(x: _Array) -> _Array:
    # 1/(1 + exp(-x)) keeps the relative accuracy of the lower tail, which (1 + tanh(x/2))/2 loses; exp overflows to
    # inf below about -88 (float32) and gives the right limit 0, so only the warning has to go.
    with np.errstate(over="ignore"):
        t = np.exp(-x)
    t += 1
    return np.reciprocal(t)


def _exp(x: _Array) -> _Array:
    with np.errstate(over="ignore"):  # inf is the right result
        return np.exp(x)


def _softplus(x: _Array) -> _Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))  # logaddexp warns on NaN, and is slower


def _relu(x: _Array, negative_slope: float, max_value: float | None, threshold: float) -> _Array:
    if negative_slope == 0 and max_value is None and threshold == 0:
        return np.maximum(x, 0)
    y = np.where(x <= threshold, 0, x)
    if max_value is not None:
        y = np.minimum(np.maximum(y, 0), max_value)
    return y + negative_slope * np.minimum(x - threshold, 0) if negative_slope else y


def _relu_gradient(
    x: _Array, y: _Array, negative_slope: float, max_value: float | None, threshold: float
) -> _Array:
    inside = 1 if max_value is None else (x > 0) & (x < max_value)
    return np.where(x > threshold, inside, negative_slope)


def _erf(x: _Array) -> _Array:
    from scipy.special import erf  # a slow import that only gelu needs

    return erf(x)


_SQRT_2, _SQRT_2_PI, _GELU_CUBE = float(np.sqrt(2)), float(np.sqrt(2 / np.pi)), 0.044715


def _gelu(x: _Array, approximate: bool) -> _Array:
    if approximate:
        c = np.clip(
            x, -100, 100
        )  # tanh is +-1 long before; the cube of a large float32 would overflow
        return x * (0.5 * (1 + np.tanh(_SQRT_2_PI * (c + _GELU_CUBE * c**3))))
    return x * (_erf(x / _SQRT_2) + 1) / 2


def _gelu_gradient(x: _Array, y: _Array, approximate: bool) -> _Array:
    c = np.clip(x, -100, 100)
    if approximate:
        t = np.tanh(_SQRT_2_PI * (c + _GELU_CUBE * c**3))
        return 0.5 * (1 + t) + 0.5 * c * (1 - t * t) * _SQRT_2_PI * (1 + 3 * _GELU_CUBE * c * c)
    return 0.5 * (1 + _erf(c / _SQRT_2)) + c * np.exp(-0.5 * c * c) * (_SQRT_2_PI / 2)


def _squareplus(x: _Array, b: float) -> _Array:
    s = np.hypot(x, b**0.5)  # not sqrt(x*x + b): x*x overflows
    return np.where(
        x > 0, 0.5 * (x + s), 0.5 * b / (s - np.minimum(x, 0))
    )  # two forms, neither cancels


def _mish_gradient(x: _Array, y: _Array) -> _Array:
    t = np.tanh(_softplus(x))
    return t + x * _sigmoid(x) * (1 - t * t)


def _silu_gradient(x: _Array, y: _Array) -> _Array:
    s = _sigmoid(x)
    return s * (1 + x * (1 - s))


def _threshold(x: _Array, threshold: float | None, default_value: float | None) -> _Array:
    if threshold is None or default_value is None:
        raise ValueError(
            "Activation 'threshold' has no defaults: use "
            "fastgru.activations.threshold.with_params(threshold=..., default_value=...)."
        )
    return np.where(x <= threshold, default_value, x)


def _softmax(x: _Array, axis: int) -> _Array:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def _log_softmax(x: _Array, axis: int) -> _Array:
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def _sparsemax(x: _Array, axis: int) -> _Array:
    # Martins and Astudillo 2016, algorithm 1, after moving the maximum to 0 (the result does not depend on a shift).
    x = np.moveaxis(x - np.max(x, axis=axis, keepdims=True), axis, -1)
    falling = -np.sort(-x, axis=-1)
    sums = np.cumsum(falling, axis=-1)
    k = np.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    size = np.sum(1 + k * falling > sums, axis=-1, keepdims=True)
    tau = (np.take_along_axis(sums, np.maximum(size, 1) - 1, axis=-1) - 1) / np.maximum(size, 1)
    return np.moveaxis(np.maximum(x - tau.astype(x.dtype), 0), -1, axis)


def _sparsemax_vjp(x: _Array, y: _Array, dy: _Array, axis: int) -> _Array:
    support = y > 0
    mean = np.sum(dy * support, axis=axis, keepdims=True) / np.sum(
        support, axis=axis, keepdims=True
    )
    return support * (dy - mean)


def _glu_halves(x: _Array, axis: int) -> tuple[_Array, _Array]:
    if x.ndim == 0 or x.shape[axis] % 2:
        raise ValueError(
            f"Activation 'glu' halves axis {axis}: expected an even length there, got shape {x.shape}."
        )
    a, b = np.split(x, 2, axis)
    return a, _sigmoid(b)


def _glu(x: _Array, axis: int) -> _Array:
    a, s = _glu_halves(x, axis)
    return a * s


def _glu_vjp(x: _Array, y: _Array, dy: _Array, axis: int) -> _Array:
    a, s = _glu_halves(x, axis)
    return np.concatenate([dy * s, dy * a * s * (1 - s)], axis)


_ELU, _SELU = (
    1.6732632423543772,
    1.0507009873554805,
)  # selu's alpha and scale (Klambauer et al. 2017)


def _elu(x: _Array, alpha: float) -> _Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu_gradient(x: _Array, y: _Array, alpha: float) -> _Array:
    return np.where(x >= 0, 1, alpha * np.exp(np.minimum(x, 0)))


# fmt: off
tanh = _define("tanh", np.tanh, lambda x, y: 1 - y * y)
sigmoid = _define("sigmoid", _sigmoid, lambda x, y: y * (1 - y))
linear = _define("linear", lambda x: x, lambda x, y: np.ones_like(x))
relu = _define("relu", _relu, _relu_gradient, negative_slope=0.0, max_value=None, threshold=0.0)
relu6 = _define("relu6", lambda x: np.clip(x, 0, 6), lambda x, y: (x > 0) & (x < 6))
leaky_relu = _define("leaky_relu", lambda x, slope: np.where(x >= 0, x, slope * x),
                     lambda x, y, slope: np.where(x > 0, 1, slope), negative_slope=0.2)
elu = _define("elu", _elu, _elu_gradient, alpha=1.0)
selu = _define("selu", lambda x: _SELU * _elu(x, _ELU), lambda x, y: _SELU * _elu_gradient(x, y, _ELU))
celu = _define("celu", lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha),
               lambda x, y, alpha: np.exp(np.minimum(x, 0) / alpha), alpha=1.0)
exponential = _define("exponential", _exp, lambda x, y: y)
softplus = _define("softplus", _softplus, lambda x, y: _sigmoid(x))
log_sigmoid = _define("log_sigmoid", lambda x: -_softplus(-x), lambda x, y: _sigmoid(-x))
softsign = _define("softsign", lambda x: x / (1 + np.abs(x)), lambda x, y: (1 / (1 + np.abs(x))) ** 2)
silu = _define("silu", lambda x: x * _sigmoid(x), _silu_gradient)
mish = _define("mish", lambda x: x * np.tanh(_softplus(x)), _mish_gradient)
gelu = _define("gelu", _gelu, _gelu_gradient, approximate=False)
squareplus = _define("squareplus", _squareplus, lambda x, y, b: y / np.hypot(x, b**0.5), b=4.0)
tanh_shrink = _define("tanh_shrink", lambda x: x - np.tanh(x), lambda x, y: np.tanh(x) ** 2)
soft_shrink = _define("soft_shrink", lambda x, t: x - np.clip(x, -t, t), lambda x, y, t: np.abs(x) > t, threshold=0.5)
hard_shrink = _define("hard_shrink", lambda x, t: np.where(np.abs(x) <= t, 0, x), lambda x, y, t: np.abs(x) > t,
                      threshold=0.5)
threshold = _define("threshold", _threshold, lambda x, y, t, default: x > t, threshold=None, default_value=None)
hard_tanh = _define("hard_tanh", lambda x: np.clip(x, -1, 1), lambda x, y: np.abs(x) < 1)
hard_sigmoid = _define("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), lambda x, y: (np.abs(x) < 3) / 6)
hard_sigmoid_keras2 = _define("hard_sigmoid_keras2", lambda x: np.clip(0.2 * x + 0.5, 0, 1),
                              lambda x, y: 0.2 * (np.abs(x) < 2.5))
hard_silu = _define("hard_silu", lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
                    lambda x, y: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0))
sparse_plus = _define("sparse_plus", lambda x: np.where(x >= 1, x, 0.25 * (np.clip(x, -1, 1) + 1) ** 2),
                      lambda x, y: 0.5 * (np.clip(x, -1, 1) + 1))
sparse_sigmoid = _define("sparse_sigmoid", lambda x: 0.5 * (np.clip(x, -1, 1) + 1), lambda x, y: 0.5 * (np.abs(x) < 1))
softmax = _define("softmax", _softmax, lambda x, y, dy, axis: y * (dy - np.sum(dy * y, axis=axis, keepdims=True)),
                  elementwise=False, axis=-1)
log_softmax = _define("log_softmax", _log_softmax,
                      lambda x, y, dy, axis: dy - np.exp(y) * np.sum(dy, axis=axis, keepdims=True),
                      elementwise=False, axis=-1)
sparsemax = _define("sparsemax", _sparsemax, _sparsemax_vjp, elementwise=False, axis=-1)
glu = _define("glu", _glu, _glu_vjp, elementwise=False, shape_preserving=False, axis=-1)
# fmt: on

swish, hard_swish = silu, hard_silu
_NAMES.update(swish=silu, hard_swish=hard_silu)

# Keras' activation layers may stand where an activation is expected: class name -> (ours, its defaults, Keras 2's names).
_LAYERS: dict[str, tuple[Activation, dict[str, str]]] = {
    "ReLU": (relu, {}),
    "LeakyReLU": (leaky_relu.with_params(negative_slope=0.3), {"alpha": "negative_slope"}),
    "ELU": (elu, {}),
    "Softmax": (softmax, {}),
}
_LAYER_OF = {act.name: layer for layer, (act, _) in _LAYERS.items()}


def get(
    identifier: Any, custom_objects: Mapping[str, Any] | None = None, *, keras2: bool = False
) -> Any:
    """Resolve whatever Keras takes for an activation.

    Parameters
    ----------
    identifier : None, str, dict, Activation or callable
        None is `linear`. A live function or activation layer of Keras is recognised by its name and becomes ours; any
        other callable is returned as it is (its derivative, if it has one, is its method ``gradient(x, y)``).
    custom_objects : mapping of str to callable, optional
        The caller's own activations, for names and dicts.
    keras2 : bool
        The identifier came from Keras 2, whose ``"hard_sigmoid"`` is ``clip(0.2 x + 0.5, 0, 1)``.

    Returns
    -------
    Activation or callable

    Raises
    ------
    ValueError
        If it is unknown or not callable.
    """
    if isinstance(identifier, Activation):
        return identifier
    if identifier is None:
        return linear
    names: Mapping[str, Any] = {**_NAMES, "hard_sigmoid": hard_sigmoid_keras2} if keras2 else _NAMES
    if isinstance(identifier, Mapping):
        return _from_dict(identifier, names, custom_objects, keras2)
    if isinstance(identifier, str):
        identifier = deserialize_object(identifier, names, custom_objects, "activation")
    elif is_live_keras(identifier):
        if isinstance(name := getattr(identifier, "__name__", None), str) and name in names:
            # Keras 3's functions live in keras.src.activations.activations; everything else is Keras 2.
            legacy = name == "hard_sigmoid" and not identifier.__module__.endswith(
                "activations.activations"
            )
            return hard_sigmoid_keras2 if legacy else names[name]
        if type(identifier).__name__ in (*_LAYERS, "Activation"):
            return _from_dict(serialize_object(identifier) or {}, names, custom_objects, keras2)
    if not callable(identifier):
        raise ValueError(
            f"Cannot use {identifier!r} as an activation: expected None, a name, a Keras config dict, or a callable, "
            f"got {type(identifier).__name__}."
        )
    return identifier


def _from_dict(
    config: Mapping[str, Any],
    names: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None,
    keras2: bool,
) -> Any:
    """Read a config dict: a function, our own Activation, one of Keras' activation layers, or a custom class."""
    class_name, inner = config.get("class_name"), config.get("config") or {}
    if class_name in (custom_objects or ()) or config.get("registered_name") in (
        custom_objects or ()
    ):
        return deserialize_object(config, names, custom_objects, "activation")
    if class_name == "Activation" and "activation" in inner:
        return get(inner["activation"], custom_objects, keras2=keras2)
    if class_name in _LAYERS:
        base, old_names = _LAYERS[class_name]
        values = {old_names.get(key, key): value for key, value in inner.items()}
        mine = base.get_config()["params"]
        return base.with_params(
            **{key: values[key] for key in mine if values.get(key, mine[key]) is not mine[key]}
        )
    return deserialize_object(
        config, {**names, "Activation": Activation}, custom_objects, "activation"
    )


def for_layer(identifier: Any, argument: str = "activation") -> Any:
    """Resolve an activation for a layer's argument: as `get`, refusing what cannot work in a layer.

    Raises
    ------
    ValueError
        For `glu` (it halves its axis) and for `threshold` without its two parameters.
    """
    activation = get(identifier)
    if isinstance(activation, Activation):
        if not activation.shape_preserving:
            raise ValueError(
                f"{argument}={activation.name!r} cannot be used in a layer: expected an activation that keeps the "
                f"shape, and {activation.name!r} halves an axis."
            )
        if activation.name == "threshold" and None in activation.params:
            raise ValueError(
                f"{argument}='threshold' has no defaults: pass "
                f"fastgru.activations.threshold.with_params(threshold=..., default_value=...)."
            )
    return activation


def serialize(activation: Any) -> Any:
    """Give what `deserialize`, and Keras where it can, reads back.

    Returns
    -------
    str or dict
        The name of a built-in with default parameters, as in Keras. With other parameters: the Keras layer of the same
        meaning (ReLU, LeakyReLU, ELU, Softmax), or a dict that only fastgru reads. Custom callables: a Keras 3 dict
        whose name `deserialize` looks up in ``custom_objects``.
    """
    activation = get(activation)
    if not isinstance(activation, Activation):
        return serialize_object(activation)
    if activation == _NAMES[activation.name]:
        return activation.name
    layer = _LAYER_OF.get(activation.name)
    config = activation.get_config()
    if layer is None:
        return {
            "module": "fastgru.activations",
            "class_name": "Activation",
            "config": config,
            "registered_name": None,
        }
    return {
        "module": "keras.layers",
        "class_name": layer,
        "config": config["params"],
        "registered_name": None,
    }


def deserialize(
    config: Any, custom_objects: Mapping[str, Any] | None = None, *, keras2: bool = False
) -> Any:
    """Read a name or a Keras 3 or Keras 2 dict; `keras2` as in `get`."""
    return get(config, custom_objects, keras2=keras2)
