"""What users pass and set: values are checked, misspelt names refused, Keras' keywords read."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from fastgru import activations, constraints, initializers, regularizers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Check = Callable[[Any, str], Any]

# How alike a new attribute must be to one of the layer's options to be taken for it misspelt.
_MISSPELT = 0.85


class ShapeKeywords(TypedDict, total=False):
    """Keywords of Keras' layers by which a layer is built at once."""

    input_shape: Sequence[int | None]
    batch_input_shape: Sequence[int | None]
    batch_shape: Sequence[int | None]
    input_dim: int
    input_length: int | None
    batch_size: int | None
    autocast: bool


class Keywords(ShapeKeywords, total=False):
    """All keywords that are no options of a layer."""

    weights: Any


_WITHOUT_BATCH = "input_shape"
_WITH_BATCH = ("batch_input_shape", "batch_shape")
KEYWORDS = (*ShapeKeywords.__annotations__, "weights")


def flag(value: Any, what: str) -> bool:
    """Return a bool, or raise TypeError."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{what}: expected True or False, got {value!r}")


def positive_integer(value: Any, what: str) -> int:
    """Return an integer of at least 1, or raise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what}: expected a positive integer, got {value!r}")
    if value.__index__() <= 0:
        raise ValueError(f"{what}: expected a positive integer, got {value}")
    return int(value.__index__())


def rate(value: Any, what: str) -> float:
    """Return a fraction as a float, or raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{what}: expected a number in [0, 1], got {value!r}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what}: expected a number in [0, 1], got {value}")
    return float(value)


def one_of(*values: Any) -> Check:
    """Return a check that a value is one of these."""
    texts = [repr(value) for value in values]
    expected = " or ".join([", ".join(texts[:-1]), texts[-1]])

    def check(value: Any, what: str) -> Any:
        for known in values:
            if type(value) is type(known) and value == known:
                return known
        raise ValueError(f"{what}: expected {expected}, got {value!r}")

    return check


def _got_by(get: Callable[[Any], Any]) -> Check:
    return lambda value, _: get(value)


def cell_checks() -> dict[str, Check]:
    """Return the checks of `GRUCell`'s options."""
    checks: dict[str, Check] = {
        "units": positive_integer,
        "activation": activations.for_gate,
        "recurrent_activation": activations.for_gate,
        "use_bias": flag,
        "dropout": rate,
        "recurrent_dropout": rate,
        "reset_after": flag,
        "implementation": one_of(1, 2),
        "precision": one_of(None, "tf32"),
    }
    for module in (initializers, regularizers, constraints):
        suffix = module.__name__.rpartition(".")[2][:-1]
        for role in ("kernel", "recurrent", "bias"):
            checks[f"{role}_{suffix}"] = _got_by(module.get)
    return checks


# ---- names ---------------------------------------------------------------------------------------


@functools.cache
def parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Return the named arguments of the constructors of a class and of those it is made from."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter)
        # One of ours names all it takes; a user's with **kwargs takes what the class below does.
        if base.__module__.startswith("fastgru.") or parameter.kind is not parameter.VAR_KEYWORD:
            break
    found.pop("self", None)
    return found


@functools.cache
def _own_names(cls: Any) -> frozenset[str]:
    """Return the names that a class declares: its members and its annotations."""
    declared = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", ())}
    return frozenset(declared | set(dir(cls)))


@functools.cache
def settable_names(cls: Any) -> frozenset[str]:
    """Return the names that a class declares, but for properties that cannot be set."""
    members = ((name, inspect.getattr_static(cls, name, None)) for name in _own_names(cls))
    return frozenset(
        name
        for name, member in members
        if not isinstance(member, property) or member.fset is not None
    )


def nearest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    """Return the name that is most like another, if one is."""
    import difflib  # for errors only

    by_lower = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), by_lower, 1, cutoff)
    return by_lower[found[0]] if found else None


def refuse_wrong(layer: Any, name: str) -> None:
    """Raise AttributeError if a new attribute is an option misspelt, or what cannot be set."""
    cls: Any = type(layer)
    if name in _own_names(cls):
        member = inspect.getattr_static(cls, name, None)
        if isinstance(member, property) and member.fset is None:
            how = "make another layer"
            if name in ("kernel", "recurrent_kernel", "bias"):
                how = f"write its numbers with {layer.name}.{name}.assign(array)"
            elif name.endswith(("weights", "variables")):
                how = "write their numbers with set_weights(list of arrays)"
            raise AttributeError(f"{layer.name}: {name} cannot be set; {how}")
        return
    meant = nearest(name, parameters(cls), _MISSPELT)
    if meant not in (None, name):
        raise AttributeError(
            f"{layer.name}: it has no attribute {name!r}; did you mean {meant!r}? An attribute of "
            "your own needs a name that is less like it, or a subclass that declares it"
        )


# ---- keywords of Keras' layers -------------------------------------------------------------------


def keras_keywords(
    cls: Any, keywords: dict[str, Any], axes: int, time_major: bool = False
) -> tuple[tuple[Any, ...] | None, Any]:
    """Return the input shape with the batch axis, and the weights, that keywords of Keras give.

    Parameters
    ----------
    cls : type
        The layer's class, for messages.
    keywords : dict
    axes : int
        Of an input: 3 for layers, 2 for cells.
    time_major : bool
        Where ``input_length`` and ``batch_size`` go; shapes are taken as they are.

    Raises
    ------
    TypeError
        A keyword that no layer takes.
    ValueError
        Two shapes, or one of another number of axes.
    """
    for name in keywords:
        if name not in KEYWORDS:
            meant = nearest(name, [*parameters(cls), *KEYWORDS], 0.6)
            raise TypeError(
                f"{cls.__name__}: got an unexpected argument {name!r}"
                + (f"; did you mean {meant!r}?" if meant else "")
            )
    weights = keywords.get("weights")
    given = [k for k in (_WITHOUT_BATCH, *_WITH_BATCH, "input_dim") if keywords.get(k) is not None]
    if len(given) > 1:
        raise ValueError(f"{cls.__name__}: expected one input shape, got {' and '.join(given)}")
    if not given:
        return None, weights
    (name,) = given
    batch = keywords.get("batch_size")
    shape = keywords[name]
    if name == "input_dim":
        steps = [keywords.get("input_length")] if axes == 3 else []
        shape = (*steps, batch, shape) if time_major else (batch, *steps, shape)
    elif not isinstance(shape, (tuple, list)):
        raise ValueError(f"{name}: expected a tuple, got {shape!r}")
    elif name == _WITHOUT_BATCH:
        shape = (batch, *shape)
    if len(shape) != axes:
        wanted = "(T, I)" if axes == 3 else "(I,)"
        raise ValueError(
            f"{name}: expected {wanted if name == _WITHOUT_BATCH else f'{axes} axes'}, "
            f"got {keywords[name]!r}"
        )
    return tuple(shape), weights


# ---- repr ----------------------------------------------------------------------------------------

_MODULES = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}
# Shown otherwise, or no longer there in the form that they were passed in.
_NOT_SHOWN = ("name", "dtype", "weights", "backward_layer")


def changed_options(layer: Any) -> list[str]:
    """Return ``name=value`` of the constructor's arguments that differ from their defaults.

    Cells and lists of layers come first, without the names of their arguments.
    """
    shown = []
    cls: Any = type(layer)
    for name, parameter in parameters(cls).items():
        if name in _NOT_SHOWN or not hasattr(layer, name):
            continue
        value = getattr(layer, name)
        text = _described(name, value)
        if parameter.default is parameter.empty and not isinstance(value, int):
            shown.append(text)
        elif parameter.default is parameter.empty or text != _described(name, parameter.default):
            shown.append(f"{name}={text}")
    return shown


def _described(name: str, value: Any) -> str:
    """Return an option as it would be written in a program, as far as it can be."""
    if value is None:
        return "None"
    if name in ("activation", "recurrent_activation"):
        value = activations.get(value)
        known = getattr(value, "name", None)
        return repr(known if known and activations.get(known) == value else value)
    module = _MODULES.get(name.rpartition("_")[2])
    return repr(value if module is None else module.get(value))
