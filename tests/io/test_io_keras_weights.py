"""Weights files of Keras 3, both ways, and the legacy ones without a config."""

import h5py
import numpy as np
import pytest
import subprocesses
from keras_support import keras

import fastgru
from fastgru.io import load_keras_weights, to_keras_weights

# Keras' variables, where its NumPy backend saves them: their __array__ knows no copy=.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

B, T, I, H = 3, 6, 4, 5
X = np.random.default_rng(7).normal(0, 1, (B, T, I)).astype("float32")


def layers_of(library):
    """The same layers of either library; what Keras alone has to be told is in ``quiet``."""
    quiet = {} if library is fastgru else {"use_cudnn": False}
    L = library if library is fastgru else keras.layers

    def stack(**more):
        return L.RNN(L.StackedRNNCells([L.GRUCell(2, reset_after=False), L.GRUCell(H)]), **more)

    return {
        "gru": [L.GRU(H, name="it", **quiet)],
        "before": [L.GRU(H, reset_after=False, return_sequences=True, name="it", **quiet)],
        "no bias": [L.GRU(H, use_bias=False, name="it", **quiet)],
        "bidirectional": [L.Bidirectional(L.GRU(H, **quiet), name="it")],
        "rnn": [L.RNN(L.GRUCell(H, use_bias=False), name="it")],
        "stacked": [stack(name="it")],
        "both stacked": [L.Bidirectional(stack(), name="it")],
        "sequential": [
            L.GRU(3, return_sequences=True, name="a", **quiet),
            L.Bidirectional(L.GRU(3, return_sequences=True, **quiet), name="b"),
            stack(return_sequences=True, name="c"),
            L.GRU(2, name="d", **quiet),
        ],
    }


KINDS = list(layers_of(fastgru))


def ours_of(kind):
    layers = layers_of(fastgru)[kind]
    return fastgru.Sequential(layers) if len(layers) > 1 else layers[0]


def theirs_of(kind):
    model = keras.Sequential([keras.Input((T, I)), *layers_of(keras)[kind]])
    return randomise(model)


def randomise(model, seed=3):
    rng = np.random.default_rng(seed)
    weights = [rng.uniform(-0.7, 0.7, w.shape) for w in model.get_weights()]
    model.set_weights([w.astype("float32") for w in weights])
    return model


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
@pytest.mark.parametrize("kind", KINDS)
def test_from_keras(kind, ending, built, tmp_path):
    theirs, ours = theirs_of(kind), ours_of(kind)
    path = tmp_path / f"m{ending}"
    theirs.save_weights(path) if ending == ".weights.h5" else theirs.save(path)
    if built:
        ours.build((None, None, I))
    load_keras_weights(ours, path)
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_to_keras_models(kind, tmp_path):
    ours, theirs = ours_of(kind), theirs_of(kind)
    ours.build((None, None, I))
    randomise(ours, seed=4)
    before = np.asarray(theirs(X))
    path = tmp_path / "ours.weights.h5"
    to_keras_weights(ours, path)
    theirs.load_weights(path)
    assert not np.allclose(before, np.asarray(theirs(X)), atol=0.01)
    assert_same(ours, theirs)
    again = ours_of(kind)
    load_keras_weights(again, path)
    for mine, other in zip(again.get_weights(), ours.get_weights(), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sequential"])
def test_a_keras_layer_by_itself(kind, tmp_path):
    """Both ways, through the functions that Keras has for what is no model."""
    ours, (theirs,) = ours_of(kind), layers_of(keras)[kind]
    theirs.build((B, T, I))
    randomise(theirs)
    path = tmp_path / "w.weights.h5"
    keras.saving.save_weights(theirs, path)
    load_keras_weights(ours, path)
    assert_same(ours, theirs)
    to_keras_weights(randomise(ours, seed=5), path)
    keras.saving.load_weights(theirs, path)
    assert_same(ours, theirs)


def larger():
    """A model of two GRUs and other layers, one GRU in a model of its own."""
    L = keras.layers
    part = keras.Sequential([keras.Input((T, H)), L.GRU(2, use_cudnn=False, name="inner")])
    layers = [L.Dense(I), L.GRU(H, return_sequences=True, use_cudnn=False, name="outer")]
    model = keras.Sequential([keras.Input((T, I)), *layers, part, L.Dense(3)])
    return randomise(model)


@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_a_layer_of_a_larger_model(ending, tmp_path):
    theirs = larger()
    path = tmp_path / f"m{ending}"
    theirs.save_weights(path) if ending == ".weights.h5" else theirs.save(path)
    outer = fastgru.GRU(H, name="outer", return_sequences=True)
    load_keras_weights(outer, path)
    expected = theirs.layers[1](X)
    np.testing.assert_allclose(outer(X), np.asarray(expected), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"called nothing|weights of nothing") as error:
        load_keras_weights(fastgru.GRU(H, name="nothing"), path)
    assert "outer" in str(error.value)
    if ending == ".weights.h5":
        inner = fastgru.GRU(2, name="inner")
        load_keras_weights(inner, path)
        judge = np.asarray(theirs.layers[2](expected))
        np.testing.assert_allclose(inner(np.asarray(expected)), judge, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (fastgru.GRU(H + 1), r"units=6 .*expected a bias of shape \(2, 18\), got \(2, 15\)"),
        (fastgru.GRU(H, reset_after=False), r"expected a bias of shape \(15,\), got \(2, 15\)"),
        (fastgru.GRU(H, use_bias=False), "expected 2 arrays .* got 3"),
        (fastgru.Bidirectional(fastgru.GRU(H)), "expected weights of one bidirectional"),
        (fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)]), "expected weights of one rnn"),
    ],
)
def test_other_layers_are_refused(layer, message, tmp_path):
    theirs_of("gru").save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match=message):
        load_keras_weights(layer, tmp_path / "w.weights.h5")
    assert not layer.built
    assert layer.weights == []


def test_sizes_that_do_not_follow_from_each_other(tmp_path):
    path = tmp_path / "w.weights.h5"
    theirs_of("sequential").save_weights(path)
    with h5py.File(path, "r+") as file:
        kernel = file["layers/gru_1/cell/vars/0"][()]
        del file["layers/gru_1/cell/vars/0"]
        file["layers/gru_1/cell/vars/0"] = kernel[:-1]
    ours = ours_of("sequential")
    with pytest.raises(ValueError, match=r"w.weights.h5: .*built for I = 4 features, got .*5"):
        load_keras_weights(ours, path)
    assert not ours.built
    assert not any(layer.built for layer in (*ours.layers, *ours.layers[1].halves))
    assert ours.weights == []
    theirs_of("sequential").save_weights(path)
    load_keras_weights(ours, path)  # nothing of the failure is left
    assert_same(ours, theirs_of("sequential"))


def test_a_built_layer_keeps_its_weights_after_an_error(tmp_path):
    theirs_of("gru").save_weights(tmp_path / "w.weights.h5")
    ours = fastgru.GRU(H)
    ours.build((None, None, I + 1))
    before = ours.get_weights()
    with pytest.raises(ValueError, match=r"kernel: expected shape \(5, 15\), got \(4, 15\)"):
        load_keras_weights(ours, tmp_path / "w.weights.h5")
    for mine, kept in zip(ours.get_weights(), before, strict=True):
        assert np.array_equal(mine, kept)


def test_weights_alone_are_no_model(tmp_path):
    theirs_of("gru").save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match="load_keras_weights"):
        fastgru.io.from_keras(tmp_path / "w.weights.h5")


def test_what_cannot_be_written(tmp_path):
    layer = fastgru.GRU(H)
    with pytest.raises(ValueError, match="it has no weights yet"):
        to_keras_weights(layer, tmp_path / "w.weights.h5")
    layer.build((None, None, I))
    with pytest.raises(ValueError, match=r"ends in \.weights\.h5"):
        to_keras_weights(layer, tmp_path / "w.h5")
    with pytest.raises(TypeError, match="expected GRU, RNN, Bidirectional or Sequential"):
        to_keras_weights(object(), tmp_path / "w.weights.h5")
    assert list(tmp_path.iterdir()) == []


BARRED = """
import sys

class Barred:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {barred}:
            raise ImportError(f"{{name}} is barred")

sys.meta_path.insert(0, Barred())
import fastgru
"""
FRAMEWORKS = {"tensorflow", "keras", "tf_keras", "torch", "jax", "onnxruntime"}


def test_no_framework_and_no_h5py_is_needed_to_read(tmp_path):
    theirs = theirs_of("bidirectional")
    for ending in (".weights.h5", ".keras", ".h5"):
        path = tmp_path / f"m{ending}"
        theirs.save_weights(path) if ending == ".weights.h5" else theirs.save(path)
    code = BARRED.format(barred=FRAMEWORKS | {"h5py"}) + (
        "import numpy as np\n"
        f"a = fastgru.io.from_keras(r'{tmp_path}/m.keras', 'it')\n"
        f"b = fastgru.io.from_keras(r'{tmp_path}/m.h5', 'it')\n"
        f"c = fastgru.Bidirectional(fastgru.GRU({H}))\n"
        f"fastgru.io.load_keras_weights(c, r'{tmp_path}/m.weights.h5')\n"
        f"x = np.ones((2, 3, {I}), 'float32')\n"
        "assert np.array_equal(a(x), b(x)) and np.array_equal(a(x), c(x))\n"
        "try:\n"
        f"    fastgru.io.to_keras_weights(c, r'{tmp_path}/new.weights.h5')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'fastgru[h5]'" in subprocesses.run_python(code)
