"""fastgru.io.savedmodel on what TensorFlow, Keras 2 and Keras 3 wrote, and on forgeries."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support as support
import subprocesses
from savedmodel_support import (
    CONFIG,
    entry,
    field,
    random_weights,
    unpack,
    write_bundle,
    write_gru,
    write_layers,
)

import fastgru
from fastgru.io import bundle
from fastgru.io.savedmodel import find

TOLERANCE = 1e-5
GRID = sorted(name for name in support.expected("grid"))


def found(folder):
    return {one.name: one for one in find(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all of TensorFlow's models unpacked in it."""
    place = tmp_path_factory.mktemp("models")
    for path in support.DATA.glob("*.zip"):
        unpack(path.stem, place)
    return place


@pytest.fixture(scope="module")
def grid(folder):
    return found(folder / "grid")


@pytest.mark.parametrize("name", GRID)
def test_every_kind_of_layer_gives_what_tf_keras_gave(grid, name):
    x, _ = support.inputs()
    expected = support.expected("grid")[name]
    layer = grid[name].layer
    assert (
        type(layer).__name__ == {"g": "GRU", "r": "RNN", "s": "RNN", "b": "Bidirectional"}[name[0]]
    )
    y = layer(x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE)
    after = reset_after(layer)
    assert ("reset after" in grid[name].convention, "reset before" in grid[name].convention) == (
        after,
        not after,
    )


def reset_after(layer):
    layer = getattr(layer, "forward_layer", layer)
    cell = layer.cell
    return (cell.cells[0] if hasattr(cell, "cells") else cell).reset_after


def test_the_grid_has_every_option(grid):
    layers = [grid[name].layer for name in GRID if name.startswith("gru")]
    for option in ("reset_after", "use_bias", "go_backwards", "return_sequences"):
        assert {getattr(layer, option) for layer in layers} == {True, False}
    gates = {layer.recurrent_activation.name for layer in layers}
    assert gates == {"sigmoid", "hard_sigmoid_keras2", "tanh"}
    assert {len(grid[name].layer.cell.cells) for name in GRID if name.startswith("stacked")} == {2}
    merged = {grid[name].layer.merge_mode for name in GRID if name.startswith("both")}
    assert merged == {"concat", "sum", "mul", "ave"}
    assert len(GRID) == len(grid) == 64


@pytest.mark.parametrize("name", ["nested", "before_2_5"])
def test_models_in_models_and_both_places_of_the_metadata(folder, name):
    x, x2 = support.inputs()
    expected = support.expected("nested")
    layers = found(folder / name)
    assert list(layers) == ["shared", "gru", "encoder/gru"], "the LSTM beside them is no GRU"
    shared = layers["shared"].layer
    twice = np.concatenate([shared(x), shared(x2)], axis=1)
    np.testing.assert_allclose(twice, expected["twice"][:, : twice.shape[1]], atol=TOLERANCE)
    assert layers["gru"].layer.units == 2
    assert layers["encoder/gru"].layer.units == 6
    np.testing.assert_allclose(
        layers["gru"].layer(expected["encoder"]), expected["gru"], atol=TOLERANCE
    )
    place = "keras_metadata.pb" if name == "nested" else "saved_model.pb"
    assert all(one.recognised.startswith(place) for one in layers.values())


def test_a_subclassed_model(folder):
    x, _ = support.inputs()
    expected = support.expected("subclassed")
    layers = found(folder / "subclassed")
    assert list(layers) == ["bidirectional", "in_list", "in_dict"], (
        "the unused layer has no weights"
    )
    both = layers["bidirectional"].layer
    assert [half.cell.units for half in both.halves] == [3, 2]
    np.testing.assert_allclose(both(x), expected["bidirectional"], atol=TOLERANCE)
    for name in ("in_list", "in_dict"):
        y = layers[name].layer(expected["bidirectional"])
        np.testing.assert_allclose(y, expected[name], atol=TOLERANCE)


def test_initializers_are_those_of_the_config(grid):
    layer = grid["gru_0"].layer
    assert type(layer.recurrent_initializer).__name__ == "Orthogonal"
    assert type(layer.kernel_initializer).__name__ == "GlorotUniform"
    again = fastgru.GRU.from_config(layer.get_config())
    again.build((None, None, 4))
    assert np.ptp(again.kernel.value) > 0


# ---- without a description -----------------------------------------------------------------------


def test_a_module_saved_without_keras(folder):
    x, _ = support.inputs()
    expected = support.expected("module")
    encoder, decoder = find(folder / "module")
    np.testing.assert_allclose(encoder.layer(x), expected["encoder"], atol=TOLERANCE)
    np.testing.assert_allclose(decoder.layer(x), expected["decoder"], atol=TOLERANCE)
    assert (encoder.layer.reset_after, decoder.layer.reset_after) == (True, False)
    for one in (encoder, decoder):
        assert "assumed: activation='tanh', recurrent_activation='sigmoid'" in one.recognised
        assert "return_sequences=False, go_backwards=False" in one.recognised


def test_what_keras_3_exports(folder):
    x, _ = support.inputs()
    expected = support.expected("exported")
    layers = found(folder / "exported")
    forward, backward = (f"bidirectional/{half}_both" for half in ("forward", "backward"))
    assert list(layers) == [forward, backward, "last"]
    assert "go_backwards=True (by its name)" in layers[backward].recognised
    y, y_rev = expected["both"][:, -1, :3], expected["both"][:, 0, 3:]
    np.testing.assert_allclose(layers[forward].layer(x), y, atol=TOLERANCE)
    np.testing.assert_allclose(layers[backward].layer(x), y_rev, atol=TOLERANCE)
    last = layers["last"].layer(expected["both"])
    np.testing.assert_allclose(last, expected["last"], atol=TOLERANCE)


def test_without_a_bias_reset_after_is_assumed_too(tmp_path):
    (one,) = find(write_gru(tmp_path, random_weights(bias=None)))
    assert one.layer.reset_after
    assert "assumed" in one.recognised
    assert one.recognised.endswith("reset_after=True")
    assert "without bias" in one.convention


def test_nothing_that_looks_like_a_gru(tmp_path):
    kernel, recurrent, bias = random_weights()
    write_gru(tmp_path, [kernel[:, :8], recurrent, bias])
    with pytest.raises(ValueError, match=r"does not describe its layers .*gru/gru_cell/kernel"):
        find(tmp_path)


def test_two_weights_of_one_name_that_differ(tmp_path):
    write_gru(tmp_path, random_weights())
    nodes = [support.node({"one": 1, "other": 2})]
    nodes += [support.node(variable=("gru/gru_cell/kernel", key)) for key in ("a", "b")]
    graph = b"".join(field(1, n) for n in nodes)
    a, b = np.ones((2, 3), "float32"), np.zeros((2, 3), "float32")
    write_bundle(tmp_path, {"a": a, "b": b, support.GRAPH: graph})
    with pytest.raises(ValueError, match=r"one weight gru/gru_cell/kernel, got two that differ"):
        find(tmp_path)


# ---- the writer of these tests, and what it can write but TensorFlow would not -------------------


def test_the_tests_own_writer(tmp_path):
    given = random_weights()
    (one,) = find(write_gru(tmp_path, given, CONFIG, per_block=2))
    for ours, theirs in zip(one.layer.get_weights(), given, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_float64(tmp_path):
    given = [w.astype("float64") for w in random_weights()]
    (one,) = find(write_gru(tmp_path, given, {**CONFIG, "dtype": "float64"}))
    assert one.layer.dtype == "float64"
    (narrow,) = find(write_gru(tmp_path / "narrow", given, CONFIG))  # cast, as Keras' loading does
    for ours, theirs in zip(narrow.layer.get_weights(), given, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype("float32"))


def test_mixed_precision_has_its_weights_in_float32(tmp_path):
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    (one,) = find(write_gru(tmp_path, random_weights(), {**CONFIG, "dtype": policy}))
    assert one.layer.dtype == "float32"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 31, 255, 256, 1000, 4097])
def test_checksums(size):
    data = np.random.default_rng(size).bytes(size)
    assert bundle.crc32c(data) == support.crc32c(data)


def test_checksums_as_published():
    """RFC 3720, appendix B.4; and the usual nine digits."""
    assert bundle.crc32c(bytes(32)) == 0x8A9136AA
    assert bundle.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert bundle.crc32c(bytes(range(32))) == 0x46DD794E
    assert bundle.crc32c(b"123456789") == 0xE3069283


def test_half_the_data_lies_in_another_shard(tmp_path):
    given = random_weights()
    kernel = entry(support.FLOAT, (4, 9), 8, 144, support.masked(given[0].tobytes()), shard=1)
    write_gru(tmp_path, given, CONFIG, header=field(1, 2), entries={b"w/kernel": kernel})
    first = tmp_path / "variables/variables.data-00000-of-00001"
    first.rename(first.with_name("variables.data-00000-of-00002"))
    second = first.with_name("variables.data-00001-of-00002")
    second.write_bytes(b"12345678" + given[0].tobytes())
    (one,) = find(tmp_path)
    np.testing.assert_array_equal(one.layer.kernel.value, given[0])


def test_names_of_layers_in_wrappers_and_of_one_name(tmp_path):
    gru = json.dumps({"class_name": "GRU", "config": CONFIG})
    other = {
        path: json.dumps({"class_name": kind, "config": {"name": name}})
        for path, kind, name in (("wrapped", "TimeDistributed", "each"), ("block", "Mine", "block"))
    }
    paths = ["wrapped.layer", "block.gru", "block.layer", "a", "b"]
    write_layers(tmp_path, random_weights(), paths, other | dict.fromkeys(paths, gru))
    # "block" is named like a wrapper by chance; "a" and "b" are both called "gru".
    assert [one.name for one in find(tmp_path)] == ["each", "block/gru", "block", "a", "b"]


def test_without_any_framework(tmp_path):
    """Neither TensorFlow nor protobuf, not even h5py."""
    code = f"""
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {{
                    "tensorflow", "keras", "tf_keras", "torch", "onnx", "onnxruntime", "h5py",
                    "google", "safetensors", "jax",
                }}:
                    raise ImportError(f"{{name}} must not be imported")

        sys.meta_path.insert(0, Refuse())
        from fastgru.io.savedmodel import find

        print(len(find({str(unpack("nested", tmp_path))!r})))
    """
    assert subprocesses.run_python(code).split() == ["3"]


def test_the_code_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    unpack("nested", tmp_path).rename(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "io_savedmodel.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- code: runs as a test -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    names = {}
    exec(code, names)
    assert names["y"].shape == (2, 5, 6)
    assert capsys.readouterr().out == "shared gru encoder/gru\n"


def test_from_keras_reads_folders(folder):
    layers = fastgru.io.from_keras(folder / "nested")
    assert list(layers) == ["shared", "gru", "encoder/gru"]
    expected = support.expected("nested")
    pair = (expected["encoder"], expected["gru"])
    layer = fastgru.io.from_keras(folder / "nested", "gru", verify=pair)
    np.testing.assert_allclose(layer(pair[0]), pair[1], atol=TOLERANCE)
    with pytest.raises(ValueError, match="one of shared, gru, encoder/gru, got name='other'"):
        fastgru.io.from_keras(folder / "nested", "other")
