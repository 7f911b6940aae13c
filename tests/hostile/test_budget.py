"""Small files that would become gigabytes: refused, in little memory and time."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastgru import GRU
from fastgru.io import from_keras, from_torch, load_keras_weights, read_arrays
from fastgru.io.bounded import Archive, parse_json
from fastgru.io.budget import FREE_BYTES, LONGEST_MESSAGE, Budget, listed, reading, short
from fastgru.io.plain_files import open_plain

DATA = Path(__file__).parents[1] / "data"


def load(path):
    load_keras_weights(GRU(3), path)


# ---- the budget itself ---------------------------------------------------------------------------


def test_bytes_and_steps_are_in_proportion_to_the_files():
    budget = Budget("it")
    budget.make(FREE_BYTES)
    assert FREE_BYTES + (4 << 20) <= 64 << 20  # the rest is for what nobody counts
    with pytest.raises(ValueError, match=f"it: a name would take more than {FREE_BYTES} bytes"):
        budget.make(1, "a name")
    budget = Budget("it")
    budget.add(1 << 20)
    budget.make(FREE_BYTES + (4 << 20))
    with pytest.raises(ValueError, match="pass a larger max_bytes"):
        budget.make(1)
    with pytest.raises(ValueError, match="more parts to visit"):
        Budget("it").step(1 << 20)


def test_more_bytes_allow_more_steps():
    Budget("it", FREE_BYTES + (1 << 32)).step(1 << 22)
    with pytest.raises(ValueError, match=r"more parts to visit.*pass a larger max_bytes"):
        Budget("it", FREE_BYTES + (1 << 20)).step(1 << 22)
    with pytest.raises(ValueError, match="more parts to visit"):
        Budget("it", 100).step(1 << 20)


def test_max_bytes(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.ones(1000))
    assert read_arrays(tmp_path / "m.npz", max_bytes=1 << 20)["w"].size == 1000
    with pytest.raises(ValueError, match="would take more than 100 bytes"):
        read_arrays(tmp_path / "m.npz", max_bytes=100)
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_bytes"):
            read_arrays(tmp_path / "m.npz", max_bytes=wrong)


def test_a_file_counts_once_however_often_it_is_opened():
    budget = Budget("it")
    path = DATA / "keras" / "nested.h5"
    for _ in range(3):
        budget.open(path).close()
    assert budget.size == path.stat().st_size


def test_messages_are_short():
    assert short("a" * 1000).startswith("aaa")
    assert len(short("a" * 1000)) <= 300
    assert listed(["a" * 1000] * 1000).count("...") > 20
    with pytest.raises(ValueError, match=r"^x") as caught, reading("it"):
        raise ValueError("x" * 10**7 + " y" * 10**6)
    assert len(str(caught.value)) <= LONGEST_MESSAGE


def test_a_long_error_of_another_class_is_cut_too():
    with pytest.raises(ValueError, match=r"^'utf-8' codec") as caught, reading("it"):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x " * 10**5)
    assert len(str(caught.value)) <= LONGEST_MESSAGE


# ---- zip and JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_before_they_are_unpacked(method, tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("config.json", "{}" * 10**6)
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match="stored or deflated, got method"):
        from_keras(path)


def test_a_member_that_unpacks_to_much_more(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, w=np.zeros(40_000_000))
    with pytest.raises(ValueError, match=r"w\.npy would take more than"):
        read_arrays(path)


def test_a_directory_of_a_million_members(tmp_path):
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *[0] * 9, 1, *[0] * 6) + b"a"
    count = 65_535
    size = len(entry) * count
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, 0, 0)
    (tmp_path / "m.npz").write_bytes(entry * count + end)
    with (
        pytest.raises(ValueError, match="its directory"),
        Archive(tmp_path / "m.npz", Budget("it")),
    ):
        pass


JSON = {
    "objects": "[" + "{}," * 2_000_000 + "0]",
    "lists": "[" + "[]," * 2_000_000 + "0]",
    "one in each": "[" + '{"a":1},' * 500_000 + "0]",
    "wide": '["' + "a" * 20_000_000 + '\\ud83d\\ude00"]',
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_becomes_many_objects(kind):
    budget = Budget("it")
    budget.add(len(JSON[kind]) // 100)  # as deflated
    with pytest.raises(ValueError, match="JSON would take more than"):
        parse_json(JSON[kind], budget)


def test_a_vocabulary_costs_little():
    words = ",".join(f'"token_{i}"' for i in range(300_000))
    text = f'{{"vocabulary": [{words}], "units": [1, 2], "name": "[\\"a\\", 1]"}}'
    budget = Budget("it")
    assert parse_json(text, budget) == {"vocabulary": [], "units": [1, 2], "name": '["a", 1]'}
    assert parse_json(text.encode(), budget)["units"] == [1, 2]


# ---- names that share bytes, objects that are linked again and again -----------------------------


def test_a_long_key_around_many_weights(tmp_path):
    """Names are joined to paths: a megabyte for each of four thousand weights."""
    inner = {f"weight_ih_l{i}": None for i in range(4000)}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"k" * 1000: inner, "n" * 10**6: inner}, 2))
    with pytest.raises(ValueError, match="expected") as caught:
        from_torch(tmp_path / "m.pt")
    assert len(str(caught.value)) <= LONGEST_MESSAGE


def test_a_pickle_of_many_empty_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02(" + b"}" * 3_000_000 + b"l.")
    with pytest.raises(ValueError, match="its pickle"):
        from_torch(tmp_path / "m.pt")


def test_links_in_hdf5_as_a_graph(tmp_path):
    """Two ways at each of 24 levels: 16 million paths to one group."""
    h5py = pytest.importorskip("h5py", reason="it writes the file")
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        below = file.create_group("end")
        below["w"] = np.ones((2, 2), "float32")
        for level in range(24):
            node = file.create_group(f"n{level}")
            node["x"] = node["y"] = below
            below = node
    with pytest.raises(ValueError, match=r"more parts to visit|would take more than"):
        read_arrays(path)
    layer = GRU(4, name="g")
    with pytest.raises(ValueError, match="expected weights of one gru"):
        load_keras_weights(layer, path)
    assert not layer.built


def test_names_in_hdf5_that_are_ends_of_each_other():
    """A group's names may begin in the middle of each other."""
    h5py = pytest.importorskip("h5py", reason="it writes the file")
    from fastgru.io import hdf5

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number in range(8):
            file.create_group(f"{'a' * 400}{number}")
    data = buffer.getvalue()
    budget = Budget("m.h5", 2000)
    with pytest.raises(ValueError, match="would take more than 2000 bytes"):
        hdf5.File(data, "m.h5", budget)


def test_strings_in_hdf5_that_are_one_object(tmp_path):
    """Each of 600 names is a reference to the same half megabyte."""
    h5py = pytest.importorskip("h5py", reason="it writes the file")
    path, count, size = tmp_path / "m.h5", 600, 500_000
    with h5py.File(path, "w") as file:
        names = np.array([f"{number:07d}" for number in range(count)], object)
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype("ascii"))
    raw = bytearray(path.read_bytes())
    end = len(raw)
    raw += b"GCOL\1\0\0\0" + struct.pack("<QHHIQ", 32 + size, 1, 1, 0, size) + b"a" * size
    changed = 0
    for place in range(end - 16):  # references: length, address of the heap, number in it
        length, heap, number = struct.unpack_from("<IQI", raw, place)
        if length == 7 and raw[heap : heap + 4] == b"GCOL" and 0 < number < 1 << 16:
            struct.pack_into("<IQI", raw, place, size - 1, end, 1)
            changed += 1
    assert changed == count
    raw[40:48] = struct.pack("<Q", len(raw))  # the superblock's end of file
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="attribute layer_names would take more than"):
        load(path)


# ---- files ---------------------------------------------------------------------------------------


def test_a_link_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"x")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ValueError, match="a link that leads out of it"):
        open_plain(folder / "w.bin", [folder.resolve()])
    file, status = open_plain(tmp_path / "w.bin", [tmp_path.resolve()])
    with file:
        assert status.st_size == 1


@pytest.mark.parametrize("reader", [from_keras, from_torch, read_arrays, load])
def test_pipes_are_not_waited_for(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected"):
        reader(tmp_path / "pipe")


@pytest.mark.parametrize("reader", [from_keras, from_torch, read_arrays])
def test_devices_are_no_models(reader):
    with pytest.raises(ValueError, match="expected a plain file, got a device"):
        reader("/dev/zero")
