"""What every layer has: name, dtype, weights, losses and config; and layers as plain data."""

from __future__ import annotations

import re
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fastgru import locks, serialization
from fastgru.dtypes import float_dtype, policy_of
from fastgru.layers import options
from fastgru.variables import write_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgru.dtypes import DTypePolicy
    from fastgru.variables import Variable

LAYERS: dict[str, Any] = {}
_name_counts: dict[str, int] = {}
# Controls of terminals, separators of lines, marks that turn the direction of writing, and halves
# of surrogate pairs, which no encoding has.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def unique_name(stem: str) -> str:
    """Return ``stem``, ``stem_1``, ``stem_2``, ... as Keras names its layers."""
    with locks.counting:
        count = _name_counts.get(stem, 0)
        _name_counts[stem] = count + 1
    return stem if count == 0 else f"{stem}_{count}"


class InputSpec(NamedTuple):
    """What a layer takes, by the names of `keras.InputSpec`."""

    ndim: int
    axes: dict[int, int]  # -1: the features, once the layer is built
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    max_ndim: int | None = None
    min_ndim: int | None = None


class Layer:
    """Base of all layers and cells.

    Subclasses give ``weights`` and, where they have them, ``activity_losses``.

    What is set on a layer is checked as the constructor's arguments are: ``_checks`` has a function
    for each option. Other attributes are the user's own.
    """

    _checks: ClassVar[dict[str, options.Check]] = {"trainable": options.flag}
    _fixed: ClassVar[frozenset[str]] = frozenset()
    _axes: ClassVar[int] = 3  # of an input; a cell's has 2
    supports_masking: ClassVar[bool] = True

    trainable: bool
    built: bool
    _dtype: np.dtype

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._checks = {
            name: check
            for base in reversed(cls.__mro__)
            for name, check in vars(base).get("_checks", {}).items()
        }
        # As abc.ABC does, without its metaclass, which would bar a user's own.
        missing = [n for n in dir(cls) if getattr(getattr(cls, n), "__isabstractmethod__", False)]
        if missing and not abstract:
            raise TypeError(f"{cls.__name__}: expected it to define {', '.join(missing)}")
        if cls.__module__.startswith("fastgru.") and not abstract:
            LAYERS[cls.__name__] = cls

    def __init__(
        self,
        *,
        name: str | None = None,
        dtype: Any = "float32",
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        self._built_at_once, self._initial_weights = options.keras_keywords(
            type(self), kwargs, self._axes, getattr(self, "time_major", False)
        )
        self._policy = policy_of(dtype)
        self._dtype = float_dtype(self._policy.compute_dtype)  # of a call's arrays
        self._variable_dtype = float_dtype(self._policy.variable_dtype)
        if name is None:
            stem = re.sub(
                r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__
            )
            name = self._automatic_name = unique_name(stem.lower())
        self.name = name
        self.trainable = trainable
        self.built = False
        self._parent: Any = (
            None  # weak: a cell that is copied or sent does not take its layer along
        )

    def _made(self) -> None:
        """End a constructor: take the parts in, and build for the input shape, if one was given."""
        self._take_parts_in()
        shape, self._built_at_once = self._built_at_once, None
        if shape is not None:
            self.build(shape)

    def _take_parts_in(self) -> None:
        for part in self._layers_inside():
            if part._parent is None or part._parent() is None:
                part._parent = weakref.ref(self)

    def _layers_inside(self) -> list[Layer]:
        """Return the layers and cells that this one is made of."""
        return []

    @abstractmethod
    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of a shape."""

    def _set_initial_weights(self) -> None:
        """Set the weights that the constructor got; if they do not fit, be as before build."""
        if self._initial_weights is not None:
            try:
                self._replace_weights(self._initial_weights)
            except (TypeError, ValueError):
                self.forget()
                raise
            self._initial_weights = None

    def forget(self) -> None:
        """Go back to before build."""
        self.built = False
        for part in self._layers_inside():
            part.forget()

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checks.get(name)
        cls: Any = type(self)
        if name in self._fixed and self._is_fixed():
            raise AttributeError(
                f"{self.name}: {name} cannot be changed any more, as other parts depend on it; "
                "make another layer"
            )
        if check is not None:
            value = check(value, name)
        elif name[:1] != "_" and name not in options.settable_names(cls):
            options.refuse_wrong(self, name)  # or it is the user's own
        object.__setattr__(self, name, value)

    def _is_fixed(self) -> bool:
        return False

    @property
    def name(self) -> str:
        """The layer's name, without control characters: it is printed and written to files."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {name!r}")
        if wrong := _CONTROL.search(name):
            raise ValueError(
                f"name: expected no control characters, got {name[:200]!a} with "
                f"{wrong[0]!a} at {wrong.start()}"
            )
        self._name = name

    @property
    def path(self) -> str:
        """The names of the layers around this one and its own, with slashes between."""
        parent = None if self._parent is None else self._parent()
        if parent is None:
            return self.name
        before = []
        for part in parent._layers_inside():
            if part is self:
                break
            before.append(part.name)
        count = before.count(self.name)
        return f"{parent.path}/{self.name}" + (f"_{count}" if count else "")

    @property
    def input_spec(self) -> InputSpec:
        """Axes of the inputs, and the number of features once the layer is built."""
        weights = self.weights
        return InputSpec(self._axes, {-1: weights[0].shape[0]} if weights else {})

    @property
    def dtype_policy(self) -> DTypePolicy:
        """The policy: its name, and the two dtypes that follow."""
        return self._policy

    @property
    def compute_dtype(self) -> str:
        """Name of the dtype of a call's inputs, states and outputs."""
        return self._policy.compute_dtype

    @property
    def variable_dtype(self) -> str:
        """Name of the dtype of the weights; ``dtype`` is the same."""
        return self._policy.variable_dtype

    dtype = variable_dtype

    # -- weights ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def weights(self) -> list[Variable]:
        """All weights."""

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights that ``backward`` gives gradients of."""
        return [v for v in self.weights if v.trainable] if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The other weights."""
        trainable = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trainable]

    @property
    def variables(self) -> list[Variable]:
        """The same as ``weights``."""
        return self.weights

    @property
    def trainable_variables(self) -> list[Variable]:
        """The same as ``trainable_weights``."""
        return self.trainable_weights

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The same as ``non_trainable_weights``."""
        return self.non_trainable_weights

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of all weights, in the order of ``weights``."""
        variables = self.weights
        values = locks.at_once(lambda: [v.value for v in variables])
        return [value.copy() for value in values]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replace all weights; either all are written or, after an error, none.

        Parameters
        ----------
        weights : list of array_like
            In the order and shapes of ``weights``; they are cast to the layer's dtype.
        """
        if not self.built:
            raise ValueError(
                f"{self.name}: it has no weights yet; call build(input_shape) or the layer first"
            )
        self._replace_weights(weights)

    def _replace_weights(self, weights: Any) -> None:
        variables = self.weights
        if isinstance(weights, (str, bytes, dict)) or not hasattr(weights, "__iter__"):
            raise TypeError(
                f"{self.name}: expected a list of arrays as get_weights() gives, got "
                f"{type(weights).__name__}"
            )
        values = list(weights)
        if len(values) != len(variables):
            raise ValueError(
                f"{self.name}: expected {len(variables)} weights "
                f"({', '.join(v.name for v in variables)}), got {len(values)}"
            )
        checked = [v.checked(value) for v, value in zip(variables, values, strict=True)]
        write_together(variables, checked)

    def count_params(self) -> int:
        """Return the number of weight elements."""
        if not self.built:
            raise ValueError(
                f"{self.name}: it has no weights yet; call build(input_shape) or the layer first"
            )
        return sum(v.size for v in self.weights)

    def apply_constraints(self) -> None:
        """Replace each trainable weight that has a constraint by ``constraint(weight)``."""
        limited = [v for v in self.trainable_weights if v.constraint is not None]
        write_together(limited, [v.checked(v.constraint(v.value)) for v in limited])

    # -- losses ----------------------------------------------------------------------------

    @property
    def activity_losses(self) -> list[Any]:
        """Activity losses of the last call, each divided by the batch size."""
        return []

    @property
    def losses(self) -> list[Any]:
        """Activity losses of the last call, then the regularizers' losses of trainable weights."""
        weights = [v for v in self.trainable_weights if v.regularizer is not None]
        return [*self.activity_losses, *(v.regularizer(v.value) for v in weights)]

    # -- config ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        policy = {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": self.dtype_policy.name},
            "registered_name": None,
        }
        return {"name": self.name, "trainable": self.trainable, "dtype": policy}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Any:
        """Build a layer from a config of this library, of Keras 3 or of Keras 2."""
        return cls(**config)

    _transient: ClassVar[tuple[str, ...]] = ("_parent",)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self._transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.update(dict.fromkeys(self._transient))
        self._take_parts_in()

    # -- what is symbolic in Keras -----------------------------------------------------------

    @property
    def input(self) -> Any:
        """Not there: AttributeError."""
        raise AttributeError(_NOT_SYMBOLIC.format(self.name, "input", "the arrays that you pass"))

    @property
    def output(self) -> Any:
        """Not there: AttributeError."""
        raise AttributeError(_NOT_SYMBOLIC.format(self.name, "output", "what a call returns"))

    def __repr__(self) -> str:
        shown = [*self._shown_first(), *options.changed_options(self)]
        if self.dtype_policy.name != "float32":
            shown.append(f"dtype={self.dtype_policy.name!r}")
        return f"{type(self).__name__}({', '.join([*shown, f'name={self.name!r}'])})"

    def _shown_first(self) -> list[str]:
        """Return what the constructor got first and the layer keeps under another name."""
        return []


_NOT_SYMBOLIC = "{}: it has no {}: nothing is symbolic here, and a layer computes at once; use {}"


def serialize_layer(layer: Any) -> dict[str, Any]:
    """Return the Keras 3 object form of a layer, a cell or a custom cell with get_config."""
    if not hasattr(layer, "get_config"):
        raise ValueError(
            f"{type(layer).__name__}: it has no get_config(); give it one that returns its "
            "constructor's arguments"
        )
    if isinstance(layer, Layer):
        return {
            "module": "keras.layers",
            "class_name": type(layer).__name__,
            "config": layer.get_config(),
            "registered_name": None,
        }
    config = serialization.serialize_object(layer)
    assert config is not None
    return config


def deserialize_layer(config: Any, custom_objects: dict[str, Any] | None = None) -> Any:
    """Build a layer or cell from its object form, Keras 3's or Keras 2's."""
    if isinstance(config, Layer):
        return config
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError(
            "layer config: expected a dict with 'class_name' and 'config', "
            f"got {type(config).__name__}"
        )
    name = str(config["class_name"]).rpartition(">")[2]
    custom = custom_objects or {}
    registered = config.get("registered_name")
    for key in (registered, config["class_name"], name):
        if key in custom:
            cls = custom[key]
            break
    else:
        if name not in LAYERS:
            raise ValueError(
                f"layer config: expected one of {', '.join(sorted(LAYERS))} or a class from "
                f"custom_objects, got {config['class_name']!r}"
            )
        cls = LAYERS[name]
    inner = dict(config.get("config") or {})
    if isinstance(cls, type) and issubclass(cls, Layer):
        return cls.from_config(inner, custom_objects=custom_objects)
    return cls.from_config(inner) if hasattr(cls, "from_config") else cls(**inner)
