"""SavedModels that TensorFlow would never write: wrong sizes, places, names and configs.

All checksums are right, so that the reader gets as far as the wrong value.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import savedmodel_support as support
from savedmodel_support import (
    CONFIG,
    entry,
    field,
    random_weights,
    varint,
    write_bundle,
    write_gru,
    write_layers,
)

from fastgru.io.savedmodel import find

KERNEL = random_weights()[0]
GOOD = support.masked(KERNEL.tobytes())
FORGED_ENTRIES = {
    "shape of 2^40": (
        entry(1, (2**40, 9), 0, 9 << 42, GOOD),
        "expected 39582418599936 bytes at byte 0",
    ),
    "units of 2^40": (entry(1, (4, 2**40), 0, 144, GOOD), "expected 17592186044416 bytes"),
    "many dimensions": (entry(1, (1,) * 9, 0, 144, GOOD), "at most 8 dimensions, got 9"),
    "size": (entry(1, (4, 9), 0, 145, GOOD), "expected 144 bytes"),
    "size of 2^62": (entry(1, (4, 9), 0, 2**62, GOOD), "expected 144 bytes"),
    "offset": (entry(1, (4, 9), 2**50, 144, GOOD), "expected 144 bytes at byte 1125899906842624"),
    "offset by one": (entry(1, (4, 9), 1, 144, GOOD), "its checksum is not"),
    "shard": (entry(1, (4, 9), 0, 144, GOOD, shard=1), "shard below 1, got 1"),
    "dtype": (entry(9, (4, 9), 0, 144, GOOD), "expected float16, float32 or float64, .* 9"),
    "slices": (entry(1, (4, 9), 0, 144, GOOD, more=field(7, b"")), "kept in slices"),
    "checksum": (entry(1, (4, 9), 0, 144, GOOD ^ 1), "its checksum is not"),
    "no field": (b"", "got TensorFlow's dtype number 0"),
    "no end of a number": (b"\x08" + b"\xff" * 20, "got none that ends"),
    "a number cut off": (b"\x08\xff", "got none that ends"),
    "a field cut off": (varint(2 << 3 | 2) + varint(2**60), "truncated or damaged"),
    "a group": (varint(2 << 3 | 3), "got type 3"),
    "bytes for a number": (field(5, b"12"), "expected a number as field 5"),
    "a number for bytes": (field(2, 12), "expected bytes as field 2"),
}


@pytest.mark.parametrize("case", FORGED_ENTRIES)
def test_a_forged_entry(tmp_path, case):
    forged, message = FORGED_ENTRIES[case]
    write_gru(tmp_path, random_weights(), CONFIG, entries={b"w/kernel": forged})
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
    "not sorted": ([pairs(b"b"), pairs(b"a")], "sorted names, got b'a' after b'b'"),
    "no header": ([pairs(b"a")], "expected a header, got 1 tensors"),
    "nothing": ([support.block([])], "expected a header, got 0 tensors"),
    "big-endian": ([support.block([(b"", field(2, 1))])], "got a big-endian one"),
    "no graph": ([pairs(b"")], "expected a tensor '_CHECKPOINTABLE_OBJECT_GRAPH'"),
}


@pytest.mark.parametrize("case", FORGED_BLOCKS)
def test_a_forged_index(tmp_path, case):
    blocks, message = FORGED_BLOCKS[case]
    write_gru(tmp_path, random_weights(), CONFIG)
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
    write_gru(tmp_path, random_weights(), CONFIG)
    path = tmp_path / "variables/variables.index"
    footer = varint(0) + varint(0) + varint(handle[0]) + varint(handle[1])
    path.write_bytes(path.read_bytes()[:-48] + footer.ljust(40, b"\0") + path.read_bytes()[-8:])
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


def test_one_block_named_again_and_again(tmp_path):
    """Handles to the same block would be read, and checked, without end."""
    write_gru(tmp_path, random_weights(), CONFIG)
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
    write_gru(tmp_path, random_weights(), CONFIG)
    path = tmp_path / "variables/variables.index"
    data = bytearray(path.read_bytes())
    size = len(support.block([(b"", b"")]))
    body = bytes(data[:size]) + b"\x01"
    index = support.block([(b"a", varint(0) + varint(size))]) + b"\0"
    parts = [part + support.masked(part).to_bytes(4, "little") for part in (body, index)]
    footer = varint(0) + varint(0) + varint(size + 5) + varint(len(index) - 1)
    path.write_bytes(b"".join(parts) + footer.ljust(40, b"\0") + bytes(data[-8:]))
    with pytest.raises(ValueError, match="got compression 1"):
        find(tmp_path)


FORGED_CONFIGS = {
    "other units": (
        {**CONFIG, "units": 4},
        r"units=4 and reset_after=True: expected a bias of shape \(2, 12\)",
    ),
    "units of 2^40": ({**CONFIG, "units": 2**40}, "units=1099511627776"),
    "no units": ({"name": "gru"}, "expected the key 'units'"),
    "units in words": ({**CONFIG, "units": "many"}, "units: expected a positive integer"),
    "reset before": ({**CONFIG, "reset_after": False}, "reset_after=False"),
    "no bias": (
        {**CONFIG, "use_bias": False},
        "expected 2 arrays .* use_bias=False, got 3",
    ),
    "unknown argument": ({**CONFIG, "surprise": 1}, "surprise"),
    "unknown activation": (
        {**CONFIG, "activation": "os.system"},
        "Unknown activation 'os.system'",
    ),
    "a dtype of lists": ({**CONFIG, "dtype": {"config": []}}, "root.gru: "),
}


@pytest.mark.parametrize("case", FORGED_CONFIGS)
def test_a_config_that_does_not_fit(tmp_path, case):
    config, message = FORGED_CONFIGS[case]
    with pytest.raises(ValueError, match=message) as error:
        find(write_gru(tmp_path, random_weights(), config))
    assert "root.gru" in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested deeper|not JSON"),  # Python reads them all, or gives up before
        ("[" * 300 + "]" * 300, "nested deeper"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper"),
        ('{"class_name": "RNN", "config": {"cell": ' * 20_000, "nested deeper|not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_forged_metadata(tmp_path, metadata, message):
    with pytest.raises(ValueError, match=message):
        find(write_gru(tmp_path, random_weights(), metadata=metadata))


def test_cells_in_cells_in_cells(tmp_path):
    cell = {"class_name": "GRUCell", "config": {"units": 3, "implementation": 2}}
    for _ in range(300):
        cell = {"class_name": "StackedRNNCells", "config": {"cells": [cell]}}
    folder = write_gru(tmp_path, random_weights(), {"cell": cell}, class_name="RNN")
    with pytest.raises(ValueError, match="nested"):
        find(folder)


def test_an_object_that_is_not_there(tmp_path):
    write_gru(tmp_path, random_weights(), CONFIG)
    graph = field(1, support.node({"gru": 7}))
    write_bundle(tmp_path, {support.GRAPH: graph})
    with pytest.raises(ValueError, match="expected one of 1 objects, got 7"):
        find(tmp_path)


def test_an_object_that_holds_itself(tmp_path):
    write_gru(
        tmp_path, random_weights(), metadata=json.dumps({"class_name": "GRU", "config": CONFIG})
    )
    write_bundle(tmp_path, {support.GRAPH: field(1, support.node({"gru": 0, "cell": 0}))})
    assert find(tmp_path) == [], "a layer without weights was never called"


def test_weights_that_many_layers_claim(tmp_path):
    """A file of a few bytes a layer may not have large weights read for each of them."""
    text = json.dumps({"class_name": "GRU", "config": CONFIG})
    few, many = ([f"gru{i}" for i in range(n)] for n in (4, 40))
    write_layers(tmp_path, random_weights(I=200_000), few, dict.fromkeys(few, text))
    assert len(find(tmp_path)) == 4
    write_layers(tmp_path, random_weights(I=200_000), many, dict.fromkeys(many, text))
    with pytest.raises(ValueError, match=r"more than .* bytes of memory"):
        find(tmp_path)


def test_a_layer_deep_below_the_model(tmp_path):
    write_gru(tmp_path, random_weights())
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
    write_gru(tmp_path, random_weights(), CONFIG)
    for name in ("variables/variables.data-00000-of-00001", "keras_metadata.pb"):
        path = tmp_path / name
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match=r"expected a plain file, got a pipe"):
            find(tmp_path)
        path.unlink()
        path.write_bytes(kept)
    assert find(tmp_path)


_opened = None  # a list while a test watches


def _watch(event, arguments):
    if _opened is not None and event == "open" and not isinstance(arguments[0], int):
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
            write_gru(
                folder, random_weights(), CONFIG, header=header, entries={b"w/kernel": kernel}
            )
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
            assert not any(flags & 3 for *_, flags in opened), "nothing is written"
