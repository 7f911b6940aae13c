"""The shared reader and writer of Keras configs."""

import re

import pytest

from fastgru import initializers, serialization
from fastgru.serialization import deserialize_object, get_object, serialize_object

TABLE = serialization.named((initializers.Zeros, initializers.HeNormal, initializers.Orthogonal))


class Mine(serialization.Configured):
    _arguments = ("size",)

    def __init__(self, size=1):
        self.size = size

    def __call__(self):
        return self.size


class WithoutFromConfig:
    def __init__(self, size=1):
        self.size = size


def free(shape):
    return shape


def read(config, custom_objects=None):
    return deserialize_object(config, TABLE, custom_objects, "thing")


def test_named_gives_both_spellings():
    assert set(TABLE) == {"Zeros", "zeros", "HeNormal", "he_normal", "Orthogonal", "orthogonal"}


def test_own_objects_are_written_as_keras_objects():
    assert serialize_object(initializers.Orthogonal(0.5, seed=2)) == {
        "module": "keras.initializers",
        "class_name": "Orthogonal",
        "config": {"gain": 0.5, "seed": 2},
        "registered_name": None,
    }
    assert serialize_object(None) is None


def test_custom_objects_and_functions_keep_their_module():
    assert serialize_object(Mine(3)) == {
        "module": __name__,
        "class_name": "Mine",
        "config": {"size": 3},
        "registered_name": "Mine",
    }
    assert serialize_object(free) == {
        "module": __name__,
        "class_name": "function",
        "config": "free",
        "registered_name": "free",
    }


@pytest.mark.parametrize("obj", [object(), WithoutFromConfig(), WithoutFromConfig])
def test_what_cannot_be_written(obj):
    with pytest.raises(ValueError, match=r"expected a named function or an instance with get_conf"):
        serialize_object(obj)


@pytest.mark.parametrize("module", ["keras.initializers", "tensorflow.keras", "builtins", None])
def test_reads_both_forms(module):
    config = {"class_name": "Orthogonal", "config": {"gain": 0.5}}
    assert read(config).gain == 0.5
    assert read({**config, "module": module, "registered_name": None}).gain == 0.5
    assert read({"class_name": "Orthogonal", "config": None}).gain == 1.0
    assert read({"class_name": "Orthogonal"}).gain == 1.0
    assert isinstance(read("he_normal"), initializers.HeNormal)
    assert read(None) is None


@pytest.mark.parametrize("key", ["Mine", "package>Mine"])
def test_custom_objects_by_registered_name(key):
    config = {"module": "m", "class_name": "Mine", "config": {"size": 4}, "registered_name": key}
    assert read(config, {"Mine": Mine}).size == 4
    assert read(config, {key: Mine}).size == 4
    assert read({"class_name": key, "config": {"size": 4}}, {"Mine": Mine}).size == 4
    assert read(config, {"Mine": WithoutFromConfig}).size == 4
    assert read("Mine", {"Mine": Mine}).size == 1


def test_custom_objects_come_first():
    assert isinstance(read("zeros", {"zeros": Mine}), Mine)
    assert isinstance(read({"class_name": "Zeros", "config": {}}, {"Zeros": Mine}), Mine)


def test_functions():
    assert read(serialize_object(free), {"free": free}) is free
    named_only = {"class_name": "function", "config": "free", "registered_name": "function"}
    assert read({**named_only, "module": "builtins"}, {"free": free}) is free
    assert deserialize_object(named_only, {"free": free}) is free


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("zerro", "Unknown thing 'zerro'. Did you mean 'zeros' or"),
        ("qqqq", "Unknown thing 'qqqq'. Expected one of HeNormal, Orthogonal, Zeros"),
        (3, "Cannot read thing config 3: expected a name, or a dict with 'class_name'"),
        ({"config": {}}, "expected a name, or a dict with 'class_name'"),
        ({"class_name": 5}, "expected a name, or a dict with 'class_name'"),
        ({"class_name": "Zeros", "config": [1]}, "expected a dict under 'config', got [1]"),
        ({"class_name": "Zeros", "config": {"a": 1}}, "Zeros from config {'a': 1}"),
        ({"class_name": "function", "config": {}}, "expected the function's name"),
        ({"class_name": "function", "config": "f", "module": "m"}, "'f' of module 'm'"),
        ({"class_name": "Zeros", "config": {}, "module": "mine"}, "custom_objects={'Zeros'"),
        ({"class_name": "__lambda__", "config": {"value": "4wEA"}}, "nothing in a config is exec"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(config)


def test_errors_inside_a_constructor_keep_their_text():
    with pytest.raises(ValueError, match="expected seed to be None"):
        read({"class_name": "HeNormal", "config": {"seed": -1}})


def test_nothing_is_imported(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a config caused an import")

    config = {"module": "keras.os", "class_name": "Zeros", "config": {}, "registered_name": None}
    monkeypatch.setattr("importlib.import_module", refuse)
    assert isinstance(read(config), initializers.Zeros)
    with pytest.raises(ValueError, match="'system' of module 'os'"):
        read({**config, "module": "os", "class_name": "function", "config": "system"})


def test_get_object():
    assert get_object(None, TABLE, "thing") is None
    assert get_object(free, TABLE, "thing") is free
    assert isinstance(get_object(Mine, TABLE, "thing"), Mine)
    assert get_object("Mine", TABLE, "thing", {"Mine": Mine}).size == 1
    for wrong in (3, WithoutFromConfig, WithoutFromConfig()):
        with pytest.raises(ValueError, match=r"as thing: expected a name, a Keras config dict"):
            get_object(wrong, TABLE, "thing")


def test_a_users_class_of_a_known_name_stays_the_users():
    class Zeros:
        def __call__(self, shape, dtype):
            return shape

        def get_config(self):
            return {}

    zeros = Zeros()
    assert get_object(zeros, TABLE, "thing") is zeros


def test_live_keras_classes_are_known_by_their_module():
    theirs = type("Zeros", (), {"__module__": "keras.src.initializers.constant_initializers"})
    theirs.get_config = lambda self: {"dtype": "float32"}
    assert serialization.is_live_keras(theirs)
    assert serialization.is_live_keras(theirs())
    assert not serialization.is_live_keras(Mine())
    assert not serialization.is_live_keras(3)
    assert isinstance(get_object(theirs(), TABLE, "thing"), initializers.Zeros)
