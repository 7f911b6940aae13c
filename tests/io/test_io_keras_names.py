"""Whose weights are which in Keras' files: frozen, renamed, shared, wrapped and named layers."""

import json
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from keras_support import keras

import fastgru
from fastgru.io import from_keras, load_keras_weights, read_arrays, to_keras_weights

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
T, I, H = 5, 3, 3
X = np.random.default_rng(7).normal(0, 1, (2, T, I)).astype("float32")
SEQUENCES = {"return_sequences": True}


def gru(name=None, **more):
    return L.GRU(H, name=name, use_cudnn=False, **SEQUENCES, **more)


def through(*layers, name=None):
    x = y = keras.Input((T, I))
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y, name=name)


def randomised(model):
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.uniform(-0.7, 0.7, variable.shape))
    return model


def saved(model, path):
    randomised(model)
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def same(ours, theirs):
    x = np.random.default_rng(1).normal(size=(2, T, theirs.get_weights()[0].shape[0]))
    x = x.astype("float32")
    np.testing.assert_allclose(ours(x), np.asarray(theirs(x)), rtol=0, atol=1e-5)


# ---- frozen: legacy files list trainable arrays first --------------------------------------------


@pytest.mark.parametrize("half", ["forward_layer", "backward_layer"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_frozen_halves(half, nested, alone, tmp_path):
    theirs = L.Bidirectional(gru(), name="b")
    model = through(theirs)
    getattr(theirs, half).trainable = False
    path = saved(through(model) if nested else model, tmp_path / "m.h5")
    if alone:
        with h5py.File(path, "r+") as file:
            del file.attrs["model_config"]
    else:
        (ours,) = from_keras(path).values()
        same(ours, theirs)
    ours = fastgru.Bidirectional(fastgru.GRU(H, **SEQUENCES), name="b")
    load_keras_weights(ours, path)
    same(ours, theirs)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_cells_of_a_stack(frozen, tmp_path):
    cells = [L.GRUCell(H, name=name) for name in "abc"]
    theirs = L.RNN(cells, name="r", **SEQUENCES)
    model = through(theirs)
    cells[frozen].trainable = False
    path = saved(model, tmp_path / "m.h5")
    same(from_keras(path, "r"), theirs)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    named = fastgru.RNN([fastgru.GRUCell(H, name=name) for name in "abc"], name="r", **SEQUENCES)
    load_keras_weights(named, path)
    same(named, theirs)
    unnamed = fastgru.RNN([fastgru.GRUCell(H) for _ in "abc"], name="r", **SEQUENCES)
    with pytest.raises(ValueError, match=r"3 cells in an order that is certain, got .*/a"):
        load_keras_weights(unnamed, path)


@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_frozen_layers_of_a_nested_model(which, tmp_path):
    inner = [gru("first"), gru("middle"), gru("last")]
    model = through(through(*inner, name="inner"))
    next(layer for layer in inner if layer.name == which).trainable = False
    layers = from_keras(saved(model, tmp_path / "m.h5"))
    for theirs in inner:
        same(layers[f"inner/{theirs.name}"], theirs)


# ---- renamed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("g2", "g3", "g4"), ("x", "y", "z"), ("g1", "g3", "x")], ids="-".join
)
def test_renamed_in_a_nested_model(names, tmp_path):
    inner = [gru("g1"), gru("g2"), gru("g3")]
    part = through(*inner, name="inner")
    for theirs, name in zip(reversed(inner), reversed(names), strict=True):
        theirs.name = name
    path = saved(through(part), tmp_path / "m.h5")
    with pytest.warns(UserWarning, match="the arrays are taken in its order, as Keras does"):
        layers = from_keras(path)
    for theirs in inner:
        same(layers[f"inner/{theirs.name}"], theirs)


def test_renamed_at_the_top(tmp_path):
    theirs, both = gru("g"), L.Bidirectional(gru(), name="b")
    model = through(theirs, both)
    both.forward_layer.trainable = False
    theirs.name, both.name = "b", "g"
    layers = from_keras(saved(model, tmp_path / "m.h5"))
    same(layers["b"], theirs)
    same(layers["g"], both)


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_built_in_another_model(form, tmp_path):
    theirs = gru("g")
    keras.Sequential([keras.Input((T, I)), theirs], name="other")
    model = through(through(theirs, name="inner"))
    same(from_keras(saved(model, tmp_path / f"m{form}"), "inner/g"), theirs)


@pytest.mark.parametrize("name", ["слой", "é" * 40, "日本"])
@pytest.mark.parametrize("count", [1, 8, 20])
def test_names(name, count, tmp_path):
    inner = [gru() for _ in range(count)]
    model = through(*inner)
    for i, theirs in enumerate(inner):
        theirs.name = f"{name}{i}"
    layers = from_keras(saved(model, tmp_path / "m.h5"))
    for theirs in inner:
        same(layers[theirs.name], theirs)


def test_slashes_of_keras_2(tmp_path):
    """Keras 2 takes slashes in names, and makes groups in groups of them."""
    inner = {"a_1": gru("a_1"), "a_2": gru("a_2")}
    path = saved(through(*inner.values()), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace("a_", "a/")
        group = file["model_weights"]
        names = [name.replace("a_", "a/") for name in group.attrs["layer_names"]]
        group.attrs["layer_names"] = names
        for name in inner:
            group.move(name, name.replace("a_", "a/"))
    layers = from_keras(path)
    assert list(layers) == ["a/1", "a/2"]
    for name, theirs in inner.items():
        same(layers[name.replace("a_", "a/")], theirs)


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_shared(form, tmp_path):
    """A layer that two models inside a third share is in the file once."""
    theirs, other = gru("g"), gru("h")
    x = keras.Input((T, I))
    parts = [through(theirs, name="one"), through(theirs, other, name="two")]
    whole = keras.Model(x, [part(x) for part in parts], name="whole")
    model = keras.Model(y := keras.Input((T, I)), whole(y))
    layers = from_keras(saved(model, tmp_path / f"m{form}"))
    same(layers["whole/one/g"], theirs)
    same(layers["whole/two/g"], theirs)
    same(layers["whole/two/h"], other)


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_shared_with_a_model_that_comes_first(form, tmp_path):
    theirs = gru("g")
    x = keras.Input((T, I))
    part = through(gru("other"), theirs, name="part")
    model = keras.Model(x, theirs(part(x)))
    layers = from_keras(saved(model, tmp_path / f"m{form}"))
    same(layers["g"], theirs)
    same(layers["part/g"], theirs)


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_a_cell_twice(form, tmp_path):
    cell = L.GRUCell(H)
    theirs = L.RNN([cell] * 2, name="r", **SEQUENCES)
    same(from_keras(saved(through(theirs), tmp_path / f"m{form}"), "r"), theirs)


# ---- wrappers, subclasses ------------------------------------------------------------------------


@keras.saving.register_keras_serializable("theirs")
class Outer(L.Layer):
    """A wrapper that holds its layer under a name of its own."""

    def __init__(self, rnn, **more):
        super().__init__(**more)
        self.rnn = rnn

    def build(self, shape):
        self.rnn.build(shape)
        self.built = True

    def call(self, x):
        return self.rnn(x)

    def compute_output_shape(self, shape):
        return self.rnn.compute_output_shape(shape)

    def get_config(self):
        return {**super().get_config(), "rnn": keras.saving.serialize_keras_object(self.rnn)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("rnn")), **config)


@keras.saving.register_keras_serializable("theirs")
class Other(Outer):
    """A wrapper whose config calls its layer by another name than the attribute that holds it."""

    def get_config(self):
        config = super().get_config()
        config["layer"] = config.pop("rnn")
        return config

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@keras.saving.register_keras_serializable("theirs")
class OwnGRU(L.GRU):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_wrappers(form, tmp_path):
    rows, own = gru("rows"), L.Bidirectional(gru("own"))
    x = keras.Input((2, T, I))
    model = keras.Model(x, L.TimeDistributed(rows, name="lines")(x))
    same(from_keras(saved(model, tmp_path / f"a{form}"), "lines"), rows)
    for cls in (Outer, Other):
        model = through(cls(own, name="outer"))
        path = saved(model, tmp_path / f"b{form}")
        with pytest.warns(UserWarning, match=f"{cls.__name__}, of which nothing is known"):
            ours = from_keras(path, "outer")
        same(ours, own)


@keras.saving.register_keras_serializable("theirs")
class Several(L.Layer):
    """Somebody's layer with a list of layers in it."""

    def __init__(self, parts, **more):
        super().__init__(**more)
        self.parts = parts

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def build(self, shape):
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def compute_output_shape(self, shape):
        return (*shape[:-1], H)

    def get_config(self):
        parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
        return {**super().get_config(), "parts": parts}


def decoy(kind):
    """A wrapper that calls its layer by other attributes than by the key of its config."""
    before, own = {0: ("decoy", "main"), 1: ("gru", "main"), 2: ("other", "gru")}[kind]

    @keras.saving.register_keras_serializable(f"decoy{kind}")
    class Wrapper(L.Layer):
        def __init__(self, gru, **more):
            super().__init__(**more)
            for name in sorted((before, own), reverse=kind == 1):
                setattr(self, name, gru if name == own else L.GRU(H, name="decoy", **SEQUENCES))

        def build(self, shape):
            getattr(self, before).build(shape)
            getattr(self, own).build((*shape[:-1], H))

        def call(self, x):
            return getattr(self, own)(getattr(self, before)(x))

        def compute_output_shape(self, shape):
            return (*shape[:-1], H)

        def get_config(self):
            gru = keras.saving.serialize_keras_object(getattr(self, own))
            return {**super().get_config(), "gru": gru}

    return Wrapper


@pytest.mark.parametrize("kind", range(3))
def test_a_key_of_a_config_may_be_the_name_of_another_attribute(kind, tmp_path):
    theirs = gru("mine")
    path = saved(through(decoy(kind)(theirs, name="w")), tmp_path / "m.keras")
    with pytest.warns(UserWarning, match="Wrapper, of which nothing is known"):
        (ours,) = from_keras(path).values()
    same(ours, theirs)


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_layers_in_a_list_of_somebodys_layer(form, tmp_path):
    theirs = [gru("a"), L.Bidirectional(gru("b")), L.Dense(H), gru("c")]
    path = saved(through(Several(theirs, name="several"), gru("after")), tmp_path / f"m{form}")
    with pytest.warns(UserWarning, match="Several, of which nothing is known"):
        found = from_keras(path)
    assert list(found) == ["several/parts/0", "several/parts/1", "several/parts/3", "after"]
    for name, layer in zip(found, [theirs[0], theirs[1], theirs[3]], strict=False):
        same(found[name], layer)


@keras.saving.register_keras_serializable("theirs")
class WeightNormalization(Outer):
    """As tensorflow_addons has it: the layer runs with other weights than it stores."""


@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_wrappers_that_compute_weights_are_refused(form, tmp_path):
    path = saved(through(WeightNormalization(gru("g"), name="w")), tmp_path / f"m{form}")
    with pytest.raises(ValueError, match="WeightNormalization, which makes others of them"):
        from_keras(path)


@pytest.mark.parametrize("form", [".h5", ".keras"])
@pytest.mark.parametrize("key", ["OwnGRU", "theirs>OwnGRU"])
def test_registered_subclass(form, key, tmp_path):
    theirs = OwnGRU(H, name="g", use_cudnn=False, **SEQUENCES)
    path = saved(through(gru("h"), theirs), tmp_path / f"m{form}")
    assert list(from_keras(path)) == ["h"]
    same(from_keras(path, "g", custom_objects={key: fastgru.GRU}), theirs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = gru("e"), gru("d")
        self.blocks = [L.Bidirectional(gru(), name="one"), L.Bidirectional(gru(), name="two")]

    def call(self, x):
        x = self.decoder(self.encoder(x))
        return [block(x) for block in self.blocks]


def test_weights_of_a_subclassed_model(tmp_path):
    model = Subclassed()
    model(X)
    path = saved(model, tmp_path / "m.weights.h5")
    for name, theirs in (("e", model.encoder), ("d", model.decoder)):
        ours = fastgru.GRU(H, name=name, **SEQUENCES)
        load_keras_weights(ours, path)
        same(ours, theirs)
    for theirs in model.blocks:
        ours = fastgru.Bidirectional(fastgru.GRU(H, **SEQUENCES), name=theirs.name)
        load_keras_weights(ours, path)
        same(ours, theirs)
    with pytest.raises(ValueError, match=r"expected weights of one gru called f, got .*\(e\)"):
        load_keras_weights(fastgru.GRU(H, name="f"), path)


# ---- weights alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize(
    "names", [("dec",), ("enc",), ("dec", "enc"), ("mid", "dec")], ids="-".join
)
def test_sequential_takes_the_layers_that_it_names(form, names, tmp_path):
    theirs = {name: gru(name) for name in ("enc", "mid", "dec")}
    path = saved(through(*theirs.values()), tmp_path / f"m{form}")
    ours = fastgru.Sequential([fastgru.GRU(H, name=name, **SEQUENCES) for name in names])
    load_keras_weights(ours, path)
    for layer in ours.layers:
        same(layer, theirs[layer.name])


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("names", [("dec", "x"), ("x",), ("x", "y", "z")], ids="-".join)
def test_sequential_of_other_names_is_refused(form, names, tmp_path):
    path = saved(through(*(gru(name) for name in ("enc", "mid", "dec"))), tmp_path / f"m{form}")
    ours = fastgru.Sequential([fastgru.GRU(H, name=name, **SEQUENCES) for name in names])
    with pytest.raises(ValueError, match=r"expected weights of .*x.*enc"):
        load_keras_weights(ours, path)


def test_our_own_sequential_keeps_its_names(tmp_path):
    ours = fastgru.Sequential([fastgru.GRU(H, name=name, **SEQUENCES) for name in "ab"])
    ours(X)
    to_keras_weights(ours, tmp_path / "w.weights.h5")
    again = fastgru.Sequential([fastgru.GRU(H, name=name, **SEQUENCES) for name in "ba"])
    load_keras_weights(again, tmp_path / "w.weights.h5")
    for layer, other in zip(again.layers, reversed(ours.layers), strict=True):
        assert np.array_equal(layer(X), other(X))


@pytest.mark.parametrize("form", [".h5", ".weights.h5"])
def test_layers_of_nested_models(form, tmp_path):
    inner = [gru("a"), L.Bidirectional(gru(), name="b")]
    path = saved(through(gru("top"), through(*inner, name="inner")), tmp_path / f"m{form}")
    if form == ".h5":
        with h5py.File(path, "r+") as file:
            del file.attrs["model_config"]
    ours = fastgru.GRU(H, name="a", **SEQUENCES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        load_keras_weights(ours, path)
    # In a legacy file the other layer of this size could have had the name.
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert ["may be that of top/gru_cell" in text for text in said] == [True] * (form == ".h5")
    same(ours, inner[0])
    ours = fastgru.Bidirectional(fastgru.GRU(H, **SEQUENCES), name="b")
    load_keras_weights(ours, path)
    same(ours, inner[1])


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
def test_a_layer_into_a_cell_and_back(form, tmp_path):
    theirs = gru("g")
    path = saved(through(theirs), tmp_path / f"m{form}")
    cell = fastgru.GRUCell(H, name="g")
    load_keras_weights(cell, path)
    ours = fastgru.GRU(H, **SEQUENCES)
    ours.build((None, None, I))
    ours.set_weights(cell.get_weights())
    same(ours, theirs)
    back = L.GRUCell(H)
    back.build((None, I))
    randomised(back)
    keras.saving.save_weights(back, tmp_path / "cell.weights.h5")
    load_keras_weights(ours, tmp_path / "cell.weights.h5")
    assert all(map(np.array_equal, ours.get_weights(), back.get_weights()))


@pytest.mark.parametrize("size", [2e-7, 1e-6, 1e-4])
def test_shards(size, tmp_path):
    theirs = {name: gru(name) for name in "ab"}
    randomised(model := through(*theirs.values()))
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=size)
    for name, layer in theirs.items():
        ours = fastgru.GRU(H, name=name, **SEQUENCES)
        load_keras_weights(ours, tmp_path / "m.weights.json")
        same(ours, layer)
    arrays = [array.shape for array in read_arrays(tmp_path / "m.weights.json").values()]
    assert sorted(arrays) == sorted(array.shape for array in model.get_weights())


@pytest.mark.parametrize("name", ["../m.h5", "/etc/passwd", 1, "a\0"])
def test_shards_elsewhere_are_refused(name, tmp_path):
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps({"weight_map": {"/layers/gru/cell/vars": name}}))
    with pytest.raises(ValueError, match="expected names of files in its folder"):
        load_keras_weights(fastgru.GRU(H), path)


@pytest.mark.parametrize("name", ["missing.weights.h5", "..", ""])
def test_missing_shards(name, tmp_path):
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps({"weight_map": {"/layers/gru/cell/vars": [name]}}))
    with pytest.raises(ValueError, match=r"beside it, found none|names of files in its folder"):
        load_keras_weights(fastgru.GRU(H), path)


# ---- formulas, dtypes, sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2.2", "2.2.4", "2.15.0"])
@pytest.mark.parametrize("which", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_hard_sigmoid_of_keras_2_is_not_taken_for_keras_3s(version, which, form, tmp_path):
    path = saved(through(gru("g", **{which: "hard_sigmoid"})), tmp_path / f"m{form}")
    if form == ".h5":
        with h5py.File(path, "r+") as file:
            file["model_weights"].attrs["keras_version"] = version
    else:
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        members["metadata.json"] = json.dumps({"keras_version": version}).encode()
        with zipfile.ZipFile(path, "w") as new:
            for name, data in members.items():
                new.writestr(name, data)
    with pytest.raises(ValueError, match=rf"Keras {version}.*'hard_sigmoid_keras2'"):
        load_keras_weights(fastgru.GRU(H, name="g", **{which: "hard_sigmoid"}), path)
    load_keras_weights(fastgru.GRU(H, name="g", **{which: "hard_sigmoid_keras2"}), path)


@pytest.mark.parametrize("form", [".h5", ".weights.h5", ".keras"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_hard_sigmoid_of_keras_3(form, tmp_path):
    theirs = gru("g", recurrent_activation="hard_sigmoid")
    path = saved(through(theirs), tmp_path / f"m{form}")
    ours = fastgru.GRU(H, name="g", recurrent_activation="hard_sigmoid", **SEQUENCES)
    load_keras_weights(ours, path)
    same(ours, theirs)


def test_hard_sigmoid_of_an_unknown_keras(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        for i, shape in enumerate(((I, 3 * H), (H, 3 * H), (2, 3 * H))):
            file[f"layers/gru/cell/vars/{i}"] = np.ones(shape, "f4")
    with pytest.warns(UserWarning, match="hard_sigmoid_keras2"):
        load_keras_weights(
            fastgru.GRU(H, recurrent_activation="hard_sigmoid"), tmp_path / "w.weights.h5"
        )


@pytest.mark.parametrize("form", [".h5", ".keras"])
@pytest.mark.parametrize("dtype", ["float64", "mixed_float16", "float16", "mixed_bfloat16"])
def test_dtypes_inside_wrappers(form, dtype, tmp_path):
    # Keras' NumPy backend has no orthogonal matrices of float16.
    first = L.GRUCell(H, dtype=dtype, recurrent_initializer="glorot_uniform")
    theirs = L.Bidirectional(L.RNN([first, L.GRUCell(H)]), name="b")
    path = saved(through(theirs), tmp_path / f"m{form}")
    ours = from_keras(path, "b")
    assert ours.dtype == ("float64" if dtype == "float64" else "float32")
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("words", [100_000, 1_000_000])
def test_large_vocabularies(words, tmp_path):
    theirs = gru("g")
    path = saved(through(theirs), tmp_path / "m.keras")
    lookup = {
        "module": "keras.layers",
        "class_name": "StringLookup",
        "name": "lookup",
        "registered_name": None,
        "inbound_nodes": [],
        "config": {"name": "lookup", "vocabulary": [f"token_{i:06d}" for i in range(words)]},
    }
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"].append(lookup)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    same(from_keras(path, "g"), theirs)
