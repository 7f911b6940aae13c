"""Objects to Keras config dicts and back, for activations, initializers, cells, layers and so on.

Two forms are read: Keras 3's ``{"module", "class_name", "config", "registered_name"}`` and
Keras 2's ``{"class_name", "config"}`` (or a bare name). One form is written, Keras 3's, so that
Keras' own ``from_config`` accepts it. A config is data: nothing it names is imported or executed.
What is not ours has to be handed in through ``custom_objects``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: Packages whose class and function names mean the same as ours.
KERAS_PACKAGES = frozenset({"keras", "tf_keras", "tensorflow"})
_KNOWN_PACKAGES = KERAS_PACKAGES | {"fastgru", "builtins"}


class Configured:
    """A base for objects whose config is their constructor's arguments, kept as attributes."""

    _arguments: tuple[str, ...] = ()

    def get_config(self) -> dict[str, Any]:
        """Give the constructor's arguments by name, as plain values."""
        return {name: getattr(self, name) for name in self._arguments}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Build the object from what `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def named(classes: Iterable[type]) -> dict[str, Any]:
    """Give the table of classes under their own names and their snake_case names, as in Keras."""
    table: dict[str, Any] = {}
    for cls in classes:
        name = cls.__name__
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        table[name] = table[snake] = cls
    return table


def is_live_keras(obj: Any) -> bool:
    """Whether a function, a class or an object's class was defined by Keras, 2 or 3."""
    module = getattr(obj, "__module__", None) or type(obj).__module__
    return isinstance(module, str) and module.partition(".")[0] in KERAS_PACKAGES


def unknown_name(what: str, name: Any, known: Mapping[str, Any]) -> ValueError:
    """Build the error for a name that is not in a table, with the names that come close."""
    from difflib import get_close_matches  # only a mistake pays for this import

    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return ValueError(
        f"Unknown {what} {name!r}.{hint} Expected one of {', '.join(sorted(known))}; "
        f"or pass the object itself, or its name in custom_objects."
    )


def serialize_object(obj: Any) -> dict[str, Any] | None:
    """Give an object's Keras 3 config dict.

    Parameters
    ----------
    obj : object
        ``None``, an object with ``get_config()``, or a named function.

    Returns
    -------
    dict or None
        ``{"module", "class_name", "config", "registered_name"}``. Objects of this package carry the
        Keras module of the same name (``fastgru.layers.gru.GRUCell`` -> ``keras.layers``) and
        ``registered_name`` None, so that Keras reads them as its own. A function has the class name
        ``"function"`` and its name as config.

    Raises
    ------
    ValueError
        If the object has neither ``get_config()`` nor a name.
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
        The names of one module: classes are instantiated, all else is returned as it is.
    custom_objects : mapping of str to object, optional
        The caller's own classes and functions, by class name or registered name
        (``"package>name"`` or ``"name"``). They come before `module_objects`.
    what : str
        What is being read ("initializer"), for error messages.

    Returns
    -------
    object or None
        None for None.

    Raises
    ------
    ValueError
        If the config is not one of those forms, names something unknown, or its class refuses the
        values.
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
        module = config.get("module") or "builtins"
        if module.partition(".")[0] not in _KNOWN_PACKAGES:
            raise ValueError(
                f"Cannot read {what} {name!r} of module {module!r}: it is not one of Keras'. "
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
    except TypeError as error:  # an unexpected or missing argument: say whose, and keep the cause
        raise ValueError(
            f"Cannot read {what} {cls.__name__} from config {dict(inner)!r}: {error}."
        ) from error


def get_object(
    identifier: Any,
    module_objects: Mapping[str, Any],
    what: str,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Resolve what users may pass where Keras takes an initializer, regularizer or constraint.

    Parameters
    ----------
    identifier : None, str, dict, class, object or callable
        A live Keras object becomes ours when its class is in `module_objects`; other callables are
        kept.
    module_objects, what, custom_objects
        As in `deserialize_object`.

    Returns
    -------
    object or None
        None for None.

    Raises
    ------
    ValueError
        If it is none of these.
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
