"""TensorFlow's models that are easily taken for others: names, cells, optimizers, formulas.

The numbers are those of TensorFlow, Keras 3 and TensorFlow.js; tests/data/tensorflow/make_more.py
made them.
"""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support as support

from fastgru import GRU, RNN, Bidirectional, GRUCell, Sequential
from fastgru.activations import hard_sigmoid, hard_sigmoid_keras2
from fastgru.cli import main
from fastgru.io import from_keras, load_keras_weights, read_arrays
from fastgru.io.budget import Budget
from fastgru.io.bundle import Bundle
from fastgru.io.named_arrays import find, role_of
from fastgru.io.tfjs import Model

DATA = Path(__file__).parents[1] / "data" / "tensorflow"
NUMBERS = dict(np.load(DATA / "more.npz"))
X = np.load(DATA / "numbers.npz")["x"]
TOLERANCE = 1e-5


def close(got, name):
    assert got.shape == NUMBERS[name].shape
    np.testing.assert_allclose(got, NUMBERS[name], rtol=0, atol=TOLERANCE)


# ---- checkpoints: names --------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_a_layer_goes_by_its_whole_path(model):
    layer = GRU(3, return_sequences=True, name=f"{model}/gru")
    load_keras_weights(layer, DATA / "two")
    close(layer(X), f"two:{model}")


def test_a_name_that_two_models_have_is_refused_with_their_paths():
    layer = GRU(3, name="gru")
    with pytest.raises(ValueError, match=r"two.index.*got decoder/gru \(.*encoder/gru \("):
        load_keras_weights(layer, DATA / "two")
    assert not layer.built


def test_an_optimizer_of_any_name_and_its_averages_are_no_layers():
    """It has momentums, velocities and averages of each weight, under the weight's name."""
    arrays = read_arrays(DATA / "two")
    assert sum(name.startswith("g_adam/") for name in arrays) >= 3 * 10
    with pytest.warns(UserWarning, match="assumed"):
        layers = from_keras(DATA / "two")
    assert len(layers) == 2
    kernels = {layer.get_weights()[0].tobytes() for layer in layers.values()}
    assert kernels == {
        arrays[f"{model}/gru/cell/kernel/.ATTRIBUTES/VARIABLE_VALUE"].tobytes()
        for model in ("encoder", "decoder")
    }


@pytest.mark.parametrize(
    "places", [("", "gru/"), ("", "gru/gru_cell/"), ("cell/", ""), ("gru/", "gru/gru_cell/")]
)
def test_no_layer_is_lost_where_short_names_are_equal(places, tmp_path):
    rng, arrays = np.random.default_rng(1), {}
    for H, place in enumerate(places, 2):
        for role, shape in (("kernel", (4, 3 * H)), ("recurrent_kernel", (H, 3 * H))):
            arrays[place + role] = rng.normal(size=shape).astype("float32")
    np.savez(tmp_path / "m.npz", **arrays)
    found = find(tmp_path / "m.npz")
    assert len({one.name for one in found}) == 2
    assert [one.layer.units for one in found] == [2, 3]


# ---- checkpoints: what is in a cell, and in which file -------------------------------------------


@pytest.mark.parametrize("file", ["more_keras2", "more_keras3", "more_saver"])
@pytest.mark.parametrize("cls", [GRU, lambda H, name: RNN(GRUCell(H), name=name)])
def test_a_cell_with_more_variables_is_no_gru(file, cls):
    layer = cls(3, name="scaled")
    with pytest.raises(ValueError, match=f"{file}.index.*expected weights of one scaled"):
        load_keras_weights(layer, DATA / file)
    with pytest.raises(ValueError, match=rf"{file}.index.*got .*scaled|{file}.index.*gamma"):
        from_keras(DATA / file)
    assert any("gamma" in name for name in read_arrays(DATA / file))


@pytest.mark.parametrize("model", ["module", "keras2", "keras3"])
def test_a_cell_with_more_variables_is_no_gru_in_a_savedmodel_either(model, tmp_path):
    with zipfile.ZipFile(DATA / "more_savedmodel.zip") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(ValueError, match=r"does not describe its layers.*got .*gamma"):
        from_keras(tmp_path / model)


def test_the_state_of_a_stateful_layer_is_not_one_more_weight():
    assert [role_of(name) for name in ("kernel", "Variable_1", "rnn_state", "gamma")] == [
        "kernel",
        "",
        "",
        "more",
    ]


@pytest.mark.parametrize(("name", "units"), [("one", 3), ("two", 2), ("three", 5)])
def test_a_checkpoint_in_several_files(name, units):
    assert len(list(DATA.glob("shards.data-*"))) == 3
    layer = GRU(units, name=name)
    load_keras_weights(layer, DATA / "shards")
    close(layer(X), f"shards:{name}")


def test_a_lost_file_of_several_is_named(tmp_path):
    for file in DATA.glob("shards.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "shards.data-00001-of-00003").unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00003: expected a file there"):
        read_arrays(tmp_path / "shards")


def test_an_entry_longer_than_any_tensor_needs_is_refused(tmp_path):
    """Its numbers are looked up one by one, and 100 kB of them would take seconds."""
    old = Bundle(DATA, "saver", Budget("it"))
    header = support.field(1, 1) + support.field(3, support.field(1, 1))
    pairs = {b"": header, **{k.encode(): bytes(v) for k, v in old.entries.items()}}
    shutil.copy(DATA / "saver.data-00000-of-00001", tmp_path)
    for count, refused in ((1, False), (50_000, True)):
        long = dict(pairs)
        long[b"decoder/gru_cell/kernel"] += support.field(9, 1) * count
        (tmp_path / "saver.index").write_bytes(support.table([support.block(sorted(long.items()))]))
        if refused:
            with pytest.raises(ValueError, match=r"decoder/gru_cell/kernel: .*at most 1024 bytes"):
                load_keras_weights(GRU(3, name="decoder"), tmp_path / "saver")
        else:
            load_keras_weights(GRU(3, name="decoder"), tmp_path / "saver")


def test_a_cudnngru_in_a_checkpoint():
    layer = GRU(3, name="cudnn")
    load_keras_weights(layer, DATA / "cudnn")
    close(layer(X), "cudnn:cudnn")
    with pytest.warns(UserWarning, match="assumed"):
        found = from_keras(DATA / "cudnn.data-00000-of-00001")
    close(found["layer"](X), "cudnn:cudnn")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("ké y", r"k\303\251 y"),
        ('a"b', r"a\"b"),
        ("plain", "/home/user/plain"),
        ("win", r"C:\\models\\win"),
    ],
)
def test_the_file_checkpoint_names_the_latest(name, written, tmp_path):
    """Protobuf's text format escapes quotes and bytes beyond ASCII."""
    for file in DATA.glob("alone.*"):
        shutil.copy(file, tmp_path / file.name.replace("alone", name))
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{written}"\n')
    assert len(read_arrays(tmp_path)) == 3


@pytest.mark.parametrize("written", ["", "..", "\\000", "x" * 5000, "\\377\\376"])
def test_a_file_checkpoint_that_names_nothing(written, tmp_path):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{written}"\n')
    for read in (read_arrays, from_keras, lambda path: load_keras_weights(GRU(3), path)):
        with pytest.raises(ValueError, match="expected the name of a checkpoint in its folder"):
            read(tmp_path)


# ---- TensorFlow.js -------------------------------------------------------------------------------


def test_a_model_of_keras_3_in_tensorflow_js_has_keras_3s_numbers():
    layers = from_keras(DATA / "js_keras3" / "model.json")
    assert list(layers) == ["last", "both", "inner/z", "inner/a", "cells", "first"]
    y = X
    for name, layer in layers.items():
        y = layer(y)
        close(y, f"js_keras3:{name}")
    assert layers["last"].cell.recurrent_activation is hard_sigmoid


def made_like(layer):
    return type(layer).from_config(layer.get_config())


def test_weights_of_keras_3_in_tensorflow_js_go_into_layers():
    path = DATA / "js_keras3" / "model.json"
    layers = [made_like(layer) for layer in from_keras(path).values()]
    for layer in layers:
        load_keras_weights(layer, path)
    stack = Sequential([made_like(layer) for layer in layers])
    load_keras_weights(stack, path)
    close(stack(X), "js_keras3:first")
    for got, expected in zip(
        stack.get_weights(), [w for one in layers for w in one.get_weights()], strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["js_own", "js_own_cells"])
def test_a_model_that_tensorflow_js_saved_has_its_numbers(name):
    path = DATA / name / "model.json"
    layers = from_keras(path)
    y = NUMBERS[f"{name}:x"]
    for layer in layers.values():
        y = layer(y)
    close(y, f"{name}:y")
    stack = Sequential([made_like(layer) for layer in layers.values()])
    load_keras_weights(stack, path)
    close(stack(NUMBERS[f"{name}:x"]), f"{name}:y")


@pytest.mark.parametrize(
    ("file", "layer"),
    [
        ("js_own", GRU(3, name="gru_GRU1", reset_after=False, recurrent_activation="hard_sigmoid")),
        (
            "js_own",
            Bidirectional(
                GRU(2, reset_after=False, recurrent_activation="hard_sigmoid"),
                name="bidirectional_Bidirectional1",
            ),
        ),
        (
            "js_own_cells",
            RNN(
                [
                    GRUCell(n, reset_after=False, recurrent_activation="hard_sigmoid")
                    for n in (3, 2)
                ],
                name="cells",
            ),
        ),
    ],
    ids=["gru", "bidirectional", "cells"],
)
def test_the_hard_sigmoid_of_tensorflow_js_is_not_keras_3s(file, layer):
    path = DATA / file / "model.json"
    with pytest.raises(ValueError, match=r"hard_sigmoid_keras2 for weights of tfjs-layers 4.22"):
        load_keras_weights(layer, path)
    assert not layer.built
    first = next(iter(from_keras(path).values()))
    assert first.cell.recurrent_activation is hard_sigmoid_keras2


def forged(tmp_path, change):
    shutil.copytree(DATA / "js_keras3", tmp_path / "js")
    path = tmp_path / "js" / "model.json"
    model = json.loads(path.read_text())
    change(model["weightsManifest"][0]["weights"])
    path.write_text(json.dumps(model))
    return path


def renamed(old, new):
    def change(weights):
        one = next(weight for weight in weights if weight["name"] == old)
        one["name"] = new

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("layers/gru/cell/vars/1", "layers/gru/cell/vars/7"), "expected a weight 1, got 0"),
        (renamed("layers/gru/cell/vars/1", "layers/gru/cell"), "group or a weight, got both|one"),
        (renamed("layers/gru/cell/vars/1", "layers/gru/cell/vars/0/x"), "got both|one weight"),
        (renamed("layers/gru/cell/vars/1", "layers/gru/cell/vars"), "got both|one weight"),
        (renamed("layers/gru/cell/vars/1", "/" * 5000 + "vars/1"), "expected a weight 1, got 0"),
    ],
)
def test_wrong_places_of_keras_3_in_tensorflow_js(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_keras(forged(tmp_path, change), "last")


def test_a_weight_is_read_once_for_each_group_of_files():
    model = Model(DATA / "js_keras3" / "model.json", Budget("it"))
    assert model.by_places
    assert not Model(DATA / "js_own" / "model.json", Budget("it")).by_places
    place = model.root.group("layers/gru/cell/vars")
    assert place.names == ["0", "1", "2"]
    np.testing.assert_array_equal(place.array("1"), model.array("layers/gru/cell/vars/1"))


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_line_reads_them(tmp_path, capsys):
    folder = DATA / "js_own_cells"
    np.save(tmp_path / "x.npy", NUMBERS["js_own_cells:x"])
    for name, source in (("enc", "x"), ("cells", "enc"), ("single", "cells")):
        files = [str(tmp_path / f"{source}.npy"), "-o", str(tmp_path / f"{name}.npy")]
        assert main(["run", str(folder / "model.json"), *files, "--name", name]) == 0
    close(np.load(tmp_path / "single.npy"), "js_own_cells:y")
    np.save(tmp_path / "in.npy", X)
    files = [str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.npy")]
    capsys.readouterr()
    assert main(["run", str(DATA / "shards.index"), *files, "--name", "three/gru"]) == 0
    close(np.load(tmp_path / "out.npy"), "shards:three")
    assert "assumed: activation='tanh'" in capsys.readouterr().err
    assert main(["inspect", str(DATA / "shards.data-00001-of-00003")]) == 0
    assert "three/gru" in capsys.readouterr().out
