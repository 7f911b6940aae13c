"""Legacy .h5 files whose names and order differ: what Keras itself loads, with a warning.

Layers that swapped their names, layers that are not trainable in part, whole models and weights
alone. Keras' reader is the judge: it goes by place.
"""

import warnings

import h5py
import numpy as np
import pytest
from keras_support import keras

import fastgru
from fastgru.io import from_keras, load_keras_weights

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
T, H = 4, 3
X = np.random.default_rng(5).normal(size=(2, T, H)).astype("float32")
SEQUENCES = {"return_sequences": True}
AS_KERAS = "the arrays are taken in its order, as Keras does"


def gru(name):
    return L.GRU(H, name=name, use_cudnn=False, **SEQUENCES)


def both(name):
    return L.Bidirectional(gru(None), name=name, merge_mode="sum")


def through(*layers, name=None):
    x = y = keras.Input((T, H))
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y, name=name)


def randomised(model):
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.uniform(-0.7, 0.7, variable.shape))
    return model


def nested(make, count):
    """Layers in a model in a model; arrays of these are in one list."""
    layers = [make(f"g{n}") for n in range(count)]
    return layers, through(through(*layers, name="inner"))


def rename(layers, names):
    for layer, name in zip(layers, names, strict=True):
        layer.name = name


def swapped(names, make=gru, frozen=()):
    layers, model = nested(make, len(names))
    for n in frozen:
        layers[n].trainable = False
    rename(layers, names)
    return model


def cell_frozen(names, frozen):
    layers, model = nested(gru, len(names))
    for n in frozen:
        layers[n].cell.trainable = False
    rename(layers, names)
    return model


def child_trainable():
    """A layer that is trainable in a model that is not."""
    layers = [gru(name) for name in ("g0", "g1", "last")]
    part = through(*layers[:2], name="part")
    model = through(through(part, layers[2], name="inner"))
    part.trainable = False
    layers[1].trainable = True
    rename(layers, ("x", "y", "z"))
    return model


KINDS = {
    "two": lambda: swapped(("g1", "g0")),
    "three": lambda: swapped(("g1", "g2", "g0")),
    "two of three": lambda: swapped(("g0", "g2", "g1")),
    "first frozen": lambda: swapped(("g1", "g2", "g0"), frozen=[0]),
    "middle frozen": lambda: swapped(("g2", "g1", "g0"), frozen=[1]),
    "Bidirectional": lambda: swapped(("g1", "g0"), both),
    "renamed": lambda: swapped(("x", "y", "z"), frozen=[0]),
    "renamed, trainable in a model that is not": child_trainable,
    "first cell frozen": lambda: cell_frozen(("g0", "g1"), [0]),
    "middle cell frozen": lambda: cell_frozen(("g0", "g1", "g2"), [1]),
    "renamed, first cell frozen": lambda: cell_frozen(("x", "y"), [0]),
    "renamed, middle cell frozen": lambda: cell_frozen(("x", "y", "z"), [1]),
    "renamed, two cells frozen": lambda: cell_frozen(("x", "y", "z"), [0, 1]),
    "swapped, first cell frozen": lambda: cell_frozen(("g1", "g0", "g2"), [0]),
}


def leaves(model, path=()):
    for layer in model.layers:
        names = (*path, layer.name)
        if hasattr(layer, "layers"):
            yield from leaves(layer, names)
        elif layer.weights:
            yield "/".join(names), layer


def same(ours, theirs):
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models(kind, tmp_path):
    path = tmp_path / "m.h5"
    randomised(KINDS[kind]()).save(path)
    loaded = dict(leaves(keras.models.load_model(path, compile=False)))
    with pytest.warns(UserWarning, match=AS_KERAS):
        layers = from_keras(path)
    assert list(layers) == list(loaded)
    for name, theirs in loaded.items():
        same(layers[name], theirs)
        ours = type(layers[name]).from_config(layers[name].get_config())
        with pytest.warns(UserWarning, match=AS_KERAS):
            load_keras_weights(ours, path)
        same(ours, theirs)


@pytest.mark.parametrize("make", [gru, both])
@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_what_is_certain_is_not_warned_of(make, frozen, tmp_path):
    layers, model = nested(make, 3)
    for n in frozen:
        layers[n].trainable = False
    randomised(model).save(tmp_path / "m.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = from_keras(tmp_path / "m.h5")
    for theirs in layers:
        same(ours[f"inner/{theirs.name}"], theirs)


# ---- weights alone -------------------------------------------------------------------------------


def save_weights(model, path):
    """As ``save_weights`` of Keras 2, which Keras 3 has for whole models only."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def load_weights(model, path):
    """Keras' reader of such a file, which its ``load_weights`` calls."""
    from keras.src.legacy.saving import legacy_h5_format

    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    with h5py.File(path) as file:
        legacy_h5_format.load_weights_from_hdf5_group(file, model)
    return model


ALONE = {
    "two": lambda: swapped(("g1", "g0")),
    "three": lambda: swapped(("g1", "g2", "g0")),
    "two of three": lambda: swapped(("g0", "g2", "g1")),
    "first frozen": lambda: swapped(("g1", "g2", "g0"), frozen=[0]),
    "last frozen": lambda: swapped(("g1", "g0"), frozen=[1]),
}


@pytest.mark.parametrize("kind", ALONE)
def test_nested_models(kind, tmp_path):
    """All layers of a nested model go by place, as in Keras; one alone only by its old name."""
    path = tmp_path / "m.h5"
    model = randomised(ALONE[kind]())
    save_weights(model, path)
    theirs = dict(leaves(load_weights(model, path)))
    layers = [
        fastgru.GRU(H, name=layer.name, trainable=layer.trainable, **SEQUENCES)
        for layer in theirs.values()
    ]
    with pytest.warns(UserWarning, match=AS_KERAS):
        load_keras_weights(fastgru.Sequential(layers), path)
    for ours, other in zip(layers, theirs.values(), strict=True):
        same(ours, other)
    with pytest.warns(UserWarning, match=r"g1: it is in a nested model or.*If they were renamed"):
        load_keras_weights(fastgru.GRU(H, name="g1", **SEQUENCES), path)


STACKS = {
    "two, first frozen": (2, [0]),
    "three, first frozen": (3, [0]),
    "three, two frozen": (3, [0, 1]),
    "four, three frozen": (4, [0, 1, 2]),
    "three, none frozen": (3, []),
    "three, all frozen": (3, [0, 1, 2]),
}


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("kind", STACKS)
def test_stacks(kind, backwards, tmp_path):
    """A stack of cells that were made last to first, some of them frozen."""
    count, frozen = STACKS[kind]
    keras.backend.clear_session()  # names begin with gru_cell again
    cells = [L.GRUCell(H) for _ in range(count)]
    cells = cells[::-1] if backwards else cells
    theirs = L.RNN(cells, name="r", **SEQUENCES)
    model = randomised(through(theirs))
    for n in frozen:
        cells[n].trainable = False
    path = tmp_path / "m.h5"
    save_weights(model, path)
    numbers = np.asarray(theirs(X))

    def read(flags, names=None):
        own = [
            fastgru.GRUCell(H, trainable=n not in flags, name=names and names[n])
            for n in range(count)
        ]
        ours = fastgru.RNN(own, name="r", **SEQUENCES)
        load_keras_weights(ours, path)
        return ours(X)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        y = read([], [cell.name for cell in cells])
    np.testing.assert_allclose(y, numbers, rtol=0, atol=1e-5)
    if 0 < len(frozen) < count:
        with pytest.warns(UserWarning, match="taken in the order of the file, as Keras does"):
            y = read(frozen)
        np.testing.assert_allclose(y, numbers, rtol=0, atol=1e-5)
    # The same architecture with nothing frozen: Keras' numbers for it, said; or refused.
    for cell in cells:
        cell.trainable = True
    load_weights(model, path)
    stored = [cell for n, cell in enumerate(cells) if n not in frozen]
    stored += [cell for n, cell in enumerate(cells) if n in frozen]
    numbers = [int(cell.name.partition("gru_cell_")[2] or 0) for cell in stored]
    if numbers != sorted(numbers):
        with pytest.raises(ValueError, match="cells in an order that is certain"):
            read([])
        return
    with pytest.warns(UserWarning, match="taken in the order of the file, as Keras does"):
        y = read([])
    np.testing.assert_allclose(y, np.asarray(theirs(X)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("inputs", [2, 3])
def test_sizes_make_an_order_certain(inputs, tmp_path):
    """With other inputs than units, two cells cannot be each other."""
    keras.backend.clear_session()
    cells = [L.GRUCell(H) for _ in range(2)][::-1]
    theirs = L.RNN(cells, name="r", **SEQUENCES)
    x = keras.Input((T, inputs))
    model = randomised(keras.Model(x, theirs(x)))
    cells[0].trainable = False
    save_weights(model, tmp_path / "m.h5")
    ours = fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)], name="r", **SEQUENCES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        load_keras_weights(ours, tmp_path / "m.h5")
    assert [w.category for w in caught] == ([] if inputs == 2 else [UserWarning])
    if inputs == 2:
        x = X[..., :2]
        np.testing.assert_allclose(ours(x), np.asarray(theirs(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [".h5", ".weights.h5", "whole.h5"])
@pytest.mark.parametrize("order", [(1, 0), (2, 1, 0), (1, 2, 0)], ids=str)
def test_layers_without_names_go_by_place(form, order, tmp_path):
    """Names that nobody gave are equal only by chance, here those of other layers."""
    keras.backend.clear_session()
    made = [L.GRU(H, use_cudnn=False, **SEQUENCES) for _ in order]
    model = randomised(through(*(made[n] for n in order)))
    path = tmp_path / f"m{form}"
    if form == ".h5":
        save_weights(model, path)
    elif form == ".weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    names = [layer.name for layer in made]
    ours = fastgru.Sequential([fastgru.GRU(H, **SEQUENCES) for _ in order])
    for layer, name in zip(ours.layers, names, strict=True):
        layer.name = layer._automatic_name = name  # as in a new process
    load_keras_weights(ours, path)
    for layer, n in zip(ours.layers, order, strict=True):
        same(layer, made[n])


@keras.saving.register_keras_serializable("places")
class Plain(L.Wrapper):
    """Somebody's wrapper."""

    def call(self, x):
        return self.layer(x)

    def compute_output_shape(self, shape):
        return self.layer.compute_output_shape(shape)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("names", [("b", "a"), ("b", "c", "a"), ("c", "b", "a")], ids="-".join)
def test_layers_in_wrappers_that_swapped_names(names, whole, tmp_path):
    """Each wrapper's arrays are in a group of its own, under the old name of the layer in it."""
    layers = [gru(name) for name in "abc"[: len(names)]]
    model = randomised(through(*(Plain(layer, name=f"w_{layer.name}") for layer in layers)))
    rename(layers, names)
    path = tmp_path / "m.h5"
    (model.save if whole else lambda path: save_weights(model, path))(path)
    for theirs in layers:
        ours = fastgru.GRU(H, name=theirs.name, **SEQUENCES)
        if whole:
            load_keras_weights(ours, path)
            same(ours, theirs)
        else:
            with pytest.warns(UserWarning, match="wrapper, and there the file has the names"):
                load_keras_weights(ours, path)
