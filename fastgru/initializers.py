"""Keras 3's initializers, drawn by NumPy's Generator.

Distributions, scales and fans are Keras'. The numbers are not, because every backend of Keras draws
others. Values are drawn in float64 and then rounded to the requested dtype. STFT is left out, since
it makes convolution kernels of rank 3 and no weight of a recurrent layer.

Sources: https://keras.io/api/layers/initializers/ and the papers named there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.seeds import fresh_seed
from fastgru.serialization import Configured, check_number, get_object, named, serialize_object

if TYPE_CHECKING:
    from numpy.random import Generator


class Initializer(Configured):
    """Base of the initializers: ``initializer(shape, dtype="float32")`` gives a new array."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Return an array of `shape` and `dtype`."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(shape, dtype)")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Build it from a config of Keras 3, or of Keras 2 with a "dtype", which has no effect."""
        return cls(**{key: value for key, value in config.items() if key != "dtype"})


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Return an array of `shape` and `dtype`."""
        return np.zeros(shape, dtype)


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Return an array of `shape` and `dtype`."""
        return np.ones(shape, dtype)


class Constant(Initializer):
    """One value everywhere, or a given array.

    Parameters
    ----------
    value : float or array_like
        An array must have the requested shape. ValueError for NaN.
    """

    _arguments = ("value",)

    def __init__(self, value: Any = 0.0):
        if isinstance(value, Mapping):  # an array in a config of Keras 3
            inner = value.get("config", {})
            if "value" not in inner:
                raise ValueError(f"Constant: expected a number or an array, got {value!r}.")
            value = np.array(inner["value"], inner.get("dtype"))
        numbers = np.asarray(value)
        if numbers.dtype.kind == "f" and np.isnan(numbers).any():
            raise ValueError(f"Constant: expected numbers, got NaN in {value!r}.")
        self.value = value

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Return an array of `shape` and `dtype`; ValueError if the value has another shape."""
        value = np.asarray(self.value)
        if value.ndim and value.shape != tuple(shape):
            raise ValueError(f"Constant holds shape {value.shape}; shape {tuple(shape)} was asked.")
        return np.full(shape, value, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the value: a number, or an array as a dict of Keras 3."""
        value = np.asarray(self.value)
        if not value.ndim:
            return {"value": value.item()}
        array = {"value": value.tolist(), "dtype": value.dtype.name}
        return {"value": {"class_name": "__numpy__", "config": array}}


class Identity(Initializer):
    """The identity matrix times a factor; 2-D shapes only.

    Parameters
    ----------
    gain : float
        Finite, else ValueError.
    """

    _arguments = ("gain",)

    def __init__(self, gain: float = 1.0):
        self.gain = check_number(self, "gain", gain)

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Return a matrix of `shape` and `dtype`; ValueError unless `shape` has two axes."""
        if len(shape) != 2:
            raise ValueError(f"Identity makes matrices: expected 2 axes, got shape {tuple(shape)}.")
        rows, columns = shape
        matrix: np.ndarray = np.eye(rows, columns, dtype=dtype)
        matrix *= self.gain
        return matrix


class RandomInitializer(Initializer):
    """Base of the random initializers.

    Parameters
    ----------
    seed : int, numpy.random.Generator or None
        An int gives the same values at each call, as in Keras 3. A Generator gives new values at
        each call; a SeedGenerator of Keras, live or in a config, becomes one. None takes a new
        seed from the operating system at each call.
    """

    def __init__(self, seed: Any = None):
        if isinstance(seed, Mapping):  # a SeedGenerator in a Keras 3 config
            seed = _generator(seed.get("config", {}).get("seed"))
        elif isinstance(seed, np.integer):
            seed = int(seed)
        is_int = isinstance(seed, int) and not isinstance(seed, bool)
        if not (seed is None or (is_int and seed >= 0) or hasattr(seed, "standard_normal")):
            raise ValueError(
                f"{type(self).__name__}: expected seed to be None, a non-negative int or a "
                f"numpy.random.Generator, got {seed!r}."
            )
        self.seed = seed

    def _rng(self) -> "Generator":
        return _generator(self.seed)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with seed None for a Generator."""
        seed = self.seed if isinstance(self.seed, int) else None
        return {**super().get_config(), "seed": seed}


def _generator(seed: Any) -> "Generator":
    from numpy.random import default_rng  # slow to import, and loaded layers do not need it

    return default_rng(fresh_seed() if seed is None else seed)


class RandomNormal(RandomInitializer):
    """Values with a normal distribution.

    Parameters
    ----------
    mean, stddev : float
        Finite, else ValueError.
    seed : int, numpy.random.Generator or None
        See `RandomInitializer`.
    """

    _arguments = ("mean", "stddev")

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: Any = None):
        super().__init__(seed)
        self.mean = check_number(self, "mean", mean)
        self.stddev = check_number(self, "stddev", stddev)

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Draw an array of `shape` and `dtype`."""
        return (self.mean + self.stddev * self._rng().standard_normal(shape)).astype(dtype)


class TruncatedNormal(RandomNormal):
    """Values with a normal distribution; those beyond two standard deviations are drawn again.

    Parameters
    ----------
    mean, stddev : float
        Of the distribution before truncation. Finite, else ValueError.
    seed : int, numpy.random.Generator or None
        See `RandomInitializer`.
    """

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Draw an array of `shape` and `dtype`."""
        return (self.mean + self.stddev * _truncated_normal(self._rng(), shape)).astype(dtype)


class RandomUniform(RandomInitializer):
    """Values with a uniform distribution on ``[minval, maxval)``.

    Parameters
    ----------
    minval, maxval : float
        Finite, else ValueError.
    seed : int, numpy.random.Generator or None
        See `RandomInitializer`.
    """

    _arguments = ("minval", "maxval")

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: Any = None):
        super().__init__(seed)
        self.minval = check_number(self, "minval", minval)
        self.maxval = check_number(self, "maxval", maxval)

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Draw an array of `shape` and `dtype`."""
        return self._rng().uniform(self.minval, self.maxval, shape).astype(dtype)


class VarianceScaling(RandomInitializer):
    """Values of variance ``scale / n``, where n counts the weight's inputs or outputs.

    Parameters
    ----------
    scale : float
        Positive and finite.
    mode : {"fan_in", "fan_out", "fan_avg"}
        What n is: input units, output units, or their mean.
    distribution : {"truncated_normal", "untruncated_normal", "uniform"}
        "normal" means the truncated one. It is scaled up so that the variance after truncation is
        ``scale / n``.
    seed : int, numpy.random.Generator or None
        See `RandomInitializer`.
    input_axes, output_axes : sequence of int, optional
        The axes that count as inputs and as outputs. Give both or neither.

    Raises
    ------
    ValueError
        An argument has another value.
    """

    _arguments: tuple[str, ...] = ("scale", "mode", "distribution", "input_axes", "output_axes")

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ):
        super().__init__(seed)
        distribution = str(distribution).lower()
        if distribution == "normal":
            distribution = "truncated_normal"
        if not check_number(self, "scale", scale) > 0:
            raise ValueError(f"VarianceScaling: expected scale > 0, got {scale!r}.")
        for name, value, allowed in (
            ("mode", mode, ("fan_in", "fan_out", "fan_avg")),
            ("distribution", distribution, ("truncated_normal", "untruncated_normal", "uniform")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"VarianceScaling: expected {name} to be one of {allowed}, got {value!r}."
                )
        self.scale, self.mode, self.distribution = scale, mode, distribution
        self.input_axes, self.output_axes = input_axes, output_axes

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Draw an array of `shape` and `dtype`."""
        fan_in, fan_out = _fans(tuple(shape), self.input_axes, self.output_axes)
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        stddev = math.sqrt(self.scale / max(1.0, fans[self.mode]))
        rng = self._rng()
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return rng.uniform(-limit, limit, shape).astype(dtype)
        if self.distribution == "untruncated_normal":
            return (stddev * rng.standard_normal(shape)).astype(dtype)
        return (stddev / _TRUNCATED_STDDEV * _truncated_normal(rng, shape)).astype(dtype)


class _FixedScaling(VarianceScaling):
    """A VarianceScaling whose class sets scale, mode and distribution; the rest are arguments."""

    _arguments = ("input_axes", "output_axes")
    _fixed: tuple[float, str, str]

    def __init_subclass__(cls) -> None:
        """Add the arguments to the class's docstring."""
        arguments = "seed, input_axes, output_axes : as for `VarianceScaling`"
        if cls.__doc__:
            cls.__doc__ += f"\n\n    Parameters\n    ----------\n    {arguments}\n    "

    def __init__(
        self,
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ):
        super().__init__(*self._fixed, seed, input_axes, output_axes)


class GlorotUniform(_FixedScaling):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""

    _fixed = (1.0, "fan_avg", "uniform")


class GlorotNormal(_FixedScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""

    _fixed = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_FixedScaling):
    """Uniform on +-sqrt(6 / fan_in) (He et al. 2015)."""

    _fixed = (2.0, "fan_in", "uniform")


class HeNormal(_FixedScaling):
    """Truncated normal of variance 2 / fan_in (He et al. 2015)."""

    _fixed = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_FixedScaling):
    """Uniform on +-sqrt(3 / fan_in) (LeCun et al. 1998)."""

    _fixed = (1.0, "fan_in", "uniform")


class LecunNormal(_FixedScaling):
    """Truncated normal of variance 1 / fan_in (LeCun et al. 1998)."""

    _fixed = (1.0, "fan_in", "truncated_normal")


class Orthogonal(RandomInitializer):
    """A random orthogonal matrix, drawn uniformly, times a factor (Saxe et al. 2014).

    All axes but the last count as rows. With fewer rows than columns the rows are orthonormal, else
    the columns are.

    Parameters
    ----------
    gain : float
        Finite, else ValueError.
    seed : int, numpy.random.Generator or None
        See `RandomInitializer`.
    """

    _arguments = ("gain",)

    def __init__(self, gain: float = 1.0, seed: Any = None):
        super().__init__(seed)
        self.gain = check_number(self, "gain", gain)

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        """Draw an array of `shape` and `dtype`; ValueError for fewer than two axes."""
        if len(shape) < 2:
            raise ValueError(f"Orthogonal: expected 2 axes or more, got shape {tuple(shape)}.")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        normal = self._rng().standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q *= np.where(np.diag(r) < 0, -1, 1)  # without this, QR gives no uniform distribution
        q = q.T if rows < columns else q
        return (self.gain * q).reshape(shape).astype(dtype)


# The standard deviation of a standard normal truncated at +-2: sqrt(1 - 4 phi(2) / erf(sqrt 2)).
_TRUNCATED_STDDEV = 0.87962566103423978


def _truncated_normal(rng: "Generator", shape: Sequence[int]) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(np.count_nonzero(outside))
    return values


def _fans(
    shape: tuple[int, ...], input_axes: Sequence[int] | None, output_axes: Sequence[int] | None
) -> tuple[int, int]:
    """Count a weight's inputs and outputs. As in Keras, rank 3 and more is a convolution."""
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[i] for i in input_axes), math.prod(shape[i] for i in output_axes)
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


_OBJECTS = named(
    (
        Zeros, Ones, Constant, Identity, RandomNormal, RandomUniform, TruncatedNormal,
        VarianceScaling, GlorotUniform, GlorotNormal, HeUniform, HeNormal, LecunUniform,
        LecunNormal, Orthogonal,
    )
)  # fmt: skip
_OBJECTS.update(
    zero=Zeros,
    one=Ones,
    normal=RandomNormal,
    uniform=RandomUniform,
    IdentityInitializer=Identity,
    OrthogonalInitializer=Orthogonal,
)


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the initializer for anything that Keras takes as one.

    Parameters
    ----------
    identifier : None, str, dict, class, initializer, array or callable
        A live Keras initializer of a known class becomes fastgru's, and an array a `Constant`.
        Other callables ``f(shape, dtype)`` are kept.
    custom_objects : mapping of str to object, optional
        Your own classes and functions, for names and dicts.

    Returns
    -------
    Initializer, callable or None
        None for None.

    Raises
    ------
    ValueError
        The identifier is unknown or not callable.
    """
    if isinstance(identifier, np.ndarray):
        return Constant(identifier)
    return get_object(identifier, _OBJECTS, "initializer", custom_objects)


def serialize(initializer: Any) -> dict[str, Any] | None:
    """Return the Keras 3 config dict of an initializer or named function; None for None."""
    return serialize_object(initializer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Read a name or a Keras 3 or Keras 2 dict; errors as in `get`."""
    return get(config, custom_objects)
