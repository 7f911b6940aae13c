"""TensorFlow's checkpoints and TensorFlow.js' models: the numbers that TensorFlow gave for them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastgru import GRU, RNN, Bidirectional, GRUCell, Sequential
from fastgru.io import from_keras, load_keras_weights, read_arrays

DATA = Path(__file__).parents[1] / "data" / "tensorflow"
NUMBERS = dict(np.load(DATA / "numbers.npz"))
X = NUMBERS["x"]
TOLERANCE = 1e-5
MODELS = ("plain", "uint8", "uint16", "float16")


def stack():
    return Sequential([GRU(3, return_sequences=True), Bidirectional(GRU(2, return_sequences=True))])


def named(**first):
    layers = [
        GRU(3, return_sequences=True, name="first", **first),
        Bidirectional(GRU(2, return_sequences=True), name="both"),
    ]
    return Sequential(layers)


def close(got, name):
    assert got.shape == NUMBERS[name].shape
    np.testing.assert_allclose(got, NUMBERS[name], rtol=0, atol=TOLERANCE)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name", "before"),
    [
        ("keras2", "keras2", False),
        ("keras2.index", "keras2", False),
        ("keras3", "keras3", False),
        ("latest", "latest", True),
        ("latest/ckpt-1", "latest", True),
    ],
)
def test_a_checkpoint_gives_a_stack_what_tensorflow_computes(path, name, before):
    model = named(reset_after=not before)
    load_keras_weights(model, DATA / path)
    close(model(X), name)


def test_layers_without_names_are_taken_in_order():
    model = stack()
    load_keras_weights(model, DATA / "keras2")
    close(model(X), "keras2")


def test_a_checkpoint_without_an_order_wants_names():
    model = stack()
    with pytest.raises(ValueError, match=r"keras3.index.*expected weights of.*both.*the name that"):
        load_keras_weights(model, DATA / "keras3")
    assert not model.built


def test_one_layer_of_a_model_is_found_by_its_name():
    first, both = GRU(3, return_sequences=True, name="first"), Bidirectional(GRU(2), name="both")
    load_keras_weights(first, DATA / "keras2")
    load_keras_weights(both, DATA / "keras2")  # the only one of its kind
    whole = named()
    load_keras_weights(whole, DATA / "keras2")
    for got, expected in zip(
        first.get_weights() + both.get_weights(), whole.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_cells_of_a_stack_go_by_their_places():
    layer = RNN([GRUCell(3), GRUCell(3, use_bias=False)])
    load_keras_weights(layer, DATA / "cells")
    close(layer(X[..., :3]), "cells")
    swapped = RNN([GRUCell(3, use_bias=False), GRUCell(3)])
    with pytest.raises(ValueError, match=r"cells.index.*expected"):
        load_keras_weights(swapped, DATA / "cells")


def test_a_layer_alone_and_a_cell():
    layer = GRU(6)
    load_keras_weights(layer, DATA / "alone")
    close(layer(X), "alone")
    inner = RNN(GRUCell(6))
    load_keras_weights(inner, DATA / "alone")
    close(inner(X), "alone")


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_a_checkpoint_of_tensorflow_1_goes_by_names(name):
    layer = GRU(NUMBERS[name].shape[-1], name=name)
    load_keras_weights(layer, DATA / "saver")
    close(layer(X), name)
    with pytest.raises(ValueError, match=r"decoder.*encoder"):
        load_keras_weights(GRU(3, name="other"), DATA / "saver")


@pytest.mark.parametrize("path", ["keras2", "keras3", "latest", "cells", "alone", "saver"])
def test_a_checkpoint_without_config_says_what_is_assumed(path):
    with pytest.warns(UserWarning, match="assumed: activation='tanh'"):
        layers = from_keras(DATA / path)
    sizes = {
        "keras2": {"first": 3, "both/forward_gru": 2, "both/backward_gru": 2},
        "latest": {"first": 3, "both/forward_gru": 2, "both/backward_gru": 2},
        "saver": {"decoder": 3, "encoder": 5},
    }
    found = {name.removeprefix("sequential/"): layer.units for name, layer in layers.items()}
    if path in sizes:
        # The last parts of names that TensorFlow numbers are not the same in each run.
        assert {n.rstrip("_0123456789"): u for n, u in found.items()} == sizes[path]
    assert len(layers) == {"keras3": 3, "cells": 2, "alone": 1}.get(path, len(layers))


def test_optimizers_are_not_taken_for_layers(tmp_path):
    """Adam's slots are called "Adam/m/first/gru_cell/kernel" and have the kernel's shape."""
    arrays = read_arrays(DATA / "keras2.index")
    assert sum("optimizer/_variables" in name for name in arrays) > 18
    with pytest.warns(UserWarning, match="assumed"):
        layers = from_keras(DATA / "keras2")
    assert not [name for name in layers if "Adam" in name]


def test_a_hard_sigmoid_is_warned_of():
    with pytest.warns(UserWarning, match="hard_sigmoid_keras2"):
        load_keras_weights(
            GRU(3, name="first", recurrent_activation="hard_sigmoid"), DATA / "keras2"
        )


def test_damaged_checkpoints_and_lost_files(tmp_path):
    for file in DATA.glob("keras2.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../../etc/passwd"\n')
    with pytest.raises(ValueError, match="expected the name of a checkpoint in its folder"):
        load_keras_weights(named(), tmp_path)
    (tmp_path / "keras2.data-00000-of-00001").unlink()
    with pytest.raises(ValueError, match="expected a file there, found none"):
        load_keras_weights(named(), tmp_path / "keras2")


# ---- TensorFlow.js -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gives it a mask")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_tensorflow_js_gives_what_tensorflow_reads_of_it(name):
    layers = from_keras(DATA / f"js_{name}" / "model.json")
    assert list(layers) == ["first", "both"]
    close(layers["both"](layers["first"](X)), name)
    for model in (named(), stack()):
        load_keras_weights(model, DATA / f"js_{name}" / "model.json")
        close(model(X), name)


def test_its_mask_is_told():
    with pytest.warns(UserWarning, match=r"mask = \(x != 0.5\).any\(-1\)"):
        from_keras(DATA / "js_plain" / "model.json", "first")


def changed(tmp_path, change, name="plain"):
    folder = tmp_path / "js"
    shutil.copytree(DATA / f"js_{name}", folder, dirs_exist_ok=True)
    path = folder / "model.json"
    model = json.loads(path.read_text())
    change(model)
    path.write_text(json.dumps(model))
    return path


def set_in(*keys, value):
    def change(model):
        for key in keys[:-1]:
            model = model[key]
        model[keys[-1]] = value

    return change


GROUP = ("weightsManifest", 0)
WRONG = {
    "graph": (set_in("format", value="graph-model"), "graph model of TensorFlow.js"),
    "path up": (set_in(*GROUP, "paths", 0, value="../x.bin"), "files in its folder"),
    "absolute": (set_in(*GROUP, "paths", 0, value="/etc/passwd"), "files in its folder"),
    "missing": (set_in(*GROUP, "paths", 0, value="none.bin"), "found none"),
    "one file": (lambda m: m["weightsManifest"][0]["paths"].pop(), "got files of"),
    "shape": (set_in(*GROUP, "weights", 0, "shape", value=[2**40, 2**40]), "got files of"),
    "negative": (set_in(*GROUP, "weights", 0, "shape", value=[-1]), "expected float32"),
    "dtype": (set_in(*GROUP, "weights", 0, "dtype", value="string"), "expected float32"),
    "unscaled": (
        set_in(*GROUP, "weights", 0, "quantization", value={"dtype": "uint8"}),
        "scale and min",
    ),
    "no manifest": (lambda m: m.pop("weightsManifest"), "weightsManifest"),
    "twice": (lambda m: m["weightsManifest"].append(m["weightsManifest"][0]), "each weight once"),
    "other name": (
        set_in("modelTopology", "model_config", "config", "layers", 2, "config", "name", value="z"),
        "expected weights of z",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_models_of_tensorflow_js(tmp_path, name):
    change, message = WRONG[name]
    path = changed(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        from_keras(path)
    if name not in ("graph", "other name"):
        with pytest.raises(ValueError, match=message):
            read_arrays(path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    path = changed(tmp_path, lambda model: None)
    file = path.parent / "group1-shard1of2.bin"
    file.rename(tmp_path / "elsewhere.bin")
    file.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ValueError, match="got a link to"):
        from_keras(path)


# ---- arrays --------------------------------------------------------------------------------------


def test_read_arrays_of_both():
    arrays = read_arrays(DATA / "js_uint8" / "model.json")
    assert arrays["first/gru_cell/kernel"].shape == (4, 9)
    assert arrays["first/gru_cell/kernel"].dtype == np.float32
    for path in ("keras2", "keras2.index"):
        arrays = read_arrays(DATA / path)
        key = "layer_with_weights-0/cell/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        assert arrays[key].shape == (4, 9)
    assert read_arrays(DATA / "saver")["decoder/gru_cell/kernel"].shape == (4, 9)
