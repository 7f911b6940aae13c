"""Files made to do harm are refused, and nothing in them is executed, written or allocated."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import subprocesses
import torch_files
from exhaustive import EVERYTHING
from torch_files import integer, pickled_dict, plain_tensor, state_dict, tensor, text, write

import fastgru
from fastgru import io
from fastgru.io import torch_pickle
from fastgru.io.budget import Budget
from fastgru.io.torch import find
from fastgru.io.torch_pickle import load_pickle

DATA = Path(__file__).parents[1] / "data" / "torch"
I, H = 5, 4


def weights():
    return state_dict(np.random.default_rng(0), I, H)


def refused(path, message):
    with pytest.raises(ValueError, match=message) as raised:
        io.from_torch(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 2000


# ---- thousands of damaged files ------------------------------------------------------------------


def read_damaged(reader, files, seed, count):
    """Run tests/support/hostile_files.py."""
    script = subprocesses.SUPPORT / "hostile_files.py"
    done = subprocess.run(
        [sys.executable, "-P", script, reader, str(seed), str(count), *map(str, files)],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in /proc")
@pytest.mark.parametrize(
    "reader", ["fastgru.io.torch.find", "fastgru.io.from_torch", "fastgru.load"]
)
def test_damaged_files_are_read_or_refused(tmp_path, reader):
    """FASTGRU_EXHAUSTIVE=1: 40,000 with each reader instead of 400."""
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    names = ["gru.pt", "one_storage.pt", "bfloat16.pt", "gru.safetensors", "half.safetensors"]
    names += ["legacy.pt", "module.pt", "norm.pt", "tied.safetensors"]
    files = [DATA / name for name in names]
    if reader == "fastgru.io.torch.find":
        files.append(DATA / "checkpoint.pth")
    np.savez(tmp_path / "a.npz", **weights())
    np.save(tmp_path / "a.npy", weights(), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "arrays.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(weights(), 2))
    files += [tmp_path / name for name in ("a.npz", "a.npy", "arrays.pt")]
    if reader == "fastgru.load":
        files = [tmp_path / "a", tmp_path / "b"]
        half = fastgru.GRU(H, return_sequences=True, activation="relu", bias_constraint="max_norm")
        for path, layer in zip(
            files,
            [
                fastgru.GRU(H, reset_after=False),
                fastgru.Sequential(
                    [fastgru.Bidirectional(half), fastgru.RNN([fastgru.GRUCell(2)])]
                ),
            ],
            strict=True,
        ):
            layer.build((None, None, I))
            fastgru.save(layer, path)
    count = 40_000 if EVERYTHING else 400
    ends = read_damaged(reader, files, 7, count)
    assert ends["wrong"] == []
    assert ends["read"] + ends["refused"] == count
    assert ends["refused"] > count / 2
    assert ends["slowest"] < 2
    assert ends["memory"] < 500 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in /proc")
def test_that_would_see_other_errors():
    ends = read_damaged("zipfile.ZipFile", [DATA / "gru.pt"], 7, 50)
    assert any("BadZipFile" in wrong for wrong in ends["wrong"])


# ---- pickles -------------------------------------------------------------------------------------


def nested_tuples(depth):
    return b")" + b"\x85" * depth


def doubled_tuples(times):
    return b")q\0" + b"h\0h\0\x86q\0" * times


ATTACKS = {
    "os.system": b"cos\nsystem\n(X\x04\0\0\0trueR",
    "posix.system": b"cposix\nsystem\n(X\x04\0\0\0tru\0tR",
    "builtins.eval": b"cbuiltins\neval\n(X\x03\0\0\0a()tR",
    "builtins.getattr": b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\ntR",
    "by name on the stack": b"\x8c\x02os\x8c\x06system\x93",
    "by dotted name": b"\x8c\x05torch\x8c\x0f_utils.os.system\x93",
    "torch.load": b"ctorch\nload\n",
    "INST": b"(X\x04\0\0\0trueios\nsystem\n",
    "OBJ": b"(cos\nsystem\nX\x04\0\0\0trueo",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92",
    "EXT1": b"\x82\x01",
    "PERSID": b"Pstorage\n",
    "REDUCE of what is no function": b")\x85)R",
    "REDUCE of REDUCE": b"ccollections\nOrderedDict\n)R)R",
    "REDUCE of a storage": b"ctorch\nFloatStorage\n)R",
    "BUILD on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x08__code__Ns\x86b",
    "BUILD on a tensor": tensor("0", 60, (12, 5), (5, 1)) + b"}b",
    "OrderedDict of pairs": b"ccollections\nOrderedDict\n](K\1K\2\x86eq\x05\x85R",
    "a tuple as key": b"}" + nested_tuples(1) + b"Ns",
    "tuples too deep to hash": b"}" + nested_tuples(300_000) + b"Ns",
    "tuples too many to hash": b"}" + doubled_tuples(60) + b"Ns",
    "a dict as key": b"}}Ns",
    "a number as container": b"K\1K\2K\3s",
    "a list appended to a dict": b"}]a",
    "too few on the stack": b"a",
    "tuple under a mark": b"K\1(\x85",
    "an append under a mark": b"]K\1(a",
    "no mark": b"t",
    "a key without value": b"}(K\1u",
    "not in the memo": b"h\x05",
    "a string of gigabytes": b"X\xff\xff\xff\xffx",
    "bytes of gigabytes": b"B\xff\xff\xff\x7fx",
    "BINUNICODE8": b"\x8d" + b"\xff" * 8,
    "BINBYTES8": b"\x8e" + b"\xff" * 8,
    "BYTEARRAY8": b"\x96" + b"\xff" * 8,
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "a number of 255 bytes": b"\x8a\xff" + b"\1" * 255,
    "LONG": b"L" + b"9" * 100_000 + b"L\n",
    "not UTF-8": b"X\x02\0\0\0\xff\xfe",
    "a name without end": b"c" + b"a" * 1000,
    "a storage of another id": b"(" + text("module") + b"NNNtQ",
    "a storage without a type": b"("
    + text("storage")
    + b"ccollections\nOrderedDict\n"
    + text("0")
    + text("cpu")
    + b"K\1tQ",
    "a shape of strings": tensor("0", 60, (12, 5), (5, 1)).replace(integer(12), text("x")),
    "two objects": b"NN",
    "no object": b"",
}


# Well-formed: the object is skipped, and what stands beside it is read.
SKIPPED = {
    "posix.system": "posix.system",
    "builtins.eval": "builtins.eval",
    "builtins.getattr": "builtins.getattr",
    "by name on the stack": None,
    "torch.load": None,
    "NEWOBJ": None,
    "NEWOBJ_EX": None,
    "REDUCE of a storage": "torch.FloatStorage",
    "OrderedDict of pairs": None,
    "a tuple as key": None,
    "tuples too deep to hash": None,
    "a dict as key": None,
    "a number of 255 bytes": "int",
    "a storage without a type": "collections.OrderedDict",
    "an object with a state": "os._wrap_close",
}
ATTACKS["an object with a state"] = b"cos\n_wrap_close\n)\x81}X\1\0\0\0a]sb"


@pytest.mark.parametrize("name", SKIPPED)
def test_objects_of_other_classes_are_skipped(tmp_path, name, monkeypatch):
    def executed(*arguments):
        raise AssertionError(f"executed {arguments}")

    monkeypatch.setattr(os, "system", executed)  # hostile_files.py watches for all others
    good = {key: plain_tensor(str(i), w) for i, (key, w) in enumerate(weights().items())}
    members = {f"data/{i}": w.tobytes() for i, w in enumerate(weights().values())}
    path = write(tmp_path / "a.pt", pickled_dict({"extra": ATTACKS[name]} | good), members)
    for key, w in io.to_torch(io.from_torch(path)).items():
        np.testing.assert_array_equal(w, weights()[key])
    alone = load_pickle(b"\x80\x02" + ATTACKS[name] + b".", "here", Budget("here"))
    if SKIPPED[name]:
        assert alone.name == SKIPPED[name]
        path = write(tmp_path / "b.pt", pickled_dict(good | {"bias_hh_l0": ATTACKS[name]}))
        refused(path, f"expected bias_hh_l0 as a tensor .* got {SKIPPED[name]}")


@pytest.mark.alone
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in SKIPPED])
def test_pickles_that_are_no_state_dict(tmp_path, name, monkeypatch):
    """Alone, and as a value beside good weights; nothing is allocated for what they announce."""
    monkeypatch.setattr(os, "system", None)
    good = {key: plain_tensor(str(i), w) for i, (key, w) in enumerate(weights().items())}
    members = {f"data/{i}": w.tobytes() for i, w in enumerate(weights().values())}
    beside = pickled_dict(good | {"extra": ATTACKS[name]})
    tracemalloc.start()
    start = time.perf_counter()
    try:
        alone = b"\x80\x02" + ATTACKS[name] + b"."
        with pytest.raises(ValueError, match="here: "):
            load_pickle(alone, "here", Budget("here"))
        for data in (alone, beside):
            refused(write(tmp_path / "a.pt", data, members), "expected|damaged")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 200 << 20
    assert time.perf_counter() - start < 20  # tracemalloc makes it ten times slower


def test_the_good_weights_of_that_test_are_read(tmp_path):
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    for name, w in io.to_torch(io.from_torch(path)).items():
        np.testing.assert_array_equal(w, weights()[name])


def test_a_pickle_that_is_too_large(tmp_path):
    data = b"\x80\x02" + b"N0" * (1 << 20) + b"}."
    refused(write(tmp_path / "a.pt", data), "its pickle has more parts to visit")
    data = b"\x80\x02" + b"B" + struct.pack("<I", torch_pickle.MOST_BYTES) + b"."
    data += bytes(torch_pickle.MOST_BYTES)
    refused(write(tmp_path / "b.pt", data), "at most 33554432 bytes")


def test_all_that_plain_containers_need():
    """What Python's own pickler writes, in every protocol, comes back."""
    value = {"a": [1, -2, 300, 70_000, 2**40, -(2**62)], 3: (None, True, False, 1.5), "ü": {}}
    value |= {"t": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "long": "x" * 300, "l": [[], [0]]}
    value["again"] = value["a"]
    for protocol in (2, 3, 4, 5):
        got = load_pickle(pickle.dumps(value, protocol), "here", Budget("here"))
        assert got == value
        assert got["again"] is got["a"]
    many = list(range(3000))
    assert load_pickle(pickle.dumps([many, dict.fromkeys(many)], 4), "", Budget("here")) == [
        many,
        dict.fromkeys(many),
    ]
    assert load_pickle(pickle.dumps(b"abc", 3), "", Budget("here")) == b"abc"
    assert load_pickle(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86.", "", Budget("here")) == (
        None,
        None,
    )


def test_dicts_inside_themselves_and_each_other(tmp_path):
    good = weights()
    items = {key: plain_tensor(str(i), w) for i, (key, w) in enumerate(good.items())}
    members = {f"data/{i}": w.tobytes() for i, w in enumerate(good.values())}
    cycle = b"\x80\x02}q\x01(" + text("self") + b"h\x01"
    cycle += b"".join(text(k) + v for k, v in items.items()) + b"u."
    assert io.from_torch(write(tmp_path / "a.pt", cycle, members)).units == H
    bomb = b"\x80\x02}q\x01"  # each level holds the one before it twice
    for _ in range(60):
        bomb += b"}(" + text("a") + b"h\x01" + text("b") + b"h\x01uq\x01"
    refused(write(tmp_path / "b.pt", bomb + b"0h\x01."), "expected")
    deep = b"\x80\x02" + (b"}" + text("a")) * 10_000 + b"N" + b"s" * 10_000 + b"."
    refused(write(tmp_path / "c.pt", deep, members), "at most 64 deep")


# ---- tensors -------------------------------------------------------------------------------------


def one_tensor_changed(path, changed, **storages):
    """Write good weights, one of them described, or stored, otherwise."""
    good = weights()
    items = {key: plain_tensor(str(i), w) for i, (key, w) in enumerate(good.items())}
    members = {f"data/{i}": w.tobytes() for i, w in enumerate(good.values())}
    members |= {f"data/{key}": data for key, data in storages.items()}
    return write(path, pickled_dict(items | changed), members)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            tensor("1", 48, (3 * 2**40, 2**40), (2**40, 1)),
            r"weight_ih_l0 of shape \(3298534883328, 5\)",
        ),
        (tensor("1", 48, (12, 4), (2**62, 1)), "inside its storage"),
        (tensor("1", 48, (12, 4), (-4, 1)), "inside its storage"),
        (tensor("1", 48, (12, 4), (4, 1), offset=-1), "inside its storage"),
        (tensor("1", 48, (12, 4), (4, 1), offset=1), "inside its storage"),
        (tensor("1", 48, (12, 4), (4, 2)), "inside its storage"),
        (tensor("1", 48, (12, 4), (4,)), "inside its storage"),
        (tensor("1", 1, (12, 4), (0, 0)), "expected 1 elements of float32 in data/1, got 192"),
        (tensor("1", 2**40, (12, 4), (4, 1)), "expected 1099511627776 elements"),
        (tensor("1", -48, (12, 4), (4, 1)), "expected -48 elements"),
        (tensor("1", 24, (12, 4), (4, 1), storage="DoubleStorage"), "inside its storage"),
        (tensor("1", 48, (12, 4), (4, 1), storage="IntStorage"), "got int32; dequantise"),
        (tensor("1", 48, (-12, -4), (4, 1)), "expected weight_ih_l0"),
        (tensor("2", 12, (12, 4), (0, 1)), "inside its storage of 12 elements"),
        (tensor("../data.pkl", 48, (12, 4), (4, 1)), "expected a member"),
        (tensor("/etc/passwd", 48, (12, 4), (4, 1)), "expected a member"),
        (tensor("9", 48, (12, 4), (4, 1)), "expected a member archive/data/9"),
        (b"K\x05", "weight_hh_l0"),
    ],
)
def test_tensors_that_are_not_in_their_storage(tmp_path, described, message):
    refused(one_tensor_changed(tmp_path / "a.pt", {"weight_hh_l0": described}), message)


def test_gigantic_layers_in_small_files(tmp_path):
    """All shapes agree with each other, and not one byte of them is there."""
    h = 2**30
    items = {
        "weight_ih_l0": tensor("0", 3 * h * h, (3 * h, h), (h, 1)),
        "weight_hh_l0": tensor("1", 3 * h * h, (3 * h, h), (h, 1)),
    }
    path = write(tmp_path / "a.pt", pickled_dict(items), {"data/0": b"", "data/1": b""})
    refused(path, r"more than \d{8} bytes of memory from files of")
    expanded = {
        "weight_ih_l0": tensor("0", 1, (3 * 2**20, 2**20), (0, 0)),
        "weight_hh_l0": tensor("0", 1, (3 * 2**20, 2**20), (0, 0)),
    }
    path = write(tmp_path / "b.pt", pickled_dict(expanded), {"data/0": bytes(4)})
    refused(path, "overlapping tensors in a storage of 4")


def test_an_axis_of_one_may_have_any_stride(tmp_path):
    """As torch writes it: of a single step nothing depends on the stride."""
    good = state_dict(np.random.default_rng(0), 1, 1)
    items = {key: plain_tensor(str(i), w) for i, (key, w) in enumerate(good.items())}
    items["weight_ih_l0"] = tensor("0", 3, (3, 1), (1, 2**63 - 1))
    members = {f"data/{i}": w.tobytes() for i, w in enumerate(good.values())}
    layer = io.from_torch(write(tmp_path / "a.pt", pickled_dict(items), members))
    np.testing.assert_array_equal(io.to_torch(layer)["weight_ih_l0"], good["weight_ih_l0"])


# ---- archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil"])
def test_members_outside_the_archive(tmp_path, name):
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    refused(path, "plain unique member names")


def test_a_member_twice(tmp_path):
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"x")
    refused(path, "plain unique member names, got 'archive/data/0'")


@pytest.mark.skipif(sys.platform != "linux", reason="lists open files in /proc")
def test_a_refused_file_is_closed(tmp_path):
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("../evil"), b"x")
    with pytest.raises(ValueError, match="plain unique") as raised:
        io.from_torch(path)
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert str(path.resolve()) not in opened
    del raised  # until here its traceback kept everything alive


def test_compressed_members(tmp_path):
    """Torch compresses nothing, so a file is never larger unpacked than it is."""
    how = {"compression": zipfile.ZIP_DEFLATED}
    refused(torch_files.write_state_dict(tmp_path / "a.pt", weights(), **how), "compressed")
    h = 2000  # 48 MB of zeros in 47 KB
    items = {
        "weight_ih_l0": tensor("0", 3 * h * h, (3 * h, h), (h, 1)),
        "weight_hh_l0": tensor("0", 3 * h * h, (3 * h, h), (h, 1)),
    }
    members = {"data/0": bytes(12 * h * h)}
    refused(write(tmp_path / "b.pt", pickled_dict(items), members, **how), "compressed")


def central_directory(path):
    """Where each entry of the directory begins, and the file's bytes."""
    data = bytearray(path.read_bytes())
    starts, at = [], data.find(b"PK\1\2")
    while at >= 0:
        starts.append(at)
        at = data.find(b"PK\1\2", at + 1)
    return starts, data


def test_overlapping_members(tmp_path):
    """Entries of the directory that point to the same bytes, or into another's."""
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    starts, data = central_directory(path)
    second = struct.unpack_from("<I", data, starts[1] + 42)[0]
    for offset in (second, second + 5, 0):
        struct.pack_into("<I", data, starts[2] + 42, offset)
        path.write_bytes(data)
        refused(path, "overlaps another member")


def test_sizes_that_the_directory_makes_up(tmp_path):
    path = torch_files.write_state_dict(tmp_path / "a.pt", weights())
    for size in (0, 100, 241, 2**31, 2**32 - 2):
        starts, data = central_directory(path)
        struct.pack_into("<II", data, starts[3] + 20, size, size)
        (tmp_path / "b.pt").write_bytes(data)
        refused(tmp_path / "b.pt", "expected|overlaps|unpack|bytes it should be")


def test_a_storage_cut_short(tmp_path):
    whole = weights()["weight_ih_l0"].tobytes()
    path = one_tensor_changed(tmp_path / "a.pt", {}, **{"0": whole[:-1]})
    refused(path, "expected 60 elements of float32 in data/0, got 239 bytes")


def test_files_cut_at_every_byte(tmp_path):
    whole = (DATA / "bfloat16.pt").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        refused(tmp_path / "a.pt", "expected")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"byteorder": b"middle"}, "expected byteorder little or big, got 'middle'"),
        ({"constants.pkl": b"x"}, "TorchScript"),
        ({"!other/data.pkl": b"x"}, r"got archive/data\.pkl, !other/data\.pkl"),
    ],
)
def test_members_that_say_something_else(tmp_path, members, message):
    path = write(tmp_path / "a.pt", b"\x80\x02}.", members)
    refused(path, message)


def test_what_is_pickled_is_no_dict(tmp_path):
    for pickled, got in {b"].": "list", b"N.": "NoneType", b"K\1.": "int"}.items():
        refused(write(tmp_path / "a.pt", b"\x80\x02" + pickled), f"state dict, got a {got}")
    (tmp_path / "b.pt").write_bytes(b"PK\3\4 and no more")
    refused(tmp_path / "b.pt", "expected a zip file")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("data.pkl", b"\x80\x02}.")
    refused(tmp_path / "c.pt", "torch.save")
    assert find(write(tmp_path / "d.pt", b"\x80\x02}.")) == []
