"""Files that Keras 2 wrote (tests/data/keras/make_keras2.py), and ones as Keras 1 wrote them."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import fastgru
from fastgru import gates
from fastgru.io import from_keras, load_keras_weights
from fastgru.io.keras import find

DATA = Path(__file__).parents[1] / "data" / "keras"
EXPECTED = np.load(DATA / "expected_keras2.npz")
X = EXPECTED["x"]
H, I = 5, 4


def assert_close(y, key):
    np.testing.assert_allclose(y, EXPECTED[key], rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_reset_before_and_the_old_hard_sigmoid(ending):
    layers = from_keras(DATA / f"before{ending}")
    assert set(layers) == {"before", "both"}
    assert layers["before"].reset_after is False
    y = layers["before"](X)
    assert_close(y, "before:before")
    assert_close(layers["both"](y), "before:both")
    # The slope matters: Keras 3's would be seen.
    config = layers["before"].get_config()
    other = fastgru.GRU.from_config({**config, "recurrent_activation": "hard_sigmoid"})
    other.build(X.shape)
    other.set_weights(layers["before"].get_weights())
    assert np.abs(other(X) - EXPECTED["before:before"]).max() > 0.01


def test_weights_alone():
    first = fastgru.GRU.from_config(from_keras(DATA / "before.h5", "before").get_config())
    load_keras_weights(first, DATA / "before_weights.h5")
    assert_close(first(X), "before:before")
    with pytest.raises(ValueError, match="load_keras_weights"):
        from_keras(DATA / "before_weights.h5")


def test_nested_models_with_a_frozen_cell():
    layers = from_keras(DATA / "nested.h5")
    assert set(layers) == {"first", "middle/both", "middle/inner/cells", "middle/inner/low"}
    y = layers["first"](X)
    assert_close(y, "nested:first")
    assert_close(layers["middle/both"](2 * y), "nested:middle/both")
    cells, low = layers["middle/inner/cells"], layers["middle/inner/low"]
    assert_close(low(EXPECTED["nested:middle/inner/cells"]), "nested:middle/inner/low")
    # What comes into `cells` went through a Dense, whose weights are in the same list.
    with h5py.File(DATA / "nested.h5") as file:
        group = file["model_weights/middle"]
        kernel, bias = (group[n][()] for n in group.attrs["weight_names"] if n.startswith("dense"))
    assert_close(cells(EXPECTED["nested:middle/both"] @ kernel + bias), "nested:middle/inner/cells")


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_cudnn_gru(ending):
    """Alone, in Bidirectional, and one after the other."""
    found = {one.name: one for one in find(DATA / f"cudnn{ending}")}
    assert set(found) == {"one", "two", "three"}
    for one in found.values():
        assert one.convention.startswith("CuDNNGRU")
    assert found["one"].recognised.endswith(": CuDNNGRU")
    y = found["one"].layer(X)
    assert_close(y, "cudnn:one")
    y = found["two"].layer(y)
    assert_close(y, "cudnn:two")
    assert found["three"].layer.go_backwards
    assert_close(found["three"].layer(y), "cudnn:three")


@pytest.mark.parametrize("name", ["cudnn.h5", "cudnn_weights.h5", "cudnn.keras"])
def test_cudnn_weights_into_a_gru(name):
    """As in Keras 2, CuDNNGRU's weights fit a GRU of its formula; shapes say what they are."""
    if name.endswith(".keras"):
        with pytest.raises(ValueError, match="expected weights of one gru called one"):
            load_keras_weights(fastgru.GRU(H, name="one"), DATA / name)
        return
    one = fastgru.GRU(H, return_sequences=True, name="one")
    load_keras_weights(one, DATA / name)
    assert_close(one(X), "cudnn:one")
    two = fastgru.Bidirectional(fastgru.GRU(3, return_sequences=True), name="two")
    three = fastgru.GRU(2, go_backwards=True, name="three")
    model = fastgru.Sequential([fastgru.GRU(H, return_sequences=True, name="one"), two, three])
    load_keras_weights(model, DATA / name)
    assert_close(model(X), "cudnn:three")
    with pytest.raises(ValueError, match=r"reset_after=False: expected .*\(15,\), got \(30,\)"):
        load_keras_weights(fastgru.GRU(H, reset_after=False, name="one"), DATA / name)


def with_config(path, to, edit):
    """Copy an .h5 file with its model_config changed."""
    shutil.copy(path, to)
    with h5py.File(to, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config).encode()
    return to


def test_before_reset_after_existed(tmp_path):
    """Keras 2.0 has no such key, and writes the layers of Sequential as a list."""

    def edit(config):
        del config["config"]["layers"][1]["config"]["reset_after"]
        config["config"] = config["config"]["layers"][1:]

    path = with_config(DATA / "before.h5", tmp_path / "old.h5", edit)
    layer = from_keras(path, "before")
    assert layer.reset_after is False
    assert_close(layer(X), "before:before")
    with pytest.raises(ValueError, match=r"expected a bias of shape \(15,\), got \(2, 15\)"):
        from_keras(with_config(DATA / "nested.h5", tmp_path / "b.h5", edit))


@pytest.mark.parametrize("nine", [True, False], ids=["a gate at a time", "all gates at once"])
def test_keras_1(nine, tmp_path):
    """By what Keras 2 knows of Keras 1: its names of arguments, and three arrays for each gate.

    There is no Keras 1 to be had for Python 3.11, so the file is made here.
    """
    rng = np.random.default_rng(5)
    shapes = [(I, 3 * H), (H, 3 * H), (3 * H,)]
    weights = [rng.uniform(-0.8, 0.8, shape).astype("float32") for shape in shapes]
    blocks = [w[..., g * H : (g + 1) * H] for g in range(3) for w in weights] if nine else weights
    config = {
        "name": "gru_1",
        "output_dim": H,
        "init": "glorot_uniform",
        "inner_init": "orthogonal",
        "activation": "tanh",
        "inner_activation": "hard_sigmoid",
        "return_sequences": True,
        "go_backwards": False,
        "W_regularizer": {"name": "WeightRegularizer", "l1": 0.0, "l2": 0.1},
        "dropout_W": 0.25,
        "consume_less": "cpu" if nine else "gpu",
        "input_dim": I,
        "batch_input_shape": [None, None, I],
        "input_dtype": "float32",
    }
    model = {"class_name": "Sequential", "config": [{"class_name": "GRU", "config": config}]}
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(model).encode()
        names = [f"gru_1_{letter}_{g}" for g in "zrh" for letter in "WUb"][: len(blocks)]
        file["model_weights/gru_1/x"] = 0.0  # makes the groups
        file["model_weights"].attrs["layer_names"] = [b"gru_1"]
        group = file["model_weights/gru_1"]
        group.attrs["weight_names"] = np.asarray([n.encode() for n in names])
        for name, block in zip(names, blocks, strict=True):
            group[name] = block
    ours = from_keras(tmp_path / "one.h5", "gru_1")
    assert (ours.cell.dropout, ours.implementation) == (0.25, 1)
    activation = from_keras(DATA / "before.h5", "before").recurrent_activation
    judge = fastgru.GRU(
        H, reset_after=False, recurrent_activation=activation, return_sequences=True
    )
    judge.build(X.shape)
    judge.set_weights(weights)
    assert np.array_equal(ours(X), judge(X))


def test_early_tf_keras_called_the_groups_otherwise(tmp_path):
    with zipfile.ZipFile(DATA / "before.keras") as archive:
        (tmp_path / "weights.h5").write_bytes(archive.read("model.weights.h5"))
        config = archive.read("config.json")
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    assert_close(from_keras(tmp_path / "old.keras", "before")(X), "before:before")


def test_long_lists_of_names_are_cut_in_parts(tmp_path):
    """HDF5 keeps no attribute above 64 kB, so Keras numbers the parts."""
    shutil.copy(DATA / "before_weights.h5", tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        for group in (file, *file.values()):
            for what in ("layer_names", "weight_names"):
                names = group.attrs.get(what, ())
                for i, name in enumerate(names):
                    group.attrs[f"{what}{i}"] = [name]
                if len(names):
                    del group.attrs[what]
    layer = fastgru.GRU.from_config(from_keras(DATA / "before.h5", "before").get_config())
    load_keras_weights(layer, tmp_path / "w.h5")
    assert_close(layer(X), "before:before")


def test_gates_agree_with_tf_keras_conversion():
    """The table's row for CuDNNGRU, from a file to the numbers that tf_keras converts to."""
    with h5py.File(DATA / "cudnn.h5") as file:
        group = file["model_weights/one"]
        arrays = [group[name][()] for name in group.attrs["weight_names"]]
    assert arrays[2].shape == (6 * H,)
    layer = fastgru.GRU(H, return_sequences=True)
    layer.build(X.shape)
    layer.set_weights(gates.to_keras("cudnn_gru", *arrays))
    assert_close(layer(X), "cudnn:one")


# ---- made by tests/data/keras/make_keras2_places.py ----------------------------------------------

PLACES = np.load(DATA / "expected_keras2_places.npz")
KINDS = {
    "swapped": ("g1", "g0"),
    "swapped_frozen": ("g1", "g2", "g0"),
    "cell_frozen": ("g0", "g1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_differ_from_the_order(kind):
    """As Keras 2 loads them: by place."""
    with pytest.warns(UserWarning, match="the arrays are taken in its order, as Keras does"):
        layers = from_keras(DATA / f"{kind}.h5")
    assert list(layers) == [f"inner/{name}" for name in KINDS[kind]]
    alone = [
        fastgru.GRU(2, name=name, return_sequences=True, trainable=(name, kind) != FROZEN)
        for name in KINDS[kind]
    ]
    with pytest.warns(UserWarning, match="the arrays are taken in its order, as Keras does"):
        load_keras_weights(fastgru.Sequential(alone), DATA / f"{kind}_weights.h5")
    for name, layer in zip(KINDS[kind], alone, strict=True):
        for ours in (layers[f"inner/{name}"], layer):
            y = ours(PLACES["x"])
            np.testing.assert_allclose(y, PLACES[f"{kind}:{name}"], rtol=0, atol=1e-5)


FROZEN = ("g1", "swapped_frozen")  # by its present name; Keras needs it too


ACTIVATIONS = [key.partition(":")[2] for key in PLACES.files if key.startswith("activations:")]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_keras_2(name):
    """Of all formulas and defaults only that of hard_sigmoid is another in Keras 3."""
    layer = from_keras(DATA / "activations.h5", name)
    y = layer(3 * PLACES["x"])
    np.testing.assert_allclose(y, PLACES[f"activations:{name}"], rtol=1e-5, atol=1e-5)
    both = {layer.activation.name, layer.recurrent_activation.name}
    assert ("hard_sigmoid_keras2" in both) == (name == "hard_sigmoid")
