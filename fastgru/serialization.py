"""Objects to Keras config dicts and back, for activations, initializers, cells, layers and so on.

This reads Keras 3's form ``{"module", "class_name", "config", "registered_name"}``, Keras 2's
``{"class_name", "config"}``, and names. It writes Keras 3's form, which Keras' ``from_config``
accepts. A config is data: nothing that it names is imported or executed. Pass objects that are not
fastgru's as ``custom_objects``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

#: Packages whose names of classes and functions mean the same as fastgru's.
KERAS_PACKAGES = frozenset({"keras", "tf_keras", "tensorflow"})
_KNOWN_PACKAGES = KERAS_PACKAGES | {"fastgru", "builtins"}


class Configured:
    """A base for objects whose config is their constructor's arguments, which are attributes."""

    _arguments: tuple[str, ...] = ()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._arguments}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Build the object from the dict that `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def named(classes: Iterable[type]) -> dict[str, Any]:
    """Return a table of classes by their names and, as in Keras, by their snake_case names."""
    table: dict[str, Any] = {}
    for cls in classes:
        name = cls.__name__
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        table[name] = table[snake] = cls
    return table


def is_live_keras(obj: Any) -> bool:
    """Say whether Keras 2 or 3 defines a function, a class or an object's class."""
    module = getattr(obj, "__module__", None) or type(obj).__module__
    return isinstance(module, str) and module.partition(".")[0] in KERAS_PACKAGES


def is_foreign(config: Mapping[str, Any], home: frozenset[str] = _KNOWN_PACKAGES) -> bool:
    """Say whether an object dict is of another package's class, which may have the name of Keras'.

    Keras 3 names the class's module, or leaves it out and names the package under which the class
    was registered, as ``"package>name"``. Keras registers none of its recurrent classes.
    """
    package, registered, _ = str(config.get("registered_name") or "").rpartition(">")
    if registered and package not in home:
        return True
    if config.get("module", "") is None and config.get("registered_name"):
        return True  # a class that was not registered, in tf.keras
    return str(config.get("module") or "keras").partition(".")[0] not in home


def unknown_name(what: str, name: Any, known: Mapping[str, Any]) -> ValueError:
    """Return the error for a name that is not in a table; it suggests similar names."""
    from difflib import get_close_matches  # slow to import, and only errors need it

    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return ValueError(
        f"Unknown {what} {name!r}.{hint} Expected one of {', '.join(sorted(known))}; "
        f"or pass the object itself, or its name in custom_objects."
    )


def serialize_object(obj: Any) -> dict[str, Any] | None:
    """Return an object's Keras 3 config dict.

    Parameters
    ----------
    obj : object
        ``None``, an object with ``get_config()``, or a named function.

    Returns
    -------
    dict or None
        ``{"module", "class_name", "config", "registered_name"}``. The module of fastgru's objects
        is Keras' of the same name (``fastgru.layers.gru.GRUCell`` -> ``keras.layers``) and their
        ``registered_name`` is None, so that Keras reads them as its own. Functions have the class
        name ``"function"``, and the function's name as config.

    Raises
    ------
    ValueError
        The object has neither ``get_config()`` nor a name.
    """
    if obj is None:
        return None
    if not hasattr(obj, "get_config"):
        name = getattr(obj, "__name__", None)
        if name is None or isinstance(obj, type):
            raise ValueError(
                f"Cannot write {obj!r} into a config: expected a named function or an instance "
                f"with get_config(), got {type(obj).__name__}. Give its class a get_config(), and "
                f"pass the class in custom_objects to read it back."
            )
        module = getattr(obj, "__module__", None)
        return {"module": module, "class_name": "function", "config": name, "registered_name": name}
    cls = type(obj)
    path = [part for part in cls.__module__.split(".") if part != "src"]
    if path[0] == "fastgru" or path[0] in KERAS_PACKAGES:
        place = {"module": ".".join(["keras", *path[1:2]]), "registered_name": None}
    else:
        place = {"module": cls.__module__, "registered_name": cls.__name__}
    return {
        "module": place["module"],
        "class_name": cls.__name__,
        "config": obj.get_config(),
        "registered_name": place["registered_name"],
    }


def deserialize_object(
    config: Any,
    module_objects: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None = None,
    what: str = "object",
) -> Any:
    """Build the object that a Keras config names.

    Parameters
    ----------
    config : str, dict or None
        A name, a Keras 3 dict, or a Keras 2 dict.
    module_objects : mapping of str to object
        The names of one module. Classes are instantiated, other objects returned unchanged.
    custom_objects : mapping of str to object, optional
        The caller's own classes and functions, by class name or registered name
        (``"package>name"`` or ``"name"``). They hide names of `module_objects`.
    what : str
        The kind of object ("initializer"), for error messages.

    Returns
    -------
    object or None
        None for None.

    Raises
    ------
    ValueError
        The config has another form, it names an unknown object, or the class refuses the values.
    """
    if config is None:
        return None
    custom_objects = custom_objects or {}
    if isinstance(config, str):
        found = _find((config,), custom_objects)
        if found is None:
            found = module_objects.get(config)
        if found is None:
            raise unknown_name(what, config, module_objects)
        return found() if isinstance(found, type) else found
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise ValueError(
            f"Cannot read {what} config {config!r}: expected a name, or a dict with 'class_name' "
            f"and 'config' (and 'module', 'registered_name' from Keras 3)."
        )
    class_name, inner = config["class_name"], config.get("config")
    if class_name == "__lambda__":
        raise ValueError(
            f"Cannot read {what} config: it holds a Python lambda as bytecode, and nothing in a "
            f"config is executed. Write the function with a name, and pass it in custom_objects."
        )
    is_function = class_name == "function"
    name = inner if is_function else class_name
    if not isinstance(name, str):
        raise ValueError(
            f"Cannot read {what} config {config!r}: expected the function's name under 'config'."
        )
    found = _find((config.get("registered_name"), name), custom_objects)
    if found is None:
        if is_foreign(config):
            module = config.get("module")
            whose = f"module {module!r}" if module else repr(config.get("registered_name"))
            raise ValueError(
                f"Cannot read {what} {name!r} of {whose}: it is not one of Keras'. "
                f"Pass custom_objects={{{name!r}: ...}}."
            )
        found = module_objects.get(name)
    if found is None:
        raise unknown_name(what, name, module_objects)
    if is_function or not isinstance(found, type):
        return found
    return _build(found, {} if inner is None else inner, what)


def _find(names: tuple[Any, ...], custom_objects: Mapping[str, Any]) -> Any:
    """Look names up in custom_objects, with and without the package of ``"package>name"``."""
    for name in names:
        if isinstance(name, str):
            for key in (name, name.rpartition(">")[2]):
                if key in custom_objects:
                    return custom_objects[key]
    return None


def _build(cls: Any, inner: Any, what: str) -> Any:
    """Instantiate a class from its config dict."""
    if not isinstance(inner, Mapping):
        raise ValueError(
            f"Cannot read {what} {cls.__name__}: expected a dict under 'config', got {inner!r}."
        )
    make: Callable[[dict[str, Any]], Any] = getattr(
        cls, "from_config", lambda values: cls(**values)
    )
    try:
        return make(dict(inner))
    except TypeError as error:  # an unexpected or missing argument; this names the class
        raise ValueError(
            f"Cannot read {what} {cls.__name__} from config {dict(inner)!r}: {error}."
        ) from error


def check_number(
    owner: Any, name: str, value: Any, least: float | None = None, *, infinite: bool = False
) -> Any:
    """Return a constructor's argument as it is; ValueError unless it is a number.

    NaN is none. Infinity is one only where it has a meaning (``infinite``). In the weights either
    would be found late: one NaN there makes every output NaN.
    """
    right = isinstance(value, Real) and not isinstance(value, bool)
    right = right and (math.isfinite(value) or (infinite and not math.isnan(value)))
    if not right or (least is not None and value < least):
        kind = "a number" if infinite else "a finite number"
        bound = "" if least is None else f" >= {least:g}"
        raise ValueError(
            f"{type(owner).__name__}: expected {name} to be {kind}{bound}, got {value!r}."
        )
    return value


def get_object(
    identifier: Any,
    module_objects: Mapping[str, Any],
    what: str,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Return the object for anything that Keras takes as initializer, regularizer or constraint.

    Parameters
    ----------
    identifier : None, str, dict, class, object or callable
        A live Keras object whose class is in `module_objects` becomes fastgru's. Other callables
        are kept.
    module_objects, what, custom_objects
        As in `deserialize_object`.

    Returns
    -------
    object or None
        None for None.

    Raises
    ------
    ValueError
        The identifier is of another kind.
    """
    if identifier is None:
        return None
    if isinstance(identifier, (str, Mapping)):
        obj = deserialize_object(identifier, module_objects, custom_objects, what)
    else:
        obj = identifier() if isinstance(identifier, type) else identifier
    cls = type(obj)
    if is_live_keras(cls) and cls.__name__ in module_objects and hasattr(obj, "get_config"):
        obj = _build(module_objects[cls.__name__], obj.get_config(), what)
    if not callable(obj):
        raise ValueError(
            f"Cannot use {identifier!r} as {what}: expected a name, a Keras config dict, a class "
            f"or a callable, got {type(identifier).__name__}."
        )
    return obj
