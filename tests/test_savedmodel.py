"""fastgru.io.savedmodel on what TensorFlow, Keras 2 and Keras 3 wrote, and on forgeries."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support as support
import subprocesses
from savedmodel_support import entry, field, unpack, varint, write_bundle, write_gru

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
    assert f"reset_after={fastgru_reset_after(layer)}" in grid[name].recognised


def fastgru_reset_after(layer):
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


def weights(seed=0, I=4, H=3, bias=(2, 9)):
    rng = np.random.default_rng(seed)
    shapes = [(I, 3 * H), (H, 3 * H), *([bias] if bias else [])]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


CONFIG = {"name": "gru", "units": 3, "implementation": 2, "reset_after": True}


def test_without_a_bias_reset_after_is_assumed_too(tmp_path):
    (one,) = find(write_gru(tmp_path, weights(bias=None)))
    assert one.layer.reset_after
    assert "assumed" in one.recognised
    assert one.recognised.endswith("reset_after=True")
    assert "no bias" in one.convention


def test_nothing_that_looks_like_a_gru(tmp_path):
    kernel, recurrent, bias = weights()
    write_gru(tmp_path, [kernel[:, :8], recurrent, bias])
    with pytest.raises(ValueError, match=r"does not describe its layers .*gru/gru_cell/kernel"):
        find(tmp_path)


def test_two_weights_of_one_name_that_differ(tmp_path):
    write_gru(tmp_path, weights())
    nodes = [support.node(variable=("gru/gru_cell/kernel", key)) for key in ("a", "b")]
    graph = b"".join(field(1, n) for n in nodes)
    a, b = np.ones((2, 3), "float32"), np.zeros((2, 3), "float32")
    write_bundle(tmp_path, {"a": a, "b": b, support.GRAPH: graph})
    with pytest.raises(ValueError, match=r"one weight gru/gru_cell/kernel, came two that differ"):
        find(tmp_path)


# ---- the writer of these tests, and what it can write but TensorFlow would not -------------------


def test_the_tests_own_writer(tmp_path):
    given = weights()
    (one,) = find(write_gru(tmp_path, given, CONFIG, per_block=2))
    for ours, theirs in zip(one.layer.get_weights(), given, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_float64(tmp_path):
    given = [w.astype("float64") for w in weights()]
    (one,) = find(write_gru(tmp_path, given, {**CONFIG, "dtype": "float64"}))
    assert one.layer.dtype == "float64"
    with pytest.raises(ValueError, match="do not fit"):
        find(write_gru(tmp_path / "narrow", given, CONFIG))


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
    given = weights()
    kernel = entry(support.FLOAT, (4, 9), 8, 144, support.masked(given[0].tobytes()), shard=1)
    write_gru(tmp_path, given, CONFIG, header=field(1, 2), entries={b"w/kernel": kernel})
    first = tmp_path / "variables/variables.data-00000-of-00001"
    first.rename(first.with_name("variables.data-00000-of-00002"))
    second = first.with_name("variables.data-00001-of-00002")
    second.write_bytes(b"12345678" + given[0].tobytes())
    (one,) = find(tmp_path)
    np.testing.assert_array_equal(one.layer.kernel.value, given[0])


KERNEL = weights()[0]
GOOD = support.masked(KERNEL.tobytes())
FORGED_ENTRIES = {
    "shape of 2^40": (
        entry(1, (2**40, 9), 0, 9 << 42, GOOD),
        "expected 39582418599936 bytes at byte 0",
    ),
    "units of 2^40": (entry(1, (4, 2**40), 0, 144, GOOD), r"of shapes \[\(4, 9\)"),
    "many dimensions": (entry(1, (1,) * 9, 0, 144, GOOD), "at most 8 dimensions, came 9"),
    "size": (entry(1, (4, 9), 0, 145, GOOD), "expected 144 bytes"),
    "size of 2^62": (entry(1, (4, 9), 0, 2**62, GOOD), "expected 144 bytes"),
    "offset": (entry(1, (4, 9), 2**50, 144, GOOD), "expected 144 bytes at byte 1125899906842624"),
    "offset by one": (entry(1, (4, 9), 1, 144, GOOD), "its checksum is not"),
    "shard": (entry(1, (4, 9), 0, 144, GOOD, shard=1), "shard below 1, came 1"),
    "dtype": (entry(9, (4, 9), 0, 144, GOOD), "expected float16, float32 or float64, .* 9"),
    "slices": (entry(1, (4, 9), 0, 144, GOOD, more=field(7, b"")), "kept in slices"),
    "checksum": (entry(1, (4, 9), 0, 144, GOOD ^ 1), "its checksum is not"),
    "no field": (b"", r"came \[\(\)"),
    "no end of a number": (b"\x08" + b"\xff" * 20, "came none that ends"),
    "a number cut off": (b"\x08\xff", "came none that ends"),
    "a field cut off": (varint(2 << 3 | 2) + varint(2**60), "truncated or damaged"),
    "a group": (varint(2 << 3 | 3), "came type 3"),
    "bytes for a number": (field(5, b"12"), "expected a number as field 5"),
    "a number for bytes": (field(2, 12), "expected bytes as field 2"),
}


@pytest.mark.parametrize("case", FORGED_ENTRIES)
def test_a_forged_entry(tmp_path, case):
    forged, message = FORGED_ENTRIES[case]
    write_gru(tmp_path, weights(), CONFIG, entries={b"w/kernel": forged})
    with pytest.raises(ValueError, match=message) as error:
        find(tmp_path)
    assert str(tmp_path) in str(error.value)


def pairs(*keys):
    return support.block([(key, b"") for key in keys])


RESTARTS = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
FORGED_BLOCKS = {
    "prefix of nothing": ([b"\x05\x00\x00" + RESTARTS], "entry within 3 bytes"),
    "prefixes without end": ([b"\x00\x02\x00ab" + b"\x02\x00\x00" * 9 + RESTARTS], "sorted names"),
    "keys that grow": (
        [b"\x00\x01\x00a" + b"".join(varint(n) + b"\x01\x00a" for n in range(1, 5000)) + RESTARTS],
        "4096 \\+ 1 characters",
    ),
    "length of 2^60": ([b"\x00\x01" + varint(2**60) + b"a" + RESTARTS], "entry within"),
    "restarts": ([b"\xff" * 8], "bytes of restarts"),
    "not sorted": ([pairs(b"b"), pairs(b"a")], "sorted names, came b'a' after b'b'"),
    "no header": ([pairs(b"a")], "expected a header, came 1 tensors"),
    "nothing": ([support.block([])], "expected a header, came 0 tensors"),
    "big-endian": ([support.block([(b"", field(2, 1))])], "came a big-endian one"),
    "no graph": ([pairs(b"")], "expected a tensor '_CHECKPOINTABLE_OBJECT_GRAPH'"),
}


@pytest.mark.parametrize("case", FORGED_BLOCKS)
def test_a_forged_index(tmp_path, case):
    blocks, message = FORGED_BLOCKS[case]
    write_gru(tmp_path, weights(), CONFIG)
    (tmp_path / "variables/variables.index").write_bytes(support.table(blocks))
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ((0, 2**50), "expected a block between bytes"),
        ((2**50, 40), "expected a block between bytes"),
        ((1, 40), "is damaged"),
        ((0, 3), "expected a block between"),
    ],
)
def test_a_forged_handle(tmp_path, handle, message):
    write_gru(tmp_path, weights(), CONFIG)
    path = tmp_path / "variables/variables.index"
    footer = varint(0) + varint(0) + varint(handle[0]) + varint(handle[1])
    path.write_bytes(path.read_bytes()[:-48] + footer.ljust(40, b"\0") + path.read_bytes()[-8:])
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


def test_one_block_named_again_and_again(tmp_path):
    """Handles to the same block would be read, and checked, without end."""
    write_gru(tmp_path, weights(), CONFIG)
    path = tmp_path / "variables/variables.index"
    data = pairs(b"") + b"\0"
    handles = [(b"%05d" % i, varint(0) + varint(len(data) - 1)) for i in range(3)]
    index = support.block(handles) + b"\0"
    blocks = [part + support.masked(part).to_bytes(4, "little") for part in (data, index)]
    footer = varint(0) + varint(0) + varint(len(blocks[0])) + varint(len(index) - 1)
    magic = path.read_bytes()[-8:]
    path.write_bytes(b"".join(blocks) + footer.ljust(40, b"\0") + magic)
    with pytest.raises(ValueError, match=rf"expected a block between bytes {len(blocks[0])}"):
        find(tmp_path)


def test_a_compressed_block(tmp_path):
    write_gru(tmp_path, weights(), CONFIG)
    path = tmp_path / "variables/variables.index"
    data = bytearray(path.read_bytes())
    size = len(support.block([(b"", b"")]))
    body = bytes(data[:size]) + b"\x01"
    index = support.block([(b"a", varint(0) + varint(size))]) + b"\0"
    parts = [part + support.masked(part).to_bytes(4, "little") for part in (body, index)]
    footer = varint(0) + varint(0) + varint(size + 5) + varint(len(index) - 1)
    path.write_bytes(b"".join(parts) + footer.ljust(40, b"\0") + bytes(data[-8:]))
    with pytest.raises(ValueError, match="came compression 1"):
        find(tmp_path)


FORGED_CONFIGS = {
    "other units": ({**CONFIG, "units": 4}, r"for 4 units and reset_after=True, came \[\(4, 9\)"),
    "units of 2^40": ({**CONFIG, "units": 2**40}, "for 1099511627776 units"),
    "no units": ({"name": "gru"}, "config cannot be read: .*'units'"),
    "units in words": ({**CONFIG, "units": "many"}, "config cannot be read: units"),
    "reset before": ({**CONFIG, "reset_after": False}, "reset_after=False"),
    "no bias": (
        {**CONFIG, "use_bias": False},
        "expected the weights kernel, recurrent_kernel, came",
    ),
    "unknown argument": ({**CONFIG, "surprise": 1}, "config cannot be read: .*surprise"),
    "unknown activation": (
        {**CONFIG, "activation": "os.system"},
        "config cannot be read: .*os.system",
    ),
    "a dtype of lists": ({**CONFIG, "dtype": {"config": []}}, "config cannot be read"),
}


@pytest.mark.parametrize("case", FORGED_CONFIGS)
def test_a_config_that_does_not_fit(tmp_path, case):
    config, message = FORGED_CONFIGS[case]
    with pytest.raises(ValueError, match=message) as error:
        find(write_gru(tmp_path, weights(), config))
    assert "root.gru" in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested deeper"),
        ('{"class_name": "RNN", "config": {"cell": ' * 20_000, "nested deeper"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_forged_metadata(tmp_path, metadata, message):
    with pytest.raises(ValueError, match=message):
        find(write_gru(tmp_path, weights(), metadata=metadata))


def test_cells_in_cells_in_cells(tmp_path):
    cell = {"class_name": "GRUCell", "config": {"units": 3, "implementation": 2}}
    for _ in range(300):
        cell = {"class_name": "StackedRNNCells", "config": {"cells": [cell]}}
    folder = write_gru(tmp_path, weights(), {"cell": cell}, class_name="RNN")
    assert find(folder) == [], "there are no such cells in the checkpoint"


def test_an_object_that_is_not_there(tmp_path):
    write_gru(tmp_path, weights(), CONFIG)
    graph = field(1, support.node({"gru": 7}))
    write_bundle(tmp_path, {support.GRAPH: graph})
    with pytest.raises(ValueError, match="expected one of 1 objects, came 7"):
        find(tmp_path)


def test_an_object_that_holds_itself(tmp_path):
    write_gru(tmp_path, weights(), metadata=json.dumps({"class_name": "GRU", "config": CONFIG}))
    write_bundle(tmp_path, {support.GRAPH: field(1, support.node({"gru": 0, "cell": 0}))})
    assert find(tmp_path) == [], "a layer without weights was never called"


def test_weights_that_many_layers_claim(tmp_path):
    """A file of a few bytes a layer may not have large weights read for each of them."""
    write_gru(tmp_path, weights(I=200_000))
    count = 40
    children = {f"gru{i}": 1 + i for i in range(count)}
    nodes = [support.node(children), *[support.node({"cell": count + 1})] * count]
    roles = ("kernel", "recurrent_kernel", "bias")
    nodes.append(support.node({role: count + 2 + i for i, role in enumerate(roles)}))
    nodes += [support.node(variable=("w", f"w/{role}")) for role in roles]
    tensors = {f"w/{role}": w for role, w in zip(roles, weights(I=200_000), strict=True)}
    write_bundle(tmp_path, {**tensors, support.GRAPH: b"".join(field(1, n) for n in nodes)})
    text = json.dumps({"class_name": "GRU", "config": CONFIG})
    described = [
        field(1, field(3, f"root.gru{i}") + field(4, "_tf_keras_rnn_layer") + field(5, text))
        for i in range(count)
    ]
    (tmp_path / "keras_metadata.pb").write_bytes(b"".join(described))
    with pytest.raises(ValueError, match="more weights than 4 times the data"):
        find(tmp_path)


def test_a_layer_deep_below_the_model(tmp_path):
    write_gru(tmp_path, weights())
    node = field(3, "root" + ".a" * 100) + field(4, "_tf_keras_layer") + field(5, "{}")
    (tmp_path / "keras_metadata.pb").write_bytes(field(1, node))
    with pytest.raises(ValueError, match="at most 50 objects in each other"):
        find(tmp_path)


# ---- files ---------------------------------------------------------------------------------------


def test_folders_that_are_no_savedmodels(tmp_path):
    with pytest.raises(ValueError, match="expected a SavedModel"):
        find(tmp_path)
    with pytest.raises(ValueError, match="expected a SavedModel"):
        find(tmp_path / "absent")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"variables.index: expected a file"):
        find(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    write_gru(tmp_path, weights(), CONFIG)
    for name in ("variables/variables.data-00000-of-00001", "keras_metadata.pb"):
        path = tmp_path / name
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match="expected a file there"):
            find(tmp_path)
        path.unlink()
        path.write_bytes(kept)
    assert find(tmp_path)


_opened = None  # a list while a test watches


def _watch(event, arguments):
    if _opened is not None and event == "open":
        _opened.append(arguments)


def test_no_file_outside_the_folder_is_opened(tmp_path):
    """Names of shards are made of two numbers; whatever stands in the index, nothing else opens."""
    global _opened
    sys.addaudithook(_watch)
    forged = [b"../../../etc/passwd", varint(2**63), b"/etc/passwd", b"\0", b"..", b"-1"]
    for i, text in enumerate(forged):
        for number in range(1, 8):
            folder = tmp_path / f"{i}-{number}"
            kernel = entry(1, (4, 9), 0, 144, GOOD, shard=i * 7, more=field(number, text))
            header = field(1, 10**i) + field(number + 2, text)
            write_gru(folder, weights(), CONFIG, header=header, entries={b"w/kernel": kernel})
            _opened = []
            try:
                find(folder)
            except ValueError:
                pass
            finally:
                opened, _opened = _opened, None
            names = {str(Path(path).relative_to(folder)) for path, *_ in opened}
            assert names
            pattern = (
                r"(saved_model|keras_metadata)\.pb|variables/variables\.(index|data-\d+-of-\d+)"
            )
            assert all(re.fullmatch(pattern, name) for name in names)
            assert {mode for _, mode, _ in opened} == {"r"}, "nothing is written"


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
